"""Estimates fundamental matrices from matches, and measures how many true correspondences agree with them."""

from __future__ import annotations

import cv2
import numpy as np

from hardnet_sfm.arrays import Float32, Float64

# Thresholds in pixels at which the authors of WxBS measure recall.
THRESHOLDS = np.arange(20)
# Parameters with which the authors of WxBS call MAGSAC; the threshold is in pixels.
_THRESHOLD, _CONFIDENCE, _ITERATIONS = 0.25, 0.999, 100_000
_FEWEST = 8


def fundamental_matrix(first: Float32, second: Float32) -> Float64 | None:
    """Estimates the (3, 3) fundamental matrix of (M, 2) matched pixels by MAGSAC++; None if there is no solution.

    This is OpenCV's implementation of Barath et al., MAGSAC++, CVPR 2020, with the threshold, confidence and iterations
    of the authors of WxBS. It draws the same samples in every run.
    """
    if len(first) < _FEWEST:
        return None
    one, other = (np.ascontiguousarray(xy, np.float64) for xy in (first, second))
    found, _ = cv2.findFundamentalMat(one, other, cv2.USAC_MAGSAC, _THRESHOLD, _CONFIDENCE, _ITERATIONS)
    return None if found is None or found.shape != (3, 3) else np.asarray(found, np.float64)


def epipolar_distances(matrix: Float64, correspondences: Float64) -> Float64:
    """(K,) symmetric epipolar distances in pixels.

    Each point has a distance to the other point's epipolar line. This is the root of the sum of their squares (Hartley
    and Zisserman, Multiple view geometry, 2nd edition, equation 11.10).

    Args:
        matrix: (3, 3) fundamental matrix F with x2' F x1 = 0.
        correspondences: (K, 4) correspondences x1, y1, x2, y2.
    """
    ones = np.ones((len(correspondences), 1))
    first, second = np.hstack([correspondences[:, :2], ones]), np.hstack([correspondences[:, 2:], ones])
    lines_in_second, lines_in_first = first @ matrix.T, second @ matrix
    residual = np.einsum("kd,kd->k", second, lines_in_second)
    with np.errstate(divide="ignore", invalid="ignore"):  # a point in the epipole has no line
        scale = sum(
            1 / np.einsum("kd,kd->k", lines[:, :2], lines[:, :2]) for lines in (lines_in_second, lines_in_first)
        )
        return np.asarray(np.sqrt(residual**2 * scale))


def recall_of_truth(matrix: Float64 | None, correspondences: Float64) -> Float64:
    """(20,) shares of the true correspondences that agree with a fundamental matrix within 0, 1, .. 19 pixels.

    This is the measure of WxBS. It is 0 without a matrix.
    """
    if matrix is None:
        return np.zeros(len(THRESHOLDS))
    distances = epipolar_distances(matrix, correspondences)
    return np.asarray((distances <= THRESHOLDS[:, None]).mean(1))
