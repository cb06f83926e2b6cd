"""Averaged weights: against a mean by hand, through a run with its files, and after a resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import BRIEF, CPU, stopped_at_step_five, write_noisy_patches

from hardnet_sfm.errors import UsageError
from hardnet_sfm.files.patch_sets import read_patches
from hardnet_sfm.networks.architectures import ARCHITECTURES
from hardnet_sfm.networks.loading import load_network
from hardnet_sfm.training.descent import Descent
from hardnet_sfm.training.sampling import Sampler
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.training.validation import HeldOutBatches, validate_network
from hardnet_sfm.verbs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

AVERAGED = replace(BRIEF, average=0.5)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patches") / "made.h5"
    write_noisy_patches(path)
    return path


@pytest.fixture(scope="module")
def averaged(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Averaged weights of a run without interruption."""
    output = tmp_path_factory.mktemp("averaged") / "whole.safetensors"
    scene = output.with_name("hard.h5")
    write_noisy_patches(scene, noise=120)
    report = train([patches], output, AVERAGED, CPU, validation=[scene])
    network = load_network(output).network
    expected = validate_network(network, HeldOutBatches([read_patches(scene)]), 32, "cpu")
    assert report.measures["map"] == pytest.approx(expected["map"], abs=0.01)
    return output


def descent(patches: Path, options: TrainOptions) -> Descent:
    options = options.completed()
    sampler = Sampler([read_patches(patches)], [1.0], options.sampling, options.seed)
    return Descent(ARCHITECTURES[options.network], options, sampler, None, "cpu")


def test_the_result_is_the_mean_over_the_last_half_of_the_steps(patches: Path, averaged: Path) -> None:
    """Of six steps the last three, with the running statistics of batch normalisation."""
    training = descent(patches, AVERAGED)
    seen = [{name: tensor.double() for name, tensor in training.network.state_dict().items()} for _ in training.steps()]
    found = load_file(averaged)
    assert found.keys() == seen[0].keys()
    for name, tensor in found.items():
        if name.endswith("num_batches_tracked"):
            assert tensor == 6
            continue
        mean = torch.stack([state[name] for state in seen[3:]]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)
        assert not name.endswith("weight") or (tensor.double() - seen[-1][name]).abs().max() > 1e-4


def test_averaging_does_not_change_the_steps(patches: Path) -> None:
    plain, other = descent(patches, BRIEF), descent(patches, AVERAGED)
    for training in (plain, other):
        assert len(list(training.steps())) == 6
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(tensor, other.network.state_dict()[name])
    assert plain.learned is plain.network


@pytest.mark.parametrize(("share", "steps"), [(0.1, 1), (0.3, 3), (0.9, 9), (1.0, 10)])
def test_the_share_counts_whole_steps(patches: Path, share: float, steps: int) -> None:
    training = descent(patches, replace(BRIEF, network="tfeat", steps=10, average=share))
    assert len(list(training.steps())) == 10
    assert training.state()["average"]["n_averaged"] == steps


def test_an_average_survives_a_stop(patches: Path, averaged: Path, tmp_path: Path) -> None:
    output, often = tmp_path / "out.safetensors", replace(AVERAGED, validate_every=1)
    with stopped_at_step_five(MemoryError("a process is killed")):
        train([patches], output, often, CPU)
    checkpoint = torch.load(tmp_path / "out.training" / "last.ckpt", weights_only=True)
    assert (checkpoint["step"], checkpoint["average"]["n_averaged"]) == (4, 1)
    assert train([patches], output, replace(often, resume=True), CPU).steps == 6
    expected, found = load_file(averaged), load_file(output)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_are_from_0_to_1(share: float) -> None:
    with pytest.raises(UsageError, match="--average must be from 0 to 1"):
        TrainOptions(average=share).check()
