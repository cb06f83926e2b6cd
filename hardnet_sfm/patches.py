"""Cuts patches at local affine frames by resampling a scale pyramid."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32

_SMALLEST_LEVEL = 32
# cv2.remap accepts maps of fewer than 32768 rows, and patches are stacked below each other.
_MOST_ROWS = 32767
_BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def pyramid(grey: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Halves a photo repeatedly while the shorter side keeps at least 32 pixels.

    Each level is a 5-tap binomial blur followed by 2x2 means.

    Args:
        grey: (H, W) uint8.
    """
    levels = [grey]
    while min(levels[-1].shape) >= 2 * _SMALLEST_LEVEL:
        blurred = cv2.sepFilter2D(levels[-1], -1, _BINOMIAL, _BINOMIAL, borderType=cv2.BORDER_REFLECT_101)
        size = (blurred.shape[1] // 2, blurred.shape[0] // 2)
        levels.append(np.asarray(cv2.resize(blurred, size, interpolation=cv2.INTER_LINEAR), np.uint8))
    return levels


def extract_patches(
    grey: NDArray[np.uint8], xy: Float32, frames: Float32, size: int, measurement_size: float
) -> NDArray[np.uint8]:
    """Cuts one anti-aliased square patch for every local affine frame.

    Each patch is sampled bilinearly from one pyramid level. It is the coarsest level whose pixels are not larger than
    those of the patch. The outermost pixels are repeated beyond the border of the photo. The result agrees with
    `kornia.feature.extract_patches_from_pyramid` to 0.4 grey levels on average (tests/test_patches.py).

    Lower bound: a patch pixel reads 5 bytes and writes 1. A patch of 32x32 takes 5 KB, so 8192 patches move 50 MB,
    about 10 ms of memory traffic. `pipelines/bench/extract.py` measures it.

    Args:
        grey: (H, W) uint8.
        xy: (N, 2) float32, pixels, centre of the top-left pixel at (0, 0).
        frames: (N, 2, 2) float32, pixels per sigma.
        size: side of a patch, pixels.
        measurement_size: sigmas across the patch.

    Returns:
        (N, size, size) uint8.
    """
    levels = pyramid(grey)
    half = frames * np.float32(measurement_size / 2)
    pitch = np.sqrt(np.abs(np.linalg.det(half))) * (2 / size)
    with np.errstate(divide="ignore"):
        chosen = np.clip(np.floor(np.log2(pitch)), 0, len(levels) - 1).astype(np.intp)
    steps = ((np.arange(size, dtype=np.float32) + np.float32(0.5)) / size * 2 - 1).astype(np.float32)
    patches = np.empty((len(xy), size, size), np.uint8)
    at_once = _MOST_ROWS // size
    for level, image in enumerate(levels):
        rows = np.flatnonzero(chosen == level)
        factor = np.array([image.shape[1] / grey.shape[1], image.shape[0] / grey.shape[0]], np.float32)
        for start in range(0, len(rows), at_once):
            block = rows[start : start + at_once]
            centre = (xy[block] + np.float32(0.5)) * factor - np.float32(0.5)
            axes = half[block] * factor[:, None]
            # Each axis of the patch gives one (rows, size) vector. The outer sums of the vectors are the sampling
            # positions.
            along, down = axes[:, :, 0, None] * steps, axes[:, :, 1, None] * steps + centre[:, :, None]
            maps = [(down[:, i, :, None] + along[:, i, None, :]).reshape(-1, size) for i in (0, 1)]
            sampled = cv2.remap(image, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            patches[block] = np.asarray(sampled, np.uint8).reshape(-1, size, size)
    return patches


def resize_patches(patches: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resamples whole patches to another size: by pixel area to shrink them, bilinearly to enlarge them.

    Both ways keep the centre and the extent. Patches are shrunk as one tall image. They do not mix, because each patch
    fills a whole number of rows before and after.

    Args:
        patches: (N, S, S) uint8.
        size: side of a resampled patch, pixels.

    Returns:
        (N, size, size) uint8; the same array if it already has that size.
    """
    count, side = patches.shape[:2]
    if side == size or not count:
        return patches if side == size else np.zeros((0, size, size), np.uint8)
    if size < side:
        tall = np.ascontiguousarray(patches).reshape(count * side, side)
        shrunk = cv2.resize(tall, (size, count * size), interpolation=cv2.INTER_AREA)
        return np.asarray(shrunk, np.uint8).reshape(count, size, size)
    grown = [cv2.resize(patch, (size, size), interpolation=cv2.INTER_LINEAR) for patch in patches]
    return np.asarray(grown, np.uint8)
