"""HPatches (Balntas et al., CVPR 2017) as patches to train on.

The layout itself is read by `hardnet_sfm.evaluation.hpatches`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hardnet_sfm.evaluation.hpatches import COLUMNS, MEASUREMENT_SIZE, find_sequences
from hardnet_sfm.files.patch_sets import PATCH_SIZE, PatchSet
from hardnet_sfm.patches import resize_patches


def read_hpatches(folder: Path) -> PatchSet:
    """Reads all sequences of a folder; 4 KB of memory a patch, so 64 KB a row of a sequence.

    A point is one row of one sequence, a photo is one column, named `v_NAME/e1`. Patches are resampled from 65x65 to
    64x64 by pixel area, which keeps their centre and extent, where cutting off a row and a column would move the centre
    by half a pixel.

    Raises:
        HardnetSfmError: no sequences, or a column is missing, damaged, not 65 pixels wide or of another length than its
            sequence's `ref.png`.
    """
    sequences = find_sequences(folder)
    counts = [sequence.count for sequence in sequences]
    points = sum(counts)
    patches = np.empty((points, len(COLUMNS), PATCH_SIZE, PATCH_SIZE), np.uint8)
    start = 0
    for sequence in sequences:
        for number, column in enumerate(COLUMNS):
            patches[start : start + sequence.count, number] = resize_patches(sequence.column(column), PATCH_SIZE)
        start += sequence.count
    images = np.arange(len(sequences) * len(COLUMNS), dtype=np.int32).reshape(-1, len(COLUMNS))
    total = points * len(COLUMNS)
    return PatchSet(
        folder,
        "hpatches",
        MEASUREMENT_SIZE,
        tuple(f"{sequence.name}/{column}" for sequence in sequences for column in COLUMNS),
        patches.reshape(total, PATCH_SIZE, PATCH_SIZE),
        point=np.repeat(np.arange(points), len(COLUMNS)),
        image=np.repeat(images, counts, 0).reshape(-1),
        frame=np.full((total, 2, 3), np.nan, np.float32),
        angle=np.full(total, np.nan, np.float32),
        xyz=np.full((points, 3), np.nan, np.float32),
    ).check()
