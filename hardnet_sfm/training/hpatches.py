"""The layout of the HPatches patches (Balntas et al., CVPR 2017): a folder `i_NAME` or `v_NAME` for each sequence, with
sixteen columns of 65x65 patches: `ref.png` and, for each of five other photos, `e1.png` to `t5.png`, the same patches
cut with easy, hard and tough errors of the frame.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.images import read_photo
from hardnet_sfm.training.patches import PATCH_SIZE, Grey, PatchSet

COLUMNS = ("ref", *(f"{error}{photo}" for error in "eht" for photo in range(1, 6)))
_SIDE = 65
_MEASUREMENT_SIZE = 10.0  # the authors cut a region of five times the detected scale to each side


def read_hpatches(folder: Path) -> PatchSet:
    """Reads all sequences of a folder; 4 KB of memory a patch, so 64 KB a row of a sequence.

    A point is one row of one sequence, a photo is one column, named `v_NAME/e1`. Patches are resampled from 65x65 to
    64x64 by pixel area, which keeps their centre and extent, where cutting off a row and a column would move the centre
    by half a pixel.

    Raises:
        HardnetSfmError: no sequences, or a column is missing, damaged, not 65 pixels wide or of another length than its
            sequence's `ref.png`.
    """
    sequences = sorted(path for path in folder.glob("[iv]_*") if path.is_dir())
    if not sequences:
        raise HardnetSfmError(f"{folder}: no sequences i_* or v_* in it", "Give the folder `hpatches-release`.")
    counts = [read_photo(sequence / "ref.png").size[1] // _SIDE for sequence in sequences]
    points = sum(counts)
    patches = np.empty((points, len(COLUMNS), PATCH_SIZE, PATCH_SIZE), np.uint8)
    start = 0
    for sequence, count in zip(sequences, counts, strict=True):
        for number, column in enumerate(COLUMNS):
            patches[start : start + count, number] = _column(sequence / f"{column}.png", count)
        start += count
    images = np.arange(len(sequences) * len(COLUMNS), dtype=np.int32).reshape(-1, len(COLUMNS))
    total = points * len(COLUMNS)
    return PatchSet(
        folder,
        "hpatches",
        _MEASUREMENT_SIZE,
        tuple(f"{sequence.name}/{column}" for sequence in sequences for column in COLUMNS),
        patches.reshape(total, PATCH_SIZE, PATCH_SIZE),
        point=np.repeat(np.arange(points), len(COLUMNS)),
        image=np.repeat(images, counts, 0).reshape(-1),
        frame=np.full((total, 2, 3), np.nan, np.float32),
        angle=np.full(total, np.nan, np.float32),
        xyz=np.full((points, 3), np.nan, np.float32),
    ).check()


def _column(path: Path, count: int) -> Grey:
    """The patches of one column, (count, 64, 64)."""
    column = read_photo(path).grey
    if column.shape != (count * _SIDE, _SIDE):
        raise HardnetSfmError(
            f"{path}: {column.shape[1]}x{column.shape[0]} pixels, {count} patches of 65x65 in a column have "
            f"{_SIDE}x{count * _SIDE}",
            "Give the data set of patches as it is, unscaled.",
        )
    patches = column.reshape(count, _SIDE, _SIDE)
    size = (PATCH_SIZE, PATCH_SIZE)
    resized = [cv2.resize(patch, size, interpolation=cv2.INTER_AREA) for patch in patches]
    return np.asarray(resized, np.uint8).reshape(count, PATCH_SIZE, PATCH_SIZE)
