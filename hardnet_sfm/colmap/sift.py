"""COLMAP's SIFT as a detector."""

from __future__ import annotations

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.colmap.log import native_log
from hardnet_sfm.keypoints import SCALE_DECIMALS, Keypoints, strongest

_SMALLEST = 16  # pixels


def distinct_rows(found: pycolmap.FeatureKeypoints) -> tuple[Float32, NDArray[np.intp]]:
    """Removes duplicate keypoints. COLMAP finds a few twice, and duplicates fail each other's ratio test.

    Returns:
        (N, 6) float32 x, y, a11, a12, a21, a22 in COLMAP's pixels, and the (N,) first row of each in `found`.
    """
    geometry = [(point.x, point.y, point.a11, point.a12, point.a21, point.a22) for point in found]
    return np.unique(np.array(geometry, np.float32).reshape(-1, 6), axis=0, return_index=True)


class ColmapDog:
    """Detects difference-of-Gaussian keypoints with `pycolmap.FeatureExtractor`, and drops its descriptors.

    pycolmap computes descriptors together with keypoints and holds Python's lock meanwhile. So several threads do not
    run at the same time.

    Args:
        max_keypoints: largest number of places; the largest places are kept. A place with two orientations counts once
            and gives two rows.
        peak_threshold: smallest absolute difference of Gaussians, for grey values in [0, 1].
        edge_threshold: largest ratio of principal curvatures.
        upright: whether to set every orientation to 0.
        affine_shape: whether to estimate affine frames.
    """

    def __init__(
        self, *, max_keypoints: int, peak_threshold: float, edge_threshold: float, upright: bool, affine_shape: bool
    ) -> None:
        options = pycolmap.FeatureExtractionOptions()
        options.use_gpu = False
        options.sift.max_num_features = max_keypoints
        options.sift.peak_threshold = peak_threshold
        options.sift.edge_threshold = edge_threshold
        options.sift.upright = upright
        options.sift.estimate_affine_shape = affine_shape
        self._max_keypoints, self._affine_shape, self._upright = max_keypoints, affine_shape, upright
        with native_log(None):
            self._extractor = pycolmap.FeatureExtractor.create(options)

    def __call__(self, grey: NDArray[np.uint8]) -> Keypoints:
        height, width = grey.shape
        # COLMAP crashes when it estimates affine shapes in a smaller photo.
        missing = max(0, _SMALLEST - height), max(0, _SMALLEST - width)
        found, _ = self._extractor.extract_from_uint8_array(np.pad(grey, [(0, rows) for rows in missing], "edge"))
        rows, _ = distinct_rows(found)
        rows = rows[(rows[:, 0] < width) & (rows[:, 1] < height)]
        if not len(rows):
            return Keypoints.empty()
        affines = rows[:, 2:].reshape(-1, 2, 2)
        scales = np.sqrt(np.abs(np.linalg.det(affines)))
        # COLMAP puts the centre of the top-left pixel at (0.5, 0.5) and counts angles in the same sense as we do.
        xy = rows[:, :2] - np.float32(0.5)
        oris = np.rad2deg(np.arctan2(affines[:, 1, 0], affines[:, 0, 0])) % 360
        # An angle just below 0 rounds to 360. An upright affine frame may be sheared.
        oris[(oris >= 360) | self._upright] = 0
        keypoints = Keypoints(xy, scales, oris, scales, affines if self._affine_shape else None)
        # The scales of one place with two orientations differ by rounding.
        return strongest(keypoints, scales.round(SCALE_DECIMALS), self._max_keypoints)
