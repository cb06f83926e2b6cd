"""Photos in another light and by another sensor: the grey values change, and everything stays in its place.

Photos of one place are taken by day and by night, in sun and under clouds, and by cameras that see colours differently.
Real pairs of such photos are rare. These changes are drawn at random instead.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Grey

Light = NDArray[np.float32]
"""(H, W) grey values, or factors to multiply them with; 1 is white."""

_CONTRASTS = 0.4  # share of the photos whose local contrast is equalised
_NIGHTS = 0.25  # share of the photos that are taken at night
_MOST_SHADOWS = 3


def relight(colours: NDArray[np.uint8], rng: np.random.Generator) -> Grey:
    """Draws what a grey photo of the same place could look like in another light. (H, W) uint8.

    The order is that of nature: light falls on the scene, a sensor weighs the colours, and the camera develops the
    photo by an exposure that may clip, a curve, and local contrast.

    Args:
        colours: (H, W, 3) uint8 RGB photo.
        rng: source of random numbers. The exposure is -2 to 1.3 stops and gamma 0.4 to 2.5, both uniform in the
            logarithm. A photo has up to three shadows. A quarter are taken at night, by the light of lamps.
    """
    seen = see(colours, draw_sensor(rng))
    size = seen.shape[:2]
    for _ in range(rng.integers(_MOST_SHADOWS + 1)):
        seen *= draw_shadow(size, rng)
    if rng.random() < _NIGHTS:
        seen *= draw_lamps(size, rng)
    seen *= np.float32(2 ** rng.uniform(-2, 1.3))
    seen = seen.clip(0, 1) ** np.float32(np.exp(rng.uniform(np.log(0.4), np.log(2.5))))
    # The camera raises what would be too dark to see, together with its noise.
    seen /= max(np.float32(np.percentile(seen, 99)), np.float32(0.1))
    developed = np.asarray(np.rint(255 * seen.clip(0, 1)), np.uint8)
    if rng.random() < _CONTRASTS:
        tiles = int(rng.integers(3, 12))
        developed = np.asarray(cv2.createCLAHE(rng.uniform(1.5, 6), (tiles, tiles)).apply(developed), np.uint8)
    return developed


def draw_sensor(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draws how much a sensor sees of red, green and blue. The three shares sum to 1.

    One sensor in five has a negative share, as far red and infrared do beside the visible colours: foliage becomes
    bright and the sky dark.
    """
    shares = rng.dirichlet([1.0, 1.0, 1.0])
    if rng.random() < 0.2:
        loser = rng.integers(3)
        shares[loser] = -rng.uniform(0, 0.3)
        shares /= shares.sum()
    return np.asarray(shares)


def see(colours: NDArray[np.uint8], shares: NDArray[np.float64]) -> Light:
    """(H, W): weighs the linear light of an (H, W, 3) RGB photo, whose values a gamma of 2.2 encodes."""
    linear = (np.arange(256, dtype=np.float32) / 255) ** np.float32(2.2)
    seen = linear[colours] @ shares.astype(np.float32)
    return np.asarray(seen.clip(0, None) ** np.float32(1 / 2.2), np.float32)


def draw_shadow(size: tuple[int, int], rng: np.random.Generator) -> Light:
    """Draws a shadow with three to six corners: factors of (H, W) pixels, 0.25 to 0.75 in the shadow and 1 outside.

    Its edge is 1 to 15 pixels wide, because the sun is not a point.
    """
    height, width = size
    corners = int(rng.integers(3, 7))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = np.exp(rng.uniform(np.log(0.1), np.log(0.7))) * max(size)
    middle = rng.uniform(0, 1, 2) * (width, height)
    outline = middle + radius * np.column_stack([np.cos(angles), np.sin(angles)])
    mask = np.zeros(size, np.float32)
    cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 1.0)
    soft = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.5, 6))
    return np.asarray(1 - rng.uniform(0.25, 0.75) * soft, np.float32)


def draw_lamps(size: tuple[int, int], rng: np.random.Generator) -> Light:
    """Draws the light of one to six lamps at night: factors of (H, W) pixels, 0.03 to 0.2 between the lamps."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    light = np.full(size, rng.uniform(0.03, 0.2), np.float32)
    for _ in range(rng.integers(1, 7)):
        row, column = rng.uniform(0, 1, 2) * size
        reach = rng.uniform(0.08, 0.4) * max(size)
        distance = ((rows - row) ** 2 + (columns - column) ** 2) / reach**2
        light += (rng.uniform(0.3, 1.5) / (1 + distance) ** 2).astype(np.float32)
    return light
