"""Building blocks of descriptor losses.

`anchors` and `positives` are (N, D) float32, and row i of both describes the same point. Similarities are always
computed in float32, also under autocast. In bfloat16, 2 - 2 a b could not distinguish distances below 0.06 from 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Smaller squared distances are raised to this value and have no gradient, because the gradient of the root is infinite
# at 0. Float32 cannot distinguish such descriptors: the error of 2 - 2 a b is about 1e-7.
_LEAST_SQUARE = 1e-6
NO_SIMILARITY = -2.0
"""This value is below the similarity of any two vectors of unit length."""


def find_negatives(anchors: Tensor, allowed: Tensor | None) -> Tensor:
    """(N, N) bool: which positive is a negative of which anchor."""
    others = ~torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    return others if allowed is None else others & allowed


def mean_over_pairs(terms: Tensor, negatives: Tensor) -> Tensor:
    """Mean of the (N,) terms over the pairs that have a negative."""
    used = negatives.any(1)
    return (terms * used).sum() / used.sum().clamp(min=1)


def products(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) inner products of the rows of (N, K) and (M, K) matrices."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.T


def root(squares: Tensor) -> Tensor:
    """Square roots whose gradient is finite everywhere."""
    return squares.clamp(min=_LEAST_SQUARE).sqrt()


def distance_of(similarity: Tensor) -> Tensor:
    """Converts the inner product of two vectors of unit length to their L2 distance."""
    return root(2 - 2 * similarity)


def distances_between(first: Tensor, second: Tensor) -> Tensor:
    """(N,) L2 distances between the rows of two (N, D) matrices. The rows may have any length."""
    return root((first - second).square().sum(1))


def hardest_in_batch(anchors: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) distances of the pairs, and (N,) distances of the closest negative of each; 2 or more if it has none."""
    similarity = products(anchors, positives).masked_fill_(~negatives, NO_SIMILARITY)
    closest = torch.maximum(similarity.amax(1), similarity.amax(0))
    return distance_of((anchors * positives).sum(1)), distance_of(closest)
