"""Reads sequences of photos that are related by homographies, and scores keypoint matches on them.

Two data sets have this layout with a folder for each sequence. One is Mikolajczyk et al., A comparison of affine region
detectors, IJCV 2005 (`img1.ppm` .. `img6.ppm`, `H1to2p` .. `H1to6p`). The other is the full photos of HPatches, Balntas
et al., CVPR 2017 (`1.ppm` .. `6.ppm`, `H_1_2` .. `H_1_6`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32, Float64
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.measures import average_precision
from hardnet_sfm.files.photo_folders import EXTENSIONS

PHOTOS = 6
TOLERANCE = 3.0
# Thresholds in pixels for the curve of matching accuracy, as in the literature since D2-Net (Dusmanu et al.,
# CVPR 2019).
TOLERANCES = np.arange(1, 11)
_LAYOUT = "A sequence has photos 1 to 6 (or img1 to img6) and homographies H_1_2 to H_1_6 (or H1to2p to H1to6p)."
# Number of rows of the distance matrix between two photos' keypoints that are computed at once.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class HomographySequence:
    """Six photos of a plane, or six photos from one position.

    Attributes:
        name: name of the folder.
        photos: paths of the six photos.
        homographies: (5, 3, 3) homographies from pixels of the first photo to pixels of each other photo. The centre of
            the top-left pixel is at (0, 0).
    """

    name: str
    photos: tuple[Path, ...]
    homographies: Float64


def read_sequences(folder: Path) -> list[HomographySequence]:
    """Reads one sequence, or all sequences of a folder in the order of their names. Photos are not decoded.

    Raises:
        HardnetSfmError: the folder is missing, or photos or homographies are missing, ambiguous or damaged.
    """
    if not folder.is_dir():
        raise HardnetSfmError(f"no such folder: {folder}", _LAYOUT)
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [_read_sequence(sequence) for sequence in (inside if inside and not _photos(folder, 1) else [folder])]


def _read_sequence(folder: Path) -> HomographySequence:
    photos = tuple(_photo(folder, number) for number in range(1, PHOTOS + 1))
    homographies = np.array([_homography(folder, number) for number in range(2, PHOTOS + 1)])
    return HomographySequence(folder.resolve().name, photos, homographies)


def photos_named(folder: Path, *stems: str) -> list[Path]:
    """Lists the photos of a folder that have one of the given names before the suffix."""
    return [path for path in folder.iterdir() if path.stem in stems and path.suffix.lower() in EXTENSIONS]


def _photos(folder: Path, number: int) -> list[Path]:
    return photos_named(folder, str(number), f"img{number}")


def _photo(folder: Path, number: int) -> Path:
    found = _photos(folder, number)
    if len(found) != 1:
        raise HardnetSfmError(f"{folder}: {'several photos' if found else 'no photo'} with number {number}", _LAYOUT)
    return found[0]


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


@dataclass(frozen=True, eq=False)
class PairTruth:
    """True positions of a photo's keypoints in another photo. They do not depend on the descriptors.

    Attributes:
        places: (N, 2) positions of the first photo's keypoints in the second photo, pixels.
        others: (M, 2) keypoints of the second photo, pixels.
        matchable: number of keypoints of the first photo whose true position is within `TOLERANCE` pixels of a keypoint
            of the second photo.
    """

    places: Float64
    others: Float32
    matchable: int


def pair_truth(homography: Float64, first: Float32, second: Float32) -> PairTruth:
    """Maps the (N, 2) keypoints of a photo by a (3, 3) homography to a second photo with (M, 2) keypoints."""
    mapped = np.column_stack([first, np.ones(len(first))]) @ homography.T
    with np.errstate(divide="ignore", invalid="ignore"):  # a point at infinity is near no keypoint
        places = mapped[:, :2] / mapped[:, 2:]
    matchable = 0
    if len(second):
        others = torch.from_numpy(second.astype(np.float64))
        for rows in torch.split(torch.from_numpy(places), _ROWS):
            # Distances from a matrix product would lose their last digits.
            distances = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")
            matchable += int((distances.amin(1) <= TOLERANCE).sum())
    return PairTruth(places, second, matchable)


@dataclass(frozen=True, eq=False)
class RankedMatches:
    """Correspondences between two photos with a measure of confidence.

    Attributes:
        pairs: (M, 2) row numbers of the keypoints in the first and the second photo.
        ratios: (M,) ratios of the distances to the nearest and the second nearest neighbour, or of the odds of the
            second best and the best candidate. A smaller ratio means more confidence.
    """

    pairs: NDArray[np.int32]
    ratios: NDArray[np.floating[Any]]


@dataclass(frozen=True)
class MatchingScores:
    """Quality of the matches of one pair of photos, or the mean over several pairs.

    Attributes:
        accuracy: share of the matches that are right; the mean over pairs is the mean matching accuracy (MMA). A match
            is right if it is within `TOLERANCE` pixels of its true position.
        right: number of right matches.
        average_precision: average precision of the matches ranked by their ratios. Recall 1 means a right match for
            every keypoint of the first photo that has a counterpart. The mean over pairs is mAP.
    """

    accuracy: float
    right: float
    average_precision: float

    @classmethod
    def mean(cls, scores: Sequence[MatchingScores]) -> MatchingScores:
        return cls(*np.mean([(one.accuracy, one.right, one.average_precision) for one in scores], axis=0).tolist())


def matching_scores(truth: PairTruth, matches: RankedMatches) -> MatchingScores:
    """Scores the matches of one pair. All scores are 0 if no match is right."""
    right = _errors(truth, matches) <= TOLERANCE
    if not right.any():
        return MatchingScores(0.0, 0.0, 0.0)
    precision = average_precision(matches.ratios, right, truth.matchable)
    return MatchingScores(float(right.mean()), float(right.sum()), precision)


def accuracy_by_threshold(truth: PairTruth, matches: RankedMatches) -> Float64:
    """(10,) share of the matches of one pair within each of `TOLERANCES` of their true positions; 0 without matches."""
    errors = _errors(truth, matches)
    return np.asarray((errors[:, None] <= TOLERANCES).sum(0) / max(1, len(errors)), np.float64)


def _errors(truth: PairTruth, matches: RankedMatches) -> Float64:
    """(M,) distances in pixels from the matches to their true positions."""
    first, second = matches.pairs.T
    return np.asarray(np.linalg.norm(truth.places[first] - truth.others[second], axis=1), np.float64)


def homography_scores(truths: Sequence[PairTruth], matches: Sequence[RankedMatches]) -> MatchingScores:
    """Averages the scores over pairs of photos. A sequence gives the pairs of its first photo with each other photo."""
    pairs = zip(truths, matches, strict=True)
    return MatchingScores.mean([matching_scores(truth, found) for truth, found in pairs])
