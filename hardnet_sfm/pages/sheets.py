"""Draws contact sheets of a file of patches."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from hardnet_sfm.errors import HardnetSfmError, file_error, write_error
from hardnet_sfm.files.hdf5_files import open_hdf5
from hardnet_sfm.files.workspace import replacing

_GAP = 2  # pixels between patches
_REMEDY = "Make it again with `hardnet-sfm mine` or `warp`."


def sheet(patches: Path, png: Path, *, points: int = 24, columns: int = 16) -> None:
    """Draws patches of points that are evenly spread over the file, one row for each point. Unused places are white.

    Args:
        patches: a patches.h5.
        png: picture to write.
        points: largest number of points, one a row.
        columns: largest number of patches of a point.

    Raises:
        HardnetSfmError: the file of patches is missing or damaged, or the picture cannot be written.
    """
    if not patches.is_file():
        raise HardnetSfmError(f"no patches at {patches}", "Run `hardnet-sfm mine` first.")
    try:
        with open_hdf5(patches, _REMEDY) as file:
            numbers, first, count = np.unique(file["point"][()], return_index=True, return_counts=True)
            chosen = np.linspace(0, len(numbers) - 1, min(points, len(numbers))).round().astype(int)
            rows = [file["patches"][first[i] : first[i] + min(count[i], columns)] for i in chosen]
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise file_error(patches, error, "a file of patches", _REMEDY) from error
    if not rows:
        raise HardnetSfmError(f"{patches}: there are no patches in it", _REMEDY)
    size = rows[0].shape[1]
    step = size + _GAP
    canvas = np.full((len(rows) * step - _GAP, max(map(len, rows)) * step - _GAP), 255, np.uint8)
    for line, row in enumerate(rows):
        for column, patch in enumerate(row):
            canvas[line * step : line * step + size, column * step : column * step + size] = patch
    _, packed = cv2.imencode(".png", canvas)
    try:
        with replacing(png) as beside:
            beside.write_bytes(packed.tobytes())
    except OSError as error:
        raise write_error(png, error) from error
