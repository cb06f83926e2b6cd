"""Exact mutual nearest neighbours for about the cost of a low-precision matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.keypoints import Matches
from hardnet_sfm.networks.device import fast_type

# Rows that are processed together.
_ROWS = 8192
# Values of the similarity matrix that are computed at once. On a CPU they take 8 MB of int32 and stay in its last-level
# cache.
_VALUES = {"cpu": 2**21, "cuda": 2**26}
# A row is compared with all columns if it has candidates in more groups than this, or in more than half of them.
# Repeated textures cause such rows.
_CROWDED = 32
# Size of a group of neighbouring columns, a multiple of a vector register's length.
_GROUP = 64
# Rows of an int8 matrix that together hold one number for each column. Four of them are digits up to 127 in units of
# 127, and the fifth is the remainder.
_DIGITS = 5
_LARGEST = 127


@dataclass(frozen=True)
class Rounding:
    """Rounds descriptors for the fast product: (descriptor - centre) * scale.

    The matches do not depend on the rounding. The better it fits the descriptors, the fewer similarities must be
    compared exactly.

    Attributes:
        kind: the type that the device multiplies fastest: float16 on CUDA; int8 on a CPU with instructions for it
            (VNNI); else float32. Without VNNI, int8 is slower than float32 and its sums overflow.
        centre: (D,) float32, near the mean of all descriptors. It is zero unless the kind is int8.
        scale: factor; 1 unless the kind is int8.
    """

    kind: torch.dtype
    centre: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class PreparedDescriptors:
    """Descriptors of one photo in the form that the matcher needs.

    Let a be one of them, b a descriptor of another photo, and m the centre. Their similarity has three parts:

    a b = (a - m) (b - m) + m (b - m) + (m (a - m) + m m).

    The second part depends on b alone, and the third on a alone. The product of `rounded` and `columns` is the sum of
    the first two parts.

    Attributes:
        rounding: the rounding; both photos of a pair must have the same.
        exact: (N, D) float32.
        rounded: (N, K) in the rounding's type. K is D, or D + 5 for int8.
        columns: (K, M), M a multiple of 64, zero beyond N: `rounded` transposed. For int8, m (b - m) is in the last 5
            rows.
        offsets: (N,) float32, m (a - m) + m m.
        lengths: (N,) float32, lengths of a - m.
        errors: (N,) float32, length of the difference between a - m and its rounded value.
        bias_error: largest error of m (b - m) in the columns.
    """

    rounding: Rounding
    exact: Tensor
    rounded: Tensor
    columns: Tensor
    offsets: Tensor
    lengths: Tensor
    errors: Tensor
    bias_error: float

    def __len__(self) -> int:
        return len(self.exact)


@dataclass(frozen=True)
class Acceptance:
    """The rule by which a nearest neighbour is accepted.

    Attributes:
        max_ratio: largest ratio of the distance to the nearest neighbour to that to the second nearest (Lowe, IJCV
            2004, section 7.1); 1 accepts all.
        max_distance: largest L2 distance of unit vectors, 0 to 2.
    """

    max_ratio: float = 0.8
    max_distance: float = 2.0

    def __call__(self, best: Tensor, second: Tensor) -> Tensor:
        """Says which neighbours of cosine similarity `best` are accepted, if the next ones have `second`."""
        distance, next_distance = _distance(best), _distance(second)
        return (distance <= self.max_distance) & ((distance < self.max_ratio * next_distance) | (self.max_ratio >= 1))

    def least_rival(self, best: Tensor) -> Tensor:
        """Returns the smallest cosine similarity of a second nearest neighbour with which the ratio test fails."""
        return 1 - (1 - best) / self.max_ratio**2


def rounding_for(sample: NDArray[np.float16], device: str) -> Rounding:
    """Chooses the rounding for descriptors like the given (N, D) ones on a device."""
    rows = torch.from_numpy(np.ascontiguousarray(sample)).to(device).float()
    kind = _product_type(device)
    if kind != torch.int8 or not len(rows):
        return Rounding(kind, rows.new_zeros(rows.shape[1]), 500.0 if kind == torch.int8 else 1.0)
    centre = rows.mean(0)
    # Values up to a tenth above the largest of these fit. Larger values of other photos are clipped, and `errors`
    # accounts for that too.
    largest, bias = (rows - centre).abs().amax().item(), ((rows - centre) @ centre).abs().amax().item()
    scale = min(_LARGEST / max(largest, 0.1), (_LARGEST**2 * (_DIGITS - 1) / max(bias, 0.01)) ** 0.5)
    return Rounding(kind, centre, scale / 1.1)


def _product_type(device: str) -> torch.dtype:
    if device == "cpu":
        able = torch.cpu.get_capabilities()
        return torch.int8 if able.get("avx512_vnni") or able.get("avx_vnni") else torch.float32
    return fast_type(device)


def prepare(descriptors: NDArray[np.float16], rounding: Rounding) -> PreparedDescriptors:
    """Prepares (N, D) float16 descriptors of about unit length for `mutual_nearest_neighbours`."""
    centre, scale = rounding.centre, rounding.scale
    exact = torch.from_numpy(np.ascontiguousarray(descriptors)).to(centre.device).float()
    centred = exact - centre
    bias, bias_error = centred @ centre, 0.0
    if rounding.kind == torch.int8:
        rounded = (centred * scale).round().clamp(-_LARGEST, _LARGEST)
        digits, weights = _digits(bias * scale**2)
        columns, rows = torch.cat([rounded.T, digits]), torch.cat([rounded, weights.expand(len(rounded), -1)], 1)
        bias_error = max((weights @ digits / scale**2 - bias).abs().tolist(), default=0.0)
    else:
        rounded = centred.to(rounding.kind)
        columns, rows = rounded.T, rounded
    padded = rounded.new_zeros(len(columns), -(-len(exact) // _GROUP) * _GROUP, dtype=rounding.kind)
    padded[:, : len(exact)] = columns
    return PreparedDescriptors(
        rounding,
        exact,
        rounded=rows.to(rounding.kind).contiguous(),
        columns=padded,
        offsets=bias + centre @ centre,
        lengths=torch.linalg.vector_norm(centred, dim=1),
        errors=torch.linalg.vector_norm(centred - rounded.float() / scale, dim=1),
        bias_error=bias_error,
    )


def _digits(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Splits numbers into (5, N) small integers, and returns their (5,) weights.

    The weighted sum of the integers gives the rounded numbers.
    """
    weights = numbers.new_tensor([_LARGEST] * (_DIGITS - 1) + [1])
    left, digits = numbers.round(), []
    for weight in weights.tolist():
        digits.append((left / weight).round().clamp(-_LARGEST, _LARGEST))
        left = left - weight * digits[-1]
    return torch.stack(digits), weights


