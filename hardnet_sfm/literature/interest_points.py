"""Hessian and Harris-Laplace interest points, and one dominant orientation for each.

Positions are whole pixels, and scales are those of the levels. This is accurate enough to choose patches whose
positions in other photos are known. The detectors in `hardnet_sfm.features.detectors` find points again more
accurately.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.patches import extract_patches

_FIRST_SIGMA = 1.6
_LEVELS_AN_OCTAVE = 3
# Assumed blur of a photo before any smoothing (Lowe, IJCV 2004, section 3.3).
_PHOTO_SIGMA = 0.5
# The largest sigma is a tenth of the shorter side. A larger region of five sigmas to each side does not fit.
_LARGEST = 0.1
_HARRIS_K = 0.04
_DIFFERENTIATION = 0.7
_BINS = 36

Levels = list[tuple[float, Float32]]


def hessian_points(grey: NDArray[np.uint8], most: int) -> Keypoints:
    """Detects maxima of the determinant of the Hessian over position and scale, strongest first, upright.

    Lindeberg, Feature detection with automatic scale selection, IJCV 1998, section 5.1.

    Args:
        grey: (H, W) uint8 photo.
        most: largest number of points.
    """
    levels = [(sigma, _hessian(smooth, sigma)) for sigma, smooth in _scale_space(grey)]
    return _strongest(levels, [response for _, response in levels], most)


def harris_laplace_points(grey: NDArray[np.uint8], most: int) -> Keypoints:
    """Detects corners at which the Laplacian has a maximum over scale, strongest first, upright.

    Mikolajczyk and Schmid, Scale and affine invariant interest point detectors, IJCV 2004, section 3.1.

    Args:
        grey: (H, W) uint8 photo.
        most: largest number of points.
    """
    levels, laplacians = [], []
    for sigma, smooth in _scale_space(grey):
        levels.append((sigma, _harris(grey, sigma)))
        laplacians.append(np.abs(cv2.Laplacian(smooth, cv2.CV_32F)) * np.float32(sigma**2))
    return _strongest(levels, laplacians, most, with_beside=False)


def dominant_orientations(grey: NDArray[np.uint8], keypoints: Keypoints) -> Float32:
    """(N,) degrees, from x towards y (down): the highest peak in the histogram of gradients around each keypoint.

    The histogram has 36 bins, and a Gaussian of 1.5 sigmas weights the gradients (Lowe, IJCV 2004, section 5).
    """
    size, across = 32, 9.0
    upright = np.eye(2, dtype=np.float32) * keypoints.scales[:, None, None]
    patches = extract_patches(grey, keypoints.xy, upright, size, across)
    # The gradients are those of the photo smoothed to the keypoint's scale.
    smooth = np.array([_blurred(patch.astype(np.float32), size / across) for patch in patches]).reshape(-1, size, size)
    dy, dx = np.gradient(smooth, axis=(1, 2))
    steps = (np.arange(size) + 0.5) / size * across - across / 2
    weight = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * 1.5**2))
    position = np.arctan2(dy, dx) % (2 * np.pi) / (2 * np.pi) * _BINS
    lower = np.floor(position).astype(np.intp)
    histogram = np.zeros((len(keypoints), _BINS))
    row = np.arange(len(keypoints))[:, None, None]
    for bins, share in ((lower, 1 - (position - lower)), (lower + 1, position - lower)):
        np.add.at(histogram, (row, bins % _BINS), np.hypot(dx, dy) * weight * share)
    for _ in range(2):
        histogram = (np.roll(histogram, 1, 1) + histogram + np.roll(histogram, -1, 1)) / 3
    peak = histogram.argmax(1)
    before, at, after = (histogram[np.arange(len(peak)), (peak + step) % _BINS] for step in (-1, 0, 1))
    curvature = before - 2 * at + after
    offset = np.where(curvature < 0, (before - after) / np.where(curvature < 0, 2 * curvature, 1), 0)
    return np.asarray((peak + offset) % _BINS * (360 / _BINS), np.float32)


def _scale_space(grey: NDArray[np.uint8]) -> Iterator[tuple[float, Float32]]:
    """Yields the sigma of each level and the photo smoothed to it, with grey values from 0 to 1."""
    smooth, before = _from_0_to_1(grey), _PHOTO_SIGMA
    sigma = _FIRST_SIGMA
    while sigma <= max(_FIRST_SIGMA * 2, _LARGEST * min(grey.shape)):
        smooth = _blurred(smooth, (sigma**2 - before**2) ** 0.5)
        yield sigma, smooth
        before, sigma = sigma, sigma * 2 ** (1 / _LEVELS_AN_OCTAVE)


def _from_0_to_1(grey: NDArray[np.uint8]) -> Float32:
    return np.asarray(grey / np.float32(255), np.float32)


def _blurred(image: Float32, sigma: float) -> Float32:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), np.float32)


def _hessian(smooth: Float32, sigma: float) -> Float32:
    xx, yy, xy = (_derivative(smooth, *orders) for orders in ((2, 0), (0, 2), (1, 1)))
    return np.asarray((xx * yy - xy * xy) * np.float32(sigma**4))


def _derivative(image: Float32, dx: int, dy: int) -> Float32:
    across, down = (np.array(((1,), (-0.5, 0, 0.5), (1, -2, 1))[order], np.float32) for order in (dx, dy))
    return np.asarray(cv2.sepFilter2D(image, -1, across, down, borderType=cv2.BORDER_REFLECT_101), np.float32)


def _harris(grey: NDArray[np.uint8], sigma: float) -> Float32:
    differentiation = _DIFFERENTIATION * sigma
    smooth = _blurred(_from_0_to_1(grey), max(0.1, differentiation**2 - _PHOTO_SIGMA**2) ** 0.5)
    dx, dy = _derivative(smooth, 1, 0), _derivative(smooth, 0, 1)
    xx, yy, xy = (_blurred(product, sigma) * np.float32(differentiation**2) for product in (dx * dx, dy * dy, dx * dy))
    return np.asarray(xx * yy - xy * xy - np.float32(_HARRIS_K) * (xx + yy) ** 2)


def _strongest(levels: Levels, over: list[Float32], most: int, with_beside: bool = True) -> Keypoints:
    """Selects the strongest spatial maxima of the responses that are also maxima of a second function over scale.

    Args:
        levels: sigma and (H, W) response of each level.
        over: (H, W) second function of each level. It must be larger than at the same place of the adjacent levels.
        most: largest number of points.
        with_beside: the second function must also be larger than at the eight neighbouring places of the adjacent
            levels.
    """
    rows = []
    for number in range(1, len(levels) - 1):
        sigma, response = levels[number]
        best = (response > 0) & (response == _largest_around(response))
        for beside in (over[number - 1], over[number + 1]):
            best &= over[number] > (_largest_around(beside) if with_beside else beside)
        y, x = np.nonzero(best)
        rows.append(np.stack([x, y, np.full(len(x), sigma), response[y, x]], 1))
    found = np.concatenate(rows) if rows else np.zeros((0, 4))
    order = np.lexsort((found[:, 2], found[:, 1], found[:, 0], -found[:, 3]))[:most]
    x, y, scale, score = found[order].T.astype(np.float32)
    return Keypoints(np.stack([x, y], 1), scale.copy(), np.zeros_like(scale), score.copy())


def _largest_around(image: Float32) -> Float32:
    """(H, W) largest value among each pixel and its eight neighbours."""
    return np.asarray(cv2.dilate(image, np.ones((3, 3), np.uint8)), np.float32)
