"""Photos on disk: pixels, sizes, camera data and fingerprints. This module never writes to a photo."""

from __future__ import annotations

import contextlib
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_decoding import (
    CAN_READ_HEIC,
    HEIC_BRANDS,
    HEIC_HINT,
    decode,
    exif_orientation,
    open_image,
)

# Diagonal of 35 mm film, mm.
FILM_DIAGONAL = 43.27
_EXIF_MAKE, _EXIF_MODEL, _EXIF_DETAILS = 0x010F, 0x0110, 0x8769
_EXIF_FOCAL_LENGTH, _EXIF_FOCAL_LENGTH_35MM, _EXIF_DIGITAL_ZOOM, _EXIF_LENS = 0x920A, 0xA405, 0xA404, 0xA434
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
# Bounds of focal lengths: in mm, and as shares of the longer side of the photo.
_SHORTEST, _LONGEST = 0.5, 5000.0
_WIDEST, _NARROWEST = 0.15, 100.0

Affine2 = NDArray[np.float64]


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


def read_photo(path: Path) -> Photo:
    """Decodes a photo of any supported format and depth to upright 8-bit grey, see `photo_decoding.decode`.

    Raises:
        HardnetSfmError: the file is missing, empty, truncated at its head or not a photo.
    """
    data = _read(path)
    orientation = exif_orientation(data)
    return Photo(upright(_decode(path, data, "L"), orientation), orientation, hashlib.sha256(data).hexdigest())


def read_colours(path: Path) -> NDArray[np.uint8]:
    """Decodes a photo to upright (H, W, 3) uint8 RGB for display, otherwise like `read_photo`.

    Raises:
        HardnetSfmError: the file is missing, empty, truncated at its head or not a photo.
    """
    data = _read(path)
    return upright(_decode(path, data, "RGB"), exif_orientation(data))


def read_as_stored(path: Path) -> NDArray[np.uint8]:
    """Decodes a photo to (H, W, 3) uint8 RGB without applying its EXIF orientation, otherwise like `read_colours`."""
    return _decode(path, _read(path), "RGB")


def read_small(path: Path, longest_side: int) -> NDArray[np.uint8]:
    """Decodes a photo like `read_colours`, shrunk so that no side is longer than `longest_side` pixels.

    A large JPEG is decoded at a half, a quarter or an eighth of its size, which takes a similar fraction of the time.

    Raises:
        HardnetSfmError: the file is missing, empty, truncated at its head or not a photo.
    """
    data = _read(path)
    sensor = _decode_reduced(data, longest_side)
    photo = upright(_decode(path, data, "RGB") if sensor is None else sensor, exif_orientation(data))
    return resize_to_fit(photo, longest_side)


def size_of(path: Path) -> tuple[int, int]:
    """Returns width and height of the upright photo. Most formats need no decoding of pixels for it.

    Raises:
        HardnetSfmError: the file is missing, empty or not a photo.
    """
    width, height = stored_size_of(path)
    return (height, width) if exif_orientation(path) >= 5 else (width, height)


def stored_size_of(path: Path) -> tuple[int, int]:
    """Returns width and height of the photo as stored, before EXIF orientation, otherwise like `size_of`.

    Raises:
        HardnetSfmError: the file is missing, empty or not a photo.
    """
    image = open_image(path)
    if image is None:
        pixels = _decode(path, _read(path), "L")
        return pixels.shape[1], pixels.shape[0]
    with image:
        if isinstance(image, TiffImageFile):  # Pillow states the size of the upright picture
            return int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
        return image.size


def read_lens(path: Path) -> Lens:
    """Reads the camera data of a photo file, without its pixels. An unreadable file gives empty data.

    A focal length that no lens has counts as missing.
    """
    image = open_image(path)
    if image is None:
        return Lens()
    with image, contextlib.suppress(Exception):  # Pillow raises nearly everything for damaged tags
        tags = image.getexif()
        details = tags.get_ifd(_EXIF_DETAILS)
        focal_length = _exif_number(details.get(_EXIF_FOCAL_LENGTH))
        on_film = _exif_number(details.get(_EXIF_FOCAL_LENGTH_35MM))
        return Lens(
            _exif_text(tags.get(_EXIF_MAKE)),
            _exif_text(tags.get(_EXIF_MODEL)),
            _exif_text(details.get(_EXIF_LENS)),
            focal_length if _SHORTEST <= focal_length <= _LONGEST else 0.0,
            on_film if is_plausible(on_film / FILM_DIAGONAL * math.hypot(*image.size), image.size) else 0.0,
            _exif_number(details.get(_EXIF_DIGITAL_ZOOM)),
        )
    return Lens()


