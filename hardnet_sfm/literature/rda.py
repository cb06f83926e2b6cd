"""Regularised dual averaging for a large margin between the distances of matching and of other pairs.

Both learning problems of Simonyan, Vedaldi, Zisserman, Learning local feature descriptors using convex optimisation,
PAMI 2014, have the same form. They minimise over x in a convex set the mean of max(0, 1 + d_i(x) - d_j(x)) over all
combinations of a matching pair i and another pair j, plus mu R(x). The squared distances d are linear in x. The paper
takes the sum instead of the mean. With the mean, mu does not depend on the number of pairs.

The solver is algorithm 1 of Xiao, Dual averaging methods for regularized stochastic learning and online optimization,
JMLR 2010, with h(x) = |x|^2 / 2 and beta_t = gamma sqrt(t). From the mean g of all subgradients so far it computes
x = argmin <g, x> + mu R(x) + gamma / (2 sqrt(t)) |x|^2. Both regularisers have a closed form for this. Unlike a
projected subgradient method, it gives exact zeros, because x depends on the mean over all steps and not on the last
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def margin_hinge(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the mean of max(0, 1 + d_i - d_j) over all matching pairs i and other pairs j, and its derivatives.

    Sorting makes this O((P + N) log(P + N)) in time and O(P + N) in memory, instead of P N.

    Args:
        positive: (P,) squared distances of matching pairs.
        negative: (N,) squared distances of other pairs.

    Returns:
        The mean, float64; its subgradient by the positive distances, (P,); and by the negative distances, (N,).
    """
    combinations = len(positive) * len(negative)
    upper, order = (positive + 1).sort().values, negative.sort().values
    violated = torch.searchsorted(order, positive + 1)  # number of negatives within the margin of each positive
    below = torch.cat([order.new_zeros(1, dtype=torch.float64), order.double().cumsum(0)])
    loss = (violated * (positive.double() + 1) - below[violated]).sum() / combinations
    violating = len(upper) - torch.searchsorted(upper, negative, right=True)
    return loss, violated.to(positive) / combinations, violating.to(negative) / -combinations


class DualAverage:
    """The mean of the subgradients so far. This is the complete state of the solver.

    Attributes:
        mean: mean of the subgradients.
        steps: number of subgradients.
    """

    def __init__(self, mean: Tensor, steps: int = 0) -> None:
        self.mean, self.steps = mean, steps

    def add(self, subgradient: Tensor) -> None:
        """Adds a subgradient to the mean."""
        self.steps += 1
        self.mean = self.mean + (subgradient - self.mean) / self.steps


def dual_averaging(
    average: DualAverage,
    start: Tensor,
    subgradient: Callable[[Tensor, int], Tensor],
    step: Callable[[DualAverage], Tensor],
    steps: int,
) -> Iterator[Tensor]:
    """Runs until `steps` subgradients are in the mean, and yields the point after each step.

    Args:
        average: mean of the earlier subgradients; it is updated.
        start: starting point if there are no earlier subgradients.
        subgradient: computes the subgradient at a point, in the step of the given number.
        step: computes the minimiser for a mean.
        steps: number of steps, including earlier ones.
    """
    found = step(average) if average.steps else start
    while average.steps < steps:
        average.add(subgradient(found, average.steps))
        found = step(average)
        yield found


def sparse_step(average: DualAverage, gamma: float, mu: float, sizes: Tensor, most: int) -> Tensor:
    """Computes the step for non-negative weights w under the penalty mu |w|_1: w = sqrt(t) / gamma max(0, -g - mu).

    If the selected weights exceed a total size, mu is raised to the smallest value that meets the limit.

    Args:
        average: mean of (K,) subgradients.
        gamma: weight of the squared length.
        mu: smallest weight of the penalty.
        sizes: (K,) size of each weight; it counts if the weight is not 0.
        most: limit on the total size.
    """
    gain, order = (-average.mean).sort(descending=True)
    beyond = torch.nonzero(sizes[order].cumsum(0) > most)
    if len(beyond):
        mu = max(mu, float(gain[beyond[0]]))
    return (-average.mean - mu).clamp(min=0) * (math.sqrt(average.steps) / gamma)


def low_rank_step(average: DualAverage, gamma: float, mu: float, rank: int) -> Tensor:
    """Computes the step for a positive semidefinite matrix A under the penalty mu trace(A), its nuclear norm.

    A is sqrt(t) / gamma times the part of -G - mu I with positive eigenvalues. If there are more than `rank` of them,
    mu is raised to the smallest value that meets the limit.

    Args:
        average: mean of symmetric (K, K) subgradients.
        gamma: weight of the squared Frobenius norm.
        mu: smallest weight of the penalty.
        rank: largest rank of A.

    Returns:
        W (R, K) with A = W^T W, the direction of the largest eigenvalue first.
    """
    gain, vectors = torch.linalg.eigh(-average.mean)
    if rank < len(gain):
        mu = max(mu, float(gain[-rank - 1]))
    kept = gain > mu
    scale = ((gain[kept] - mu) * (math.sqrt(average.steps) / gamma)).sqrt()
    projection: Tensor = (vectors[:, kept] * scale).T.flip(0)
    return projection
