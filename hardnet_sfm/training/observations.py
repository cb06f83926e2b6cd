"""Selects the observations of a model whose patches show the same piece of surface as the rest of their track.

A detector gives each keypoint a local affine frame, which holds its size and its orientation. If the cameras and a
point are known, the frames of all its observations can be projected to the point and compared there. Let X be the point
and m the mean of the unit rays from X to its cameras. In a camera with rotation R, X has the depth z and is seen at
n = (x / z, y / z). A displacement D of X shifts n by [I | -n] R D / z, to first order. Let E, (3, 2), be an orthonormal
basis of the plane through X perpendicular to m. For displacements D = E d in that plane the shift is

    dn = M d / z,   M = [I | -n] R E.

Let J be the derivative of n by the pixel, and A the frame in pixels per sigma. The frame on the plane is then

    B = z M^-1 J A,

in units of the model per sigma. Its size is sqrt |det B|, and the direction of its x axis is atan2(B_21, B_11). Both
are the same for all observations of the point if the detector is repeatable and the plane approximates the surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32, Float64
from hardnet_sfm.errors import check_above, check_least

if TYPE_CHECKING:  # pycolmap takes a second to import
    from hardnet_sfm.colmap.tracks import Tracks

Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]

# Number of squares along the longer side of a photo. Depths are compared within a square.
_SQUARES = 64


@dataclass(frozen=True)
class MineOptions:
    """Which observations become patches, and how patches are cut. Rates were measured on 128 photos of South
    Building."""

    max_error: float = 1.5
    """Largest reprojection error, in pixels. With a larger error, the photo does not show the point that was
    triangulated."""
    min_track: int = 3
    """Fewest photos that see a point. Two photos always agree on some point, where their rays meet; a third one tests
    it."""
    max_angle: float = 50.0
    """Largest angle between a ray and the mean ray of its track, in degrees. At larger angles a circle no longer covers
    the same piece of surface. Beyond 50 degrees one frame in eight contradicts its track; between 40 and 50 degrees it
    is one in 30."""
    max_depth_ratio: float = 1.1
    """Largest depth of a point, as a multiple of the lower quartile of the depths around it in the photo. Deeper points
    lie behind something, or at its edge, where a patch shows both."""
    max_scale_ratio: float = 1.5
    """Largest ratio between a keypoint's size on the object and that of its track, or the inverse. 99.5 % are
    closer."""
    max_turn: float = 25.0
    """Largest angle on the object between a keypoint's orientation and that of its track, in degrees. 99.5 % are
    closer."""
    measurement_size: float = 20.0
    """Side of a patch, in sigmas of the keypoint. The shipped weights use 20; 12 is usual in the literature."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        check_least(self, min_track=2, max_depth_ratio=1)
        check_above(self, max_scale_ratio=1, max_error=0, max_angle=0, max_turn=0, measurement_size=0)


@dataclass(frozen=True)
class Selection:
    """Observations that passed all filters.

    Attributes:
        rows: (K,) observations that become patches, sorted by point, then photo.
        angle: (K,) float32, angle in degrees between the ray of each observation and the mean ray of its track.
        dropped: number of observations that each filter dropped, in the order of the filters.
    """

    rows: Rows
    angle: Float32
    dropped: dict[str, int]


class _Sieve:
    """Keeps the row numbers that passed every filter so far, and the number that each filter dropped."""

    def __init__(self, count: int) -> None:
        self.rows = np.arange(count)
        self.dropped: dict[str, int] = {}

    def keep(self, name: str, passing: Mask) -> None:
        self.rows = self.rows[passing]
        self.dropped[name] = int(len(passing) - len(self.rows))


def select(tracks: Tracks, axes: Float32, options: MineOptions, readable: Mask | None = None) -> Selection:
    """Drops observations that do not show, or may not show, the same piece of surface as the rest of their track.

    Each filter sees only the observations that passed the filters before it.

    Args:
        tracks: N observations of a model.
        axes: (N, 2, 2) frames in COLMAP's pixels per sigma, NaN for an observation without a keypoint.
        options: tolerances of the filters.
        readable: (V,) bool, which photos are readable; None means all.
    """
    sieve = _Sieve(len(axes))
    if readable is not None:
        sieve.keep("no photo", readable[tracks.photo])
    sieve.keep("no keypoint", np.isfinite(axes[sieve.rows, 0, 0]))
    sieve.keep("reprojection error", tracks.error[sieve.rows] <= options.max_error)
    sieve.keep("short track", photos_of_point(tracks, sieve.rows) >= options.min_track)
    rays = rays_to_cameras(tracks, sieve.rows)
    mean = mean_directions(rays, tracks.point[sieve.rows], len(tracks.xyz))
    angle = np.full(len(axes), np.nan)
    cosine = np.einsum("ij,ij->i", rays, mean[tracks.point[sieve.rows]])
    angle[sieve.rows] = np.rad2deg(np.arccos(cosine.clip(-1, 1)))
    sieve.keep("viewing angle", angle[sieve.rows] <= options.max_angle)
    sieve.keep("hidden", depth_ratios(tracks, sieve.rows) <= options.max_depth_ratio)
    sizes, turns = on_object(tracks, sieve.rows, axes[sieve.rows], mean)
    sizes_agree = in_agreement(np.log(sizes), tracks.point[sieve.rows], np.log(options.max_scale_ratio))
    sieve.keep("scale", sizes_agree)
    turns = turns[sizes_agree]
    sieve.keep("orientation", in_agreement(turns, tracks.point[sieve.rows], options.max_turn, period=360.0))
    sieve.keep("alone", photos_of_point(tracks, sieve.rows) >= 2)
    rows = sieve.rows[np.argsort(tracks.point[sieve.rows], kind="stable")]
    return Selection(rows, angle[rows].astype(np.float32), sieve.dropped)


