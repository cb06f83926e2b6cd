"""Reads pairs of photos with a wide baseline and their ground truth.

There are two layouts. EVD (Mishkin, Matas, Perdoch: MODS, CVIU 2015) has `1/NAME.png`, `2/NAME.png` and `h/NAME.txt`,
the homography from the first photo to the second. WxBS (Mishkin et al., BMVC 2015) has a folder `GROUP/NAME` for each
pair with `01.png`, `02.png` and `corrs.txt`. The text file has a line `x1 y1 x2 y2` for each of a few correspondences
that were marked by hand.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hardnet_sfm.arrays import Float64
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.parts import LeftOut, read_parts
from hardnet_sfm.evaluation.datasets.sequences import PhotoGroup, find_photo, read_homography
from hardnet_sfm.files.clutter import find_files
from hardnet_sfm.files.photo_folders import EXTENSIONS

# The authors reserve these pairs for choosing parameters, so the evaluation leaves them out.
VALIDATION = ("kyiv_dolltheater2", "petrzin")
_LAYOUT = (
    "EVD has 1/NAME.png, 2/NAME.png and h/NAME.txt; WxBS has GROUP/NAME/01.png, GROUP/NAME/02.png and "
    "GROUP/NAME/corrs.txt."
)


@dataclass(frozen=True, eq=False)
class ImagePair(PhotoGroup):
    """Two photos and their ground truth: a homography or true correspondences.

    Attributes:
        homography: (3, 3) homography from pixels of the first photo to pixels of the second, or None.
        correspondences: (K, 4) true correspondences x1, y1, x2, y2 in pixels, or None.
    """

    homography: Float64 | None = None
    correspondences: Float64 | None = None


def read_image_pairs(folder: Path) -> tuple[list[ImagePair], LeftOut]:
    """Reads all pairs of a folder in the layout of EVD or WxBS, in the order of their names. Photos are not decoded.

    Returns:
        The pairs, and the reasons why others are left out.

    Raises:
        HardnetSfmError: the folder is missing or has no pairs, or a photo or the ground truth of every pair is missing
            or damaged.
    """
    if not folder.is_dir():
        raise HardnetSfmError(f"no such folder: {folder}", _LAYOUT)
    if (folder / "1").is_dir() and (folder / "2").is_dir():
        firsts = [path for path in find_files(folder / "1", "*") if path.suffix.lower() in EXTENSIONS]
        pairs, left_out = read_parts(((path.stem, path) for path in firsts), _read_evd)
    else:
        homes = sorted({path.parent for name in ("corrs.txt", "01.*") for path in find_files(folder, f"*/*/{name}")})
        named = [(path.relative_to(folder).as_posix(), path) for path in homes if path.name not in VALIDATION]
        pairs, left_out = read_parts(((name, (name, path)) for name, path in named), _read_wxbs)
    if not pairs:
        raise HardnetSfmError(f"{folder}: no pairs of photos in it", _LAYOUT)
    return pairs, left_out


def _read_evd(first: Path) -> ImagePair:
    folder = first.parents[1]
    truth = folder / "h" / f"{first.stem}.txt"
    if not truth.is_file():
        raise HardnetSfmError(f"{truth}: no such file", _LAYOUT)
    return ImagePair(first.stem, (first, _named(folder / "2", first.stem)), read_homography(truth))


def _read_wxbs(named: tuple[str, Path]) -> ImagePair:
    name, folder = named
    if not (folder / "corrs.txt").is_file():
        raise HardnetSfmError(f"{folder}: no corrs.txt", _LAYOUT)
    photos = (_named(folder, "01"), _named(folder, "02"))
    return ImagePair(name, photos, correspondences=_correspondences(folder / "corrs.txt"))


def _named(folder: Path, stem: str) -> Path:
    return find_photo(folder, [stem], f"named {stem}", _LAYOUT)


def _correspondences(path: Path) -> Float64:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy only warns about an empty file
            found = np.loadtxt(path, np.float64, ndmin=2)
        if found.shape[1] != 4 or not np.isfinite(found).all():
            raise ValueError(f"{found.shape[1]} columns, or something that is no number")
    except (OSError, ValueError, UserWarning) as error:
        raise HardnetSfmError(f"{path}: not lines x1 y1 x2 y2: {error}", "Get the file again.") from error
    return found
