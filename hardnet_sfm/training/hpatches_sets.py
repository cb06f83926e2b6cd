"""Reads HPatches (Balntas et al., CVPR 2017) as training patches.

`hardnet_sfm.evaluation.hpatches` reads the layout itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hardnet_sfm.evaluation.hpatches import COLUMNS, MEASUREMENT_SIZE, find_sequences
from hardnet_sfm.files.patch_sets import PATCH_SIZE, PatchSet
from hardnet_sfm.patches import resize_patches


def read_hpatches(folder: Path) -> PatchSet:
    """Reads all sequences of a folder into memory, 4 KB a patch and so 64 KB a row of a sequence.

    Each row of a sequence is one point. Each column is one photo, named `v_NAME/e1`. Patches are resampled by pixel
    area from 65x65 to 64x64, which keeps their centre and extent. Cutting off a row and a column instead would move the
    centre by half a pixel.

    Raises:
        HardnetSfmError: the folder has no sequences, or a column is missing, is damaged, is not 65 pixels wide or has
            another length than the `ref.png` of its sequence.
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
