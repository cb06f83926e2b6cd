"""How well distances tell right from wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating[Any]]


def fpr95(distances: Floats, same: Bools) -> float:
    """False positive rate at 95 % recall, 0 to 1: the measure of Brown, Hua and Winder, PAMI 2011.

    Args:
        distances: (N,) of pairs, smaller where they are more alike.
        same: (N,) whether each pair shows the same point.

    Raises:
        ValueError: there are no pairs of one of both kinds.
    """
    return float(false_positive_rates(distances, same)[94])


def false_positive_rates(distances: Floats, same: Bools) -> NDArray[np.float64]:
    """The receiver operating characteristic: (100,) false positive rates, 0 to 1, at 1 to 100 % recall.

    The threshold of each is the smallest that accepts at least so many of the pairs that are the same; the rate is the
    share of the other pairs whose distance is not above it.

    Args:
        distances: (N,) of pairs, smaller where they are more alike.
        same: (N,) whether each pair shows the same point.

    Raises:
        ValueError: there are no pairs of one of both kinds.
    """
    if same.all() or not same.any():
        raise ValueError("the false positive rate needs pairs that are the same and pairs that are not")
    positives, others = np.sort(distances[same]), np.sort(distances[~same])
    thresholds = positives[-(-np.arange(1, 101) * len(positives) // 100) - 1]
    return np.asarray(np.searchsorted(others, thresholds, "right") / len(others), np.float64)


def average_precision(distances: Floats, right: Bools, positives: int | None = None) -> float:
    """Mean over all that is to be found of the precision where it is found, 0 to 1: the sum of P_k (R_k - R_{k-1}).

    Precision P and recall R are taken at every distance that occurs, so equal distances count together and their order
    is of no account. No interpolation, as in scikit-learn's `average_precision_score`.

    Args:
        distances: (N,) smaller is ranked higher.
        right: (N,) whether each is one of those to be found.
        positives: number of those to be found, with those that are not among the N; their recall is never reached.
            All are among them where it is left out.

    Raises:
        ValueError: nothing is to be found.
    """
    total = int(right.sum()) if positives is None else positives
    if total < 1:
        raise ValueError("the average precision needs something that is to be found")
    _, place, counts = np.unique(distances, return_inverse=True, return_counts=True)
    found = np.bincount(place, right, len(counts))
    precision = np.cumsum(found) / np.cumsum(counts)
    return float(precision @ found / total)


def trapezoid_average_precision(right: Bools, positives: int) -> float:
    """Area under the straight lines between the points of precision over recall, 0 to 1.

    The measure of Philbin et al., Object retrieval with large vocabularies and fast spatial matching, CVPR 2007, as the
    program that comes with Oxford5k computes it, and of Radenovic et al., Revisiting Oxford and Paris, CVPR 2018: with
    P_r the precision of the first r answers and P_0 = 1, the mean over positives of (P_{r-1} + P_r) / 2 where r is the
    rank of a positive. Positives that are not in the ranking count 0.

    Args:
        right: (N,) of a ranking, best first and without junk: whether each answer is a positive.
        positives: number of those there are, in the ranking or not.

    Raises:
        ValueError: there are none, or fewer than in the ranking.
    """
    before = np.flatnonzero(right)  # answers ahead of each positive that was found
    if positives < max(1, len(before)):
        raise ValueError(f"{len(before)} positives found of {positives}")
    found = np.arange(len(before))
    ahead = np.where(before > 0, found / np.maximum(before, 1), 1.0)
    return float(np.sum(ahead + (found + 1) / (before + 1)) / (2 * positives))


def threshold_area(ratios: Floats, right: Bools, thresholds: int = 100) -> float:
    """Area under recall over 1 - precision at evenly spaced thresholds, 0 to 1.

    The measure of Mishkin, Matas, Perdoch and Lenc, WxBS: Wide baseline stereo generalizations, BMVC 2015, as the
    authors' benchmark of descriptors computes it: the thresholds go from 0 to the largest ratio, matches below one are
    accepted, so the last match never is; precision is 1 where nothing is accepted; recall counts of all matches;
    neighbours on the curve are joined by straight lines, and where precision rises again the area is taken back.

    Args:
        ratios: (N,) of each match; smaller is more believed.
        right: (N,) whether each match is.
        thresholds: number of them.

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


def squared_distances(first: Floats, second: Floats) -> NDArray[np.float32]:
    """(N, M) squared L2 distances between (N, D) and (M, D) rows, by a product of matrices; at least 0."""
    lengths = np.einsum("nd,nd->n", first, first)[:, None] + np.einsum("md,md->m", second, second)
    return np.asarray(np.maximum(lengths - 2 * (first @ second.T), 0), np.float32)


def precision_at(right: Bools, k: int) -> float:
    """Share of positives among the first k answers, or up to the last positive where that comes before, 0 to 1.

    The measure P@k of Radenovic et al., CVPR 2018: a query with fewer positives than k can reach 1, too.

    Args:
        right: (N,) of a ranking, best first and without junk: whether each answer is a positive.
        k: at least 1.
    """
    found = np.flatnonzero(right)
    return float(np.mean(right[: min(k, found[-1] + 1)])) if len(found) else 0.0
