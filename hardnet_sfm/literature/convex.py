"""Learns ConvexOpt by convex optimisation: first the regions to pool over, then a projection to few dimensions.

Simonyan, Vedaldi, Zisserman: Learning local feature descriptors using convex optimisation, PAMI 2014 (and ECCV 2012).
The solver is in `hardnet_sfm.literature.rda`. The features are in `hardnet_sfm.literature.pooling`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from hardnet_sfm.errors import HardnetSfmError, UsageError, check_above, check_least
from hardnet_sfm.files.journal import Journal
from hardnet_sfm.files.workspace import digest
from hardnet_sfm.progress import progress
from hardnet_sfm.training.sampling import Sampler

if TYPE_CHECKING:  # torch takes seconds to import; `--help` needs the options only
    from torch import Tensor

    from hardnet_sfm.literature.pooling import PooledPairs, Rings
    from hardnet_sfm.literature.rda import DualAverage, Problem, State

# Number of matching pairs, and of other pairs, in a step of the solver.
_BATCH = 2048


@dataclass(frozen=True)
class ConvexOptions:
    """How ConvexOpt's two convex problems are posed and solved."""

    pairs: int = 16384
    """Number of matching pairs to learn from; as many other pairs are added. Each takes 8 bytes of memory for each ring
    and for each pooled feature: 160 MB in all by default."""
    radii: int = 16
    """Number of candidate radii for the rings of pooling regions. The authors' program has 32."""
    angles: int = 5
    """Number of candidate angles for the first region of a ring, from 0 to 45 degrees. The other regions mirror it."""
    sigmas: int = 8
    """Number of candidate sizes for the regions. The authors' program has 32."""
    sparsity: float = 0.01
    """Weight of the L1 penalty on rings, as a share of the weight that leaves no ring. Raise it for fewer rings."""
    features: int = 640
    """Most pooled features, 8 for each region. If the penalty leaves more, it is raised."""
    nuclear: float = 0.001
    """Weight of the nuclear norm, as a share of the weight that leaves no dimension. Raise it for fewer dimensions."""
    dimension: int = 128
    """Most dimensions of the descriptor. If the nuclear norm leaves more, its weight is raised."""
    region_steps: int = 4000
    """Steps of the solver that chooses the regions."""
    projection_steps: int = 1000
    """Steps of the solver that finds the projection."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        check_least(self, pairs=2, radii=2, angles=2, sigmas=2, features=64)
        check_above(self, region_steps=0, projection_steps=0)
        for name in ("sparsity", "nuclear"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name} must be from 0 to below 1")
        if not 1 <= self.dimension <= 128:
            raise UsageError("--dimension must be from 1 to 128")

    @property
    def steps(self) -> int:
        """Number of steps of the solver for both problems together."""
        return self.region_steps + self.projection_steps


def learn_convexopt(
    sampler: Sampler,
    options: ConvexOptions,
    journal: Journal,
    *,
    patch_size: int,
    seed: int = 0,
    device: str = "cpu",
    recipe: str = "",
) -> dict[str, Tensor]:
    """Learns the state dict of `hardnet_sfm.literature.convexopt.ConvexOpt` from patch pairs.

    1. Regions, the paper's learning of pooling regions: minimise over w >= 0 the mean of
       max(0, 1 + w . psi - w . psi') over all combinations of a matching pair and another pair, plus mu |w|_1. Each
       ring has a weight. psi, (K,), has the squared distances of a pair's features, summed over the regions and
       orientations of each ring.
    2. Projection, the paper's dimensionality reduction: minimise over positive semidefinite A the same mean for
       x^T A x, where x are the differences of features sqrt(w) phi, plus mu times the nuclear norm of A. The projection
       is W with A = W^T W.

    A killed run resumes from the journal. It reuses the stored distances of batches and the stored state of the solver.
    At most a tenth of a problem's steps is lost.

    Memory: 8 bytes a pair for each ring and each pooled feature. Lower bound of the time: 16 S^2 FLOP for each patch
    and candidate region, which is 250 MFLOP for a 64x64 patch by default. On a CPU this is most of the time.

    Args:
        sampler: source of the pairs.
        options: options of the two problems and of the solver.
        journal: stores finished work. The caller drops it once the result is safe.
        patch_size: side S to which patches are averaged, a divisor of 64.
        seed: random seed.
        device: "cpu" or "cuda".
        recipe: fingerprint of the patches. Journal entries with another recipe are ignored.

    Raises:
        HardnetSfmError: no feature separates matching pairs from others, a penalty leaves nothing, or the journal is
            damaged or cannot be written.
        UsageError: an option is invalid.
    """
    import torch

    from hardnet_sfm.literature.pooling import PooledPairs, candidate_rings
    from hardnet_sfm.literature.rda import State

    options.check()
    state = State(journal, digest("convexopt", recipe, asdict(options), patch_size, seed))
    pairs = PooledPairs(sampler, options.pairs, patch_size, seed, device)
    rings = candidate_rings(options.radii, options.angles, options.sigmas).to(device)
    with torch.inference_mode():
        weights = learn_weights(*_distances(pairs, rings, state), 8 * rings.ring.bincount(), options, seed, state)
        of_region = weights[rings.ring]
        regions, of_region = rings.regions[of_region > 0], of_region[of_region > 0]
        if not len(regions):
            journal.drop()  # the stored work is useless with other options
            raise _nothing_left("region", "--sparsity")
        projection = learn_projection(*_features(pairs, regions, of_region), options, seed, state)
        if not len(projection):
            journal.drop()
            raise _nothing_left("dimension", "--nuclear")
    return {"regions": regions, "weights": of_region, "projection": projection}


def learn_weights(
    positive: Tensor, negative: Tensor, sizes: Tensor, options: ConvexOptions, seed: int = 0, state: State | None = None
) -> Tensor:
    """Learns the weights of rings: problem 1 of `learn_convexopt`.

    Args:
        positive, negative: (P, K) and (N, K) squared distances of matching and of other pairs within each ring.
        sizes: (K,) number of features of each ring.
        options: options of the problem and of the solver.
        seed: random seed for the pairs of each step.
        state: stored state of the run to resume, or None.

    Returns:
        (K,) non-negative weights.

    Raises:
        HardnetSfmError: matching pairs are not closer than other pairs in any ring.
    """
    from hardnet_sfm.literature.rda import Problem, margin_hinge, solve, sparse_step, split

    def problem(positive: Tensor, negative: Tensor) -> Problem:
        # At 0 every combination violates the margin, so the subgradient there has a closed form.
        first = positive.mean(0) - negative.mean(0)
        mu = options.sparsity * _most(-first.min())

        def subgradient(weights: Tensor, number: int) -> Tensor:
            near, far = positive[_drawn(positive, seed, number, 0)], negative[_drawn(negative, seed, number, 1)]
            _, by_near, by_far = margin_hinge(near @ weights, far @ weights)
            return by_near @ near + by_far @ far

        def step(average: DualAverage, gamma: float) -> Tensor:
            return sparse_step(average, gamma, mu, sizes, options.features)

        return Problem("regions", first, first.new_zeros(len(first)), subgradient, step)

    (near, held_near), (far, held_far) = split(positive, 0), split(negative, 0)

    def validate(weights: Tensor) -> float:
        return float(margin_hinge(held_near @ weights, held_far @ weights)[0])

    return solve(problem(positive, negative), problem(near, far), validate, options.region_steps, state)


def learn_projection(
    anchors: Tensor,
    positives: Tensor,
    others: Tensor,
    options: ConvexOptions,
    seed: int = 0,
    state: State | None = None,
) -> Tensor:
    """Learns the projection: problem 2 of `learn_convexopt`.

    Args:
        anchors, positives: (P, K) features of matching patches.
        others: (2, N) rows of anchors and rows of positives that do not match.
        options: options of the problem and of the solver.
        seed: random seed for the pairs of each step.
        state: stored state of the run to resume, or None.

    Returns:
        (D, K) projection, with the direction of the largest eigenvalue first.

    Raises:
        HardnetSfmError: matching pairs are not closer than other pairs in any direction.
    """
    import torch

    from hardnet_sfm.literature.rda import Problem, low_rank_step, margin_hinge, solve, split

    def differences(pairs: Tensor) -> Tensor:
        return anchors[pairs[0]] - positives[pairs[1]]

    def blocks(pairs: Tensor) -> Iterator[Tensor]:
        return (differences(pairs[:, start : start + _BATCH]) for start in range(0, pairs.shape[1], _BATCH))

    def scatter(pairs: Tensor) -> Tensor:
        return sum((block.T @ block for block in blocks(pairs)), anchors.new_zeros(())) / pairs.shape[1]

    def distances(projection: Tensor, pairs: Tensor) -> Tensor:
        return torch.cat([(block @ projection.T).square().sum(1) for block in blocks(pairs)])

    def problem(matching: Tensor, others: Tensor) -> Problem:
        first = scatter(matching) - scatter(others)
        mu = options.nuclear * _most(torch.linalg.eigvalsh(-first)[-1])

        def subgradient(projection: Tensor, number: int) -> Tensor:
            near = differences(matching[:, _drawn(matching[0], seed, number, 0)])
            far = differences(others[:, _drawn(others[0], seed, number, 1)])
            squares = ((side @ projection.T).square().sum(1) for side in (near, far))
            _, by_near, by_far = margin_hinge(*squares)
            return near.T @ (by_near[:, None] * near) + far.T @ (by_far[:, None] * far)

        def step(average: DualAverage, gamma: float) -> Tensor:
            return low_rank_step(average, gamma, mu, options.dimension)

        return Problem("project", first, first.new_zeros(0, len(first)), subgradient, step)

    matching = torch.arange(len(anchors), device=anchors.device).expand(2, -1)
    (near, held_near), (far, held_far) = split(matching, 1), split(others, 1)

    def validate(projection: Tensor) -> float:
        return float(margin_hinge(distances(projection, held_near), distances(projection, held_far))[0])

    return solve(problem(matching, others), problem(near, far), validate, options.projection_steps, state)


def _distances(pairs: PooledPairs, rings: Rings, state: State) -> tuple[Tensor, Tensor]:
    """Computes (P, K) and (N, K) squared distances of all pairs within each ring."""
    import torch

    near, far = [], []
    with progress("pool", pairs.batches) as advance:
        for number in range(pairs.batches):
            kept = state.get(f"distances {number}")
            if kept is None:
                sides = pairs.distances(number, rings)
                state.put(f"distances {number}", near=sides[0].cpu().numpy(), far=sides[1].cpu().numpy())
            else:
                device = rings.ring.device
                sides = torch.from_numpy(kept["near"]).to(device), torch.from_numpy(kept["far"]).to(device)
            near.append(sides[0])
            far.append(sides[1])
            advance()
    return torch.cat(near), torch.cat(far)


def _features(pairs: PooledPairs, regions: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes weighted features of anchors and positives, (P, 8 M), and (2, N) rows of pairs that do not match."""
    import torch

    anchors: list[Tensor] = []
    positives: list[Tensor] = []
    others, count = [], 0
    for number in range(pairs.batches):
        first, second, rows = pairs.features(number, regions)
        for side, features in ((anchors, first), (positives, second)):
            side.append((features * weights.sqrt()).flatten(1))
        others.append(rows + count)
        count += len(first)
    return torch.cat(anchors), torch.cat(positives), torch.cat(others, 1)


def _most(gain: Tensor) -> float:
    """Returns the smallest weight of a penalty that leaves nothing: the largest gain at 0."""
    if not gain > 0:
        raise HardnetSfmError(
            "no feature tells matching patches from others", "The patches are flat, or their points are wrong."
        )
    return float(gain)


def _nothing_left(what: str, penalty: str) -> HardnetSfmError:
    return HardnetSfmError(f"no {what} is left after the last step", f"Lower {penalty}, or learn from more --pairs.")


def _drawn(rows: Tensor, seed: int, step: int, kind: int) -> Tensor:
    """Draws row numbers of one kind of pairs for a step, with replacement; returns all rows if they fit in a batch."""
    import torch

    if len(rows) <= _BATCH:
        return torch.arange(len(rows), device=rows.device)
    return torch.from_numpy(np.random.default_rng((seed, step, kind)).integers(len(rows), size=_BATCH)).to(rows.device)
