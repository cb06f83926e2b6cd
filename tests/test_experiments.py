"""The recipes that train and compare, and what losses pull and push: figures are those of direct calls and formulas."""

from __future__ import annotations

import csv
import importlib
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from test_train import write_noisy_patches

from hardnet_sfm import training_run
from hardnet_sfm.errors import UsageError
from hardnet_sfm.evaluation.scores import Measure
from hardnet_sfm.features.descriptors import Descriptor, UnitLength, make_descriptor
from hardnet_sfm.files.patch_sets import read_patches, write_patches
from hardnet_sfm.files.weight_files import read_weights
from hardnet_sfm.literature.experiments import ExperimentOptions, compare, describe_order, of_seeds
from hardnet_sfm.literature.held_out import HeldOut
from hardnet_sfm.literature.pair_scoring import PairNetwork
from hardnet_sfm.measures import fpr95
from hardnet_sfm.networks.architectures import ARCHITECTURES, LoadedNetwork
from hardnet_sfm.patch_set import PatchSet
from hardnet_sfm.resources import Resources
from hardnet_sfm.training import losses
from hardnet_sfm.training.objectives import DescriptorObjective
from hardnet_sfm.training.sampling import SamplingOptions
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.training.validation import BATCHES, HeldOutBatches, measure_distances, validate_network
from hardnet_sfm.verbs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Resources(device="cpu", workers=1)
SMALL = TrainOptions(steps=2, sampling=SamplingOptions(batch_size=16))
PIPELINES = Path(__file__).parents[1] / "pipelines"


def pipeline(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PIPELINES))
    return importlib.import_module(name)