def mutual_nearest_neighbours(first: PreparedDescriptors, second: PreparedDescriptors, accept: Acceptance) -> Matches:
    """Finds pairs that are each other's nearest neighbour and pass the ratio and distance tests in both directions.

    The result equals that of a float32 brute force over all pairs (tests/test_nearest.py), at the cost of a
    low-precision one. Similarities are computed from descriptors rounded to int8 (float16 on CUDA). The bound on the
    rounding error shows that most rows fail the tests. For the other rows, the few columns that may decide are compared
    in float32.

    Lower bound: 2 N0 N1 D operations in low precision and one read of the similarity matrix from cache. With 8192
    descriptors each and two cores with AVX-512 VNNI, the product takes 11 ms and the maxima take 2 ms.
    `pipelines/bench/match.py` measures this and COLMAP's matcher.
    """
    rows = _accepted_neighbours(first, torch.arange(len(first), device=first.exact.device), second, accept)
    # Only columns that some row has chosen can be part of a mutual pair.
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
    """Row numbers of queries and of their nearest neighbours, and the float32 similarities."""

    queries: Tensor
    others: Tensor
    similarities: Tensor


def _accepted_neighbours(
    queries: PreparedDescriptors, chosen: Tensor, others: PreparedDescriptors, accept: Acceptance
) -> _Neighbours:
    """Finds the nearest neighbour of every chosen query, if it passes the tests."""
    none = torch.zeros(0, dtype=torch.long, device=chosen.device)
    found = [_Neighbours(none, none, none.float())]
    if len(others) and len(chosen):
        error = _error_bound(queries, others)
        for rows in torch.split(chosen, _ROWS):
            accepted = _accepted_among(queries, rows, others, error[rows], accept)
            found.append(accepted._replace(queries=rows[accepted.queries]))
    return _joined(found)


def _error_bound(queries: PreparedDescriptors, others: PreparedDescriptors) -> Tensor:
    """Returns an (N,) bound on the error of the computed similarity of each query with any other descriptor.

    |u v - u' v'| <= |u - u'| |v| + |u'| |v - v'| by Cauchy and Schwarz. Sums of integers are exact. The result in half
    precision is rounded by half a unit in the last place of numbers below 1. Its sum may be wrong by one in the third
    decimal.
    """
    kind = queries.rounding.kind
    result = torch.finfo(kind).eps / 4 + 1e-3 if kind.is_floating_point else others.bias_error + 1e-5
    longest, worst = others.lengths.max(), others.errors.max()
    return queries.errors * longest + (queries.lengths + queries.errors) * worst + result


