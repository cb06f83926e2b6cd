"""What losses of descriptors are made of.

`anchors` and `positives` are (N, D) float32, and row i of both describes the same point. Similarities are always
multiplied in float32, also under autocast: 2 - 2 a b in bfloat16 would not tell distances below 0.06 from 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Squares below, as of distances between descriptors that float32 does not tell apart (2 - 2 a b is off by some 1e-7),
# count as this much and have no gradient, which would be infinite at 0.
_LEAST_SQUARE = 1e-6
NO_SIMILARITY = -2.0
"""Less than any similarity of vectors of unit length."""


def negatives_of(anchors: Tensor, allowed: Tensor | None) -> Tensor:
    """(N, N) bool: whose negative is whose."""
    others = ~torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    return others if allowed is None else others & allowed


def mean_over_pairs(terms: Tensor, negatives: Tensor) -> Tensor:
    """Of the (N,) terms of pairs that have a negative."""
    used = negatives.any(1)
    return (terms * used).sum() / used.sum().clamp(min=1)


def products(first: Tensor, second: Tensor) -> Tensor:
    """(N, K) and (M, K) to the (N, M) inner products of their rows."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.T


def root(squares: Tensor) -> Tensor:
    """Square roots whose gradient is finite everywhere."""
    return squares.clamp(min=_LEAST_SQUARE).sqrt()


def distance_of(similarity: Tensor) -> Tensor:
    """L2 distance of vectors of unit length whose inner product is given."""
    return root(2 - 2 * similarity)


def distances_between(first: Tensor, second: Tensor) -> Tensor:
    """(N,) L2 distances of the rows of two (N, D), of any length."""
    return root((first - second).square().sum(1))


def hardest_in_batch(anchors: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) distances of the pairs and of the closest negative of each, 2 or more where there is none."""
    similarity = products(anchors, positives).masked_fill_(~negatives, NO_SIMILARITY)
    closest = torch.maximum(similarity.amax(1), similarity.amax(0))
    return distance_of((anchors * positives).sum(1)), distance_of(closest)
