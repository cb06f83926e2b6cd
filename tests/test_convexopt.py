"""ConvexOpt against loops over pixels and pairs, and its two convex problems against scipy's solvers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize
from torch import Tensor

from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
from hardnet_sfm.files.journal import Journal
from hardnet_sfm.files.patch_sets import write_patches
from hardnet_sfm.files.weight_files import read_weights, write_weights
from hardnet_sfm.literature.convex import ConvexOptions, learn_convexopt, learn_projection, learn_weights
from hardnet_sfm.literature.convexopt import ConvexOpt, PooledGradients, gaussians
from hardnet_sfm.literature.pooling import PooledPairs, candidate_rings
from hardnet_sfm.literature.rda import DualAverage, low_rank_step, margin_hinge, sparse_step
from hardnet_sfm.measures import fpr95
from hardnet_sfm.networks.architectures import recognised
from hardnet_sfm.networks.loading import load_network
from hardnet_sfm.patch_set import PATCH_SIZE, PatchSet
from hardnet_sfm.resources import Resources
from hardnet_sfm.training.augment import AugmentOptions
from hardnet_sfm.training.sampling import Sampler, SamplingOptions
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.verbs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

Float64 = NDArray[np.float64]
BRIEF = ConvexOptions(pairs=48, radii=3, angles=2, sigmas=2, region_steps=40, projection_steps=20)


def generated(points: int, seed: int = 0, hard: float = 1) -> PatchSet:
    """Two patches of each point of random texture, displaced, turned, scaled, in other light, noisy."""
    rng = np.random.default_rng(seed)
    patches = []
    for _ in range(points):
        texture = sum(cv2.GaussianBlur(rng.normal(size=(96, 96)), (0, 0), sigma) * sigma for sigma in (2, 4, 8))
        for _ in range(2):
            turn, scale = rng.normal(0, 8 * hard), math.exp(rng.normal(0, 0.1 * hard))
            matrix = cv2.getRotationMatrix2D((47.5, 47.5), turn, scale)
            matrix[:, 2] += rng.normal(0, 2 * hard, 2) - 16
            patch = cv2.warpAffine(texture, matrix, (PATCH_SIZE, PATCH_SIZE), borderMode=cv2.BORDER_REFLECT)
            patch = patch + rng.normal(0, 0.15 * hard * patch.std(), patch.shape)
            patch = 128 + 50 * rng.uniform(0.4, 1) * (patch - patch.mean()) / patch.std()
            patches.append(np.clip(patch, 0, 255).astype(np.uint8))
    count = 2 * points
    return PatchSet(
        "generated",
        "warps",
        12.0,
        ("a.jpg", "b.jpg"),
        np.stack(patches),
        np.repeat(np.arange(points), 2),
        np.tile(np.arange(2, dtype=np.int32), points),
        np.full((count, 2, 3), np.nan, np.float32),
        np.full(count, np.nan, np.float32),
        np.full((points, 3), np.nan, np.float32),
    ).check()


@pytest.fixture(scope="module")
def patches() -> PatchSet:
    return generated(64)


@pytest.fixture(scope="module")
def sampler(patches: PatchSet) -> Sampler:
    return Sampler([patches], [1.0], SamplingOptions(batch_size=32), seed=0)


def as_input(patches: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.float32(patches))[:, None] / 255


def pooled_by_hand(patch: Float64, regions: Float64) -> Float64:
    """(8, M): smoothing, gradients, soft assignment, normalisation, pooling and cropping, pixel by pixel."""
    size = len(patch)
    sigma = 1.4 * size / 64
    reach = range(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    weights = {(i, j): math.exp(-(i * i + j * j) / (2 * sigma**2)) for i, j in product(reach, reach)}
    total = sum(weights.values())

    def smooth(row: int, column: int) -> float:
        last = size - 1
        read = (w * patch[min(max(row + i, 0), last), min(max(column + j, 0), last)] for (i, j), w in weights.items())
        return sum(read) / total

    around = range(-1, size + 1)
    blurred = {(row, column): smooth(row, column) for row, column in product(around, around)}
    oriented = np.zeros((size, size, 8))
    for row, column in product(range(size), range(size)):
        dx = blurred[row, column + 1] - blurred[row, column - 1]
        dy = blurred[row + 1, column] - blurred[row - 1, column]
        place = math.atan2(dy, dx) / (math.pi / 4) % 8
        low = int(place)
        oriented[row, column, low % 8] += math.hypot(dx, dy) * (low + 1 - place)
        oriented[row, column, (low + 1) % 8] += math.hypot(dx, dy) * (place - low)
    magnitudes = sorted(oriented.sum(2).ravel())
    oriented /= magnitudes[math.ceil(0.8 * size * size) - 1] / 8
    pooled = np.zeros((8, len(regions)))
    for number, (x, y, width) in enumerate(regions):
        share = np.zeros((size, size))
        for row, column in product(range(size), range(size)):
            u, v = ((at + 0.5) * 64 / size - 32 for at in (column, row))
            share[row, column] = math.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * width**2))
        pooled[:, number] = (oriented * (share / share.sum())[:, :, None]).sum((0, 1))
    return np.minimum(pooled, 1)


class TestFeatures:
    REGIONS = np.array([[0, 0, 4], [20.5, -7, 8], [-31, 31, 2], [3, 12, 0.5]])

    @pytest.mark.parametrize("size", [32, 64])
    def test_are_those_of_a_loop_over_pixels(self, patches: PatchSet, size: int) -> None:
        patch = patches.patches[5].reshape(size, 64 // size, size, 64 // size).mean((1, 3))
        found = PooledGradients(size)(as_input(patch[None]), torch.tensor(self.REGIONS, dtype=torch.float32))
        expected = pooled_by_hand(patch / 255, self.REGIONS)
        assert (expected == 1).any()
        assert (expected < 1).any()
        np.testing.assert_allclose(found[0], expected, atol=2e-5)

    def test_do_not_change_with_brightness_and_contrast(self, patches: PatchSet) -> None:
        inputs = as_input(patches.patches[:8])
        features, regions = PooledGradients(64), candidate_rings(3, 3, 3).regions
        torch.testing.assert_close(features(0.3 * inputs + 0.4, regions), features(inputs, regions), atol=1e-4, rtol=0)

    def test_of_a_step_on_a_flat_ground_are_normalised_by_its_height(self) -> None:
        inputs = torch.zeros(2, 1, 64, 64)
        inputs[0, 0, :, 60:], inputs[1, 0, :, 60:] = 1, 0.2
        features = PooledGradients(64)(inputs, torch.tensor([[28.0, 0, 2]]))
        torch.testing.assert_close(features[0], features[1])
        assert 0 < features[0, 0, 0] <= 1
        assert features[0, 1:].max() < 1e-6

    def test_are_pooled_with_weights_that_no_processor_multiplies_slowly(self) -> None:
        regions = torch.tensor(self.REGIONS)
        exact = gaussians(regions, 64)
        weights = gaussians(regions.float(), 64)
        assert weights[weights > 0].min() > torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps
        torch.testing.assert_close(weights.double(), exact, atol=1e-15, rtol=1e-4)
        torch.testing.assert_close(weights.sum(1), torch.ones(len(regions)))


class TestNetwork:
    def test_distances_before_normalisation_are_those_of_the_metric(self, patches: PatchSet) -> None:
        torch.manual_seed(0)
        rings = candidate_rings(3, 2, 2)
        network = ConvexOpt(len(rings.regions), 7)
        state = {
            "regions": rings.regions,
            "weights": torch.rand(len(rings.regions)),
            "projection": torch.randn(7, 8 * len(rings.regions)),
        }
        network.load_state_dict(state)
        inputs = as_input(patches.patches[:4])
        features = network.features(inputs, rings.regions)
        projected = (features * state["weights"].sqrt()).flatten(1) @ state["projection"].T
        expected = projected / projected.norm(dim=1, keepdim=True)
        torch.testing.assert_close(network(inputs), expected)

    def test_takes_its_sizes_from_a_state_dict(self) -> None:
        state = ConvexOpt(5, 9).state_dict()
        assert set(state) == {"regions", "weights", "projection"}
        network = ConvexOpt.shaped_as(state, 32)
        network.load_state_dict(state)
        assert network(torch.rand(2, 1, 32, 32)).shape == (2, 9)

    def test_gives_flat_patches_a_descriptor_of_unit_length(self) -> None:
        described = ConvexOpt(3, 4)(torch.full((2, 1, 64, 64), 0.3))
        torch.testing.assert_close(described, torch.full((2, 4), 0.5))

    @pytest.mark.parametrize(
        ("wrong", "problem"),
        [
            ({"weights": None}, "missing: weights"),
            ({"regions": torch.tensor(1.0)}, "another shape: projection, regions, weights"),
            ({"projection": torch.rand(9, 39)}, "another shape: projection"),
            ({"weights": torch.rand(4)}, "another shape: weights"),
            ({"features.0.weight": torch.rand(4)}, "unknown: features.0.weight"),
        ],
    )
    def test_weights_that_do_not_fit_are_refused(
        self, wrong: dict[str, Tensor | None], problem: str, tmp_path: Path
    ) -> None:
        tensors = {
            name: tensor for name, tensor in {**ConvexOpt(5, 9).state_dict(), **wrong}.items() if tensor is not None
        }
        write_weights(tmp_path / "wrong.safetensors", tensors, {"architecture": "convexopt"})
        with pytest.raises(HardnetSfmError, match=problem):
            make_descriptor("convexopt", tmp_path / "wrong.safetensors")

    def test_loads_by_name_from_a_file_whatever_its_sizes(self, patches: PatchSet, tmp_path: Path) -> None:
        network = ConvexOpt(5, 9)
        write_weights(tmp_path / "some.safetensors", network.state_dict(), {"measurement_size": "10"})
        assert recognised(network.state_dict()) == "convexopt"
        descriptor = make_descriptor("convexopt", tmp_path / "some.safetensors")
        assert (descriptor.patch_size, descriptor.measurement_size) == (64, 10)
        describe = PatchDescriber(descriptor, "cpu")
        assert describe.dimension == 9
        expected = network(as_input(patches.patches[:3])).numpy()
        np.testing.assert_allclose(describe(patches.patches[:3]), expected, atol=1e-3)


class TestRings:
    def test_have_1_4_or_8_regions_and_the_symmetries_of_the_square(self) -> None:
        rings = candidate_rings(radii=3, angles=4, sigmas=2)
        places = [rings.regions[rings.ring == number].double().numpy() for number in range(18)]
        assert [len(of) for of in places] == 2 * [1, 4, 8, 8, 4, 4, 8, 8, 4]
        for of in places:
            assert len(set(of[:, 2])) == 1
            known = {tuple(place) for place in of.round(4)}
            for turned in ([-1, 1, 1] * of, [1, -1, 1] * of, of[:, [1, 0, 2]]):
                assert {tuple(place) for place in turned.round(4) + 0.0} == known

    def test_span_radii_and_sigmas(self) -> None:
        rings = candidate_rings(radii=3, angles=2, sigmas=3)
        assert sorted(set(rings.regions[:, 2].tolist())) == [0.5, 8.25, 16]
        radii = rings.regions[:, :2].norm(dim=1).numpy()
        np.testing.assert_allclose(np.unique(radii.round(3)), [0, 15.5, 31])

    def test_sum_regions(self) -> None:
        rings = candidate_rings(2, 2, 2)
        values = torch.rand(5, len(rings.ring))
        expected = torch.stack([values[:, rings.ring == number].sum(1) for number in range(6)], 1)
        torch.testing.assert_close(rings.sum(values), expected)


def hinge_by_hand(positive: Float64, negative: Float64) -> float:
    return sum(max(0.0, 1 + near - far) for near in positive for far in negative) / len(positive) / len(negative)


class TestMarginHinge:
    @pytest.mark.parametrize("spread", [0.5, 3.0])
    def test_is_the_mean_over_all_combinations(self, spread: float) -> None:
        rng = np.random.default_rng(0)
        positive, negative = rng.random(37) * spread, rng.random(53) * spread + 1
        loss, by_positive, by_negative = margin_hinge(torch.tensor(positive), torch.tensor(negative))
        assert loss.item() == pytest.approx(hinge_by_hand(positive, negative), rel=1e-12)
        violated = 1 + positive[:, None] - negative[None] > 0
        assert 0 < violated.sum() < violated.size or spread < 1
        np.testing.assert_allclose(by_positive, violated.sum(1) / violated.size)
        np.testing.assert_allclose(by_negative, -violated.sum(0) / violated.size)

    def test_what_just_keeps_the_margin_is_no_violation_on_either_side(self) -> None:
        positive, negative = torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([2.0, 2.0, 1.0, 3.0])
        loss, by_positive, by_negative = margin_hinge(positive, negative)
        violated = 1 + positive[:, None] - negative[None] > 0
        torch.testing.assert_close(by_positive, violated.sum(1) / 16)
        torch.testing.assert_close(by_negative, -violated.sum(0) / 16)
        assert loss == hinge_by_hand(positive.double().numpy(), negative.double().numpy())


class TestSteps:
    def test_sparse_one_is_scipys_minimiser(self) -> None:
        gradient = np.random.default_rng(1).normal(size=8)
        gamma, mu, steps = 0.7, 0.4, 9

        def objective(weights: Float64) -> float:
            return gradient @ weights + mu * weights.sum() + gamma / (2 * math.sqrt(steps)) * weights @ weights

        expected = minimize(objective, np.ones(8), bounds=[(0, None)] * 8, method="L-BFGS-B", options={"ftol": 1e-14}).x
        found = sparse_step(DualAverage(torch.tensor(gradient), steps), gamma, mu, torch.ones(8), 8)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert (found == 0).any()
        assert (found > 0).any()

    def test_low_rank_one_is_scipys_minimiser(self) -> None:
        gradient = np.random.default_rng(6).normal(size=(4, 4))
        gradient = gradient + gradient.T
        gamma, mu, steps = 0.7, 0.4, 9

        def objective(factor: Float64) -> float:
            matrix = factor.reshape(4, 4) @ factor.reshape(4, 4).T
            return (gradient * matrix).sum() + mu * matrix.trace() + gamma / (2 * math.sqrt(steps)) * (matrix**2).sum()

        factor = minimize(objective, np.eye(4).ravel(), options={"gtol": 1e-9}).x.reshape(4, 4)
        found = low_rank_step(DualAverage(torch.tensor(gradient), steps), gamma, mu, 4)
        assert 0 < len(found) < 4
        np.testing.assert_allclose(found.T @ found, factor @ factor.T, atol=1e-4)
        assert all(first > second for first, second in pairwise(found.norm(dim=1).tolist()))

    def test_sparse_one_raises_the_penalty_until_the_selected_fit(self) -> None:
        average = DualAverage(-torch.tensor([1.0, 5, 3, 4, 2]), 4)
        found = sparse_step(average, 2.0, 0.5, torch.tensor([1, 8, 4, 4, 8]), 14)
        torch.testing.assert_close(found, torch.tensor([0.0, 2, 0, 1, 0]))  # the third would make it 16

    def test_low_rank_one_raises_the_penalty_to_the_rank(self) -> None:
        average = DualAverage(-torch.diag(torch.tensor([1.0, 5, 3])), 4)
        found = low_rank_step(average, 2.0, 0.5, 1)
        torch.testing.assert_close(found.T @ found, torch.diag(torch.tensor([0.0, 2, 0])))


def separable_distances(rings: int = 6) -> tuple[Float64, Float64]:
    """Of 25 matching and 30 other pairs, that differ in the first rings only."""
    rng = np.random.default_rng(2)
    positive, negative = rng.gamma(2, 0.3, (25, rings)), rng.gamma(2, 0.3, (30, rings))
    negative[:, :3] += [0.5, 0.3, 0.1]
    return positive, negative


def linear_program(constraints: list[Float64], differences: Float64, mu: float, cost: Float64) -> tuple[float, Float64]:
    """Minimum over x >= 0 where `cost` is 1 of mean of max(0, 1 + differences x) + mu cost x, with rows r x >= 0."""
    slacks, unknowns = differences.shape
    matrix = np.hstack([differences, -np.eye(slacks)])
    more = np.array([np.concatenate([-row, np.zeros(slacks)]) for row in constraints]).reshape(-1, unknowns + slacks)
    solved = linprog(
        np.concatenate([mu * cost, np.full(slacks, 1 / slacks)]),
        np.vstack([matrix, more]),
        np.concatenate([-np.ones(slacks), np.zeros(len(more))]),
        bounds=[(0, None) if of else (-1e3, 1e3) for of in cost] + [(0, None)] * slacks,
    )
    assert solved.status == 0
    return solved.fun, solved.x[:unknowns]


class TestRegions:
    OPTIONS = replace(BRIEF, sparsity=0.2, features=64, region_steps=300)

    def test_optimum_is_that_of_a_linear_program(self) -> None:
        positive, negative = separable_distances()
        mu = 0.2 * (negative.mean(0) - positive.mean(0)).max()
        differences = (positive[:, None] - negative[None]).reshape(-1, 6)
        expected, optimum = linear_program([], differences, mu, np.ones(6))
        objectives = []
        for steps in (5, 50, 300):
            found = learn_weights(*map(torch.tensor, (positive, negative)), torch.ones(6), self._for(steps)).numpy()
            objectives.append(hinge_by_hand(positive @ found, negative @ found) + mu * found.sum())
        assert objectives[0] > objectives[2] > expected - 1e-9
        assert objectives[1] > objectives[2]
        assert objectives[2] == pytest.approx(expected, rel=0.003)
        assert set(np.flatnonzero(found > 1e-2)) == set(np.flatnonzero(optimum > 1e-2))

    def _for(self, steps: int) -> ConvexOptions:
        return replace(self.OPTIONS, region_steps=steps)

    def test_are_fewer_as_the_penalty_grows(self) -> None:
        sides = [torch.tensor(side) for side in separable_distances()]
        counts = [
            int((learn_weights(*sides, torch.ones(6), replace(self.OPTIONS, sparsity=share)) > 0).sum())
            for share in (0.0, 0.2, 0.6, 0.99)
        ]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[1] > counts[-1] == 1

    def test_of_pairs_that_nothing_tells_apart_are_refused(self) -> None:
        same = torch.rand(10, 3)
        with pytest.raises(HardnetSfmError, match="no feature tells matching"):
            learn_weights(same, same - 0.1, torch.ones(3), self.OPTIONS)


def separable_features(dimensions: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Of 24 points from two sides, in directions that tell more and less of them, and which rows do not match."""
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    points = rng.normal(size=(24, dimensions)) * np.linspace(1.5, 0.2, dimensions) @ turn
    sides = (points + rng.normal(size=(24, dimensions)) * np.linspace(0.2, 1, dimensions) @ turn for _ in range(2))
    first, second = map(torch.tensor, sides)
    return first, second, torch.stack([torch.arange(24), torch.arange(24).roll(5)])