def _joined(parts: list[_Neighbours]) -> _Neighbours:
    return _Neighbours(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _accepted_among(
    queries: PreparedDescriptors, chosen: Tensor, others: PreparedDescriptors, error: Tensor, accept: Acceptance
) -> _Neighbours:
    groups = _nearest_of_groups(queries, chosen, others)
    unit, offset = queries.rounding.scale**2, queries.offsets[chosen]
    nearest = groups.amax(1, keepdim=True)
    # The two nearest neighbours may be in different groups or in the same one. In both cases the best of another group
    # is a lower bound for the second nearest. This also holds if two groups tie and the third is taken.
    following = groups.masked_fill(groups == nearest, -4 * unit).amax(1)
    best, second = nearest.squeeze(1) / unit + offset, following / unit + offset - error
    rows = accept(best + error, second).nonzero().squeeze(1)
    # A neighbour matters if it may be the nearest. It also matters if it may be the second nearest, and so near that
    # the ratio test fails.
    best, second, error, offset = (best - error).clamp(max=1)[rows], second[rows], error[rows], offset[rows]
    threshold = torch.minimum(best, torch.maximum(second, accept.least_rival(best))) - error
    candidates = groups.index_select(0, rows) >= ((threshold - offset) * unit)[:, None]
    exact = queries.exact.index_select(0, chosen[rows])
    crowded = candidates.sum(1) > max(1, min(_CROWDED, groups.shape[1] // 2))
    found = []
    if crowded.any():
        found.append(_best_of_all(rows[crowded], exact[crowded], others, accept))
        rows, exact, candidates = rows[~crowded], exact[~crowded], candidates[~crowded]
    return _joined([*found, _best_of_groups(rows, exact, candidates, others, accept)])


def _nearest_of_groups(queries: PreparedDescriptors, chosen: Tensor, others: PreparedDescriptors) -> Tensor:
    """Returns the (N, G) product of each chosen query with the nearest of each group of columns."""
    count, padding = others.columns.shape[1], -len(others) % _GROUP
    kind = torch.int32 if queries.rounding.kind == torch.int8 else queries.rounding.kind
    rows = max(64, _VALUES[chosen.device.type] // count)
    buffer = torch.empty(min(rows, len(chosen)), count, dtype=kind, device=chosen.device)
    largest = buffer.new_empty(len(chosen), count // _GROUP)
    for numbers, result in zip(torch.split(chosen, rows), torch.split(largest, rows), strict=True):
        product = rounded_product(queries.rounded.index_select(0, numbers), others.columns, buffer[: len(numbers)])
        torch.amax(product.view(len(numbers), -1, _GROUP), -1, out=result)
        if padding:
            result[:, -1] = product[:, -_GROUP:-padding].amax(-1)
    return largest


def rounded_product(rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns the (N, M) product of an (N, K) and a (K, M) matrix; int8 matrices give int32."""
    return torch._int_mm(rows, columns, out=out) if rows.dtype == torch.int8 else torch.mm(rows, columns, out=out)


def _best_of_groups(
    rows: Tensor, exact: Tensor, candidates: Tensor, others: PreparedDescriptors, accept: Acceptance
) -> _Neighbours:
    """Finds the accepted nearest neighbour of each (N, D) row among its (N, G) candidate groups."""
    group, row = candidates.T.nonzero().unbind(1)
    counts = candidates.sum(0).tolist()
    queries = torch.split(exact.index_select(0, row), counts)
    similarity = exact.new_full((len(row), _GROUP), -2)
    results = torch.split(similarity, counts)
    for query, columns, result in zip(queries, torch.split(others.exact, _GROUP), results, strict=True):
        if len(query):
            torch.mm(query, columns.T, out=result[:, : len(columns)])
    parts = []
    for _ in range(2):
        value, inside = similarity.max(1)
        parts.append(_Neighbours(row, group * _GROUP + inside, value))
        similarity.scatter_(1, inside[:, None], -2)
    return _best_of(rows, *_joined(parts), accept)


def _best_of_all(rows: Tensor, exact: Tensor, others: PreparedDescriptors, accept: Acceptance) -> _Neighbours:
    """Finds the accepted nearest neighbour among all others, by brute force."""
    at_once = max(64, _VALUES[rows.device.type] // len(others))
    found = []
    for numbers, queries in zip(torch.split(rows, at_once), torch.split(exact, at_once), strict=True):
        similarity = queries @ others.exact.T
        best, nearest = similarity.max(1)
        passes = accept(best, similarity.scatter_(1, nearest[:, None], -1).amax(1))
        found.append(_Neighbours(numbers[passes], nearest[passes], best[passes]))
    return _joined(found)


def _best_of(rows: Tensor, row: Tensor, column: Tensor, similarity: Tensor, accept: Acceptance) -> _Neighbours:
    """Reduces candidates to the accepted best of each row.

    Candidates are given as row numbers within `rows`, columns and similarities.
    """
    best = similarity.new_full((len(rows),), -2).scatter_reduce(0, row, similarity, "amax")
    is_best = similarity == best[row]
    number = torch.full_like(rows, torch.iinfo(torch.long).max).scatter_reduce(0, row[is_best], column[is_best], "amin")
    others = column != number[row]
    farthest = similarity.new_full((len(rows),), -1)
    second = farthest.scatter_reduce(0, row[others], similarity[others], "amax")
    passes = accept(best, second)
    return _Neighbours(rows[passes], number[passes], best[passes])


def _distance(similarity: Tensor) -> Tensor:
    """Returns the L2 distance of unit vectors with the given cosine similarity."""
    return (2 - 2 * similarity).clamp(min=0).sqrt()
