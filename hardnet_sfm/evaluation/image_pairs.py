"""Pairs of photos with a wide baseline, and what is known of them.

Two layouts. EVD (Mishkin, Matas, Perdoch: MODS, CVIU 2015): `1/NAME.png`, `2/NAME.png` and `h/NAME.txt`, the homography
from the first to the second. WxBS (Mishkin et al., BMVC 2015): a folder `GROUP/NAME` for each pair with `01.png`,
`02.png` and `corrs.txt`, a line `x1 y1 x2 y2` for each of a few correspondences that people have marked.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.homographies import Float64, photos_named, read_homography
from hardnet_sfm.files.photo_files import EXTENSIONS
from hardnet_sfm.keypoints import Float32

# Pixels at which the authors of WxBS measure recall.
THRESHOLDS = np.arange(20)
# Pairs that the authors keep for choosing parameters; they take no part.
VALIDATION = ("kyiv_dolltheater2", "petrzin")
_LAYOUT = (
    "EVD has 1/NAME.png, 2/NAME.png and h/NAME.txt; WxBS has GROUP/NAME/01.png, GROUP/NAME/02.png and "
    "GROUP/NAME/corrs.txt."
)
# MAGSAC as the authors of WxBS call it; the threshold in pixels.
_THRESHOLD, _CONFIDENCE, _ITERATIONS = 0.25, 0.999, 100_000
_FEWEST = 8


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two photos and what is known of where the points of one are in the other; either of the last two.

    Attributes:
        name: of the pair.
        photos: files.
        homography: (3, 3) from pixels of the first to those of the second, or None.
        correspondences: (K, 4) x1, y1, x2, y2 in pixels, or None.
    """

    name: str
    photos: tuple[Path, Path]
    homography: Float64 | None = None
    correspondences: Float64 | None = None


def read_image_pairs(folder: Path) -> list[ImagePair]:
    """All pairs of a folder in the layout of EVD or WxBS, by name. Photos are found, not decoded.

    Raises:
        HardnetSfmError: the folder is missing or has none, or of one a photo or the truth is missing or damaged.
    """
    if not folder.is_dir():
        raise HardnetSfmError(f"no such folder: {folder}", _LAYOUT)
    pairs = _evd(folder) if (folder / "1").is_dir() and (folder / "2").is_dir() else _wxbs(folder)
    if not pairs:
        raise HardnetSfmError(f"{folder}: no pairs of photos in it", _LAYOUT)
    return pairs


def _evd(folder: Path) -> list[ImagePair]:
    pairs = []
    for first in sorted(path for path in (folder / "1").iterdir() if path.suffix.lower() in EXTENSIONS):
        truth = folder / "h" / f"{first.stem}.txt"
        if not truth.is_file():
            raise HardnetSfmError(f"{truth}: no such file", _LAYOUT)
        pairs.append(ImagePair(first.stem, (first, _photo(folder / "2", first.stem)), read_homography(truth)))
    return pairs


def _wxbs(folder: Path) -> list[ImagePair]:
    pairs = []
    for truth in sorted(folder.glob("*/*/corrs.txt")):
        if truth.parent.name not in VALIDATION:
            name = truth.parent.relative_to(folder).as_posix()
            photos = (_photo(truth.parent, "01"), _photo(truth.parent, "02"))
            pairs.append(ImagePair(name, photos, correspondences=_correspondences(truth)))
    for photo in sorted(folder.glob("*/*/01.*")):
        if not (photo.parent / "corrs.txt").is_file():
            raise HardnetSfmError(f"{photo.parent}: no corrs.txt", _LAYOUT)
    return pairs


def _photo(folder: Path, stem: str) -> Path:
    found = photos_named(folder, stem)
    if len(found) != 1:
        raise HardnetSfmError(f"{folder}: {'several photos' if found else 'no photo'} named {stem}", _LAYOUT)
    return found[0]


def _correspondences(path: Path) -> Float64:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy only warns of an empty file
            found = np.loadtxt(path, np.float64, ndmin=2)
        if found.shape[1] != 4 or not np.isfinite(found).all():
            raise ValueError(f"{found.shape[1]} columns, or something that is no number")
    except (OSError, ValueError, UserWarning) as error:
        raise HardnetSfmError(f"{path}: not lines x1 y1 x2 y2: {error}", "Get the file again.") from error
    return found


def fundamental_matrix(first: Float32, second: Float32) -> Float64 | None:
    """The (3, 3) fundamental matrix of (M, 2) matched pixels by MAGSAC++; None where none is found.

    Barath et al., MAGSAC++, CVPR 2020, in OpenCV, with the threshold, confidence and iterations of the authors of WxBS.
    It takes the same samples in every run.
    """
    if len(first) < _FEWEST:
        return None
    one, other = (np.ascontiguousarray(xy, np.float64) for xy in (first, second))
    found, _ = cv2.findFundamentalMat(one, other, cv2.USAC_MAGSAC, _THRESHOLD, _CONFIDENCE, _ITERATIONS)
    return None if found is None or found.shape != (3, 3) else np.asarray(found, np.float64)


def epipolar_distances(matrix: Float64, correspondences: Float64) -> Float64:
    """(K,) root of the sum of the squared distances, pixels, of both points to the other's epipolar line.

    The symmetric epipolar distance, Hartley and Zisserman, Multiple view geometry, 2nd edition, equation 11.10.

    Args:
        matrix: (3, 3) fundamental matrix F with x2' F x1 = 0.
        correspondences: (K, 4) x1, y1, x2, y2.
    """
    ones = np.ones((len(correspondences), 1))
    first, second = np.hstack([correspondences[:, :2], ones]), np.hstack([correspondences[:, 2:], ones])
    lines_in_second, lines_in_first = first @ matrix.T, second @ matrix
    residual = np.einsum("kd,kd->k", second, lines_in_second)
    with np.errstate(divide="ignore", invalid="ignore"):  # a point in the epipole has no line
        scale = sum(
            1 / np.einsum("kd,kd->k", lines[:, :2], lines[:, :2]) for lines in (lines_in_second, lines_in_first)
        )
        return np.asarray(np.sqrt(residual**2 * scale))


def recall_of_truth(matrix: Float64 | None, correspondences: Float64) -> Float64:
    """(20,) share of the true correspondences that agree with a fundamental matrix within 0, 1, .. 19 pixels.

    The measure of WxBS. Where no matrix was found it is 0.
    """
    if matrix is None:
        return np.zeros(len(THRESHOLDS))
    distances = epipolar_distances(matrix, correspondences)
    return np.asarray((distances <= THRESHOLDS[:, None]).mean(1))
