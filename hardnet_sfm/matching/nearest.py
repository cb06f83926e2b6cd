"""Exact mutual nearest neighbours at the price of a half-precision matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.keypoints import Matches
from hardnet_sfm.networks.device import fast_type

# Rows of the similarity matrix at once: 1024 x 8192 values in bfloat16, 16 MB, stay in the last-level cache.
_ROWS = 1024
# A row with candidates in more groups, as of a repeated texture, is compared with all columns: that bounds memory.
_CROWDED = 16
# Columns are put into groups of so many neighbours; a multiple of a vector register's length.
_GROUP = 64
# What accumulation in float32 and descriptors longer than 1, by their storage in float16, add to an error at most.
_SLACK = 1e-3


@dataclass(frozen=True)
class PreparedDescriptors:
    """Descriptors of one photo as the matcher needs them.

    Attributes:
        exact: (N, D) float32.
        rounded: (N, D) in the fast type of the device.
        columns: (D, M) the same transposed, M a multiple of 64 and at least 128, zero beyond N.
        errors: (N,) float32, length of the difference of `exact` and `rounded`.
    """

    exact: Tensor
    rounded: Tensor
    columns: Tensor
    errors: Tensor

    def __len__(self) -> int:
        return len(self.exact)


@dataclass(frozen=True)
class Acceptance:
    """When a nearest neighbour is believed.

    Attributes:
        max_ratio: largest ratio of the distance to the nearest to the distance to the second nearest neighbour (Lowe,
            IJCV 2004, section 7.1); 1 accepts all.
        max_distance: largest L2 distance of unit vectors, 0 to 2.
    """

    max_ratio: float = 0.8
    max_distance: float = 2.0

    def __call__(self, best: Tensor, second: Tensor) -> Tensor:
        """Whether neighbours of cosine similarity `best` are accepted where the next one's is `second`."""
        distance, next_distance = _distance(best), _distance(second)
        return (distance <= self.max_distance) & ((distance < self.max_ratio * next_distance) | (self.max_ratio >= 1))