def photos_of_point(tracks: Tracks, rows: Rows) -> NDArray[np.intp]:
    """(K,) numbers of photos that see the point of each observation, counted among these K observations."""
    pairs = np.unique(np.column_stack([tracks.point[rows], tracks.photo[rows]]), axis=0)
    return np.bincount(pairs[:, 0], minlength=len(tracks.xyz))[tracks.point[rows]]


def rays_to_cameras(tracks: Tracks, rows: Rows) -> Float64:
    """(K, 3) unit vectors from the points of K observations to the cameras that made them."""
    rotations, translations = tracks.cam_from_world[:, :, :3], tracks.cam_from_world[:, :, 3]
    centres = -np.einsum("vji,vj->vi", rotations, translations)
    rays = centres[tracks.photo[rows]] - tracks.xyz[tracks.point[rows]]
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def mean_directions(rays: Float64, point: NDArray[np.int64], points: int) -> Float64:
    """(P, 3) unit vectors, the mean direction of the rays of each point; NaN for a point without rays.

    Args:
        rays: (K, 3) unit vectors.
        point: (K,) number of the point that each ray belongs to.
        points: number of points, P.
    """
    total = np.stack([np.bincount(point, axis, points) for axis in rays.T], 1)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True))


def depth_ratios(tracks: Tracks, rows: Rows) -> Float64:
    """(K,) ratios of the depth of each observation to the lower quartile of the depths in its square of the photo.

    The lower quartile is robust: among five or more points, a single wrong point in front cannot make the others look
    hidden.
    """
    side = tracks.sizes.max(1) / _SQUARES
    photo, depth = tracks.photo[rows], tracks.depth[rows]
    column, line = np.floor(tracks.xy[rows] / side[photo, None]).astype(np.int64).T
    square = (photo * np.int64(2 * _SQUARES) + line) * (2 * _SQUARES) + column
    order = np.lexsort((depth, square))
    _, first, square_of, count = np.unique(square[order], return_index=True, return_inverse=True, return_counts=True)
    quartile = depth[order][first + (count - 1) // 4]
    ratios = np.empty(len(rows))
    ratios[order] = depth[order] / quartile[square_of]
    return ratios


def on_object(tracks: Tracks, rows: Rows, axes: Float32, mean: Float64) -> tuple[Float64, Float64]:
    """Computes size and direction of the frames of K observations on the planes through their points.

    The docstring of the module has the equation.

    Args:
        tracks: observations of a model.
        rows: (K,) row numbers of the observations.
        axes: (K, 2, 2) frames of the observations in COLMAP's pixels per sigma.
        mean: (P, 3) normals of the planes of the points.

    Returns:
        (K,) sizes in the model's units per sigma, and (K,) directions of the x axes in degrees. Directions are measured
        from an axis that is the same for all observations of a point.
    """
    point = tracks.point[rows]
    basis = plane_bases(mean)[point]
    in_camera = tracks.cam_from_world[tracks.photo[rows], :, :3] @ basis
    plane = in_camera[:, :2] - tracks.ray[rows, :, None] * in_camera[:, 2:]
    frames = tracks.depth[rows, None, None] * tracks.jacobian[rows] @ axes
    # The inverse of a (2, 2) matrix is its adjugate divided by its determinant. A plane seen edge-on gives infinity.
    (a, b), (c, d) = plane.transpose(1, 2, 0)
    adjugate = np.stack([np.stack([d, -b], 1), np.stack([-c, a], 1)], 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lifted = adjugate @ frames / (a * d - b * c)[:, None, None]
    sizes = np.sqrt(np.abs(np.linalg.det(lifted)))
    return sizes, np.rad2deg(np.arctan2(lifted[:, 1, 0], lifted[:, 0, 0]))


def plane_bases(normals: Float64) -> Float64:
    """(P, 3, 2) orthonormal bases of the planes whose unit normals are (P, 3)."""
    least = np.eye(3)[np.abs(np.nan_to_num(normals)).argmin(1)]
    first = np.cross(normals, least)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(normals, first)], 2)


def in_agreement(values: Float64, point: NDArray[np.int64], tolerance: float, period: float = np.inf) -> Mask:
    """(K,) bool: which observations agree with the mode of their track.

    The mode is the value with the highest density under a triangular kernel whose half width is the tolerance. Unlike a
    median, it is always one of the values. If a track has two groups that contradict each other, the larger group
    therefore stays whole.

    Args:
        values: (K,) values to compare; NaN agrees with nothing.
        point: (K,) number of the point that each value belongs to.
        tolerance: largest accepted difference, and half width of the kernel.
        period: period of the values if they are angles.
    """
    agree = np.zeros(len(values), bool)
    order = np.argsort(point, kind="stable")
    _, first, count = np.unique(point[order], return_index=True, return_counts=True)
    for length in np.unique(count):
        rows = order[first[count == length, None] + np.arange(length)]
        tracks = values[rows]
        apart = np.abs(tracks[:, :, None] - tracks[:, None])
        if np.isfinite(period):
            apart = np.minimum(apart % period, period - apart % period)
        mode = np.where(apart <= tolerance, 1 - apart / tolerance, 0).sum(2).argmax(1)
        agree[rows] = apart[np.arange(len(rows)), mode] <= tolerance
    return agree
