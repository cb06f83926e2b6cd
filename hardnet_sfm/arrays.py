"""Names of array types, and rows that are evenly spread. The docstring of a function says the shape."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
"""Grey values: a photo (H, W) or patches (N, S, S)."""
Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ints = NDArray[np.int64]


def spread(count: int, most: int) -> NDArray[np.intp]:
    """Returns at most `most` of `count` row numbers, evenly spread, in rising order."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.intp)
