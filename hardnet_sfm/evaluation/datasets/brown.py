"""Reads the layout of the PhotoTour patches (Brown, Hua, Winder, PAMI 2011): Liberty, Notre Dame and Yosemite.

The sheets `patchesNNNN.bmp` have 16 rows of 16 patches of 64x64 pixels. `info.txt` has a line "point photo" for each
patch. `m50_M_M_0.txt` has a line "patch point photo patch point photo" for each of M labelled pairs, half of them
matching.
"""

from __future__ import annotations

import math
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.datasets.parts import LeftOut, check_any, read_rows
from hardnet_sfm.files.clutter import find_files
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.patch_set import PATCH_SIZE, PatchSet

ACROSS = 16
ON_A_SHEET = ACROSS**2
MEASUREMENT_SIZE = 12.0
# The labelled pairs that the literature evaluates.
OFFICIAL_PAIRS = "m50_100000_100000_0.txt"
TEST_SETS = ("liberty", "notredame", "yosemite")
_PAIR_COLUMNS = (0, 1, 3, 4)  # patch, point, patch, point
_SIDE = ACROSS * PATCH_SIZE
_LAYOUT = "Give a folder in Brown's layout: info.txt, patchesNNNN.bmp and m50_100000_100000_0.txt."


class LabelledPairs(NamedTuple):
    """Patch pairs to verify.

    Attributes:
        patches: (M, 2) int64, numbers of two patches in the order of info.txt.
        matching: (M,) bool, whether both patches show the same point.
        left_out: reasons why lines of the file are left out.
    """

    patches: NDArray[np.int64]
    matching: NDArray[np.bool_]
    left_out: LeftOut


@dataclass(frozen=True, eq=False)
class BrownFolder:
    """Contents of a folder in Brown's layout. The patches stay in their sheets on disk.

    Attributes:
        path: path of the folder.
        point: (N,) int64, number of the point of each patch.
        photo: (N,) int64, number of the photo of each patch; all 0 if the data set does not record photos.
        sheets: image files of 256 patches each.
    """

    path: Path
    point: NDArray[np.int64]
    photo: NDArray[np.int64]
    sheets: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.point)

    def blocks(self) -> Iterator[Grey]:
        """Yields the patches of each sheet in order, (256, 64, 64) uint8. The last sheet may have fewer.

        Raises:
            HardnetSfmError: a sheet is damaged or of another size.
        """
        for number, path in enumerate(self.sheets):
            yield _cut(path)[: len(self) - number * ON_A_SHEET]


def open_brown(folder: Path) -> BrownFolder:
    """Reads info.txt of a folder and finds the sheets.

    Raises:
        HardnetSfmError: info.txt is missing or damaged, or the number of sheets does not match it.
    """
    point, photo = _numbers(folder / "info.txt", (0, 1)).T
    sheets = tuple(find_files(folder, "patches*.bmp"))
    needed = math.ceil(len(point) / ON_A_SHEET)
    if len(sheets) != needed:
        raise HardnetSfmError(
            f"{folder}: {len(sheets)} sheets patches*.bmp, but info.txt has {len(point)} patches, which fill {needed}",
            "Copy or unpack the data set again.",
        )
    return BrownFolder(folder, point, photo, sheets)


def find_brown(folder: Path) -> dict[str, BrownFolder]:
    """Finds the test sets of a folder by name.

    The folder is a test set itself, or contains at least one of the folders liberty, notredame and yosemite.

    Raises:
        HardnetSfmError: there is no test set, or `open_brown` raises it.
    """
    if (folder / "info.txt").is_file():
        return {folder.resolve().name: open_brown(folder)}
    found = {name: folder / name for name in TEST_SETS if (folder / name).is_dir()}
    if not found:
        raise HardnetSfmError(f"{folder}: no info.txt, and none of the folders {', '.join(TEST_SETS)} in it", _LAYOUT)
    return {name: open_brown(path) for name, path in found.items()}


def find_pairs(brown: BrownFolder) -> Path:
    """Finds the file of labelled pairs: the official file or, in a set by other authors, the only such file.

    Raises:
        HardnetSfmError: there is no such file, or there are several and none is the official one.
    """
    official = brown.path / OFFICIAL_PAIRS
    found = find_files(brown.path, "m50_*_*_0.txt")
    if official.is_file() or len(found) != 1:
        found = [official]
    if not found[0].is_file():
        raise HardnetSfmError(f"{brown.path}: no labelled pairs {OFFICIAL_PAIRS}", _LAYOUT)
    return found[0]