def is_plausible(focal_length: float, size: tuple[int, int]) -> bool:
    """Says whether a lens can have this focal length in pixels, for photos of this width and height.

    The widest lens made, Nikon's fisheye of 6 mm with a view of 220 degrees, has a sixth of the longer side. Cameras
    with the longest zoom, 3000 mm on 35 mm film, have 83 times the longer side, which is a view of 0.7 degrees. Cameras
    state 0, 0/0 or 1 if they do not know.
    """
    return _WIDEST * max(size) <= focal_length <= _NARROWEST * max(size)


def _exif_text(value: object) -> str:
    return value.strip(" \0") if isinstance(value, str) else ""


def _exif_number(value: Any) -> float:
    """Returns a positive number, or 0 for any other value such as 0/0."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if 0 < number < math.inf else 0.0


def _decode_reduced(data: bytes, longest_side: int) -> NDArray[np.uint8] | None:
    """Decodes a JPEG as stored, at the smallest decoder size that is large enough; None for other files."""
    image = open_image(data)
    if image is None or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    with contextlib.suppress(Exception):  # `decode` tries again at the full size
        image.draft("RGB", (longest_side, longest_side))  # keeps the aspect ratio and at least this size
        return np.array(image.convert("RGB"))
    return None


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HardnetSfmError(f"{path}: {error.strerror or error}", "Check its name and its permissions.") from error
    if not data:
        raise HardnetSfmError(f"{path}: the file is empty", "Copy it again, or take it out of the folder.")
    return data


def _decode(path: Path, data: bytes, mode: Literal["L", "RGB"]) -> NDArray[np.uint8]:
    try:
        pixels = decode(data, mode)
    except ValueError as error:
        raise HardnetSfmError(f"{path}: damaged: {error}", "Copy it again, or take it out of the folder.") from error
    except MemoryError as error:
        raise HardnetSfmError(
            f"{path}: not enough memory for its pixels", "Close other programs, or shrink the photo."
        ) from error
    if pixels is not None:
        return pixels
    if not CAN_READ_HEIC and data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        raise HardnetSfmError(f"{path}: a HEIC photo, which needs another package", HEIC_HINT)
    raise HardnetSfmError(
        f"{path}: not a photo that can be decoded, or damaged",
        "Convert it to JPEG or PNG, or take it out of the folder.",
    )


def upright(sensor: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Applies an EXIF orientation to the pixels as stored, (H, W) or (H, W, C)."""
    match orientation:
        case 2:
            turned = sensor[:, ::-1]
        case 3:
            turned = sensor[::-1, ::-1]
        case 4:
            turned = sensor[::-1]
        case 5:
            turned = sensor.swapaxes(0, 1)
        case 6:
            turned = sensor[::-1].swapaxes(0, 1)
        case 7:
            turned = sensor[::-1, ::-1].swapaxes(0, 1)
        case 8:
            turned = sensor[:, ::-1].swapaxes(0, 1)
        case _:
            turned = sensor
    return np.ascontiguousarray(turned)


def sensor_from_upright(orientation: int, size: tuple[int, int]) -> Affine2:
    """Returns the (2, 3) affine map from upright pixels to the pixels as stored in the file, centres at whole numbers.

    COLMAP reads the pixels as stored and ignores the EXIF orientation, so that portrait and landscape photos share one
    camera. Keypoints pass through this map on their way into a database.

    Args:
        orientation: EXIF orientation, 1 to 8.
        size: (width, height) of the upright photo, pixels.
    """
    right, bottom = size[0] - 1, size[1] - 1
    rows: dict[int, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
        1: ((1, 0, 0), (0, 1, 0)),
        2: ((-1, 0, right), (0, 1, 0)),
        3: ((-1, 0, right), (0, -1, bottom)),
        4: ((1, 0, 0), (0, -1, bottom)),
        5: ((0, 1, 0), (1, 0, 0)),
        6: ((0, 1, 0), (-1, 0, right)),
        7: ((0, -1, bottom), (-1, 0, right)),
        8: ((0, -1, bottom), (1, 0, 0)),
    }
    return np.array(rows[orientation], np.float64)


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


def sha256_of(path: Path) -> str:
    """Returns the hex sha256 of a file's bytes. It reads the file in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
