"""Draws contact sheets of a file of patches."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.ownership import check_output, encode_picture
from hardnet_sfm.files.workspace import replacing

_GAP = 2  # pixels between patches


def sheet(patches: Path, png: Path, *, points: int = 24, columns: int = 16) -> None:
    """Draws patches of points that are evenly spread over the file, one row for each point. Unused places are white.

    Args:
        patches: a patches.h5.
        png: picture to write.
        points: largest number of points, one a row.
        columns: largest number of patches of a point.

    Raises:
        HardnetSfmError: the file of patches is missing or damaged, the picture cannot be written, or a file is there
            that this package did not make.
    """
    if not patches.is_file():
        raise HardnetSfmError(f"no patches at {patches}", "Run `hardnet-sfm mine` first.")
    try:
        with h5py.File(patches, "r") as file:
            numbers, first, count = np.unique(file["point"][()], return_index=True, return_counts=True)
            chosen = np.linspace(0, len(numbers) - 1, min(points, len(numbers))).round().astype(int)
            rows = [file["patches"][first[i] : first[i] + min(count[i], columns)] for i in chosen]
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise HardnetSfmError(
            f"{patches}: damaged, or not a file of patches: {error}", "Make it again with `hardnet-sfm mine` or `warp`."
        ) from error
    if not rows:
        raise HardnetSfmError(
            f"{patches}: there are no patches in it", "Make it again with `hardnet-sfm mine` or `warp`."
        )
    size = rows[0].shape[1]
    step = size + _GAP
    canvas = np.full((len(rows) * step - _GAP, max(map(len, rows)) * step - _GAP), 255, np.uint8)
    for line, row in enumerate(rows):
        for column, patch in enumerate(row):
            canvas[line * step : line * step + size, column * step : column * step + size] = patch
    check_output(png)
    try:
        with replacing(png) as beside:
            beside.write_bytes(encode_picture(".png", canvas))
    except OSError as error:
        raise HardnetSfmError(f"cannot write {png}: {error.strerror}", "Choose another place for it.") from error
