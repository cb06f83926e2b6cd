"""Regularised dual averaging for a large margin between the distances of matching and of other pairs.

Both learning problems of Simonyan, Vedaldi, Zisserman, Learning local feature descriptors using convex optimisation,
PAMI 2014, are of the form: minimise over x in a convex set the mean, over all combinations of a matching pair i and
another pair j, of max(0, 1 + d_i(x) - d_j(x)), plus mu R(x), where the squared distances d are linear in x. The paper
sums where the mean is taken here, so that mu does not depend on the number of pairs.

The solver is algorithm 1 of Xiao, Dual averaging methods for regularized stochastic learning and online optimization,
JMLR 2010, with h(x) = |x|^2 / 2 and beta_t = gamma sqrt(t): from the mean g of all subgradients so far,
x = argmin <g, x> + mu R(x) + gamma / (2 sqrt(t)) |x|^2, which both regularisers have in closed form. Unlike a
projected subgradient it gives exact zeros: x has what counts in the mean over all steps, not in the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def margin_hinge(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of max(0, 1 + d_i - d_j) over all combinations of matching pairs i and others j, and its derivatives.

    By sorting, in O((P + N) log(P + N)) time and O(P + N) memory, not P N.

    Args:
        positive: (P,) squared distances of matching pairs.
        negative: (N,) of others.

    Returns:
        The mean, float64; its subgradient by each of the positive distances, (P,), and by each of the negative, (N,).
    """
    combinations = len(positive) * len(negative)
    upper, order = (positive + 1).sort().values, negative.sort().values
    violated = torch.searchsorted(order, positive + 1)  # negatives below
    below = torch.cat([order.new_zeros(1, dtype=torch.float64), order.double().cumsum(0)])
    loss = (violated * (positive.double() + 1) - below[violated]).sum() / combinations
    violating = len(upper) - torch.searchsorted(upper, negative, right=True)
    return loss, violated.to(positive) / combinations, violating.to(negative) / -combinations


class DualAverage:
    """The mean of the subgradients so far, which is all of the solver's state.

    Attributes:
        mean: of the subgradients.
        steps: how many they were.
    """

    def __init__(self, mean: Tensor, steps: int = 0) -> None:
        self.mean, self.steps = mean, steps

    def add(self, subgradient: Tensor) -> None:
        """Takes one more into the mean."""
        self.steps += 1
        self.mean = self.mean + (subgradient - self.mean) / self.steps


def dual_averaging(
    average: DualAverage,
    start: Tensor,
    subgradient: Callable[[Tensor, int], Tensor],
    step: Callable[[DualAverage], Tensor],
    steps: int,
) -> Iterator[Tensor]:
    """Goes on until `steps` subgradients are in the mean, and yields what is found after each.

    Args:
        average: what was done before; it is added to.
        start: where to begin where nothing was done.
        subgradient: at a place, in the step of the given number.
        step: the minimiser for a mean.
    """
    found = step(average) if average.steps else start
    while average.steps < steps:
        average.add(subgradient(found, average.steps))
        found = step(average)
        yield found


def sparse_step(average: DualAverage, gamma: float, mu: float, sizes: Tensor, most: int) -> Tensor:
    """Step of non-negative weights w under the penalty mu |w|_1: w = sqrt(t) / gamma max(0, -g - mu).

    mu is raised to the least that keeps the sizes of what is selected within a limit.

    Args:
        average: of subgradients (K,).
        gamma: weight of the squared length.
        mu: weight of the penalty, at least.
        sizes: (K,) what each weight costs where it is not 0.
        most: limit of their sum.
    """
    gain, order = (-average.mean).sort(descending=True)
    beyond = torch.nonzero(sizes[order].cumsum(0) > most)
    if len(beyond):
        mu = max(mu, float(gain[beyond[0]]))
    return (-average.mean - mu).clamp(min=0) * (math.sqrt(average.steps) / gamma)


def low_rank_step(average: DualAverage, gamma: float, mu: float, rank: int) -> Tensor:
    """Step of a positive semidefinite matrix A under the penalty mu trace(A), which is its nuclear norm.

    A = sqrt(t) / gamma times the part of -G - mu I with positive eigenvalues. mu is raised to the least that leaves no
    more than `rank` of them.

    Args:
        average: of subgradients (K, K), symmetric.
        gamma: weight of the squared Frobenius norm.
        mu: weight of the penalty, at least.
        rank: limit.

    Returns:
        W (R, K), with A = W^T W, the largest eigenvalue first.
    """
    gain, vectors = torch.linalg.eigh(-average.mean)
    if rank < len(gain):
        mu = max(mu, float(gain[-rank - 1]))
    kept = gain > mu
    scale = ((gain[kept] - mu) * (math.sqrt(average.steps) / gamma)).sqrt()
    projection: Tensor = (vectors[:, kept] * scale).T.flip(0)
    return projection
