"""Draws the keypoints on the photos of a model, and cuts the patches of a point from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.frames import REACH, Frames, associated, upright_from_stored
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.photos import Photo, PhotoSource, resize_to_fit, upright
from hardnet_sfm.viewer.world import World, colour_by_ramp, find_span

Picture = NDArray[np.uint8]
KeypointColour = Literal["track length", "triangulated or not"]
KEYPOINT_COLOURS: tuple[KeypointColour, ...] = get_args(KeypointColour)

SIZE = 96  # side of a patch, pixels
MEASUREMENT_SIZE = 20.0  # width of a patch in sigmas, the default of `mine`
LONGEST_SIDE = 1400  # longest side of a photo in the page, pixels
_SMALL_SIDE = 512  # longest side of a photo in its frustum, pixels
_GUESSED = 4.0  # assumed sigma of a keypoint with unknown scale, pixels
_KEPT = 16  # number of decoded photos to keep; one of 12 megapixels takes 12 MB
_LOOSE, _SEEN = (205, 205, 205), (60, 220, 90)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A photo with its keypoints.

    Attributes:
        picture: (H, W, 3) RGB, upright, with the keypoints.
        stored: (H, W, 3) RGB, the photo without keypoints, small, and as stored instead of upright.
        keypoints: number of all keypoints.
        triangulated: number of keypoints that see a point.
        low: track length at the low end of the ramp.
        high: track length at the high end of the ramp.
        notice: why no keypoints could be drawn; empty if they are drawn.
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
    """The patch of a point in one photo.

    Attributes:
        photo: row of the photo.
        error: reprojection error in pixels.
        patch: (S, S) uint8; None if it could not be cut.
        notice: why there is no patch, or what is special about it; empty in the common case.
    """

    photo: int
    error: float
    patch: Picture | None
    notice: str = ""


class ModelPhotos:
    """The photos of a model.

    Args:
        world: the model.
        photos: gives the photos; None if their folder is not known.
        known: maps a photo's name to the frames of its keypoints in COLMAP's pixels, or to None.
    """

    def __init__(self, world: World, photos: PhotoSource | None, known: Callable[[str], Frames | None]) -> None:
        self._world, self._photos, self._known = world, photos, known
        self._grey = lru_cache(_KEPT)(self._read)

    def _source(self) -> PhotoSource:
        if self._photos is None:
            raise HardnetSfmError("the folder of the photos is not known", "Start the viewer with --images FOLDER.")
        return self._photos

    def _read(self, photo: int) -> Photo:
        return self._source().photo(self._world.tracks.names[photo])

    def orientation(self, photo: int) -> int:
        """Returns the EXIF orientation of a photo, 1 to 8. It is 1, which means as stored, if it cannot be read."""
        return 1 if self._photos is None else self._photos.orientation(self._world.tracks.names[photo])

    def draw(self, photo: int, by: KeypointColour) -> Drawn:
        """Draws a photo with its keypoints. Keypoints that see a point are large dots, others are small dots.

        Raises:
            HardnetSfmError: the photo cannot be read.
        """
        grey, colours = self._grey(photo), self._source().colours(self._world.tracks.names[photo])
        height, width = colours.shape[:2]
        factor = min(1.0, LONGEST_SIDE / max(height, width))
        picture = resize_to_fit(colours, LONGEST_SIDE).copy()
        back = {6: 8, 8: 6}.get(grey.orientation, grey.orientation)  # the other orientations are their own inverse
        small = upright(resize_to_fit(colours, _SMALL_SIDE), back)
        tracks, world = self._world.tracks, self._world
        notice = self._check_size(photo, grey)
        stored = world.model.keypoints(tracks.names[photo])
        rows = tracks.of_photo(photo)
        lengths = world.lengths[tracks.point[rows]].astype(np.float64)
        low, high = find_span(lengths)
        counts = len(stored), rows.stop - rows.start
        if notice:
            return Drawn(picture, small, *counts, low, high, notice)
        affine = upright_from_stored(grey.orientation, grey.size)
        # Positions in the resized picture. Resizing keeps the corner of the photo fixed, not the centre of the first
        # pixel.
        at = (stored @ affine[:, :2].T + affine[:, 2] + 0.5) * factor - 0.5
        loose = np.ones(len(at), bool)
        loose[tracks.row[rows]] = False
        inks = (
            colour_by_ramp(lengths, low, high) if by == "track length" else np.full((len(lengths), 3), _SEEN, np.uint8)
        )
        order = np.argsort(lengths, kind="stable")  # long tracks are drawn on top of short ones
        _draw_dots(picture, at[loose], np.full((int(loose.sum()), 3), _LOOSE, np.uint8), 1)
        _draw_dots(picture, at[tracks.row[rows]][order], inks[order], 3)
        return Drawn(picture, small, *counts, low, high)

    def cut_patches(self, point: int, size: int = SIZE) -> list[Cut]:
        """Cuts the patches of a point in all of its photos, in the order of COLMAP's numbers."""
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
        if notice := self._check_size(photo, grey):
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

    def _check_size(self, photo: int, grey: Photo) -> str:
        stored = grey.size[::-1] if grey.orientation >= 5 else grey.size
        width, height = self._world.tracks.sizes[photo].tolist()
        if stored == (width, height):
            return ""
        return f"the photo has {stored[0]}x{stored[1]} pixels, its camera {width}x{height}: not the one of the model"


def _draw_dots(picture: Picture, at: NDArray[np.float64], inks: NDArray[np.uint8], radius: int) -> None:
    """Draws filled circles at sub-pixel positions. Circles with a radius above 1 get a dark rim."""
    for (x, y), ink in zip((at * 16).round().astype(int).tolist(), inks.tolist(), strict=True):
        if radius > 1:
            cv2.circle(picture, (x, y), 16 * radius + 12, (0, 0, 0), -1, cv2.LINE_AA, 4)
        cv2.circle(picture, (x, y), 16 * radius, ink, -1, cv2.LINE_AA, 4)
