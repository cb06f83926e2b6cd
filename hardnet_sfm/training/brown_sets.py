"""Converts Brown's PhotoTour (Brown, Hua, Winder, PAMI 2011) to training patches, and patch sets to Brown's layout.

`hardnet_sfm.evaluation.brown` reads the layout itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.brown import ACROSS, MEASUREMENT_SIZE, ON_A_SHEET, PATCH_SIZE, open_brown
from hardnet_sfm.files.patch_sets import PatchSet


def read_brown(folder: Path, measurement_size: float = MEASUREMENT_SIZE) -> PatchSet:
    """Reads a folder in Brown's layout into memory, 4 KB a patch.

    The authors' data sets give 0 as the photo of every patch, although the patches of a point come from different
    photos. In that case the k-th patch of every point is assigned to photo k.

    Args:
        folder: folder with info.txt and the sheets.
        measurement_size: width of a patch in sigmas. The layout does not store it. Descriptors trained on the authors'
            data sets are used at 12.

    Raises:
        HardnetSfmError: a file is missing or damaged, the number of sheets does not match info.txt, or no point has
            two patches.
    """
    brown = open_brown(folder)
    order = np.argsort(brown.point, kind="stable")
    _, point, sizes = np.unique(brown.point[order], return_inverse=True, return_counts=True)
    numbers, image = np.unique(brown.photo[order], return_inverse=True)
    if len(numbers) < 2:
        image = np.arange(len(brown)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        numbers = np.arange(sizes.max(initial=0))
    patches = np.empty((len(brown), PATCH_SIZE, PATCH_SIZE), np.uint8)
    row = np.empty(len(order), np.int64)
    row[order] = np.arange(len(order))
    for number, block in enumerate(brown.blocks()):
        patches[row[number * ON_A_SHEET :][: len(block)]] = block
    return PatchSet(
        folder,
        "brown",
        measurement_size,
        tuple(map(str, numbers)),
        patches,
        point,
        image.astype(np.int32),
        frame=np.full((len(brown), 2, 3), np.nan, np.float32),
        angle=np.full(len(brown), np.nan, np.float32),
        xyz=np.full((len(sizes), 3), np.nan, np.float32),
    ).check()


def write_brown(patch_set: PatchSet, folder: Path, pairs: int = 100_000, seed: int = 0) -> None:
    """Writes a patch set in Brown's layout for other trainers: the sheets, info.txt and one m50 file.

    Patch k of the layout is row k of the set. The layout cannot hold positions, frames, angles and names of photos.

    Args:
        patch_set: patches to write.
        folder: folder to create; it must be empty if it exists.
        pairs: number of labelled pairs, half of them matching. A pair may be drawn more than once.
        seed: random seed for drawing the pairs.

    Raises:
        UsageError: `pairs` is odd or less than two.
        HardnetSfmError: all patches show the same point, the folder is not empty, or the folder cannot be written.
    """
    if pairs < 2 or pairs % 2:
        raise UsageError(
            f"{pairs} labelled pairs: an even number is needed, half of them match", "Ask for one more or one less."
        )
    drawn = _draw_pairs(patch_set.check(), pairs // 2, np.random.default_rng(seed))
    lines = np.stack([np.arange(len(patch_set)), patch_set.point, patch_set.image], 1)
    folder = folder.resolve()
    beside = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for number, start in enumerate(range(0, len(patch_set), ON_A_SHEET)):
            sheet = _sheet(patch_set.patches[start : start + ON_A_SHEET])
            (beside / f"patches{number:04d}.bmp").write_bytes(cv2.imencode(".bmp", sheet)[1].tobytes())
        np.savetxt(beside / f"m50_{pairs}_{pairs}_0.txt", lines[drawn].reshape(-1, 6), "%d")
        np.savetxt(beside / "info.txt", lines[:, 1:], "%d")
        beside.replace(folder)
    except OSError as error:
        raise HardnetSfmError(
            f"cannot write {folder}: {error.strerror or error}", "Give a folder that does not exist, with room for it."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _draw_pairs(patch_set: PatchSet, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws (2 count, 2) rows: matching and non-matching pairs alternate.

    The first patch of a pair is drawn from all patches that have a partner of the wanted kind. The second is drawn from
    all partners of the first.
    """
    sizes = np.bincount(patch_set.point)
    end = np.cumsum(sizes)
    if len(patch_set) == sizes[0]:
        raise HardnetSfmError(
            f"{patch_set.path}: all patches are of one point", "Non-matching pairs need patches of two points."
        )
    rows = np.empty((count, 2, 2), np.int64)
    first = rng.choice(np.flatnonzero(sizes[patch_set.point] >= 2), count)
    of = patch_set.point[first]
    start = end[of] - sizes[of]
    rows[:, 0] = np.stack([first, start + (first - start + rng.integers(1, sizes[of])) % sizes[of]], 1)
    # The rows of a point are contiguous. Counted cyclically, all rows of other points follow after them.
    first = rng.integers(0, len(patch_set), count)
    of = patch_set.point[first]
    others = len(patch_set) - sizes[of]
    rows[:, 1] = np.stack([first, (end[of] + rng.integers(0, others)) % len(patch_set)], 1)
    return rows.reshape(-1, 2)


def _sheet(patches: Grey) -> Grey:
    """Arranges at most 256 patches on a sheet; unused places are black."""
    full = np.zeros((ACROSS, ACROSS, PATCH_SIZE, PATCH_SIZE), np.uint8)
    full.reshape(-1, PATCH_SIZE, PATCH_SIZE)[: len(patches)] = patches
    return full.swapaxes(1, 2).reshape(ACROSS * PATCH_SIZE, -1)
