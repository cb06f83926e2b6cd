"""Textures of dead leaves for rendered scenes: opaque shapes of all sizes that cover each other, under noise.

Their statistics are scale-invariant like those of natural images, so a feature detector finds keypoints at every scale.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


def make_texture(width: int, height: int, brightness: float, rng: np.random.Generator) -> Image:
    """Makes a (height, width, 3) texture of dead leaves under 1/f noise, whose strength differs between leaves."""
    leaves = _draw_leaves(width, height, rng)
    noise = np.zeros((height, width), np.float32)
    for octave in range(int(np.log2(min(width, height)))):
        coarse = rng.standard_normal((height >> octave, width >> octave), dtype=np.float32)
        noise += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    gain = brightness * (1 + leaves[..., 3:] / np.float32(255) * noise[..., None])
    return np.clip(leaves[..., :3] * gain, 0, 255).astype(np.uint8)


def _draw_leaves(width: int, height: int, rng: np.random.Generator) -> Image:
    """Draws overlapping opaque polygons, (height, width, 4): blue, green, red and the strength of the noise."""
    smallest, largest, coverage = 3.0, 0.4 * min(width, height), 4.0
    # With a density of radius^-3 every octave of sizes covers the same area, so the statistics do not depend on scale.
    low, high = largest**-2, smallest**-2
    mean_area = 2 * np.pi * np.log(largest / smallest) / (high - low)
    count = int(coverage * width * height / mean_area)
    radius = rng.uniform(low, high, (count, 1)) ** -0.5

    # Triangles, rectangles, hexagons and near-ellipses share one array: polygons with fewer corners repeat them.
    sides = rng.choice([3, 4, 4, 6, 12], (count, 1))
    angle = (np.arange(12) * sides // 12 + 0.5) * 2 * np.pi / sides
    stretch = np.exp(rng.normal(0, 0.4, (count, 1)))
    outline = radius * (stretch * np.cos(angle) + 1j / stretch * np.sin(angle))
    outline *= np.exp(2j * np.pi * rng.random((count, 1)))
    outline += rng.uniform(0, width, (count, 1)) + 1j * rng.uniform(0, height, (count, 1))
    polygons = np.stack([outline.real, outline.imag], axis=-1)

    # Light varies more than colour, and colour varies mostly between warm and cool. The mean differs between textures.
    light = rng.normal(rng.normal(0, 0.15), 0.4, (count, 1))
    warmth = rng.normal(rng.normal(0.05, 0.12), 0.1, (count, 1)) * [-1, 0, 1]
    colour = 100 * np.exp(light + warmth + rng.normal(0, 0.05, (count, 3)))
    paint = np.clip(np.hstack([colour, rng.uniform(3, 25, (count, 1))]), 0, 255)

    canvas = np.full((height, width, 4), paint.mean(axis=0), np.uint8)
    for polygon, value in zip((16 * polygons).astype(np.int32), paint.tolist(), strict=True):
        cv2.fillConvexPoly(canvas, polygon, value, shift=4)
    return canvas


def shrink(image: Image, factor: int) -> Image:
    """Averages squares of factor x factor pixels."""
    size = image.shape[1] // factor, image.shape[0] // factor
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