def prepare(descriptors: NDArray[np.float16], device: str) -> PreparedDescriptors:
    """(N, D) float16 descriptors of unit length, ready for `mutual_nearest_neighbours` on the device."""
    exact = torch.from_numpy(np.ascontiguousarray(descriptors)).to(device).float()
    rounded = exact.to(fast_type(device))
    columns = rounded.new_zeros(exact.shape[1], max(2, -(-len(exact) // _GROUP)) * _GROUP)
    columns[:, : len(exact)] = rounded.T
    return PreparedDescriptors(exact, rounded, columns, torch.linalg.vector_norm(exact - rounded.float(), dim=1))


def mutual_nearest_neighbours(first: PreparedDescriptors, second: PreparedDescriptors, accept: Acceptance) -> Matches:
    """Pairs that are each other's nearest neighbour and pass the ratio and distance tests in both directions.

    The result is that of a float32 brute force over all pairs (tests/test_nearest.py), at the cost of a half-precision
    one: similarities are computed in bfloat16 (float16 on CUDA), and with the bound on the rounding error most rows are
    certain to fail the tests. For the others the few columns that may hold the nearest two are compared in float32.

    Lower bound: 2 N0 N1 D FLOP in half precision and one read of the similarity matrix from cache. With 8192
    descriptors each and two AVX-512 cores that is 25 ms for the product and 5 ms for the maxima;
    `pipelines/bench/match.py` measures, beside COLMAP's matcher.
    """
    rows = _accepted_neighbours(first, torch.arange(len(first), device=first.exact.device), second, accept)
    # Only what some row has chosen can be part of a mutual pair.
    chosen = torch.zeros(len(second), dtype=torch.bool, device=rows.others.device).index_fill(0, rows.others, 1)
    chosen = chosen.nonzero().squeeze(1)
    columns = _accepted_neighbours(second, chosen, first, accept)
    answer = torch.full((len(second),), -1, device=chosen.device)
    answer[columns.queries] = columns.others
    mutual = (answer[rows.others] == rows.queries).nonzero().squeeze(1)
    mutual = mutual[rows.queries[mutual].argsort()]
    pairs = torch.stack([rows.queries[mutual], rows.others[mutual]], 1)
    scores = ((1 + rows.similarities[mutual]) / 2).clamp(0, 1)
    return Matches(pairs.cpu().numpy().astype(np.int32), scores.cpu().numpy())


class _Neighbours(NamedTuple):
    """Row numbers of queries, those of their nearest neighbours, and their float32 similarities."""

    queries: Tensor
    others: Tensor
    similarities: Tensor


def _accepted_neighbours(
    queries: PreparedDescriptors, chosen: Tensor, others: PreparedDescriptors, accept: Acceptance
) -> _Neighbours:
    """The nearest neighbour of every chosen query that passes the tests."""
    none = torch.zeros(0, dtype=torch.long, device=chosen.device)
    found = [_Neighbours(none, none, none.float())]
    if len(others):
        for start in range(0, len(chosen), _ROWS):
            rows = chosen[start : start + _ROWS]
            accepted = _accepted_in_block(
                queries.exact[rows], queries.rounded[rows], _error_bound(queries, rows, others), others, accept
            )
            found.append(accepted._replace(queries=rows[accepted.queries]))
    return _joined(found)


def _error_bound(queries: PreparedDescriptors, rows: Tensor, others: PreparedDescriptors) -> Tensor:
    """(N,) bound on the error of the computed similarity of each query with any other.

    |a b - a' b'| <= |a - a'| |b| + |a'| |b - b'| by Cauchy and Schwarz, and the result is rounded to the type: by half
    a unit in the last place of numbers below 1.
    """
    result = torch.finfo(queries.rounded.dtype).eps / 4
    return queries.errors[rows] + others.errors.max() + (result + _SLACK)


def _joined(parts: list[_Neighbours]) -> _Neighbours:
    return _Neighbours(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _accepted_in_block(
    exact: Tensor, rounded: Tensor, error: Tensor, others: PreparedDescriptors, accept: Acceptance
) -> _Neighbours:
    similarity = (rounded @ others.columns).view(len(rounded), -1, _GROUP)
    groups = _largest(similarity)
    best, second = groups.topk(2, dim=1).values.float().unbind(1)
    # The nearest two are in different groups or in one, so the second group bounds the second nearest from below. What
    # is not positive tells nothing: it may be padding, and `_largest` does not order negative values.
    bound = torch.where(second > 0, second - error, -1)
    rows = accept(best.clamp(min=0) + error, bound).nonzero().squeeze(1)
    # The true similarity of the nearest two is at least `bound`, so their computed one is at least this.
    threshold = (bound - error)[rows]
    candidates = groups[rows].float() >= threshold[:, None]
    crowded = candidates.sum(1) > _CROWDED
    found = []
    if crowded.any():
        found.append(_best_of_all(exact, rows[crowded], others, accept))
        rows, threshold, candidates = rows[~crowded], threshold[~crowded], candidates[~crowded]
    row, group = candidates.nonzero().unbind(1)
    near, column = (similarity[rows[row], group] >= threshold.to(similarity.dtype)[row, None]).nonzero().unbind(1)
    row, column = row[near], group[near] * _GROUP + column
    if others.columns.shape[1] > len(others):
        real = (column < len(others)).nonzero().squeeze(1)
        row, column = row[real], column[real]
    compared = torch.linalg.vecdot(exact[rows[row]], others.exact[column])
    return _joined([*found, _best_of(rows, row, column, compared, accept)])


def _best_of_all(exact: Tensor, rows: Tensor, others: PreparedDescriptors, accept: Acceptance) -> _Neighbours:
    """The accepted nearest neighbour among all others, by brute force."""
    similarity = exact[rows] @ others.exact.T
    best, number = similarity.max(1)
    second = similarity.scatter(1, number[:, None], -1).amax(1)
    passes = accept(best, second)
    return _Neighbours(rows[passes], number[passes], best[passes])


def _best_of(rows: Tensor, row: Tensor, column: Tensor, similarity: Tensor, accept: Acceptance) -> _Neighbours:
    """Reduces candidates, given as (row number within `rows`, column, similarity), to the accepted best of each row."""
    lowest = similarity.new_full((len(rows),), -1)
    best = lowest.scatter_reduce(0, row, similarity, "amax")
    is_best = similarity == best[row]
    number = torch.full_like(rows, torch.iinfo(torch.long).max).scatter_reduce(0, row[is_best], column[is_best], "amin")
    others = column != number[row]
    second = lowest.scatter_reduce(0, row[others], similarity[others], "amax")
    passes = accept(best, second)
    return _Neighbours(rows[passes], number[passes], best[passes])


def _largest(groups: Tensor) -> Tensor:
    """Maximum over the last dimension, right wherever it is positive.

    torch reduces bfloat16 on the CPU by way of float32. Positive floats are ordered as their bits are, so the vector
    unit's integer maximum does the same five times as fast.
    """
    if groups.device.type == "cpu" and groups.dtype == torch.bfloat16:
        return groups.view(torch.int16).amax(-1).view(torch.bfloat16)
    return groups.amax(-1)


def _distance(similarity: Tensor) -> Tensor:
    """L2 distance of unit vectors of the given cosine similarity."""
    return (2 - 2 * similarity).clamp(min=0).sqrt()
