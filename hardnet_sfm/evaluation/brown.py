"""The layout of the PhotoTour patches (Brown, Hua, Winder, PAMI 2011): Liberty, Notre Dame and Yosemite.

Sheets `patchesNNNN.bmp` have 16 rows of 16 patches of 64x64 pixels; `info.txt` has a line "point photo" for each patch,
and `m50_M_M_0.txt` a line "patch point photo patch point photo" for each of M labelled pairs, half of them matching.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.columns import Grey
from hardnet_sfm.files.photo_files import read_photo

PATCH_SIZE = 64
ACROSS = 16
ON_A_SHEET = ACROSS**2
MEASUREMENT_SIZE = 12.0
# The pairs that the literature verifies.
OFFICIAL_PAIRS = "m50_100000_100000_0.txt"
TEST_SETS = ("liberty", "notredame", "yosemite")
_SIDE = ACROSS * PATCH_SIZE
_LAYOUT = "Give a folder in Brown's layout: info.txt, patchesNNNN.bmp and m50_100000_100000_0.txt."


class LabelledPairs(NamedTuple):
    """Pairs to verify.

    Attributes:
        patches: (M, 2) int64, numbers of two patches in the order of info.txt.
        matching: (M,) bool, whether they are of the same point.
    """

    patches: NDArray[np.int64]
    matching: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class BrownFolder:
    """What a folder in Brown's layout has; the patches stay in their sheets.

    Attributes:
        path: of the folder.
        point: (N,) int64, of each patch.
        photo: (N,) int64, of each patch; all 0 where nobody noted them.
        sheets: files of 256 patches each.
    """

    path: Path
    point: NDArray[np.int64]
    photo: NDArray[np.int64]
    sheets: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.point)

    def blocks(self) -> Iterator[Grey]:
        """The patches of one sheet after the other, (256, 64, 64) uint8, the last one as many as are left.

        Raises:
            HardnetSfmError: a sheet is damaged or of another size.
        """
        for number, path in enumerate(self.sheets):
            yield _cut(path)[: len(self) - number * ON_A_SHEET]


def open_brown(folder: Path) -> BrownFolder:
    """Reads info.txt of a folder and looks for the sheets.

    Raises:
        HardnetSfmError: info.txt is missing or damaged, or there are more or fewer sheets than it needs.
    """
    point, photo = _numbers(folder / "info.txt", (0, 1)).T
    sheets = tuple(sorted(folder.glob("patches*.bmp")))
    needed = math.ceil(len(point) / ON_A_SHEET)
    if len(sheets) != needed:
        raise HardnetSfmError(
            f"{folder}: {len(sheets)} sheets patches*.bmp, but info.txt has {len(point)} patches, which fill {needed}",
            "Copy or unpack the data set again.",
        )
    return BrownFolder(folder, point, photo, sheets)


def find_brown(folder: Path) -> dict[str, BrownFolder]:
    """The test sets of a folder by name: it is one itself, or has some of liberty, notredame and yosemite in it.

    Raises:
        HardnetSfmError: there is none, or what `open_brown` finds.
    """
    if (folder / "info.txt").is_file():
        return {folder.resolve().name: open_brown(folder)}
    found = {name: folder / name for name in TEST_SETS if (folder / name).is_dir()}
    if not found:
        raise HardnetSfmError(f"{folder}: no info.txt, and none of the folders {', '.join(TEST_SETS)} in it", _LAYOUT)
    return {name: open_brown(path) for name, path in found.items()}


def find_pairs(brown: BrownFolder) -> Path:
    """The official file of labelled pairs; in other people's sets, which may have fewer, the one there is.

    Raises:
        HardnetSfmError: there is none, or there are several and none is official.
    """
    official = brown.path / OFFICIAL_PAIRS
    found = sorted(brown.path.glob("m50_*_*_0.txt"))
    if official.is_file() or len(found) != 1:
        found = [official]
    if not found[0].is_file():
        raise HardnetSfmError(f"{brown.path}: no labelled pairs {OFFICIAL_PAIRS}", _LAYOUT)
    return found[0]


def read_pairs(path: Path, brown: BrownFolder) -> LabelledPairs:
    """Reads a file m50_M_M_0.txt.

    Raises:
        HardnetSfmError: the file is missing, damaged or has not M lines, or contradicts info.txt.
    """
    first, first_point, second, second_point = _numbers(path, (0, 1, 3, 4)).T
    stated = re.fullmatch(r"m50_(\d+)_\1_0", path.stem)
    if stated and int(stated[1]) != len(first):
        raise HardnetSfmError(f"{path}: {len(first)} pairs, its name says {stated[1]}", "Get the file again.")
    patches = np.stack([first, second], 1)
    if patches.size and not 0 <= patches.min() <= patches.max() < len(brown):
        raise HardnetSfmError(
            f"{path}: numbers of patches that are not in info.txt, which has {len(brown)}",
            "Take both files from the same data set.",
        )
    if (brown.point[patches] != np.stack([first_point, second_point], 1)).any():
        raise HardnetSfmError(
            f"{path}: other points than info.txt gives the same patches", "Take both files from the same data set."
        )
    return LabelledPairs(patches, first_point == second_point)


def _cut(path: Path) -> Grey:
    """The 256 patches of a sheet, row by row."""
    sheet = read_photo(path).grey
    if sheet.shape != (_SIDE, _SIDE):
        raise HardnetSfmError(
            f"{path}: {sheet.shape[1]}x{sheet.shape[0]} pixels, a sheet of 16x16 patches of 64x64 has {_SIDE}x{_SIDE}",
            "Give the data set as it is, unscaled.",
        )
    return sheet.reshape(ACROSS, PATCH_SIZE, ACROSS, PATCH_SIZE).swapaxes(1, 2).reshape(-1, PATCH_SIZE, PATCH_SIZE)


def _numbers(path: Path, columns: tuple[int, ...]) -> NDArray[np.int64]:
    """Columns of a text file of whole numbers, (lines, columns)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy only warns of an empty file
            return np.loadtxt(path, np.int64, usecols=columns, ndmin=2)
    except FileNotFoundError as error:
        raise HardnetSfmError(f"no such file: {path}", _LAYOUT) from error
    except (OSError, ValueError, UserWarning) as error:
        raise HardnetSfmError(
            f"{path}: not lines of at least {max(columns) + 1} whole numbers: {error}",
            "Take it from the data set again.",
        ) from error
