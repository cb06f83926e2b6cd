"""Tells whether chance explains the inliers between a query and a photo.

Wrong correspondences also agree with some transformation: the more correspondences there are, the more agree. So the
number of inliers alone means little. The a contrario method (Moisan and Stival, IJCV 57(3), 2004) uses the number of
false alarms: how many agreements of this quality chance would give. An agreement is accepted if it is below 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32, Float64

# Probability that a wrong correspondence agrees with a transformation. The circle of tolerance covers 0.0026 of a photo
# of 4:3. Features lie closer together than at random places.
_BY_CHANCE = 0.004
# This many correspondences fix an affine transformation, so that they always agree.
_FIXED = 3
# Correspondences up to each of these Hamming distances are judged alone, because the nearest are rarely wrong.
_LIMITS = np.array([8, 12, 16, 20, 24, 64])
# A query that finds nothing is tried in all quarter turns.
_TURNS = 4


def log_false_alarms(distances: NDArray[np.int64], cells: NDArray[np.int64], inliers: NDArray[np.int64]) -> float:
    """Returns log10 of the number of agreements as good as this one that chance gives in one photo.

    Correspondences between the same two cells do not agree independently, so they count as one. Inliers count by the
    number of different cells in the query or in the photo, whichever is less. The number of false alarms is a product
    of four numbers: turns, limits, correspondences, and the probability that as many of the others agree. Each
    correspondence proposes a transformation. The limit with the least product counts.

    Args:
        distances: (M,) Hamming distances of all correspondences of the query and the photo, not decreasing.
        cells: (2, M) numbers of the cells of both places. A cell is twice as wide as the tolerance.
        inliers: (K,) rows of the inliers, rising.
    """
    pairs = np.unique(cells[0] << 32 | cells[1], return_index=True)[1]
    trials = _count_by_limit(distances[pairs])
    agreeing = np.minimum(*(_count_by_limit(distances[inliers[_first_of_each(side[inliers])]]) for side in cells))
    return min(
        float(np.log10(_TURNS * len(_LIMITS) * max(1, number)) + _log_tail(number - _FIXED, found - _FIXED))
        for number, found in zip(trials.tolist(), agreeing.tolist(), strict=True)
    )


def cells_of(places: Float32 | Float64, width: float) -> NDArray[np.int64]:
    """Returns the number of the cell of each of (M, 2) places, pixels, on a grid of square cells."""
    x, y = np.floor((places - places.min(0)) / width).astype(np.int64).T
    return np.asarray(x << 16 | y, np.int64)


def _first_of_each(values: NDArray[np.int64]) -> NDArray[np.intp]:
    return np.unique(values, return_index=True)[1]


def _count_by_limit(distances: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.asarray((distances[:, None] <= _LIMITS).sum(0), np.int64)


def _log_tail(trials: int, successes: int) -> float:
    """Returns log10 of the probability of at least this many successes, by the binomial distribution."""
    if successes <= 0:
        return 0.0
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    numbers = np.arange(successes, trials + 1)
    logs = factorials[trials] - factorials[numbers] - factorials[trials - numbers]
    logs += numbers * np.log(_BY_CHANCE) + (trials - numbers) * np.log1p(-_BY_CHANCE)
    largest = logs.max()
    return float((largest + np.log(np.exp(logs - largest).sum())) / np.log(10))
