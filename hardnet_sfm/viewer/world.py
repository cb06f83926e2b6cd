"""Prepares a model for the viewer: positions of cameras and points, their colours, and the point that a click hits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from viser.transforms import SO3

from hardnet_sfm.arrays import Float64, spread
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.colmap.tracks import Tracks
from hardnet_sfm.photos import sensor_from_upright

Rows = NDArray[np.intp]
Colours = NDArray[np.uint8]

PointColour = Literal["photos", "track length", "reprojection error"]
POINT_COLOURS: tuple[PointColour, ...] = get_args(PointColour)

_REACH = 8.0  # largest distance in pixels by which a click may miss a point
_UNSEEN = (128, 128, 128)


@dataclass(frozen=True, eq=False)
class World:
    """A model for drawing: V cameras and P points, in the model's units.

    Attributes:
        title: title of the model, for example "sparse/0".
        model: the model as COLMAP stores it.
        tracks: observations of the model.
    """

    title: str
    model: Model
    tracks: Tracks

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(P,) track length of each point."""
        return self.tracks.lengths()

    @cached_property
    def errors(self) -> Float64:
        """(P,) mean reprojection error of each point in pixels; infinite if one of its photos cannot see it."""
        return np.bincount(self.tracks.point, self.tracks.error, len(self.tracks.xyz)) / np.maximum(self.lengths, 1)

    @cached_property
    def fields_of_view(self) -> Float64:
        """(V,) vertical fields of view in radians."""
        return self.model.fields_of_view()

    @cached_property
    def centres(self) -> Float64:
        """(V, 3) centres of the cameras."""
        return self.tracks.centres()

    @cached_property
    def wxyz(self) -> Float64:
        """(V, 4) unit quaternions, real part first, of the rotations from camera to world."""
        return np.asarray(SO3.from_matrix(self.tracks.cam_from_world[:, :, :3].swapaxes(1, 2)).wxyz, np.float64)

    @cached_property
    def distance(self) -> float:
        """Median distance from a camera to its points. Sizes on the screen scale with it; far points hardly matter."""
        return float(np.median(np.abs(self.tracks.depth))) or 1.0

    def up_of(self, photo: int, orientation: int) -> Float64:
        """(3,) unit vector that points up in a photo with the given EXIF orientation, 1 to 8."""
        x, y = sensor_from_upright(orientation, (1, 1))[:, :2] @ (0.0, -1.0)
        return np.array([x, y, 0.0]) @ self.tracks.cam_from_world[photo, :, :3]

    def first_look(self, up: Float64) -> tuple[Float64, Float64]:
        """Returns the initial (3,) viewpoint and (3,) target. The viewpoint is behind and above the middle camera."""
        target = np.median(self.tracks.xyz[self.tracks.point], axis=0)
        behind = 1.6 * (self.centres[len(self.centres) // 2] - target)
        return target + behind + 0.3 * np.linalg.norm(behind) * up, target

    def shown(self, least_track: int, most: int) -> Rows:
        """Selects points with tracks of at least the given length; more than `most` points are thinned evenly."""
        rows = np.flatnonzero(self.lengths >= least_track)
        return rows[spread(len(rows), most)]

    def shown_cameras(self, most: int) -> Rows:
        """Selects at most `most` cameras, thinned evenly."""
        return spread(len(self.tracks.names), most)

    def values(self, by: PointColour) -> Float64 | None:
        """(P,) values that the colours of points show; None for the colours in the photos."""
        match by:
            case "photos":
                return None
            case "track length":
                return self.lengths.astype(np.float64)
            case "reprojection error":
                return self.errors

    def colours(self, by: PointColour) -> Colours:
        """(P, 3) RGB colours of all points."""
        values = self.values(by)
        return self.tracks.colours if values is None else colour_by_ramp(values, *find_span(values))

    def pick(self, rows: Rows, origin: Float64, direction: Float64, pixel: float, radius: float) -> int | None:
        """Finds the point that a click hits: the nearest point whose disc is hit, else the point that it misses least.

        Lower bound of the cost: one pass over the shown points, 24 bytes each.

        Args:
            rows: shown points.
            origin: (3,) start of the ray of the click.
            direction: (3,) direction of the ray.
            pixel: angle of a pixel of the screen in radians.
            radius: radius of a point's disc in the model's units.

        Returns:
            The row of the point; None if no point is within 8 pixels.
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


def find_span(values: Float64) -> tuple[float, float]:
    """Returns the values at the ends of the ramp: the minimum and the 95 % quantile, because a few may be huge."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(np.quantile(finite, 0.95))) if len(finite) else (0.0, 1.0)
    return low, max(high, low + 1e-6)


def colour_by_ramp(values: Float64, low: float, high: float) -> Colours:
    """(N, 3) RGB colours of N values, from dark blue over green and yellow to red. Infinite values are grey."""
    finite = np.isfinite(values)
    share = np.clip((np.where(finite, values, low) - low) / (high - low), 0, 1)
    # The ends of the colour map are nearly black and would not be visible on a dark page or photo.
    steps = (20 + 225 * share).round().astype(np.uint8)
    if not len(steps):
        return np.zeros((0, 3), np.uint8)
    rgb = cv2.applyColorMap(steps[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return np.where(finite[:, None], rgb, np.uint8(_UNSEEN[0])).astype(np.uint8)
