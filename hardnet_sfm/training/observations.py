"""Which observations of a model are patches of the same thing: what the frames of their keypoints must agree in.

A local affine frame, cut by a detector, says how large its keypoint is and which way it points. Where the cameras and a
point are known, the frames of all its observations can be taken to the point itself and compared there. Let X be the
point and m the mean of the unit rays from X to its cameras. In a camera with rotation R, X has the depth z and is seen
at n = (x / z, y / z). A displacement D of X shifts n by [I | -n] R D / z, to first order. For displacements D = E d in
the plane through X perpendicular to m, E its orthonormal basis, (3, 2), that is

    dn = M d / z,   M = [I | -n] R E.

With J the derivative of n by the pixel and A the frame, pixels per sigma, the frame on that plane is

    B = z M^-1 J A,

in units of the model per sigma. Its size, sqrt |det B|, and the direction of its x axis, atan2(B_21, B_11), are the
same for all observations of the point, as far as the detector repeats itself and the plane stands for the surface.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import check_above, check_least
from hardnet_sfm.keypoints import Float32

if TYPE_CHECKING:  # pycolmap takes a second to import
    from hardnet_sfm.colmap.tracks import Tracks

Float64 = NDArray[np.float64]
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]

# Squares along the longer side of a photo, in which depths are compared.
_SQUARES = 64


@dataclass(frozen=True)
class MineOptions:
    """Which observations become patches, and how these are cut. Rates are of 128 photos of South Building."""

    max_error: float = 1.5
    """Largest reprojection error, pixels: farther off, the point that was triangulated is not what the photo shows."""
    min_track: int = 3
    """Fewest photos that see a point. Two always agree with some point where their rays meet; a third tests it."""
    max_angle: float = 50.0
    """Largest angle between a ray and the mean ray of its track, degrees. Beyond it a circle no longer covers the same
    piece of surface: one frame in eight contradicts its track there, one in 30 between 40 and 50 degrees."""
    max_depth_ratio: float = 1.1
    """Largest depth of a point, as a multiple of the lower quartile around it in the photo: deeper ones are behind
    something, or at its edge, where a patch shows both."""
    max_scale_ratio: float = 1.5
    """Largest ratio of a keypoint's size on the object to that of its track, or the inverse; 99.5 % are closer."""
    max_turn: float = 25.0
    """Largest angle on the object from a keypoint's orientation to that of its track, degrees; 99.5 % are closer."""
    measurement_size: float = 20.0
    """Sigmas of the keypoint across a patch. 20 as the shipped weights have; 12 is usual in the literature."""
    keypoints: Path | None = None
    """features.h5 or COLMAP database with scales and orientations. Default: one that lies with the model."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        check_least(self, min_track=2, max_depth_ratio=1)
        check_above(self, max_scale_ratio=1, max_error=0, max_angle=0, max_turn=0, measurement_size=0)

    def recipe(self) -> dict[str, Any]:
        """Everything that decides what the patches are, fit for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "keypoints"}


@dataclass(frozen=True)
class Selection:
    """What the filters left.

    Attributes:
        rows: (K,) observations that become patches, sorted by point, then photo.
        angle: (K,) float32, between each one's ray and the mean ray of its track, degrees.
        dropped: how many observations each filter dropped, in the order in which they were applied.
    """

    rows: Rows
    angle: Float32
    dropped: dict[str, int]


class _Sieve:
    """Row numbers that have passed every filter so far, and how many each dropped."""

    def __init__(self, count: int) -> None:
        self.rows = np.arange(count)
        self.dropped: dict[str, int] = {}

    def keep(self, name: str, passing: Mask) -> None:
        self.rows = self.rows[passing]
        self.dropped[name] = int(len(passing) - len(self.rows))


