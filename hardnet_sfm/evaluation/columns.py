"""Patches that are stacked in a column, as HPatches and W1BS have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_files import read_photo

Grey = NDArray[np.uint8]


def read_column(path: Path, side: int | None = None, count: int | None = None) -> Grey:
    """Reads an image of square patches below each other, each as wide as the image.

    Args:
        path: of the image.
        side: of a patch, pixels; whatever the image's width is where None.
        count: number of patches; whatever fits where None.

    Returns:
        (N, S, S) uint8.

    Raises:
        HardnetSfmError: the file is missing or damaged, of another width, no whole number of patches high, or has
            another number of them.
    """
    column = read_photo(path).grey
    height, width = column.shape
    side = width if side is None else side
    if width != side or height % side or count not in (None, height // side):
        number, rows = ("patches", f"a multiple of {side}") if count is None else (f"{count} patches", count * side)
        raise HardnetSfmError(
            f"{path}: {width}x{height} pixels, {number} of {side}x{side} in a column have {side}x{rows}",
            "Copy or unpack the data set again.",
        )
    return column.reshape(-1, side, side)
