"""What of a model is shown: where its cameras and points are, in which colours, and what a click means."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from viser.transforms import SO3

from hardnet_sfm.colmap.model import Model
from hardnet_sfm.colmap.tracks import Tracks, tracks_of
from hardnet_sfm.files.photo_files import sensor_from_upright

Float64 = NDArray[np.float64]
Rows = NDArray[np.intp]
Colours = NDArray[np.uint8]

PointColour = Literal["photos", "track length", "reprojection error"]
POINT_COLOURS: tuple[PointColour, ...] = get_args(PointColour)

_REACH = 8.0  # pixels that a click may miss a point by
_UNSEEN = (128, 128, 128)


@dataclass(frozen=True, eq=False)
class World:
    """A model as it is drawn: V cameras and P points, in the model's units.

    Attributes:
        folder: it was read from.
        model: as COLMAP has it.
        tracks: its observations.
    """

    folder: Path
    model: Model
    tracks: Tracks

    @classmethod
    def read(cls, folder: Path) -> World:
        """Reads a binary or text model.

        Raises:
            HardnetSfmError: there is none, it is damaged, or it has no tracks.
        """
        model = Model.read(folder)
        return cls(folder, model, tracks_of(model, folder))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(P,) track length of each point."""
        return self.tracks.lengths()

    @cached_property
    def errors(self) -> Float64:
        """(P,) mean reprojection error of each point, pixels; infinite where one of its photos cannot see it."""
        return np.bincount(self.tracks.point, self.tracks.error, len(self.tracks.xyz)) / np.maximum(self.lengths, 1)

    @cached_property
    def fields_of_view(self) -> Float64:
        """(V,) from top to bottom, radians."""
        return self.model.fields_of_view()

    @cached_property
    def centres(self) -> Float64:
        """(V, 3) where the cameras are."""
        return self.tracks.centres()

    @cached_property
    def wxyz(self) -> Float64:
        """(V, 4) which way the cameras look: unit quaternions, real part first, of the rotations camera to world."""
        return np.asarray(SO3.from_matrix(self.tracks.cam_from_world[:, :, :3].swapaxes(1, 2)).wxyz, np.float64)

    @cached_property
    def distance(self) -> float:
        """From a camera to what it sees, the median: what sizes on the screen go by. Far backgrounds do not count."""
        return float(np.median(np.abs(self.tracks.depth))) or 1.0

    def up_of(self, photo: int, orientation: int) -> Float64:
        """(3,) unit vector that points up in a photo, which was taken with an EXIF orientation, 1 to 8."""
        x, y = sensor_from_upright(orientation, (1, 1))[:, :2] @ (0.0, -1.0)
        return np.array([x, y, 0.0]) @ self.tracks.cam_from_world[photo, :, :3]

    def first_look(self, up: Float64) -> tuple[Float64, Float64]:
        """(3,) where to look from at first, and (3,) at what: from behind and above the middle one of the cameras."""
        target = np.median(self.tracks.xyz[self.tracks.point], axis=0)
        behind = 1.6 * (self.centres[len(self.centres) // 2] - target)
        return target + behind + 0.3 * np.linalg.norm(behind) * up, target

    def shown(self, least_track: int, most: int) -> Rows:
        """Points with tracks at least so long; where they are more than `most`, evenly many of them are left out."""
        rows = np.flatnonzero(self.lengths >= least_track)
        return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(np.intp)]

    def shown_cameras(self, most: int) -> Rows:
        """Cameras, thinned as points are."""
        count = len(self.tracks.names)
        return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.intp)

    def values(self, by: PointColour) -> Float64 | None:
        """(P,) what points are coloured by; None where it is their own colour."""
        match by:
            case "photos":
                return None
            case "track length":
                return self.lengths.astype(np.float64)
            case "reprojection error":
                return self.errors

    def colours(self, by: PointColour) -> Colours:
        """(P, 3) RGB of all points."""
        values = self.values(by)
        return self.tracks.colours if values is None else ramp(values, *span(values))

    def pick(self, rows: Rows, origin: Float64, direction: Float64, pixel: float, radius: float) -> int | None:
        """The point that a click on the screen means: the nearest of those whose disc is hit, else the least missed.

        Lower bound: one pass over the points that are shown, 24 bytes each.

        Args:
            rows: points that are shown.
            origin: (3,) where the ray of the click starts.
            direction: (3,) where it goes.
            pixel: angle that a pixel of the screen covers, radians.
            radius: of a point's disc, the model's units.

        Returns:
            The point's row; None where none is within 8 pixels.
        """
        direction = direction / np.linalg.norm(direction)
        away = self.tracks.xyz[rows] - origin
        along = away @ direction
        across = np.linalg.norm(away - along[:, None] * direction, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            missed = np.where(along > 0, np.maximum(across - radius, 0) / along / pixel, np.inf)
        if not len(rows) or missed.min() > _REACH:
            return None
        best = np.lexsort((along, missed))[0]
        return int(rows[best])


def span(values: Float64) -> tuple[float, float]:
    """Values at the two ends of the ramp: the least, and one that 95 % do not exceed, as single ones may be huge."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(np.quantile(finite, 0.95))) if len(finite) else (0.0, 1.0)
    return low, max(high, low + 1e-6)


def ramp(values: Float64, low: float, high: float) -> Colours:
    """(N, 3) RGB of N values, from dark blue over green and yellow to red; grey where infinite."""
    finite = np.isfinite(values)
    share = np.clip((np.where(finite, values, low) - low) / (high - low), 0, 1)
    # The ends of the map are nearly black, which neither a dark page nor a dark photo shows.
    steps = (20 + 225 * share).round().astype(np.uint8)
    if not len(steps):
        return np.zeros((0, 3), np.uint8)
    rgb = cv2.applyColorMap(steps[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return np.where(finite[:, None], rgb, np.uint8(_UNSEEN[0])).astype(np.uint8)
