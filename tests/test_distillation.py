"""Distillation against distances by hand, and whether a student comes nearer to its teacher elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train import BRIEF, CPU, NONE, random_patches, write_noisy_patches

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.patch_sets import read_patches, write_patches
from hardnet_sfm.files.weight_files import read_weights, write_weights
from hardnet_sfm.networks.architectures import ARCHITECTURES
from hardnet_sfm.networks.loading import load_network
from hardnet_sfm.training import distillation
from hardnet_sfm.training.batch_loss import BatchLoss
from hardnet_sfm.training.distillation import Teacher
from hardnet_sfm.training.sampling import SamplingOptions
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.verbs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patches") / "made.h5"
    write_noisy_patches(path)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a HardNet whose running statistics fit smooth patches."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    torch.manual_seed(5)
    network = ARCHITECTURES["hardnet"].build(0.0).train()
    with torch.no_grad():
        for seed in range(20):
            network(halved(random_patches(32, seed)))
    facts = {"data": '["sfm a.h5"]', "max_ratio": "0.85"}
    write_weights(path, network.state_dict(), ARCHITECTURES["hardnet"].metadata() | facts)
    return path


def halved(patches: np.ndarray) -> torch.Tensor:
    return F.avg_pool2d(torch.from_numpy(patches)[:, None].float() / 255, 2)


def batch_of(count: int) -> dict[str, torch.Tensor]:
    sides = [torch.from_numpy(random_patches(count, seed)) for seed in (3, 4)]
    return {"anchors": sides[0], "positives": sides[1], "allowed": ~torch.eye(count, dtype=torch.bool)}


def losses_of(network: str, weights: Path | None, teacher: Path, distil: float) -> list[float]:
    """The loss of a batch without and with a teacher, of a network in evaluation mode without augmentation."""
    options = replace(TrainOptions(network=network, distil=distil).completed(), augment=NONE)
    found = []
    for given in (None, Teacher(load_network(teacher), "cpu")):
        loss = BatchLoss(ARCHITECTURES[network], options, given).eval()
        if weights is not None:
            loss.network.load_state_dict(read_weights(weights).tensors)
        with torch.no_grad():
            found.append(loss(batch_of(10)).item())
    return found


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers compute in float32."""
    monkeypatch.setattr(distillation, "fast_type", lambda _: torch.float32)


@pytest.mark.usefixtures("exact")
def test_a_student_that_equals_its_teacher_loses_nothing(teacher: Path) -> None:
    plain, taught = losses_of("hardnet", teacher, teacher, 1000.0)
    assert taught == pytest.approx(plain, abs=1e-6)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", ["hardnet", "tfeat"])
def test_the_loss_is_the_mean_squared_distance_over_all_patches(name: str, teacher: Path) -> None:
    plain, taught = losses_of(name, None, teacher, 2.5)
    batch, student = batch_of(10), BatchLoss(ARCHITECTURES[name], TrainOptions(network=name).completed()).eval().network
    master, squares = load_network(teacher).network, []
    with torch.no_grad():
        for side in ("anchors", "positives"):
            for patch in batch[side]:
                one = halved(patch[None].numpy())
                ours, theirs = student(one)[0].numpy(), master(one)[0].numpy()
                squares.append(((ours / np.linalg.norm(ours) - theirs) ** 2).sum())
    assert taught - plain == pytest.approx(2.5 * np.mean(squares), rel=1e-4)
    assert np.mean(squares) > 1


def test_the_teacher_learns_nothing_and_is_not_part_of_the_student(teacher: Path) -> None:
    options = TrainOptions(dropout=0.0).completed()
    loss = BatchLoss(ARCHITECTURES["hardnet"], options, Teacher(load_network(teacher), "cpu")).train()
    assert len(list(loss.parameters())) == len(list(loss.network.parameters()))
    described = loss._teacher(halved(random_patches(4)))
    assert not described.requires_grad and described.dtype == torch.float32
    loss(batch_of(4)).backward()
    assert torch.equal(loss._teacher(halved(random_patches(4))), described)


@pytest.mark.slow
def test_fifty_steps_bring_a_student_nearer_to_its_teacher_on_other_patches(
    patches: Path, teacher: Path, tmp_path: Path
) -> None:
    held_out = halved(random_patches(100, 99))
    options = TrainOptions(network="tfeat", steps=50, learning_rate=1e-3, sampling=SamplingOptions(32, same_photos=0))

    def distance(options: TrainOptions) -> float:
        output = tmp_path / "out.safetensors"
        train([patches], output, options, CPU, overwrite=True)
        with torch.no_grad():
            ours = F.normalize(load_network(output).network(held_out))
            return (ours - load_network(teacher).network(held_out)).square().sum(1).mean().item()

    alone = distance(options)
    taught = distance(replace(options, teacher=str(teacher), distil=10.0))
    assert alone > 1.5 and taught < 0.6 * alone


def test_the_teacher_is_part_of_the_recipe_and_of_the_metadata(patches: Path, teacher: Path, tmp_path: Path) -> None:
    output, other = tmp_path / "out.safetensors", tmp_path / "other.safetensors"
    options = replace(BRIEF, network="tfeat", steps=1)
    train([patches], output, replace(options, teacher=str(teacher)), CPU)
    known = json.loads(read_weights(output).metadata["teacher"])
    sha256 = read_weights(teacher).sha256
    assert known == {"file": "teacher.safetensors", "sha256": sha256, "data": ["sfm a.h5"]}
    assert read_weights(output).metadata["max_ratio"] == "0.85"
    other.write_bytes(teacher.read_bytes())  # the same teacher by another name
    assert not train([patches], output, replace(options, teacher=str(other)), CPU).computed
    weights = read_weights(teacher)
    write_weights(other, weights.tensors, weights.metadata | {"licence": "MIT"})
    for changed in (options, replace(options, teacher=str(other)), replace(options, teacher=str(teacher), distil=2.0)):
        with pytest.raises(HardnetSfmError, match="made with other patches or options"):
            train([patches], output, changed, CPU)


def test_teachers_that_a_network_cannot_imitate_are_refused(patches: Path, teacher: Path, tmp_path: Path) -> None:
    def refused(error: type[HardnetSfmError], message: str, **options: object) -> None:
        with pytest.raises(error, match=message):
            train([patches], tmp_path / "out.safetensors", replace(BRIEF, **options), CPU)  # type: ignore[arg-type]

    refused(UsageError, "--distil has no effect without --teacher", distil=2.0)
    refused(UsageError, "--distil must be above 0 and finite", distil=-1.0, teacher=str(teacher))
    refused(UsageError, "matchnet scores pairs of patches", network="matchnet", teacher=str(teacher))
    sizes = "hardnet makes 128 numbers from 32 pixels, but l2net-cs makes 256 numbers from 64 pixels"
    refused(UsageError, sizes, network="l2net-cs", teacher=str(teacher))
    refused(HardnetSfmError, "no shipped weights and no file named", teacher="nobody")
    wide = tmp_path / "wide.h5"
    write_patches(wide, replace(read_patches(patches), measurement_size=15.0))
    with pytest.raises(HardnetSfmError, match="describes patches of 12 sigmas, but these have 15") as raised:
        train([wide], tmp_path / "out.safetensors", replace(BRIEF, teacher=str(teacher)), CPU)
    assert "--measurement-size 12" in raised.value.hint
