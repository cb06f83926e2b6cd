"""Scores keypoint matches between photos that are related by homographies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32, Float64
from hardnet_sfm.measures import average_precision

TOLERANCE = 3.0
# Thresholds in pixels for the curve of matching accuracy, as in the literature since D2-Net (Dusmanu et al.,
# CVPR 2019).
TOLERANCES = np.arange(1, 11)
# Number of rows of the distance matrix between two photos' keypoints that are computed at once.
_ROWS = 1024


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
