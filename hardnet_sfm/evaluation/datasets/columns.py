"""Reads images in which patches are stacked in a column, as in HPatches and W1BS."""

from __future__ import annotations

from pathlib import Path

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_files import read_photo


def read_column(path: Path, side: int | None = None, count: int | None = None) -> Grey:
    """Reads an image that is a column of square patches, each as wide as the image.

    Args:
        path: path of the image.
        side: expected side of a patch in pixels; None accepts any width of the image.
        count: expected number of patches; None accepts any number.

    Returns:
        (N, S, S) uint8 patches.

    Raises:
        HardnetSfmError: the file is missing or damaged, has another width or another number of patches, or its height
            is not a multiple of its width.
    """
    column = read_photo(path).grey
    height, width = column.shape
    side = width if side is None else side
    if width != side or height % side or count not in (None, height // side):
        number, rows = ("patches", f"a multiple of {side}") if count is None else (f"{count} patches", count * side)
        raise HardnetSfmError(
            f"{path}: {width}x{height} pixels, but a column of {number} has {side}x{rows}",
            "Copy or unpack the data set again.",
        )
    return column.reshape(-1, side, side)