class TestProjection:
    OPTIONS = replace(BRIEF, nuclear=0.05, projection_steps=300)

    def objective(self, found: Tensor, mu: float) -> float:
        anchors, positives, others = separable_features()
        near = ((anchors - positives) @ found.T).square().sum(1)
        far = ((anchors[others[0]] - positives[others[1]]) @ found.T).square().sum(1)
        return hinge_by_hand(near.numpy(), far.numpy()) + mu * float((found.T @ found).trace())

    def mu(self, share: float) -> float:
        anchors, positives, others = separable_features()
        near, far = anchors - positives, anchors[others[0]] - positives[others[1]]
        return share * float(torch.linalg.eigvalsh(far.T @ far / len(far) - near.T @ near / len(near))[-1])

    def test_optimum_is_that_of_linear_programs_with_cuts(self) -> None:
        """A is symmetric with v A v >= 0 for all v: those v that a solution violates are added until there is none."""
        anchors, positives, others = (of.numpy() for of in separable_features())
        near, far = (
            side[:, :, None] * side[:, None]
            for side in (anchors - positives, anchors[others[0]] - positives[others[1]])
        )
        # Unknowns: the diagonal, then what is above it, which counts twice.
        rows, columns = np.triu_indices(4, 1)

        def unknowns(of: Float64) -> Float64:
            return np.concatenate([of[..., range(4), range(4)], 2 * of[..., rows, columns]], -1)

        differences = (unknowns(near)[:, None] - unknowns(far)[None]).reshape(-1, 10)
        cost = np.repeat([1.0, 0.0], [4, 6])
        cuts: list[Float64] = []
        for _ in range(60):
            expected, solved = linear_program(cuts, differences, self.mu(0.05), cost)
            matrix = np.diag(solved[:4])
            matrix[rows, columns] = matrix[columns, rows] = solved[4:]
            values, vectors = np.linalg.eigh(matrix)
            if values[0] > -1e-6:
                break
            cuts += [unknowns(np.outer(v, v)) for v in vectors.T[values < 0]]
        else:
            pytest.fail("the cuts did not end")
        found = [
            learn_projection(*separable_features(), replace(self.OPTIONS, projection_steps=n)) for n in (5, 50, 300)
        ]
        objectives = [self.objective(of, self.mu(0.05)) for of in found]
        assert objectives[0] > objectives[2] > expected - 1e-6
        assert objectives[1] > objectives[2]
        assert objectives[2] == pytest.approx(expected, rel=0.005)

    def test_rank_falls_as_the_nuclear_norm_weighs_more(self) -> None:
        ranks = [
            len(learn_projection(*separable_features(8), replace(self.OPTIONS, nuclear=share)))
            for share in (0.0, 0.1, 0.9)
        ]
        assert ranks[0] > ranks[1] > ranks[2] == 1

    def test_of_fewer_dimensions_is_the_optimum_for_some_weight_of_the_nuclear_norm(self) -> None:
        """Raised where it has to be: no other share with as low a rank does better at its own objective."""
        found = learn_projection(*separable_features(), replace(self.OPTIONS, dimension=1))
        assert found.shape == (1, 4)
        best = min(
            self.objective(learn_projection(*separable_features(), replace(self.OPTIONS, nuclear=share)), 0)
            for share in (0.4, 0.6, 0.8)
        )
        assert self.objective(found, 0) <= best + 1e-3


