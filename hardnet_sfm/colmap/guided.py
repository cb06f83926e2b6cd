"""Guided matching: finds more matches of a verified pair, near the places that its two-view geometry predicts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap
from numpy.typing import NDArray

# Values of the matrices of distances and similarities that are computed at once, 8 MB for each matrix.
_VALUES = 2**21
# The distance of descriptors may be at most that of this share of the pair's verified matches.
_NEAR = 0.9
_NEITHER = -4.0
_BY_HOMOGRAPHY = (
    pycolmap.TwoViewGeometryConfiguration.PLANAR,
    pycolmap.TwoViewGeometryConfiguration.PANORAMIC,
    pycolmap.TwoViewGeometryConfiguration.PLANAR_OR_PANORAMIC,
)


@dataclass(frozen=True, eq=False)
class Described:
    """The keypoints, descriptors and camera of one photo.

    Attributes:
        xy: (N, 2) float64, COLMAP's pixels.
        descriptors: (M, D) float32 of unit length, of the first M keypoints. Further keypoints are not matched.
        camera: camera of the photo. Its lens distortion is assumed to be small.
    """

    xy: NDArray[np.float64]
    descriptors: NDArray[np.float32]
    camera: pycolmap.Camera


def guided_matches(
    first: Described,
    second: Described,
    geometry: pycolmap.TwoViewGeometry,
    max_error: float,
    max_ratio: float,
) -> NDArray[np.int32]:
    """Finds matches of a verified pair in addition to its inliers.

    The rivals of a match are the keypoints near the epipolar line, or near the place that the homography predicts. The
    nearest descriptor among them is a match if three conditions hold. It is the nearest in both directions. It passes
    the ratio test against the next one. It is no farther than nine tenths of the inliers (Hartley and Zisserman,
    Multiple View Geometry, 2004, algorithm 11.4, step v).

    Lower bound: a product of N0 by N1 by D + 3 numbers, and one search for the largest in each direction.

    Args:
        first, second: the two photos.
        geometry: two-view geometry of the pair.
        max_error: largest distance from the line or place, pixels.
        max_ratio: largest ratio of the distances to the nearest descriptor and the next one.

    Returns:
        (K, 2) row numbers of keypoints that belong to no inlier.
    """
    inliers = np.asarray(geometry.inlier_matches, np.int64).reshape(-1, 2)
    known = inliers[(inliers < (len(first.descriptors), len(second.descriptors))).all(1)]
    if not len(known):
        return np.zeros((0, 2), np.int32)
    similar = np.einsum("nd,nd->n", first.descriptors[known[:, 0]], second.descriptors[known[:, 1]])
    farthest = float(np.quantile(_distance(similar), _NEAR))
    matrix = _matrix_of(geometry, first.camera, second.camera)
    planar = geometry.config in _BY_HOMOGRAPHY
    there = _nearest(first, second, matrix, planar, max_error, max_ratio, farthest)
    back_matrix = np.asarray(np.linalg.inv(matrix), np.float64) if planar else matrix.T
    back = _nearest(second, first, back_matrix, planar, max_error, max_ratio, farthest)
    rows = np.flatnonzero(there >= 0)
    rows = rows[back[there[rows]] == rows]
    found = np.column_stack([rows, there[rows]])
    fresh = ~np.isin(found[:, 0], inliers[:, 0]) & ~np.isin(found[:, 1], inliers[:, 1])
    return found[fresh].astype(np.int32)


def _matrix_of(
    geometry: pycolmap.TwoViewGeometry, first: pycolmap.Camera, second: pycolmap.Camera
) -> NDArray[np.float64]:
    """Returns the homography or fundamental matrix from the first photo to the second."""
    if geometry.config in _BY_HOMOGRAPHY:
        return np.asarray(geometry.H)
    if geometry.config == pycolmap.TwoViewGeometryConfiguration.CALIBRATED:
        to_first, to_second = (np.linalg.inv(camera.calibration_matrix()) for camera in (first, second))
        return np.asarray(to_second.T @ np.asarray(geometry.E) @ to_first)
    return np.asarray(geometry.F)


def _nearest(
    queries: Described,
    others: Described,
    matrix: NDArray[np.float64],
    planar: bool,
    max_error: float,
    max_ratio: float,
    max_distance: float,
) -> NDArray[np.int64]:
    """Returns the (M,) rows of the accepted neighbour of each query; -1 if there is none."""
    count = len(others.descriptors)
    xy = others.xy[:count]
    middle = xy.mean(0) if count else np.zeros(2)
    mapped = np.column_stack([queries.xy[: len(queries.descriptors)], np.ones(len(queries.descriptors))]) @ matrix.T
    # Single precision is enough for coordinates relative to the middle of the keypoints.
    if planar:
        left = mapped[:, :2] / mapped[:, 2:] - middle
    else:
        lines = mapped / np.maximum(np.linalg.norm(mapped[:, :2], axis=1, keepdims=True), 1e-12)
        left = np.column_stack([lines[:, :2], lines[:, 2] + lines[:, :2] @ middle])
    left, places = left.astype(np.float32), (xy - middle).astype(np.float32)
    answer = np.full(len(mapped), -1)
    step = max(1, _VALUES // max(1, count))
    for start in range(0, len(mapped) if count > 1 else 0, step):
        block = left[start : start + step]
        if planar:
            offsets = block[:, None] - places
            outside = np.einsum("nmc,nmc->nm", offsets, offsets) > max_error**2
        else:
            outside = np.abs(block[:, :2] @ places.T + block[:, 2:]) > max_error
        similar = queries.descriptors[start : start + step] @ others.descriptors.T
        similar[outside] = _NEITHER
        numbers = np.arange(len(block))
        best = similar.argmax(1)
        nearest = _distance(similar[numbers, best])
        similar[numbers, best] = _NEITHER
        accepted = (nearest <= max_distance) & (nearest < max_ratio * _distance(similar.max(1)))
        answer[start : start + step] = np.where(accepted, best, -1)
    return answer


def _distance(similarity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the L2 distance of unit vectors.

    Entries that were marked as out of reach get more than any real distance.
    """
    return np.sqrt(np.maximum(0, 2 - 2 * similarity))