def typed(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    """Runs a script as it is typed."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    script.main()


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patches") / "made.h5"
    write_noisy_patches(path)
    return path


def write_hard_patches(path: Path, easy: Path, seed: int, noise: float) -> None:
    """The same points with so much smooth noise that nothing tells them all apart."""
    of, rng = read_patches(easy), np.random.default_rng(seed)
    added = np.array([cv2.GaussianBlur(rng.normal(0, noise, (64, 64)), (0, 0), 3) for _ in range(len(of))])
    looks = np.uint8((of.patches + added).clip(0, 255))
    write_patches(
        path, PatchSet(str(path), "sfm", 12, of.images, looks, of.point, of.image, of.frame, of.angle, of.xyz)
    )


@pytest.fixture(scope="module")
def hard(patches: Path) -> Path:
    """To measure with."""
    path = patches.with_name("hard.h5")
    write_hard_patches(path, patches, 1, 500)
    return path


def options_for(patches: Path, hard: Path, workspace: Path, seeds: tuple[int, ...] = (0, 1)) -> ExperimentOptions:
    return ExperimentOptions((patches,), hard, workspace, seeds, validation_batch=32, resources=CPU)


class TestHeldOut:
    def test_measures_are_those_that_training_validates_with(self, hard: Path) -> None:
        """Of one network, in float32; patches there are not rounded when they are halved."""
        network = make_descriptor("rootsift", None).network
        batches = HeldOutBatches([read_patches(hard)], 32)
        expected = validate_network(network, batches, 32, "cpu")
        assert 0.02 < expected["fpr95"] < 0.7  # or it would tell nothing
        found = HeldOut(hard, 32).measures(Descriptor(network, 32, 12.0), CPU)
        assert found["fpr95"] == pytest.approx(expected["fpr95"], abs=0.01)
        assert found["map"] == pytest.approx(expected["map"], abs=0.01)

    @pytest.mark.parametrize("distance", [0.0, 0.5])
    @pytest.mark.parametrize("scores", [False, True])
    def test_a_network_to_which_all_look_the_same_matches_nothing(self, distance: float, scores: bool) -> None:
        same = torch.eye(8, dtype=torch.bool)
        found = measure_distances(torch.full((8, 8), distance), same, ~same, scores=scores)
        assert found == {"fpr95": 1.0, "map": 0.0}

    def test_the_centre_of_wide_patches_is_described(self, hard: Path) -> None:
        """A descriptor that spans half as many sigmas sees the middle 32 pixels of 64."""

        class Pixels(torch.nn.Module):
            def forward(self, of: torch.Tensor) -> torch.Tensor:
                return of.flatten(1) - of.flatten(1).mean(1, keepdim=True)

        descriptor = Descriptor(torch.nn.Sequential(Pixels(), UnitLength()), 32, 6.0)
        found = HeldOut(hard, 32).measures(descriptor, CPU)
        batches, measures = HeldOutBatches([read_patches(hard)], 32), []
        for number in range(BATCHES):
            batch = batches(number)
            first, second = (
                side[:, 16:48, 16:48].reshape(32, -1) - side[:, 16:48, 16:48].mean((1, 2))[:, None]
                for side in (batch.anchors, batch.positives)
            )
            first, second = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (first, second))
            distances = np.linalg.norm(first[:, None] - second[None], axis=2)
            measures.append(
                measure_distances(
                    torch.from_numpy(distances), torch.eye(32, dtype=torch.bool), torch.from_numpy(batch.allowed)
                )
            )
        for name in ("fpr95", "map"):
            assert found[name] == pytest.approx(np.mean([one[name] for one in measures]), abs=5e-3)

    def test_a_network_of_pairs_is_measured_with_eight_rivals(self, hard: Path) -> None:
        """One whose score falls with the distance: the false positive rate is that of these distances."""

        class Near(PairNetwork):
            def describe(self, patches: torch.Tensor, side: int = 0) -> torch.Tensor:
                assert side in (0, 1) and patches.shape[2:] == (32, 32)
                return patches.flatten(1)

            def compare(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
                return 3 - (first - second).norm(dim=1)

        loaded = LoadedNetwork(Near(), replace(ARCHITECTURES["matchnet"], patch_size=32), 6.0, "")
        found = HeldOut(hard, 32).measures_of_pairs(loaded, CPU)
        batches, rates = HeldOutBatches([read_patches(hard)], 32), []
        for number in range(BATCHES):
            batch = batches(number)
            sides = [side[:, 16:48, 16:48].reshape(32, -1) / 255 for side in (batch.anchors, batch.positives)]
            distances, same = [], []
            for anchor, rival in itertools.product(range(32), range(9)):
                other = (anchor + rival) % 32
                if rival == 0 or batch.allowed[anchor, other]:
                    distances.append(np.linalg.norm(sides[0][anchor] - sides[1][other]))
                    same.append(rival == 0)
            rates.append(fpr95(np.array(distances), np.array(same)))
        assert 0.02 < np.mean(rates) < 0.9
        assert found == {"fpr95": pytest.approx(np.mean(rates), abs=0.01)}

    def test_a_network_that_describes_is_not_one_of_pairs(self, hard: Path) -> None:
        loaded = LoadedNetwork(ARCHITECTURES["tfeat"].build(), ARCHITECTURES["tfeat"], 12.0, "")
        with pytest.raises(UsageError, match="TFeat describes patches"):
            HeldOut(hard, 32).measures_of_pairs(loaded, CPU)

    def test_batches_of_two_are_refused(self, hard: Path) -> None:
        with pytest.raises(UsageError, match="three pairs"):
            HeldOut(hard, 2)


class TestCompare:
    @pytest.mark.slow
    def test_figures_are_those_of_training_and_measuring_by_hand(
        self, patches: Path, hard: Path, tmp_path: Path
    ) -> None:
        options = options_for(patches, hard, tmp_path / "out")
        table = compare("sizes", {"16": SMALL}, options)
        fpr95 = next(measure for measure in table.measures if measure.name == "fpr95").values["16"]
        expected = []
        for seed in (0, 1):
            weights = tmp_path / f"{seed}.safetensors"
            train([patches], weights, TrainOptions(steps=2, seed=seed, sampling=SMALL.sampling), CPU)
            expected.append(HeldOut(hard, 32).measures(make_descriptor("hardnet", weights), CPU)["fpr95"])
        assert 0 < expected[0] != expected[1] > 0
        assert fpr95["seed 0"] == expected[0]
        assert fpr95["seed 1"] == expected[1]
        assert fpr95["mean"] == pytest.approx(sum(expected) / 2)
        assert fpr95["deviation"] == pytest.approx(abs(expected[0] - expected[1]) / 2**0.5)

    def test_a_second_call_trains_what_is_missing_alone(
        self, patches: Path, hard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained: list[int] = []
        descend = training_run.descend

        def counted(*args: Any) -> training_run.TrainResult:
            trained.append(1)
            return descend(*args)

        monkeypatch.setattr(training_run, "descend", counted)
        first = compare("losses", {"a": SMALL}, options_for(patches, hard, tmp_path, (0,)))
        assert len(trained) == 1
        both = compare("losses", {"a": SMALL}, options_for(patches, hard, tmp_path, (0, 1)))
        assert len(trained) == 2
        assert both.measures[0].values["a"]["seed 0"] == first.measures[0].values["a"]["seed 0"]

    def test_a_run_that_was_stopped_goes_on(
        self, patches: Path, hard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And ends as one that was not."""
        steps, real = [], losses.LOSSES["hardnet"].function
        longer = TrainOptions(steps=3, validate_every=1, sampling=SMALL.sampling)
        whole = compare("losses", {"a": longer}, options_for(patches, hard, tmp_path / "whole", (0,)))

        def stopping(*args: torch.Tensor) -> torch.Tensor:
            steps.append(1)
            if len(steps) == 3:
                raise MemoryError
            return real(*args)

        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setitem(losses.LOSSES.built_in, "hardnet", DescriptorObjective(stopping))
            compare("losses", {"a": longer}, options_for(patches, hard, tmp_path / "out", (0,)))
        assert (tmp_path / "out" / "a-seed-0.training" / "last.ckpt").is_file()
        found = compare("losses", {"a": longer}, options_for(patches, hard, tmp_path / "out", (0,)))
        assert found.measures == whole.measures

    def test_other_held_out_patches_are_measured_anew(self, patches: Path, hard: Path, tmp_path: Path) -> None:
        options = options_for(patches, hard, tmp_path, (0,))
        compare("losses", {"a": SMALL}, options)
        before = json.loads((tmp_path / "a-seed-0.json").read_text())
        other = tmp_path / "other.h5"
        write_hard_patches(other, patches, 2, 1000)
        compare(
            "losses",
            {"a": SMALL},
            ExperimentOptions((patches,), other, tmp_path, (0,), validation_batch=32, resources=CPU),
        )
        after = json.loads((tmp_path / "a-seed-0.json").read_text())
        assert after["measures"]["fpr95"] > before["measures"]["fpr95"]

    @pytest.mark.parametrize("seeds", [(), (1, 1)])
    def test_seeds_must_differ(self, patches: Path, hard: Path, tmp_path: Path, seeds: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match="--seeds"):
            compare("losses", {"a": SMALL}, options_for(patches, hard, tmp_path, seeds))


def test_the_order_is_said_by_seed() -> None:
    values = {"a": {"seed 0": 0.1, "seed 1": 0.3}, "b": {"seed 0": 0.2, "seed 1": 0.4}}
    lower = Measure("fpr95", "", values, lower_is_better=True)
    assert describe_order(lower) == "fpr95: the same order with every seed: a, b"
    assert describe_order(Measure("map", "", values)) == "map: the same order with every seed: b, a"
    once = Measure("map", "", {name: {"seed 4": row["seed 0"]} for name, row in values.items()})
    assert describe_order(once) == "map: the order of this one seed: b, a"
    assert of_seeds(lower) == {"a": [0.1, 0.3], "b": [0.2, 0.4]}
    values["b"]["seed 1"] = 0.25
    assert describe_order(lower) == "fpr95: the order depends on the seed: a, b (seed 0); b, a (seed 1)"


class TestRecipes:
    def test_losses_differ_in_nothing_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = pipeline("loss_comparison", monkeypatch)
        options = script.Options((Path("a.h5"),), Path("b.h5"), Path("out"), steps=7, batch_size=32)
        variants = options.variants()
        assert {name: one.loss for name, one in variants.items()} == {
            "contrastive": "contrastive",
            "softmax": "softmax",
            "hardest-softmax": "hardest-softmax",
            "triplet": "hardnet",
        }
        assert len({repr(one).replace(f"loss='{one.loss}'", "") for one in variants.values()}) == 1
        assert variants["triplet"].steps == 7 and variants["triplet"].sampling.batch_size == 32

    def test_batches_of_all_sizes_are_of_the_same_number_of_pairs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script = pipeline("batch_size", monkeypatch)
        of = (Path("a.h5"),), Path("b.h5"), Path("out")
        by_pairs = script.Options(*of, pairs=4096, sizes=(1024, 64, 2048)).variants()
        assert {name: one.steps for name, one in by_pairs.items()} == {"64": 64, "1024": 4, "2048": 2}
        by_steps = script.Options(*of, steps=3, sizes=(64, 100)).variants()
        assert {name: one.steps for name, one in by_steps.items()} == {"64": 5, "100": 3}
        assert {one.norm_batch for one in by_pairs.values()} == {256}
        without = script.Options(*of, pairs=64, network="tfeat").variants()
        assert {one.completed().norm_batch for one in without.values()} == {None}
        for wrong in (
            {},
            {"pairs": 1, "steps": 1},
            {"pairs": 0},
            {"steps": 1, "sizes": ()},
            {"pairs": 9, "sizes": (1,)},
        ):
            with pytest.raises(UsageError):
                script.Options(*of, **wrong).variants()

    @pytest.mark.slow
    def test_a_recipe_as_it_is_typed(
        self,
        patches: Path,
        hard: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        script = pipeline("batch_size", monkeypatch)
        common = ["--validation-batch", "32", "--device", "cpu", "--workers", "1", "--workspace", tmp_path]
        words = [patches, "--validation", hard, "--seeds", "0", "1", "--pairs", "50", "--sizes", "8", "16", *common]
        typed(script, monkeypatch, *words)
        said = capsys.readouterr().out
        assert "every run saw 56 to 64 pairs: batches 7 of 8, 4 of 16" in said
        with (tmp_path / "batch-size.csv").open() as file:
            rows = {
                (row["measure"], row["descriptor"], row["column"]): float(row["value"]) for row in csv.DictReader(file)
            }
        kept = json.loads((tmp_path / "8-seed-1.json").read_text())["measures"]
        assert rows["fpr95", "8", "seed 1"] == kept["fpr95"]
        assert len(rows) == 2 * 2 * 4
        assert read_weights(tmp_path / "16-seed-0.safetensors").metadata["steps"] == "4"
        with Image.open(tmp_path / "batch-size.png") as drawn:
            assert np.asarray(drawn.convert("L")).std() > 5


class TestLossDerivatives:
    def at(self, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, torch.Tensor, torch.Tensor]:
        script = pipeline("loss_derivatives", monkeypatch)
        return script, *script.plane(21)

    def test_descriptors_are_at_the_distances_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        script, positive, negative = self.at(monkeypatch)
        for near, far in zip(positive, negative, strict=True):
            first, second = script.pairs_at(near, far)
            distances = torch.cdist(first, second)
            expected = torch.stack([torch.stack([near, far]), torch.stack([far, near])])
            torch.testing.assert_close(distances, expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(torch.cat([first, second]).norm(dim=1), torch.ones(4, dtype=torch.float64))

    def test_they_are_those_of_the_formulas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """x + max(0, 1 - y); log(1 + exp(x - y)); max(0, 1 + x - y)."""
        script, x, y = self.at(monkeypatch)
        soft = 1 / (1 + torch.exp(y - x))
        wanted = {
            "contrastive": (torch.ones_like(x), -(y < 1).double()),
            "softmax": (soft, -soft),
            "triplet margin": ((1 + x - y > 0).double(), -(1 + x - y > 0).double()),
        }
        assert list(wanted) == list(script.LOSSES)
        for name, loss in script.LOSSES.items():
            for found, expected in zip(script.derivatives(loss, x, y), wanted[name], strict=True):
                torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=name)

    def test_the_plot_has_colours_where_they_belong(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Above red, below blue; triplet margin white in its upper left corner, contrastive not."""
        script = pipeline("loss_derivatives", monkeypatch)
        typed(script, monkeypatch, tmp_path / "out.png", "--cells", "21")
        drawn = cv2.imread(str(tmp_path / "out.png")).astype(int)
        height = len(drawn)
        red, blue = drawn[..., 2] - drawn[..., 0] > 90, drawn[..., 0] - drawn[..., 2] > 70
        assert red[: height // 2].sum() > 20 * blue[: height // 2, : -drawn.shape[1] // 6].sum()
        assert blue[height // 2 :].sum() > 20 * red[height // 2 :, : -drawn.shape[1] // 6].sum()
