"""Measures the three tasks of HPatches (Balntas et al., CVPR 2017, section 5) as the authors' benchmark does.

Straight lines join the points of precision over recall, see `trapezoid_average_precision`. If distances are equal,
negatives come first in verification and positives come first in retrieval, as in the authors' lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float16, Ints
from hardnet_sfm.evaluation.datasets.hpatches import LEVELS, PHOTOS, Level, Tasks, column_of
from hardnet_sfm.measures import squared_distances, trapezoid_average_precision

# Sizes of the retrieval pools. A pool counts the five positives and leaves out distractors of the query's own sequence.
# The authors' table has the mean over all pools.
POOLS = (100, 500, 1000, 5000, 10_000, 15_000, 20_000)
# Share of the positives that the imbalanced protocol of verification uses. It has five negatives for each positive.
_FEW = 0.2
_PAIRS = 2**16
_QUERIES = 64

Floats = NDArray[np.floating]
# The string in a key is the kind of negatives or the name of a sequence.
ByPhotos = Mapping[tuple[Level, str], "VerificationScore"]


class VerificationScore(NamedTuple):
    """Quality of patch verification.

    Attributes:
        average_precision: average precision with five negatives for each positive; papers cite this measure.
        area: area under the receiver operating characteristic, with all positives.
    """

    average_precision: float
    area: float


def verify(distances: Callable[[Level], Floats], tasks: Tasks) -> dict[tuple[Level, str], VerificationScore]:
    """Scores patch verification by level and kind of negatives (intra, inter).

    Memory: about 50 bytes a pair, for one level at a time.

    Args:
        distances: returns the (M,) distances of all `tasks.pairs` at a level. Any measure that rises as two patches
            become less similar is possible.
        tasks: tasks of the split.
    """
    scores = {}
    ends = np.cumsum([len(tasks.positives), *map(len, tasks.negatives.values())])
    for level in LEVELS:
        positives, *others = np.split(distances(level), ends[:-1])
        few = positives[: max(1, int(_FEW * len(positives)))]
        for kind, negatives in zip(tasks.negatives, others, strict=True):
            ranked = np.argsort(np.concatenate([negatives, few]), kind="stable")
            precision = trapezoid_average_precision(ranked >= len(negatives), len(few))
            nearer = np.searchsorted(np.sort(positives), negatives)  # number of positives before each negative
            scores[level, kind] = VerificationScore(precision, float(nearer.mean() / len(positives)))
    return scores


def pair_distances(
    descriptors: Float16, tasks: Tasks, level: Level, advance: Callable[[int], None] = lambda _: None
) -> Floats:
    """(M,) squared distances of all pairs to verify at a level.

    Lower bound of the cost: each pair reads two descriptors, 512 bytes at 128 dimensions. The nine million distances
    of an official split therefore move 4.6 GB. Memory: 24 bytes a pair, and one block of pairs.

    Args:
        descriptors: (P, 16, D) descriptors by point and column.
        tasks: tasks of the split.
        level: level of the errors.
        advance: called with the number of pairs that were just finished.
    """
    pairs = tasks.pairs
    columns = column_of(level, pairs[:, :, 1])
    distances = np.empty(len(pairs))
    for start in range(0, len(pairs), _PAIRS):
        block = slice(start, start + _PAIRS)
        first, second = (descriptors[pairs[block, k, 0], columns[block, k]].astype(np.float32) for k in (0, 1))
        difference = first - second
        distances[block] = np.einsum("nd,nd->n", difference, difference)
        advance(len(first))
    return distances


def match_sequence(descriptors: Float16) -> dict[Level, float]:
    """Scores image matching in one sequence: average precision by level, as the mean over the five photos.

    Each reference patch is matched with the nearest patch of the photo. Matches are ranked by their distances. Recall
    is relative to all reference patches.

    Lower bound of the cost: 30 N^2 D operations for N points. For 1300 points and 128 dimensions they take 0.1 s at
    65 GFLOP/s.

    Args:
        descriptors: (N, 16, D) descriptors of the sequence's points.
    """
    reference, true = descriptors[:, 0].astype(np.float32), np.arange(len(descriptors))
    scores: dict[Level, float] = {}
    for level in LEVELS:
        precisions = []
        for photo in range(1, PHOTOS + 1):
            others = descriptors[:, int(column_of(level, photo))].astype(np.float32)
            distances = squared_distances(reference, others)
            nearest = distances.argmin(1)
            order = np.argsort(distances[true, nearest], kind="stable")
            precisions.append(trapezoid_average_precision((nearest == true)[order], len(true)))
        scores[level] = float(np.mean(precisions))
    return scores


def retrieve(
    descriptors: Float16, tasks: Tasks, advance: Callable[[int], None] = lambda _: None
) -> dict[tuple[Level, int], float]:
    """Scores patch retrieval: mean average precision over the queries, by level and size of the pool.

    The right answers to a query are its own patches in the five other photos. Distractors come from other sequences. A
    pool that is larger than the list of distractors has all of them.

    Lower bound of the cost: 15 comparisons for each query and distractor. The official 5000 queries and 20,000
    distractors take 1.5 billion. Memory: 1.3 KB a distractor for 64 queries at once.

    Args:
        descriptors: (P, 16, D) descriptors by point and column.
        tasks: tasks of the split.
        advance: called with the number of queries that were just finished.
    """
    others = descriptors[tasks.distractors, 0].astype(np.float32)
    of_distractor, total = tasks.sequence_of[tasks.distractors], np.zeros((len(LEVELS), len(POOLS)))
    for sequence, queries in _by_sequence(tasks):
        allowed = others[of_distractor != sequence]
        for start in range(0, len(queries), _QUERIES):
            points = queries[start : start + _QUERIES]
            described = descriptors[points].astype(np.float32)
            difference = described[:, 1:] - described[:, :1]
            found = np.einsum("qcd,qcd->qc", difference, difference)
            distances = squared_distances(described[:, 0], allowed)
            nearer = _counts_in_pools(distances, found)
            ahead = np.sort(nearer.reshape(len(POOLS), len(points), len(LEVELS), PHOTOS), 3)
            total += _precision_of_few(ahead).sum(1).T
            advance(len(points))
    mean = total / len(tasks.queries)
    return {(level, pool): float(mean[i, j]) for i, level in enumerate(LEVELS) for j, pool in enumerate(POOLS)}


def _by_sequence(tasks: Tasks) -> Iterator[tuple[int, Ints]]:
    of_query = tasks.sequence_of[tasks.queries]
    for sequence in np.unique(of_query):
        yield int(sequence), tasks.queries[of_query == sequence]


def _counts_in_pools(distances: Floats, found: Floats) -> Ints:
    """(pools, Q, C) numbers of distractors in each pool that are nearer than each of the (Q, C) positives."""
    counts, before, start = [], np.zeros(found.shape, np.int64), 0
    for pool in POOLS:
        # The five positives count as part of the pool.
        part = distances[:, start : max(start, pool - PHOTOS)]
        before = before + np.stack([(part < found[:, [c]]).sum(1) for c in range(found.shape[1])], 1)
        counts.append(before)
        start = max(start, pool - PHOTOS)
    return np.array(counts)


def _precision_of_few(ahead: Ints) -> Floats:
    """Computes average precision from the number of wrong answers ahead of each positive.

    The numbers rise along the last axis. Positives with equal numbers follow each other directly, so their order does
    not matter.
    """
    found = np.arange(ahead.shape[-1])
    rank = ahead + found
    before = np.where(rank > 0, found / np.maximum(rank, 1), 1.0)
    return np.asarray((before + (found + 1) / (rank + 1)).mean(-1) / 2)
