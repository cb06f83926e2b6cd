"""Measures of how well distances separate right pairs or answers from wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]
# Added to the second distance, as the authors of W1BS do. If two patches equal the query, the ratio is then 0 and not
# 0 / 0.
_EPSILON = 1e-12
# Number of queries that are processed at once.
_ROWS = 1024


def fpr95(distances: Floats, same: Bools) -> float:
    """Computes the false positive rate at 95 % recall, 0 to 1: the measure of Brown, Hua and Winder, PAMI 2011.

    Args:
        distances: (N,) distances of pairs; a smaller distance means more similar patches.
        same: (N,) bool, whether each pair shows the same point.

    Raises:
        ValueError: there are no pairs of the same point, or none of different points.
    """
    return float(false_positive_rates(distances, same)[94])


def false_positive_rates(distances: Floats, same: Bools) -> NDArray[np.float64]:
    """Computes the receiver operating characteristic: (100,) false positive rates, 0 to 1, at 1 to 100 % recall.

    Each threshold is the smallest distance that accepts at least the wanted share of the pairs of the same point. The
    rate is the share of the other pairs whose distance does not exceed the threshold.

    Args:
        distances: (N,) distances of pairs; a smaller distance means more similar patches.
        same: (N,) bool, whether each pair shows the same point.

    Raises:
        ValueError: there are no pairs of the same point, or none of different points.
    """
    if same.all() or not same.any():
        raise ValueError("the false positive rate needs pairs that are the same and pairs that are not")
    positives, others = np.sort(distances[same]), np.sort(distances[~same])
    thresholds = positives[-(-np.arange(1, 101) * len(positives) // 100) - 1]
    return np.asarray(np.searchsorted(others, thresholds, "right") / len(others), np.float64)


def average_precision(distances: Floats, right: Bools, positives: int | None = None) -> float:
    """Computes average precision, 0 to 1: the sum of P_k (R_k - R_{k-1}).

    This is the mean, over all positives, of the precision at which each is found. Precision P and recall R are taken at
    every distance that occurs. Equal distances therefore count together, and their order does not matter. There is no
    interpolation, as in scikit-learn's `average_precision_score`.

    Args:
        distances: (N,) distances; a smaller distance ranks higher.
        right: (N,) bool, whether each answer is a positive.
        positives: number of all positives, including any that are not among the N answers. None means that all
            positives are among them.

    Raises:
        ValueError: there are no positives.
    """
    total = int(right.sum()) if positives is None else positives
    if total < 1:
        raise ValueError("the average precision needs something that is to be found")
    _, place, counts = np.unique(distances, return_inverse=True, return_counts=True)
    found = np.bincount(place, right, len(counts))
    precision = np.cumsum(found) / np.cumsum(counts)
    return float(precision @ found / total)


def trapezoid_average_precision(right: Bools, positives: int) -> float:
    """Computes the area under the straight lines between the points of precision over recall, 0 to 1.

    This is the measure of Philbin et al., Object retrieval with large vocabularies and fast spatial matching, CVPR
    2007, as the program that comes with Oxford5k computes it. Radenovic et al., Revisiting Oxford and Paris, CVPR 2018,
    use the same measure. Let P_r be the precision of the first r answers, with P_0 = 1. The measure is the mean over
    positives of (P_{r-1} + P_r) / 2, where r is the rank of a positive. Positives outside the ranking count 0.

    Args:
        right: (N,) bool, whether each answer of a ranking is a positive; best first and without junk.
        positives: number of all positives, in the ranking or not.

    Raises:
        ValueError: there are no positives, or fewer than in the ranking.
    """
    before = np.flatnonzero(right)  # number of answers ahead of each positive that was found
    if positives < max(1, len(before)):
        raise ValueError(f"{len(before)} positives found of {positives}")
    found = np.arange(len(before))
    ahead = np.where(before > 0, found / np.maximum(before, 1), 1.0)
    return float(np.sum(ahead + (found + 1) / (before + 1)) / (2 * positives))


def threshold_area(ratios: Floats, right: Bools, thresholds: int = 100) -> float:
    """Computes the area under recall over 1 - precision at evenly spaced thresholds, 0 to 1.

    This is the measure of Mishkin, Matas, Perdoch and Lenc, WxBS: Wide baseline stereo generalizations, BMVC 2015, as
    the authors' benchmark of descriptors computes it. The thresholds go from 0 to the largest ratio. A match is
    accepted if its ratio is below the threshold, so the last match is never accepted. Precision is 1 if nothing is
    accepted. Recall is relative to all matches. Straight lines join neighbours on the curve. If precision rises again,
    the area between is subtracted.

    Args:
        ratios: (N,) ratio of each match; a smaller ratio means more confidence.
        right: (N,) bool, whether each match is right.
        thresholds: number of thresholds.

    Raises:
        ValueError: there are no matches.
    """
    if not len(ratios):
        raise ValueError("an area needs matches")
    steps = np.linspace(0, ratios.max(), thresholds)
    accepted = np.searchsorted(np.sort(ratios), steps)
    found = np.searchsorted(np.sort(ratios[right]), steps)
    precision = np.where(accepted > 0, found / np.maximum(accepted, 1), 1.0)
    return float(np.trapezoid(found / len(ratios), 1 - precision))


def column_score(first: NDArray[np.float16], second: NDArray[np.float16]) -> float:
    """Computes the area under recall over 1 - precision of nearest neighbours.

    The matches are ranked by the ratio of the distances to the nearest and the second nearest neighbour.

    Args:
        first: (N, D) descriptors of the points in one photo.
        second: (N, D) descriptors of the same points in the other photo.
    """
    rows, columns = first.astype(np.float32), second.astype(np.float32)
    right, ratios = np.empty(len(rows), bool), np.empty(len(rows))
    for start in range(0, len(rows), _ROWS):
        block = slice(start, start + _ROWS)
        distances = np.sqrt(squared_distances(rows[block], columns), dtype=np.float64)
        right[block] = distances.argmin(1) == np.arange(len(rows))[block]
        nearest = np.partition(distances, 1, 1)
        ratios[block] = nearest[:, 0] / (nearest[:, 1] + _EPSILON)
    return threshold_area(ratios, right)


def squared_distances(first: Floats, second: Floats) -> NDArray[np.float32]:
    """(N, M) squared L2 distances between (N, D) and (M, D) rows, computed by a matrix product and clipped at 0."""
    lengths = np.einsum("nd,nd->n", first, first)[:, None] + np.einsum("md,md->m", second, second)
    return np.asarray(np.maximum(lengths - 2 * (first @ second.T), 0), np.float32)


def precision_at(right: Bools, k: int) -> float:
    """Computes the share of positives among the first k answers, 0 to 1.

    This is the measure P@k of Radenovic et al., CVPR 2018. If the last positive comes before rank k, only the answers
    up to it count. A query with fewer than k positives can therefore also reach 1.

    Args:
        right: (N,) bool, whether each answer of a ranking is a positive; best first and without junk.
        k: number of answers, at least 1.
    """
    found = np.flatnonzero(right)
    return float(np.mean(right[: min(k, found[-1] + 1)])) if len(found) else 0.0
