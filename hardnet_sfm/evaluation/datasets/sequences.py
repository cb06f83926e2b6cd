"""Reads sequences of six photos that are related by homographies, a folder for each sequence.

Two data sets have this layout. One is Mikolajczyk et al., A comparison of affine region detectors, IJCV 2005
(`img1.ppm` .. `img6.ppm`, `H1to2p` .. `H1to6p`). The other is the full photos of HPatches, Balntas et al., CVPR 2017
(`1.ppm` .. `6.ppm`, `H_1_2` .. `H_1_6`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hardnet_sfm.arrays import Float64, Grey
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.parts import LeftOut, read_parts
from hardnet_sfm.files.clutter import find_files
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.photo_folders import EXTENSIONS

PHOTOS = 6
_LAYOUT = "A sequence has photos 1 to 6 (or img1 to img6) and homographies H_1_2 to H_1_6 (or H1to2p to H1to6p)."


@dataclass(frozen=True, eq=False)
class PhotoGroup:
    """Photos of one subject.

    Attributes:
        name: name of the group in its data set.
        photos: paths of the photos.
    """

    name: str
    photos: tuple[Path, ...]

    def read(self) -> Iterator[Grey]:
        """Yields the photos one by one, (H, W) uint8.

        Raises:
            HardnetSfmError: a photo is damaged.
        """
        return (read_photo(path).grey for path in self.photos)


@dataclass(frozen=True, eq=False)
class HomographySequence(PhotoGroup):
    """Six photos of a plane, or six photos from one position.

    Attributes:
        homographies: (5, 3, 3) homographies from pixels of the first photo to pixels of each other photo. The centre of
            the top-left pixel is at (0, 0).
    """

    homographies: Float64


def read_sequences(folder: Path) -> tuple[list[HomographySequence], LeftOut]:
    """Reads one sequence, or all sequences of a folder in the order of their names. Photos are not decoded.

    Returns:
        The sequences, and the reasons why others are left out.

    Raises:
        HardnetSfmError: the folder is missing, or photos or homographies of every sequence are missing, ambiguous or
            damaged.
    """
    if not folder.is_dir():
        raise HardnetSfmError(f"no such folder: {folder}", _LAYOUT)
    inside = [path for path in find_files(folder, "*") if path.is_dir()]
    folders = inside if inside and not _find_photos(folder, _stems(1)) else [folder]
    return read_parts(((path.name, path) for path in folders), _read_sequence)


def _read_sequence(folder: Path) -> HomographySequence:
    photos = tuple(
        find_photo(folder, _stems(number), f"with number {number}", _LAYOUT) for number in range(1, PHOTOS + 1)
    )
    homographies = np.array([_homography(folder, number) for number in range(2, PHOTOS + 1)])
    return HomographySequence(folder.resolve().name, photos, homographies)


def find_photo(folder: Path, stems: Collection[str], which: str, layout: str) -> Path:
    """Finds the only photo of a folder that has one of the given names before the suffix.

    Raises:
        HardnetSfmError: there is none, or there are several. The message says `which`, the hint is the `layout`.
    """
    found = _find_photos(folder, stems)
    if len(found) != 1:
        raise HardnetSfmError(f"{folder}: {'several photos' if found else 'no photo'} {which}", layout)
    return found[0]


def _find_photos(folder: Path, stems: Collection[str]) -> list[Path]:
    return [path for path in find_files(folder, "*") if path.stem in stems and path.suffix.lower() in EXTENSIONS]


def _stems(number: int) -> tuple[str, str]:
    return str(number), f"img{number}"


def _homography(folder: Path, number: int) -> Float64:
    paths = (folder / f"H_1_{number}", folder / f"H1to{number}p")
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise HardnetSfmError(f"{folder}: no homography {paths[0].name} or {paths[1].name}", _LAYOUT)
    return read_homography(path)


def read_homography(path: Path) -> Float64:
    """Reads a (3, 3) matrix from a text file of nine numbers, row by row.

    Raises:
        HardnetSfmError: the file is damaged, or the matrix cannot be inverted.
    """
    try:
        matrix = np.array(path.read_text(encoding="ascii").split(), np.float64)
    except (OSError, ValueError) as error:
        raise HardnetSfmError(f"{path}: not a homography ({error})", "It is a text of nine numbers.") from error
    if matrix.size != 9:
        raise HardnetSfmError(
            f"{path}: {matrix.size} numbers, but a homography has 9", "It is a text of nine numbers, three a row."
        )
    if not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix.reshape(3, 3)) < 3:
        raise HardnetSfmError(
            f"{path}: not a homography: the matrix cannot be inverted",
            "Take it from the data set again: the file has been changed.",
        )
    return matrix.reshape(3, 3)
