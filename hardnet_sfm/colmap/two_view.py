"""Estimates two-view geometry with COLMAP's LO-RANSAC."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32

# Largest number of RANSAC trials, a quarter of COLMAP's. Photos without common content have matches at wide thresholds
# and use up all trials. On 240 pairs of rock, 2500 trials take a quarter of the time. They lose 7 of 148 verified
# pairs, none of which has 30 inliers.
_MOST_TRIALS = 2500


@dataclass(frozen=True)
class Verification:
    """Options for estimating two-view geometry with COLMAP's LO-RANSAC for E, F and H.

    Attributes:
        max_error: largest (Sampson or transfer) error of an inlier, pixels.
        min_inliers: smallest number of inliers of a verified pair.
        seed: seed of RANSAC.
    """

    max_error: float
    min_inliers: int
    seed: int

    def scaled(self, pixels: float) -> Verification:
        """Returns the options for photos in which one unit of `max_error` is this many pixels."""
        return replace(self, max_error=pixels * self.max_error)

    def options(self) -> pycolmap.TwoViewGeometryOptions:
        """Converts the options for COLMAP."""
        options = pycolmap.TwoViewGeometryOptions()
        options.ransac.max_error, options.ransac.random_seed = self.max_error, self.seed
        options.ransac.max_num_trials = _MOST_TRIALS
        options.min_num_inliers = self.min_inliers
        return options


def verified_rows(
    first: Float32,
    second: Float32,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    rows: NDArray[np.int32],
    how: Verification,
) -> NDArray[np.int32]:
    """Selects matches that agree with one fundamental matrix or homography, for photos by unknown cameras.

    Args:
        first: (N, 2) keypoints of a photo, pixels, centre of the top-left pixel at (0, 0).
        second: (M, 2) keypoints of the other photo.
        sizes: (width, height) of both photos.
        rows: (K, 2) row numbers of matched keypoints.
        how: options of the estimation.

    Returns:
        (L, 2) rows of `rows`; none if there are fewer than `how.min_inliers`.
    """
    if len(rows) < how.min_inliers:
        return rows[:0]
    # The focal length is a guess, so COLMAP does not try an essential matrix.
    cameras = [pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", max(size), *size) for size in sizes]
    points = [xy.astype(np.float64) + 0.5 for xy in (first, second)]
    geometry = pycolmap.estimate_two_view_geometry(
        cameras[0], points[0], cameras[1], points[1], rows.astype(np.uint32), how.options()
    )
    inliers = np.asarray(geometry.inlier_matches, np.int32).reshape(-1, 2)
    return inliers if len(inliers) >= how.min_inliers else rows[:0]
