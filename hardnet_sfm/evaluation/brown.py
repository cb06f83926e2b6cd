"""Reads the layout of the PhotoTour patches (Brown, Hua, Winder, PAMI 2011): Liberty, Notre Dame and Yosemite.

The sheets `patchesNNNN.bmp` have 16 rows of 16 patches of 64x64 pixels. `info.txt` has a line "point photo" for each
patch. `m50_M_M_0.txt` has a line "patch point photo patch point photo" for each of M labelled pairs, half of them
matching.
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

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_files import read_photo

PATCH_SIZE = 64
ACROSS = 16
ON_A_SHEET = ACROSS**2
MEASUREMENT_SIZE = 12.0
# The labelled pairs that the literature evaluates.
OFFICIAL_PAIRS = "m50_100000_100000_0.txt"
TEST_SETS = ("liberty", "notredame", "yosemite")
_SIDE = ACROSS * PATCH_SIZE
_LAYOUT = "Give a folder in Brown's layout: info.txt, patchesNNNN.bmp and m50_100000_100000_0.txt."


class LabelledPairs(NamedTuple):
    """Patch pairs to verify.

    Attributes:
        patches: (M, 2) int64, numbers of two patches in the order of info.txt.
        matching: (M,) bool, whether both patches show the same point.
    """

    patches: NDArray[np.int64]
    matching: NDArray[np.bool_]


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
    sheets = tuple(sorted(folder.glob("patches*.bmp")))
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
    found = sorted(brown.path.glob("m50_*_*_0.txt"))
    if official.is_file() or len(found) != 1:
        found = [official]
    if not found[0].is_file():
        raise HardnetSfmError(f"{brown.path}: no labelled pairs {OFFICIAL_PAIRS}", _LAYOUT)
    return found[0]


def read_pairs(path: Path, brown: BrownFolder) -> LabelledPairs:
    """Reads a file m50_M_M_0.txt.

    Raises:
        HardnetSfmError: the file is missing, is damaged, does not have M lines or contradicts info.txt.
    """
    first, first_point, second, second_point = _numbers(path, (0, 1, 3, 4)).T
    stated = re.fullmatch(r"m50_(\d+)_\1_0", path.stem)
    if stated and int(stated[1]) != len(first):
        raise HardnetSfmError(f"{path}: {len(first)} pairs, but its name says {stated[1]}", "Get the file again.")
    patches = np.stack([first, second], 1)
    if patches.size and not 0 <= patches.min() <= patches.max() < len(brown):
        raise HardnetSfmError(
            f"{path}: numbers of patches that are not in info.txt, which has {len(brown)}",
            "Take both files from the same data set.",
        )
    if (brown.point[patches] != np.stack([first_point, second_point], 1)).any():
        raise HardnetSfmError(
            f"{path}: info.txt gives the same patches other points", "Take both files from the same data set."
        )
    return LabelledPairs(patches, first_point == second_point)


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
