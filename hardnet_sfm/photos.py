"""A decoded photo, the camera data of its file, where photos come from, and what turns or shrinks pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Affine2 = NDArray[np.float64]
Size = tuple[int, int]
"""Width and height in pixels."""
# What turns the pixels as stored upright: steps down and right, then whether rows become columns.
_TURNS = {
    1: (1, 1, False),
    2: (1, -1, False),
    3: (-1, -1, False),
    4: (-1, 1, False),
    5: (1, 1, True),
    6: (-1, 1, True),
    7: (-1, -1, True),
    8: (1, -1, True),
}


@dataclass(frozen=True)
class Photo:
    """A decoded photo.

    Attributes:
        grey: (H, W) uint8, upright: EXIF orientation applied.
        orientation: the EXIF orientation tag, 1 to 8, that was applied.
        sha256: sha256 of the file's bytes.
    """

    grey: NDArray[np.uint8]
    orientation: int
    sha256: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright photo in pixels."""
        return self.grey.shape[1], self.grey.shape[0]


@dataclass(frozen=True)
class Lens:
    """The camera data in a photo file. Missing and invalid values are "" and 0.

    Attributes:
        make, model, lens: names of the manufacturer, the camera and the lens.
        focal_length: mm.
        focal_length_35mm: focal length that gives the same field of view on 35 mm film, mm.
        zoom: digital zoom.
    """

    make: str = ""
    model: str = ""
    lens: str = ""
    focal_length: float = 0.0
    focal_length_35mm: float = 0.0
    zoom: float = 0.0

    @property
    def knows_focal_length(self) -> bool:
        """Whether the file states a focal length."""
        return max(self.focal_length, self.focal_length_35mm) > 0


class PhotoSource(Protocol):
    """Gives photos by their names. Its methods raise HardnetSfmError for a photo that cannot be read."""

    def names(self) -> list[str]:
        """Lists the names of all photos."""

    def photo(self, name: str) -> Photo:
        """Returns the decoded photo."""

    def colours(self, name: str) -> NDArray[np.uint8]:
        """Returns the upright (H, W, 3) RGB photo."""

    def small(self, name: str, longest_side: int) -> NDArray[np.uint8]:
        """Returns the upright (H, W, 3) RGB photo, shrunk so that no side is longer than `longest_side` pixels."""

    def size(self, name: str) -> tuple[int, int]:
        """Returns width and height of the upright photo, pixels."""

    def orientation(self, name: str) -> int:
        """Returns the EXIF orientation, 1 to 8; 1 if the photo cannot be read."""


def upright(sensor: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Applies an EXIF orientation to the pixels as stored, (H, W) or (H, W, C)."""
    down, right, transposed = _TURNS.get(orientation, _TURNS[1])
    turned = sensor[::down, ::right]
    return np.ascontiguousarray(turned.swapaxes(0, 1) if transposed else turned)


def sensor_from_upright(orientation: int, size: tuple[int, int]) -> Affine2:
    """Returns the (2, 3) affine map from upright pixels to the pixels as stored in the file, centres at whole numbers.

    COLMAP reads the pixels as stored and ignores the EXIF orientation, so that portrait and landscape photos share one
    camera. Keypoints pass through this map on their way into a database.

    Args:
        orientation: EXIF orientation, 1 to 8.
        size: (width, height) of the upright photo, pixels.
    """
    down, right, transposed = _TURNS[orientation]
    linear = np.diag([right, down]).astype(np.float64)
    stored = size[::-1] if transposed else size
    shift = [side - 1 if step < 0 else 0 for side, step in zip(stored, (right, down), strict=True)]
    return np.column_stack([linear[:, ::-1] if transposed else linear, shift])


def resize_to_fit(grey: NDArray[np.uint8], longest_side: int) -> NDArray[np.uint8]:
    """Shrinks a photo by pixel-area averaging so that no side is longer than `longest_side` pixels.

    It never enlarges.
    """
    height, width = grey.shape[:2]
    factor = longest_side / max(height, width)
    if factor >= 1:
        return grey
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
