"""The layout of the PhotoTour patches (Brown, Hua, Winder, PAMI 2011): Liberty, Notre Dame and Yosemite.

Sheets `patchesNNNN.bmp` have 16 rows of 16 patches of 64x64 pixels; `info.txt` has a line "point photo" for each patch,
and `m50_M_M_0.txt` a line "patch point photo patch point photo" for each of M labelled pairs, half of them matching.
"""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.images import read_photo
from hardnet_sfm.training.patches import PATCH_SIZE, Grey, PatchSet

_ACROSS = 16
_SIDE = _ACROSS * PATCH_SIZE
_ON_A_SHEET = _ACROSS**2


class LabelledPairs(NamedTuple):
    """Pairs to verify.

    Attributes:
        rows: (M, 2) int64, rows of two patches in the `PatchSet` of the same folder.
        matching: (M,) bool, whether they are of the same point.
    """

    rows: NDArray[np.int64]
    matching: NDArray[np.bool_]


def read_brown(folder: Path, measurement_size: float = 12.0) -> PatchSet:
    """Reads a folder in Brown's layout; 4 KB of memory a patch.

    The data sets that the authors distribute give 0 for every photo, though the patches of a point are of different
    photos. Where that is so, the k-th patch of every point is taken for one of photo k.

    Args:
        folder: with info.txt and the sheets.
        measurement_size: sigmas across a patch, which the layout does not tell; descriptors trained on the authors'
            data sets are used at 12.

    Raises:
        HardnetSfmError: a file is missing or damaged, there are more or fewer sheets than info.txt needs, or no point
            has two patches.
    """
    info = _numbers(folder / "info.txt", (0, 1))
    sheets = sorted(folder.glob("patches*.bmp"))
    needed = math.ceil(len(info) / _ON_A_SHEET)
    if len(sheets) != needed:
        raise HardnetSfmError(
            f"{folder}: {len(sheets)} sheets patches*.bmp, but info.txt has {len(info)} patches, which fill {needed}",
            "Copy or unpack the data set again.",
        )
    order = np.argsort(info[:, 0], kind="stable")
    _, point, sizes = np.unique(info[order, 0], return_inverse=True, return_counts=True)
    numbers, image = np.unique(info[order, 1], return_inverse=True)
    if len(numbers) < 2:
        image = np.arange(len(info)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        numbers = np.arange(sizes.max(initial=0))
    patches = np.empty((len(info), PATCH_SIZE, PATCH_SIZE), np.uint8)
    row = _inverse(order)
    for number, path in enumerate(sheets):
        rows = row[number * _ON_A_SHEET : (number + 1) * _ON_A_SHEET]
        patches[rows] = _cut(path)[: len(rows)]
    return PatchSet(
        folder,
        "brown",
        measurement_size,
        tuple(map(str, numbers)),
        patches,
        point,
        image.astype(np.int32),
        frame=np.full((len(info), 2, 3), np.nan, np.float32),
        angle=np.full(len(info), np.nan, np.float32),
        xyz=np.full((len(sizes), 3), np.nan, np.float32),
    ).check()


def read_brown_pairs(path: Path) -> LabelledPairs:
    """Reads a file m50_*.txt, for the patches that `read_brown` reads from its folder.

    Raises:
        HardnetSfmError: the file or the info.txt beside it is missing or damaged, or they contradict each other.
    """
    points = _numbers(path.with_name("info.txt"), (0,))[:, 0]
    first, first_point, second, second_point = _numbers(path, (0, 1, 3, 4)).T
    patches = np.stack([first, second], 1)
    if patches.size and not 0 <= patches.min() <= patches.max() < len(points):
        raise HardnetSfmError(
            f"{path}: numbers of patches that are not in info.txt, which has {len(points)}",
            "Take both files from the same data set.",
        )
    if (points[patches] != np.stack([first_point, second_point], 1)).any():
        raise HardnetSfmError(
            f"{path}: other points than info.txt gives the same patches", "Take both files from the same data set."
        )
    return LabelledPairs(_inverse(np.argsort(points, kind="stable"))[patches], first_point == second_point)


def write_brown(patch_set: PatchSet, folder: Path, pairs: int = 100_000, seed: int = 0) -> None:
    """Writes a data set in Brown's layout, for other people's trainers: the sheets, info.txt and one m50 file.

    Patch k of the layout is row k of the set. Places, frames and angles are lost, and so are the names of the photos.

    Args:
        patch_set: to write.
        folder: to make; it must not exist, or be empty.
        pairs: number of labelled pairs, half of them matching; any pair may be drawn more than once.
        seed: of the pairs.

    Raises:
        UsageError: `pairs` is odd or less than two.
        HardnetSfmError: the set has one point only, the folder is not empty, or the disk is full or cannot be written.
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
        for number, start in enumerate(range(0, len(patch_set), _ON_A_SHEET)):
            sheet = _sheet(patch_set.patches[start : start + _ON_A_SHEET])
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
    """(2 count, 2) rows: matching and non-matching pairs by turns.

    The first patch of a pair is drawn from all that have such a partner, its partner from all of those.
    """
    sizes = np.bincount(patch_set.point)
    end = np.cumsum(sizes)
    if len(patch_set) == sizes[0]:
        raise HardnetSfmError(f"{patch_set.path}: all patches are of one point", "Non-matching pairs need two.")
    rows = np.empty((count, 2, 2), np.int64)
    first = rng.choice(np.flatnonzero(sizes[patch_set.point] >= 2), count)
    of = patch_set.point[first]
    start = end[of] - sizes[of]
    rows[:, 0] = np.stack([first, start + (first - start + rng.integers(1, sizes[of])) % sizes[of]], 1)
    # All rows of other points follow those of a row's own, if the first row follows the last.
    first = rng.integers(0, len(patch_set), count)
    of = patch_set.point[first]
    others = len(patch_set) - sizes[of]
    rows[:, 1] = np.stack([first, (end[of] + rng.integers(0, others)) % len(patch_set)], 1)
    return rows.reshape(-1, 2)


def _cut(path: Path) -> Grey:
    """The 256 patches of a sheet, row by row."""
    sheet = read_photo(path).grey
    if sheet.shape != (_SIDE, _SIDE):
        raise HardnetSfmError(
            f"{path}: {sheet.shape[1]}x{sheet.shape[0]} pixels, a sheet of 16x16 patches of 64x64 has {_SIDE}x{_SIDE}",
            "Give the data set as it is, unscaled.",
        )
    return sheet.reshape(_ACROSS, PATCH_SIZE, _ACROSS, PATCH_SIZE).swapaxes(1, 2).reshape(-1, PATCH_SIZE, PATCH_SIZE)


def _sheet(patches: Grey) -> Grey:
    """The sheet of at most 256 patches; what is left over is black."""
    full = np.zeros((_ACROSS, _ACROSS, PATCH_SIZE, PATCH_SIZE), np.uint8)
    full.reshape(-1, PATCH_SIZE, PATCH_SIZE)[: len(patches)] = patches
    return full.swapaxes(1, 2).reshape(_SIDE, _SIDE)


def _numbers(path: Path, columns: tuple[int, ...]) -> NDArray[np.int64]:
    """Columns of a text file of whole numbers, (lines, columns)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy only warns of an empty file
            return np.loadtxt(path, np.int64, usecols=columns, ndmin=2)
    except FileNotFoundError as error:
        raise HardnetSfmError(f"no such file: {path}", "Give a folder in Brown's layout.") from error
    except (OSError, ValueError, UserWarning) as error:
        raise HardnetSfmError(
            f"{path}: not lines of at least {max(columns) + 1} whole numbers: {error}",
            "Take it from the data set again.",
        ) from error


def _inverse(order: NDArray[np.intp]) -> NDArray[np.int64]:
    row = np.empty(len(order), np.int64)
    row[order] = np.arange(len(order))
    return row
