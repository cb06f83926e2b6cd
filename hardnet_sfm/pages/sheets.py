"""Draws contact sheets of patches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Grey, spread

_GAP = 2  # pixels between patches
_REMEDY = "Make it again with `hardnet-sfm mine` or `warp`."


def draw_sheet(patches: Grey, point: NDArray[np.int64], *, points: int = 24, columns: int = 16) -> Grey:
    """Draws patches of points that are evenly spread, one row for each point. Unused places are white.

    Args:
        patches: (N, S, S) uint8, sorted by point; at least one.
        point: (N,) number of the point of each patch.
        points: largest number of points, one a row.
        columns: largest number of patches of a point.

    Returns:
        (H, W) uint8.
    """
    numbers, first, count = np.unique(point, return_index=True, return_counts=True)
    chosen = spread(len(numbers), points)
    rows = [patches[first[i] : first[i] + min(count[i], columns)] for i in chosen]
    size = patches.shape[1]
    step = size + _GAP
    canvas = np.full((len(rows) * step - _GAP, max(map(len, rows)) * step - _GAP), 255, np.uint8)
    for line, row in enumerate(rows):
        for column, patch in enumerate(row):
            canvas[line * step : line * step + size, column * step : column * step + size] = patch
    return canvas
