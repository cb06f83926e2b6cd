"""Spatial verification: finds correspondences of a query and a photo that fit one transformation of the plane.

The method follows Philbin et al. (CVPR 2007, section 4). Each correspondence alone gives a similarity, from the
positions, scales and orientations of its two features. If the index has affine frames, it gives an affine
transformation. Each transformation is scored by the number of correspondences that agree. The best are refined several
times to an affine transformation, by least squares on the correspondences that agree. The method is deterministic.

Wrong correspondences also agree with some transformation: the more correspondences there are, the more agree. So the
number of inliers alone means little. The a contrario method (Moisan and Stival, IJCV 57(3), 2004) uses the number of
false alarms: how many agreements of this quality chance would give. An agreement is accepted if it is below 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32, Float64
from hardnet_sfm.retrieval import kernels
from hardnet_sfm.retrieval.consensus import best_transformation
from hardnet_sfm.retrieval.inverted_index import InvertedIndex
from hardnet_sfm.retrieval.scoring import Query

# Largest distance of an inlier from its predicted position, as a share of the photo's diagonal.
_TOLERANCE = 0.02
# Largest number of correspondences of a photo, those with the nearest signatures; and of hypotheses among them.
_MOST = 1000
_HYPOTHESES = 300
_REFINED = 8
LEAST_INLIERS = 5
# Probability that a wrong correspondence agrees with a transformation. The circle of tolerance covers 0.0026 of a photo
# of 4:3. Features lie closer together than at random places.
_BY_CHANCE = 0.004
# This many correspondences fix an affine transformation, so that they always agree.
_FIXED = 3
# Correspondences up to each of these Hamming distances are judged alone, because the nearest are rarely wrong.
_LIMITS = np.array([8, 12, 16, 20, 24, 64])
# A query that finds nothing is tried in all quarter turns.
_TURNS = 4


@dataclass(frozen=True, eq=False)
class Verified:
    """The agreement between the query and one photo.

    Attributes:
        photo: number of the photo.
        query_features: (K,) int64, rows of the query.
        entries: (K,) int64, rows of the segment's lists.
        points: (K, 2) float32, positions in the photo, pixels.
        transformation: (2, 3) float64, from pixels of the query to those of the photo.
        false_alarms: log10 of the number of agreements as good as this one that chance gives in all photos that were
            verified, see `hardnet_sfm.retrieval.spatial`.
    """

    photo: int
    query_features: NDArray[np.int64]
    entries: NDArray[np.int64]
    points: Float32
    transformation: NDArray[np.float64]
    false_alarms: float

    @property
    def inliers(self) -> int:
        """Number of features that agree. Each feature of the query and of the photo counts once."""
        return len(self.query_features)

    @property
    def accepted(self) -> bool:
        """Whether chance does not explain the agreement."""
        return self.false_alarms < 0


def verify(index: InvertedIndex, query: Query, photos: list[int], reach: int) -> dict[int, Verified]:
    """Verifies photos of an index.

    Args:
        index: index of the photos.
        query: query with geometry.
        photos: numbers of the photos.
        reach: largest Hamming distance of a correspondence; with 64, words alone decide.

    Returns:
        The agreement by the photo's number. Photos with fewer than 5 agreeing correspondences are left out.
    """
    verified: dict[int, Verified] = {}
    for number, segment in enumerate(index.segments):
        wanted = index.wanted(number, photos)
        if not wanted.any() or not len(query):
            continue
        rows = kernels.correspondences(query.starts, query.words, query.signatures, reach, *segment.lists, wanted)
        of_photo, geometry = index.photos_of(number, rows[:, 1]), index.geometry_of(number, rows[:, 1])
        # Nearest signatures come first. The distance means the same for rare and frequent words.
        order = np.lexsort((rows[:, 1], rows[:, 0], rows[:, 2], of_photo))
        rows, of_photo, geometry = rows[order], of_photo[order], geometry[order]
        bounds = np.append(np.flatnonzero(np.diff(of_photo, prepend=-1)), len(of_photo))
        sizes = segment.sizes
        tasks = [
            (
                int(of_photo[begin]),
                query.geometry,
                rows[begin:end][:_MOST],
                geometry[begin:end][:_MOST],
                _TOLERANCE * float(np.hypot(*sizes[of_photo[begin] - index.starts[number]])),
                len(photos),
            )
            for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
        for found in index.threaded(_verify_photo, tasks):
            if found is not None:
                verified[found.photo] = found
    return verified


def _verify_photo(
    photo: int, of_query: Float32, rows: NDArray[np.int64], geometry: Float32, tolerance: float, photos: int
) -> Verified | None:
    if len(rows) < LEAST_INLIERS:
        return None
    features, entries = np.unique(rows[:, 0], return_inverse=True)[1], np.unique(rows[:, 1], return_inverse=True)[1]
    mine = of_query[rows[:, 0]].astype(np.float64)
    step = max(1, -(-len(rows) // _HYPOTHESES))
    inside, transformation = best_transformation(
        mine, geometry.astype(np.float64), features, entries, tolerance, step, _REFINED
    )
    # Each feature is kept once on either side, the nearest signatures first.
    kept: list[int] = []
    seen: tuple[set[int], set[int]] = (set(), set())
    for row in np.flatnonzero(inside).tolist():
        if features[row] not in seen[0] and entries[row] not in seen[1]:
            seen[0].add(features[row])
            seen[1].add(entries[row])
            kept.append(row)
    if len(kept) < LEAST_INLIERS:
        return None
    at = np.array(kept)
    extent = max(1.0, float(np.hypot(*np.ptp(of_query[:, :2], 0))))
    cells = np.stack([cells_of(mine[:, :2], 2 * _TOLERANCE * extent), cells_of(geometry[:, :2], 2 * tolerance)])
    false_alarms = float(np.log10(photos)) + log_false_alarms(rows[:, 2], cells, at)
    return Verified(photo, rows[at, 0], rows[at, 1], geometry[at, :2], transformation, false_alarms)


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
