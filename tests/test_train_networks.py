"""Training of every network: the losses that it takes, what it learns, and what its weights are used for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train import CPU, NONE, random_patches, write_noisy_patches

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.descriptors import make_descriptor
from hardnet_sfm.files.weight_files import read_weights
from hardnet_sfm.literature.pair_scoring import PairNetwork
from hardnet_sfm.literature.published_losses import l2net
from hardnet_sfm.measures import average_precision, fpr95
from hardnet_sfm.networks.architectures import ARCHITECTURES
from hardnet_sfm.networks.loading import load_network
from hardnet_sfm.training import losses
from hardnet_sfm.training.augment import augment_pairs
from hardnet_sfm.training.batch_loss import BatchLoss
from hardnet_sfm.training.descent import Descent
from hardnet_sfm.training.sampling import Batch, Sampler, SamplingOptions
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.verbs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = SamplingOptions(batch_size=8, same_photos=0)
# convexopt is learned by convex optimisation, see test_convexopt.py
BY_DESCENT = [name for name in ARCHITECTURES if name != "convexopt"]
PAIR_NETWORKS = [name for name, of in ARCHITECTURES.items() if of.metric != "l2"]


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patches") / "made.h5"
    write_noisy_patches(path)
    return path


def training(network: str, loss: str | None = None) -> BatchLoss:
    """Without augmentation and dropout."""
    options = TrainOptions(network=network, loss=loss).completed()
    return BatchLoss(ARCHITECTURES[network], replace(options, augment=NONE, dropout=0.0)).train()


def batch_of(count: int) -> dict[str, torch.Tensor]:
    """Points in two photos of different noise; the first two are no negatives of each other."""
    looks, rng = random_patches(count, 5), np.random.default_rng(2)
    sides = [np.uint8((looks + rng.normal(0, 10, looks.shape)).clip(0, 255)) for _ in range(2)]
    allowed = ~torch.eye(count, dtype=torch.bool)
    allowed[0, 1] = allowed[1, 0] = False
    return {"anchors": torch.from_numpy(sides[0]), "positives": torch.from_numpy(sides[1]), "allowed": allowed}


@pytest.mark.parametrize("name", BY_DESCENT)
def test_a_few_steps_down_the_gradient_lower_the_published_loss(name: str) -> None:
    """Of pairs that do not match, so that no loss is 0 to begin with."""
    module, batch = training(name), batch_of(6)
    batch["positives"] = batch["positives"].roll(1, 0)
    parameters, found = list(module.parameters()), []
    for _ in range(3):
        torch.manual_seed(0)  # the negatives that are drawn
        loss = module(batch)
        gradients = torch.autograd.grad(loss, parameters)
        length, size = (torch.stack([t.norm() for t in of]).norm() for of in (gradients, parameters))
        assert length > 0 and length.isfinite()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data -= 1e-4 * size / length * gradient
        found.append(loss.item())
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("name", PAIR_NETWORKS)
@pytest.mark.parametrize("loss", ["hinge", "cross-entropy"])
def test_networks_of_pairs_learn_from_each_pair_and_a_drawn_negative(name: str, loss: str) -> None:
    module, batch = training(name, loss), batch_of(4)
    network = cast(PairNetwork, module.network)
    anchors, positives = (F.avg_pool2d(batch[side][:, None].float() / 255, 1) for side in ("anchors", "positives"))
    torch.manual_seed(7)
    augment_pairs(batch["anchors"], batch["positives"], 64, NONE)  # which draws first
    drawn = torch.rand(4).tolist()
    torch.manual_seed(7)
    terms = []
    with torch.no_grad():
        found = module(batch)
        for i in range(4):
            others = [j for j in range(4) if batch["allowed"][i, j]]
            j = others[int(drawn[i] * len(others))]
            for other, y in ((i, 1), (j, -1)):
                score = y * network(anchors[i : i + 1], positives[other : other + 1])
                terms.append((1 - score).relu() if loss == "hinge" else -score.sigmoid().log())
    torch.testing.assert_close(found, torch.cat(terms).mean(), atol=1e-4, rtol=1e-4)


def test_hardnets_loss_gets_tfeats_descriptors_at_unit_length_and_tfeats_own_as_they_are() -> None:
    batch = batch_of(6)
    for loss in ("hardnet", "triplet-swap"):
        module = training("tfeat", loss)
        halves = [F.avg_pool2d(batch[side][:, None].float() / 255, 2) for side in ("anchors", "positives")]
        with torch.no_grad():
            described = [module.network(half) for half in halves]
            if loss == "hardnet":
                described = [F.normalize(side) for side in described]
            torch.manual_seed(3)
            augment_pairs(batch["anchors"], batch["positives"], 32, NONE)  # which draws first
            expected = losses.LOSSES[loss].function(*described, batch["allowed"])
            torch.manual_seed(3)
            torch.testing.assert_close(module(batch), expected, atol=1e-4, rtol=1e-4)


def test_the_layers_of_both_towers_are_supervised() -> None:
    module, batch = training("l2net-cs"), batch_of(6)
    seen: dict[str, torch.Tensor] = {}
    names = [f"{tower}.features.{number}" for tower in ("surround", "centre") for number in (1, 20)]
    for name in names:
        module.network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output.flatten(1)})
        )
    with torch.no_grad():
        found = module(batch)
        patches = torch.cat([batch["anchors"], batch["positives"]])[:, None].float() / 255
        described = module.network(patches)
        layers = [tuple(seen[name].chunk(2)) for name in names]
        expected = l2net(*described.chunk(2), batch["allowed"], layers)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["tfeat", "deepcompare-siam"])
def test_measures_of_validation_are_those_of_a_loop(name: str) -> None:
    architecture, batch = ARCHITECTURES[name], batch_of(12)
    module = Descent(architecture, TrainOptions(network=name).completed(), cast(Sampler, None), None, "cpu")
    module.network.eval()
    with torch.inference_mode():
        measured = module.measure(module.network, Batch(**{name: tensor.numpy() for name, tensor in batch.items()}))
        shrink = 64 // architecture.patch_size
        sides = [F.avg_pool2d(batch[side][:, None].float() / 255, shrink) for side in ("anchors", "positives")]
        distances, same, doubt, right = [], [], [], []
        for i in range(12):
            # A network of pairs compares with the eight that follow, in a ring.
            others = [j for j in range(12) if j != i and (name == "tfeat" or (j - i) % 12 <= 8)]
            row = []
            for j in [i, *(j for j in others if batch["allowed"][i, j])]:
                first, second = sides[0][i : i + 1], sides[1][j : j + 1]
                if name == "tfeat":
                    described = [F.normalize(module.network(side)) for side in (first, second)]
                    row.append((described[0] - described[1]).norm().item())
                else:
                    row.append(-module.network(first, second).item())
            distances += row
            same += [True] + [False] * (len(row) - 1)
            nearest, second_nearest = sorted(row)[:2]
            doubt.append(nearest / second_nearest if name == "tfeat" else nearest - second_nearest)
            right.append(row[0] == nearest)
    assert measured["fpr95"] == pytest.approx(fpr95(np.array(distances), np.array(same)), abs=1e-6)
    assert measured["map"] == pytest.approx(average_precision(np.array(doubt), np.array(right), 12), abs=1e-6)


@pytest.mark.parametrize("name", ["tfeat", "deepcompare-2ch"])
def test_trained_weights_say_what_they_are_and_load_back(name: str, patches: Path, tmp_path: Path) -> None:
    output, options = tmp_path / "out.safetensors", TrainOptions(network=name, steps=2, sampling=FEW)
    assert train([patches], output, options, CPU).steps == 2
    metadata, architecture = read_weights(output).metadata, ARCHITECTURES[name]
    assert (metadata["architecture"], metadata["patch_size"]) == (name, str(architecture.patch_size))
    assert metadata["normalisation"] == architecture.normalisation
    assert load_network(output).architecture is architecture
    with pytest.raises(HardnetSfmError, match=f"weights of {name}, not of hardnet"):
        make_descriptor("hardnet", output)
    before = output.stat().st_mtime_ns
    train([patches], output, options, CPU)
    assert output.stat().st_mtime_ns == before
    with pytest.raises(HardnetSfmError, match=f"weights of {name}, not of deepdesc"):
        train([patches], tmp_path / "b.safetensors", replace(options, network="deepdesc", init=str(output)), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BY_DESCENT if name != "hardnet"])
def test_every_network_is_trained_and_measured_by_the_one_trainer(name: str, patches: Path, tmp_path: Path) -> None:
    options = TrainOptions(network=name, steps=3, validate_every=3, sampling=FEW)
    report = train([patches], tmp_path / "out.safetensors", options, CPU, validation=[patches])
    assert report.steps == 3 and set(report.measures) == {"fpr95", "map"}
    assert load_network(tmp_path / "out.safetensors").architecture.name == name


@pytest.mark.slow
def test_tfeat_learns_in_seconds_to_tell_points_apart_that_it_has_not_seen(patches: Path, tmp_path: Path) -> None:
    """Among 100 patches, turned and lit anew, the right one is found by chance for one."""
    options = TrainOptions(network="tfeat", steps=60, learning_rate=1e-3, sampling=SamplingOptions(48, same_photos=0))
    train([patches], tmp_path / "out.safetensors", options, CPU)
    looks, rng = random_patches(100, 99), np.random.default_rng(3)
    turned = np.uint8((np.roll(looks, 2, 2) * 0.7 + rng.normal(0, 10, looks.shape)).clip(0, 255))
    network = make_descriptor("tfeat", tmp_path / "out.safetensors").network.eval()
    with torch.inference_mode():
        halves = [F.avg_pool2d(torch.from_numpy(side)[:, None].float() / 255, 2) for side in (looks, turned)]
        first, second = map(network, halves)
    found = (first @ second.T).argmax(1)
    assert (found == torch.arange(100)).float().mean() > 0.5