class TestPairs:
    def test_distances_of_rings_are_those_of_the_features(self, sampler: Sampler) -> None:
        pairs, rings = PooledPairs(sampler, 40, 32, 0, "cpu"), candidate_rings(3, 2, 2)
        assert pairs.batches == 2
        for number, count in ((0, 32), (1, 8)):
            near, far = pairs.distances(number, rings)
            anchors, positives, others = pairs.features(number, rings.regions)
            assert near.shape == (count, 10)
            torch.testing.assert_close(near, rings.sum((anchors - positives).square().sum(1)))
            torch.testing.assert_close(far, rings.sum((anchors[others[0]] - positives[others[1]]).square().sum(1)))
            batch = sampler(number)
            inputs = torch.nn.functional.avg_pool2d(as_input(batch.anchors[:count]), 2)
            torch.testing.assert_close(anchors, PooledGradients(32)(inputs, rings.regions))
            assert batch.allowed[others[0], others[1]].all()

    def test_without_anything_allowed_there_are_no_others(
        self, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = sampler(0)
        lonely = batch.allowed.copy()
        lonely[3], lonely[:, 3] = False, False
        monkeypatch.setattr(Sampler, "__call__", lambda *_: replace(batch, allowed=lonely))
        others = PooledPairs(sampler, 32, 32, 0, "cpu").features(0, torch.tensor([[0.0, 0, 8]]))[2]
        assert 3 not in others
        assert others.shape == (2, 31)


class TestLearning:
    def learn(
        self, sampler: Sampler, path: Path, options: ConvexOptions = BRIEF, recipe: str = ""
    ) -> dict[str, Tensor]:
        journal = Journal(path)
        try:
            return learn_convexopt(sampler, options, journal, patch_size=32, recipe=recipe)
        finally:
            journal.close()

    def test_gives_a_network_of_at_most_the_sizes_asked_for(self, sampler: Sampler, tmp_path: Path) -> None:
        state = self.learn(sampler, tmp_path / "journal", replace(BRIEF, features=96, dimension=5))
        network = ConvexOpt.shaped_as(state, 32)
        network.load_state_dict(state)
        assert 1 <= len(state["regions"]) <= 12
        assert network(torch.rand(3, 1, 32, 32)).shape == (3, 5)

    def test_that_was_killed_ends_with_the_same_bits(
        self, sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = self.learn(sampler, tmp_path / "whole")
        put, done = Journal.put, []
        for limit in (1, 3, 8, 6):
            left = iter(range(limit))

            def dies(journal: Journal, key: str, *args: object, left: Iterator[int] = left, **kwargs: object) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                done.append(key)
                put(journal, key, *args, **kwargs)  # type: ignore[arg-type]

            monkeypatch.setattr(Journal, "put", dies)
            with pytest.raises(KeyboardInterrupt):
                self.learn(sampler, tmp_path / "parts")
        monkeypatch.setattr(Journal, "put", put)
        again = self.learn(sampler, tmp_path / "parts")
        assert all(torch.equal(again[name], expected[name]) for name in expected)
        assert done == ["distances 0", "distances 1"] + 10 * ["regions"] + 6 * ["project"]

    def test_does_not_use_what_another_recipe_left(self, sampler: Sampler, tmp_path: Path) -> None:
        options = replace(BRIEF, sparsity=0.5)
        expected = self.learn(sampler, tmp_path / "alone", options, "a")
        self.learn(sampler, tmp_path / "both", BRIEF, "a")
        found = self.learn(sampler, tmp_path / "both", options, "a")
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    @pytest.mark.slow
    def test_tells_points_apart_that_it_has_not_seen(self, tmp_path: Path) -> None:
        """Against the same features pooled over all candidate regions alike."""
        sampling = SamplingOptions(batch_size=256)
        train = Sampler([generated(4500, 1, 2)], [1.0], sampling, 0)
        options = ConvexOptions(
            pairs=4096, radii=6, angles=3, sigmas=4, features=320, region_steps=300, projection_steps=60
        )
        state = self.learn(train, tmp_path / "journal", options)
        held = PooledPairs(Sampler([generated(1200, 2, 2)], [1.0], sampling, 0), 1024, 32, 0, "cpu")
        rings = candidate_rings(6, 3, 4)
        every, learned = [], []
        for number in range(held.batches):
            near, far = held.distances(number, rings)
            every.append((near.sum(1), far.sum(1)))
            first, second, others = held.features(number, state["regions"])
            first, second = (
                torch.nn.functional.normalize((of * state["weights"].sqrt()).flatten(1) @ state["projection"].T, dim=1)
                for of in (first, second)
            )
            learned.append(((first - second).norm(dim=1), (first[others[0]] - second[others[1]]).norm(dim=1)))

        def error(sides: list[tuple[Tensor, Tensor]]) -> float:
            near, far = (torch.cat(of) for of in zip(*sides, strict=True))
            return fpr95(torch.cat([near, far]).numpy(), np.arange(len(near) + len(far)) < len(near))

        assert error(learned) < 0.95 * error(every)


class TestTraining:
    """`hardnet-sfm train --network convexopt`."""

    OPTIONS = TrainOptions(network="convexopt", sampling=SamplingOptions(batch_size=32))
    CPU = Resources(device="cpu", workers=1)

    @pytest.fixture
    def mined(self, patches: PatchSet, tmp_path: Path) -> Path:
        write_patches(tmp_path / "patches.h5", patches)
        return tmp_path / "patches.h5"

    def test_makes_weights_that_describe(self, mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = mined.with_name("out.safetensors")
        sizes = "--radii 3 --angles 2 --sigmas 2 --pairs 48 --batch-size 32 --region-steps 40 --projection-steps 20"
        arguments = (
            f"train {mined} -o {output} --network convexopt --validation {mined} --dimension 7 --workers 1 {sizes}"
        )
        main(arguments.split())
        assert "60 steps" in capsys.readouterr().out
        loaded = load_network(output)
        assert loaded.architecture.name == "convexopt"
        describe = PatchDescriber(make_descriptor("convexopt", output), "cpu")
        assert describe.dimension <= 7
        assert set(json.loads(read_weights(output).metadata["measures"])) == {"fpr95", "map"}
        assert [path.name for path in mined.with_name("out.training").iterdir() if path.name != ".lock"] == []

    def test_that_was_killed_goes_on_with_resume_alone(self, mined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        output, put = mined.with_name("out.safetensors"), Journal.put

        def dies(journal: Journal, key: str, *args: object, **kwargs: object) -> None:
            put(journal, key, *args, **kwargs)  # type: ignore[arg-type]
            if key == "regions":
                raise KeyboardInterrupt

        monkeypatch.setattr(Journal, "put", dies)
        with pytest.raises(KeyboardInterrupt):
            train([mined], output, self.OPTIONS, self.CPU, learner_options=BRIEF)
        monkeypatch.setattr(Journal, "put", put)
        with pytest.raises(HardnetSfmError, match="did not finish"):
            train([mined], output, self.OPTIONS, self.CPU, learner_options=BRIEF)
        train([mined], output, replace(self.OPTIONS, resume=True), self.CPU, learner_options=BRIEF)
        train([mined], mined.with_name("whole.safetensors"), self.OPTIONS, self.CPU, learner_options=BRIEF)
        found, expected = (read_weights(mined.with_name(f"{name}.safetensors")).tensors for name in ("out", "whole"))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        with pytest.raises(HardnetSfmError, match="no journal"):
            train(
                [mined],
                mined.with_name("new.safetensors"),
                replace(self.OPTIONS, resume=True),
                self.CPU,
                learner_options=BRIEF,
            )

    def test_that_leaves_nothing_writes_nothing(self, mined: Path) -> None:
        output, brief = mined.with_name("out.safetensors"), replace(BRIEF, nuclear=0.999, projection_steps=3)
        with pytest.raises(HardnetSfmError, match="no dimension is left") as raised:
            train([mined], output, self.OPTIONS, self.CPU, learner_options=brief)
        assert "--nuclear" in raised.value.hint
        assert not output.exists()

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (replace(OPTIONS, minutes=3.0), "minutes has no effect"),
            (replace(OPTIONS, loss="hardnet"), "loss has no effect"),
            (replace(OPTIONS, augment=AugmentOptions(flip=False)), "augment has no effect"),
        ],
    )
    def test_options_without_effect_are_refused(self, options: TrainOptions, problem: str) -> None:
        with pytest.raises(UsageError, match=problem):
            options.completed()

    def test_its_options_are_refused_with_another_network(self, mined: Path) -> None:
        with pytest.raises(UsageError, match="learned by gradient descent"):
            train([mined], mined.with_name("out.safetensors"), TrainOptions(steps=1), learner_options=BRIEF)
        with pytest.raises(SystemExit):
            main(f"train {mined} -o {mined.with_name('out.safetensors')} --pairs 48".split())


@pytest.mark.parametrize(
    "wrong",
    [
        {"pairs": 1},
        {"radii": 1},
        {"features": 8},
        {"sparsity": 1.0},
        {"nuclear": -0.1},
        {"nuclear": np.nan},
        {"dimension": 129},
        {"dimension": 0},
        {"region_steps": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')} must be"):
        replace(ConvexOptions(), **wrong).check()
