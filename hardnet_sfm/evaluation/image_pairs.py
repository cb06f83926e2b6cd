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

import cv2
import numpy as np

from hardnet_sfm.arrays import Float32, Float64
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.homographies import photos_named, read_homography
from hardnet_sfm.files.photo_folders import EXTENSIONS

# Thresholds in pixels at which the authors of WxBS measure recall.
THRESHOLDS = np.arange(20)
# The authors reserve these pairs for choosing parameters, so the evaluation leaves them out.
VALIDATION = ("kyiv_dolltheater2", "petrzin")
_LAYOUT = (
    "EVD has 1/NAME.png, 2/NAME.png and h/NAME.txt; WxBS has GROUP/NAME/01.png, GROUP/NAME/02.png and "
    "GROUP/NAME/corrs.txt."
)
# Parameters with which the authors of WxBS call MAGSAC; the threshold is in pixels.
_THRESHOLD, _CONFIDENCE, _ITERATIONS = 0.25, 0.999, 100_000
_FEWEST = 8


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two photos and their ground truth: a homography or true correspondences.

    Attributes:
        name: name of the pair.
        photos: paths of the two photos.
        homography: (3, 3) homography from pixels of the first photo to pixels of the second, or None.
        correspondences: (K, 4) true correspondences x1, y1, x2, y2 in pixels, or None.
    """

    name: str
    photos: tuple[Path, Path]
    homography: Float64 | None = None
    correspondences: Float64 | None = None


def read_image_pairs(folder: Path) -> list[ImagePair]:
    """Reads all pairs of a folder in the layout of EVD or WxBS, in the order of their names. Photos are not decoded.

    Raises:
        HardnetSfmError: the folder is missing or has no pairs, or a photo or the ground truth of a pair is missing or
            damaged.
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
            warnings.simplefilter("error")  # NumPy only warns about an empty file
            found = np.loadtxt(path, np.float64, ndmin=2)
        if found.shape[1] != 4 or not np.isfinite(found).all():
            raise ValueError(f"{found.shape[1]} columns, or something that is no number")
    except (OSError, ValueError, UserWarning) as error:
        raise HardnetSfmError(f"{path}: not lines x1 y1 x2 y2: {error}", "Get the file again.") from error
    return found


def fundamental_matrix(first: Float32, second: Float32) -> Float64 | None:
    """Estimates the (3, 3) fundamental matrix of (M, 2) matched pixels by MAGSAC++; None if there is no solution.

    This is OpenCV's implementation of Barath et al., MAGSAC++, CVPR 2020, with the threshold, confidence and iterations
    of the authors of WxBS. It draws the same samples in every run.
    """
    if len(first) < _FEWEST:
        return None
    one, other = (np.ascontiguousarray(xy, np.float64) for xy in (first, second))
    found, _ = cv2.findFundamentalMat(one, other, cv2.USAC_MAGSAC, _THRESHOLD, _CONFIDENCE, _ITERATIONS)
    return None if found is None or found.shape != (3, 3) else np.asarray(found, np.float64)


def epipolar_distances(matrix: Float64, correspondences: Float64) -> Float64:
    """(K,) symmetric epipolar distances in pixels.

    This is the root of the sum of the squared distances of both points to the other point's epipolar line, Hartley and
    Zisserman, Multiple view geometry, 2nd edition, equation 11.10.

    Args:
        matrix: (3, 3) fundamental matrix F with x2' F x1 = 0.
        correspondences: (K, 4) correspondences x1, y1, x2, y2.
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
    """(20,) shares of the true correspondences that agree with a fundamental matrix within 0, 1, .. 19 pixels.

    This is the measure of WxBS. It is 0 without a matrix.
    """
    if matrix is None:
        return np.zeros(len(THRESHOLDS))
    distances = epipolar_distances(matrix, correspondences)
    return np.asarray((distances <= THRESHOLDS[:, None]).mean(1))
