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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.files.journal import Journal
from hardnet_sfm.progress import progress

_CHECKPOINTS = 10
# Candidate weights of the solver's quadratic term, relative to the squared length of the first subgradient, and the
# share of the steps for each trial. The best weight depends on the unknown distance to the optimum. Each trial learns
# from four fifths of the pairs. The loss on the other pairs decides, as the paper validates its parameters.
_GAMMAS = (1.0, 0.1, 0.01, 0.001, 0.0001)
_TRIAL = 0.05
_HELD_OUT = 5


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


class State:
    """Finished work of a run, stored in a journal. Entries of other recipes are ignored."""

    def __init__(self, journal: Journal, fingerprint: str) -> None:
        self._journal, self._fingerprint = journal, fingerprint
        self._kept = {key for key, facts in journal.facts().items() if facts["fingerprint"] == fingerprint}

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Returns the arrays stored under a key, or None."""
        return self._journal.arrays(key) if key in self._kept else None

    def put(self, key: str, **arrays: NDArray[Any]) -> None:
        """Stores arrays under a key. They are safe on disk when this returns."""
        self._journal.put(key, {"fingerprint": self._fingerprint}, arrays, packed=False)
        self._kept.add(key)


@dataclass(frozen=True)
class Problem:
    """A convex problem.

    Attributes:
        name: name for the progress bar and the journal.
        first: subgradient at the start.
        start: starting point, at which nothing is selected.
        subgradient: computes the subgradient at a point, in the step of the given number.
        step: computes the solver's next point from the mean of subgradients and the weight of the quadratic term.
    """

    name: str
    first: Tensor
    start: Tensor
    subgradient: Callable[[Tensor, int], Tensor]
    step: Callable[[DualAverage, float], Tensor]

    def run(self, average: DualAverage, gamma: float, steps: int) -> Iterator[Tensor]:
        """Runs the solver until `steps` steps are done, and yields the point after each step."""
        return dual_averaging(average, self.start, self.subgradient, lambda mean: self.step(mean, gamma), steps)


def split(pairs: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """Splits pairs into those to learn from in a trial and those held out. A single pair serves as both."""
    count = pairs.shape[dimension]
    held_out = max(1, count // _HELD_OUT)
    if count < 2:
        return pairs, pairs
    return pairs.narrow(dimension, 0, count - held_out), pairs.narrow(dimension, count - held_out, held_out)


def solve(
    problem: Problem, trial: Problem, validate: Callable[[Tensor], float], steps: int, state: State | None
) -> Tensor:
    """Solves a problem from its beginning, or resumes a killed run.

    Args:
        problem: problem with all pairs.
        trial: problem with a part of the pairs, for choosing the weight of the quadratic term.
        validate: computes the loss on the held-out pairs.
        steps: number of steps of the solver.
        state: stored state of the run to resume, or None.
    """
    kept = state.get(problem.name) if state else None
    if kept:
        average = DualAverage(torch.from_numpy(kept["mean"]).to(problem.first), int(kept["steps"]))
        gamma = float(kept["gamma"])
    else:
        average, gamma = DualAverage(torch.zeros_like(problem.first)), _best_gamma(trial, validate, steps)
    every = -(-steps // _CHECKPOINTS)
    with progress(problem.name, steps, average.steps) as advance:
        for _ in problem.run(average, gamma, steps):
            advance()
            if state and (average.steps % every == 0 or average.steps == steps):
                mean = average.mean.cpu().numpy()
                state.put(problem.name, mean=mean, steps=np.array(average.steps), gamma=np.array(gamma))
    return problem.step(average, gamma)


def _best_gamma(trial: Problem, validate: Callable[[Tensor], float], steps: int) -> float:
    """Chooses the weight of the quadratic term with the lowest loss on held-out pairs after a share of the steps."""
    scale, few = float(trial.first.square().sum()), max(1, round(_TRIAL * steps))
    found = {}
    with progress(f"{trial.name}?", len(_GAMMAS)) as advance:
        for gamma in _GAMMAS:
            *_, last = trial.run(DualAverage(torch.zeros_like(trial.first)), gamma * scale, few)
            found[gamma * scale] = validate(last)
            advance()
    return min(found, key=lambda gamma: found[gamma])