def read_pairs(path: Path, brown: BrownFolder) -> LabelledPairs:
    """Reads a file m50_M_M_0.txt. Lines that are damaged or contradict info.txt are left out.

    Raises:
        HardnetSfmError: the file is missing, does not have M lines, or has no good line.
    """
    rows, numbers, left_out = _pair_rows(path)
    stated, count = re.fullmatch(r"m50_(\d+)_\1_0", path.stem), len(rows) + len(left_out)
    if stated and int(stated[1]) != count:
        raise HardnetSfmError(f"{path}: {count} pairs, but its name says {stated[1]}", "Get the file again.")
    patches, points = rows[:, ::2], rows[:, 1::2]
    known: NDArray[np.bool_] = np.all((patches >= 0) & (patches < len(brown)), axis=1)
    good = known & (brown.point[np.where(known[:, None], patches, 0)] == points).all(1)
    for row in np.flatnonzero(~good).tolist():
        why = "info.txt gives the same patches other points"
        if not known[row]:
            why = f"numbers of patches that are not in info.txt, which has {len(brown)}"
        where = f"{path}: line {numbers[row]}"
        left_out[where] = HardnetSfmError(f"{where}: {why}", "Take both files from the same data set.")
    check_any(patches[good], left_out)
    return LabelledPairs(patches[good], points[good, 0] == points[good, 1], left_out)


def _pair_rows(path: Path) -> tuple[NDArray[np.int64], Sequence[int], LeftOut]:
    """Reads (M, 4) columns patch, point, patch, point; the numbers of their lines; and the lines that are left out."""
    try:
        rows = _numbers(path, _PAIR_COLUMNS)
        return rows, range(1, len(rows) + 1), {}
    except HardnetSfmError:
        if not path.is_file():
            raise
        found, left_out = read_rows(path, _parse_pair, _LAYOUT)
        if not found:
            raise
        return np.array(list(found.values()), np.int64), list(found), left_out


def _parse_pair(line: str) -> list[int]:
    words = line.split()
    if len(words) < 5:
        raise ValueError(f"not a pair: {len(words)} columns instead of at least 5")
    return [int(words[column]) for column in _PAIR_COLUMNS]


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
        str(folder),
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


def _cut(path: Path) -> Grey:
    """Cuts the 256 patches of a sheet, row by row."""
    sheet = read_photo(path).grey
    if sheet.shape != (_SIDE, _SIDE):
        raise HardnetSfmError(
            f"{path}: {sheet.shape[1]}x{sheet.shape[0]} pixels, but a sheet of 16x16 patches has {_SIDE}x{_SIDE}",
            "Give the data set as it is, unscaled.",
        )
    return sheet.reshape(ACROSS, PATCH_SIZE, ACROSS, PATCH_SIZE).swapaxes(1, 2).reshape(-1, PATCH_SIZE, PATCH_SIZE)


def _numbers(path: Path, columns: tuple[int, ...]) -> NDArray[np.int64]:
    """Reads columns of a text file of integers, (lines, columns)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy only warns about an empty file
            return np.loadtxt(path, np.int64, usecols=columns, ndmin=2)
    except FileNotFoundError as error:
        raise HardnetSfmError(f"no such file: {path}", _LAYOUT) from error
    except (OSError, ValueError, UserWarning) as error:
        raise HardnetSfmError(
            f"{path}: not lines of at least {max(columns) + 1} whole numbers: {error}",
            "Take it from the data set again.",
        ) from error


def _draw_pairs(patch_set: PatchSet, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws (2 count, 2) rows: matching and non-matching pairs alternate.

    The first patch of a pair is drawn from all patches that have a partner of the wanted kind. The second is drawn from
    all partners of the first.
    """
    sizes = np.bincount(patch_set.point)
    end = np.cumsum(sizes)
    if len(patch_set) == sizes[0]:
        raise HardnetSfmError(
            f"{patch_set.origin}: all patches are of one point", "Non-matching pairs need patches of two points."
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