def select(tracks: Tracks, axes: Float32, options: MineOptions, readable: Mask | None = None) -> Selection:
    """Drops observations that are not, or may not be, views of the same thing as the rest of their track.

    Each filter looks at what the ones before it left.

    Args:
        tracks: N observations of a model.
        axes: (N, 2, 2) frame of each in COLMAP's pixels per sigma, NaN where no keypoint was found for it.
        options: tolerances.
        readable: (V,) which photos there are; all by default.
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
    """(K,) in how many photos the point of each of K observations is seen among these."""
    pairs = np.unique(np.column_stack([tracks.point[rows], tracks.photo[rows]]), axis=0)
    return np.bincount(pairs[:, 0], minlength=len(tracks.xyz))[tracks.point[rows]]


def rays_to_cameras(tracks: Tracks, rows: Rows) -> Float64:
    """(K, 3) unit vectors from the points of K observations to the cameras that made them."""
    rotations, translations = tracks.cam_from_world[:, :, :3], tracks.cam_from_world[:, :, 3]
    centres = -np.einsum("vji,vj->vi", rotations, translations)
    rays = centres[tracks.photo[rows]] - tracks.xyz[tracks.point[rows]]
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True))


def mean_directions(rays: Float64, point: NDArray[np.int64], points: int) -> Float64:
    """(P, 3) unit vectors, the mean of the (K, 3) rays of each point; NaN for a point that has none.

    Args:
        rays: unit vectors.
        point: (K,) whose each ray is.
        points: P.
    """
    total = np.stack([np.bincount(point, axis, points) for axis in rays.T], 1)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True))


def depth_ratios(tracks: Tracks, rows: Rows) -> Float64:
    """(K,) depth of each of K observations over the lower quartile of the depths in its square of the photo.

    A lower quartile, because it takes more than one wrong point in front to hide the others.
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
    """Size and direction of the frames of K observations on the planes through their points (equation above).

    Args:
        tracks: the model.
        rows: (K,) observations.
        axes: (K, 2, 2) their frames, COLMAP's pixels per sigma.
        mean: (P, 3) normal of each point's plane.

    Returns:
        (K,) sizes, the model's units per sigma, and (K,) directions of the x axes, degrees from an axis that is the
        same for all observations of a point.
    """
    point = tracks.point[rows]
    basis = plane_bases(mean)[point]
    in_camera = tracks.cam_from_world[tracks.photo[rows], :, :3] @ basis
    plane = in_camera[:, :2] - tracks.ray[rows, :, None] * in_camera[:, 2:]
    frames = tracks.depth[rows, None, None] * tracks.jacobian[rows] @ axes
    # The inverse of a (2, 2) matrix is its adjugate over its determinant; that of a plane seen edge-on is infinite.
    (a, b), (c, d) = plane.transpose(1, 2, 0)
    adjugate = np.stack([np.stack([d, -b], 1), np.stack([-c, a], 1)], 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lifted = adjugate @ frames / (a * d - b * c)[:, None, None]
    sizes = np.sqrt(np.abs(np.linalg.det(lifted)))
    return sizes, np.rad2deg(np.arctan2(lifted[:, 1, 0], lifted[:, 0, 0]))


def plane_bases(normals: Float64) -> Float64:
    """(P, 3, 2) orthonormal bases of the planes with (P, 3) unit normals."""
    least = np.eye(3)[np.abs(np.nan_to_num(normals)).argmin(1)]
    first = np.cross(normals, least)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(normals, first)], 2)


def in_agreement(values: Float64, point: NDArray[np.int64], tolerance: float, period: float = np.inf) -> Mask:
    """(K,) which observations agree with the one that most of their track agrees with.

    That one is the mode of the track: where a triangular kernel as wide as the tolerance finds most. Unlike a median
    it is always one of the values, so that of two groups that contradict each other the larger one stays whole.

    Args:
        values: (K,) what to compare; NaN agrees with nothing.
        point: (K,) whose each value is.
        tolerance: largest difference, and the kernel's half width.
        period: of the values, if they are angles.
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
