"""The photos behind a model: with their keypoints drawn, and cut into the patches of a point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_files import Photo, exif_orientation, read_colours, read_photo, upright
from hardnet_sfm.frames import REACH, Frames, associated, upright_from_stored
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.viewer.world import World, ramp, span

Picture = NDArray[np.uint8]
KeypointColour = Literal["track length", "triangulated or not"]
KEYPOINT_COLOURS: tuple[KeypointColour, ...] = get_args(KeypointColour)

SIZE = 96  # of a patch, pixels
MEASUREMENT_SIZE = 20.0  # sigmas across a patch, as `mine` cuts them
LONGEST_SIDE = 1400  # of a photo in the page, pixels
_SMALL_SIDE = 512  # of a photo in its frustum
_GUESSED = 4.0  # sigma of a keypoint of which only the position is known, pixels
_KEPT = 16  # decoded photos, 12 MB each where they have 12 megapixels
_LOOSE, _SEEN = (205, 205, 205), (60, 220, 90)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A photo with its keypoints.

    Attributes:
        picture: (H, W, 3) RGB, upright.
        stored: (H, W, 3) RGB, the photo alone and small, as its camera has it: not turned upright.
        keypoints: number of all of them.
        triangulated: number of those that see a point.
        low: track length at the low end of the ramp.
        high: track length at its high end.
        notice: why no keypoints could be drawn; empty where they are.
    """

    picture: Picture
    stored: Picture
    keypoints: int
    triangulated: int
    low: float
    high: float
    notice: str = ""


@dataclass(frozen=True, eq=False)
class Cut:
    """What one photo shows of a point.

    Attributes:
        photo: its row.
        error: reprojection error, pixels.
        patch: (S, S) uint8; None where it could not be cut.
        notice: why not, or what is special about it; empty in the common case.
    """

    photo: int
    error: float
    patch: Picture | None
    notice: str = ""


class Photos:
    """The photos of a model.

    Args:
        world: the model.
        folder: of the photos; None where it is not known.
        known: from a photo's name to the frames of its keypoints, in COLMAP's pixels.
    """

    def __init__(self, world: World, folder: Path | None, known: Callable[[str], Frames | None]) -> None:
        self._world, self._folder, self._known = world, folder, known
        self._grey = lru_cache(_KEPT)(self._read)

    def path(self, photo: int) -> Path:
        """Where a photo should be.

        Raises:
            HardnetSfmError: the folder of the photos is not known.
        """
        if self._folder is None:
            raise HardnetSfmError("where the photos are is not known", "Start the viewer with --images FOLDER.")
        return self._folder / self._world.tracks.names[photo]

    def _read(self, photo: int) -> Photo:
        return read_photo(self.path(photo))

    def orientation(self, photo: int) -> int:
        """EXIF orientation of a photo, 1 to 8; 1, as stored, where it cannot be read."""
        try:
            return exif_orientation(self.path(photo).read_bytes())
        except (HardnetSfmError, OSError):
            return 1

    def drawn(self, photo: int, by: KeypointColour) -> Drawn:
        """A photo with its keypoints: large dots see a point, small ones do not.

        Raises:
            HardnetSfmError: the photo cannot be read.
        """
        grey, colours = self._grey(photo), read_colours(self.path(photo))
        height, width = colours.shape[:2]
        factor = min(1.0, LONGEST_SIDE / max(height, width))
        picture = _shrunk(colours, factor)
        back = {6: 8, 8: 6}.get(grey.orientation, grey.orientation)  # the other orientations undo themselves
        small = upright(_shrunk(colours, min(1.0, _SMALL_SIDE / max(height, width))), back)
        tracks, world = self._world.tracks, self._world
        notice = self._of_another_size(photo, grey)
        stored = world.model.keypoints(tracks.names[photo])
        rows = tracks.of_photo(photo)
        lengths = world.lengths[tracks.point[rows]].astype(np.float64)
        low, high = span(lengths)
        counts = len(stored), rows.stop - rows.start
        if notice:
            return Drawn(picture, small, *counts, low, high, notice)
        affine = upright_from_stored(grey.orientation, grey.size)
        # In the resized picture's pixels: the corner of the photo stays where it is, not the centre of its first pixel.
        at = (stored @ affine[:, :2].T + affine[:, 2] + 0.5) * factor - 0.5
        loose = np.ones(len(at), bool)
        loose[tracks.row[rows]] = False
        inks = ramp(lengths, low, high) if by == "track length" else np.full((len(lengths), 3), _SEEN, np.uint8)
        order = np.argsort(lengths, kind="stable")  # the long tracks above the short ones
        _draw_dots(picture, at[loose], np.full((int(loose.sum()), 3), _LOOSE, np.uint8), 1)
        _draw_dots(picture, at[tracks.row[rows]][order], inks[order], 3)
        return Drawn(picture, small, *counts, low, high)

    def cuts(self, point: int, size: int = SIZE) -> list[Cut]:
        """The patches of a point in all of its photos, in the order of COLMAP's numbers."""
        tracks = self._world.tracks
        cuts = []
        for row in np.flatnonzero(tracks.point == point).tolist():
            photo = int(tracks.photo[row])
            try:
                patch, notice = self._cut(photo, row, size)
            except HardnetSfmError as error:
                patch, notice = None, error.message
            cuts.append(Cut(photo, float(tracks.error[row]), patch, notice))
        return cuts

    def _cut(self, photo: int, row: int, size: int) -> tuple[Picture | None, str]:
        tracks, grey = self._world.tracks, self._grey(photo)
        if notice := self._of_another_size(photo, grey):
            return None, notice
        rows, found = tracks.of_photo(photo), self._known(tracks.names[photo])
        notice = ""
        if found is None:
            guess = np.full((1, 2, 2), _GUESSED * np.eye(2), np.float32)
            frame, notice = (
                Frames(tracks.xy[row : row + 1].astype(np.float32), guess),
                "scale and orientation not known",
            )
        else:
            which = associated(tracks.xy[rows], tracks.row[rows], found, REACH)[row - rows.start]
            if which < 0:
                return None, "no keypoint there in the features"
            frame = found.select(np.array([which]))
        frame = frame.through(upright_from_stored(grey.orientation, grey.size))
        return extract_patches(grey.grey, frame.xy, frame.axes, size, MEASUREMENT_SIZE)[0], notice

    def _of_another_size(self, photo: int, grey: Photo) -> str:
        stored = grey.size[::-1] if grey.orientation >= 5 else grey.size
        width, height = self._world.tracks.sizes[photo].tolist()
        if stored == (width, height):
            return ""
        return f"the photo has {stored[0]}x{stored[1]} pixels, its camera {width}x{height}: not the one of the model"


def _shrunk(colours: Picture, factor: float) -> Picture:
    height, width = colours.shape[:2]
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.array(cv2.resize(colours, size, interpolation=cv2.INTER_AREA), np.uint8)


def _draw_dots(picture: Picture, at: NDArray[np.float64], inks: NDArray[np.uint8], radius: int) -> None:
    """Filled circles with sub-pixel positions, with a dark rim where there is room for one."""
    for (x, y), ink in zip((at * 16).round().astype(int).tolist(), inks.tolist(), strict=True):
        if radius > 1:
            cv2.circle(picture, (x, y), 16 * radius + 12, (0, 0, 0), -1, cv2.LINE_AA, 4)
        cv2.circle(picture, (x, y), 16 * radius, ink, -1, cv2.LINE_AA, 4)
