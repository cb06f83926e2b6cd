"""Training on two devices, here processes on a CPU, against what one process computes by hand."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import BRIEF, CPU, write_noisy_patches

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.patch_sets import read_patches
from hardnet_sfm.files.weight_files import read_weights
from hardnet_sfm.networks.architectures import ARCHITECTURES
from hardnet_sfm.networks.device import fast_type
from hardnet_sfm.networks.loading import load_network
from hardnet_sfm.resources import Resources
from hardnet_sfm.training import losses
from hardnet_sfm.training.batch_loss import BatchLoss
from hardnet_sfm.training.batches import Batches
from hardnet_sfm.training.objectives import DescriptorObjective
from hardnet_sfm.training.processes import rank, run_on_devices
from hardnet_sfm.training.sampling import Sampler, SamplingOptions
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.training.validation import HeldOutBatches, validate_network
from hardnet_sfm.verbs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

TWO = replace(BRIEF, steps=4, validate_every=2, devices=2)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patches") / "made.h5"
    write_noisy_patches(path)
    return path


@pytest.fixture(scope="module")
def trained(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that two processes made without interruption."""
    output = tmp_path_factory.mktemp("trained") / "two.safetensors"
    import torch._inductor.config  # sets its own variable

    before = dict(os.environ)
    report = train([patches], output, TWO, CPU, validation=[patches])
    assert report.steps == 4
    assert set(report.measures) == {"fpr95", "map"}
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()
    return output


def by_hand(patches: Path, options: TrainOptions) -> dict[str, torch.Tensor]:
    """Both devices' steps one after the other, their gradients averaged."""
    sampler = Sampler([read_patches(patches)], [1.0], options.sampling, options.seed)
    options = replace(options.completed(), norm_batch=256)
    modules = [BatchLoss(ARCHITECTURES["hardnet"], options).train() for _ in range(2)]
    optimizer = torch.optim.AdamW(modules[0].parameters(), 1, weight_decay=options.weight_decay)
    batches = iter(Batches(sampler, 0, 1))
    for step in range(options.steps):
        modules[1].load_state_dict(modules[0].state_dict())
        for number, module in enumerate(modules):
            torch.manual_seed(options.seed * 1_000_003 + 2 * step + number)
            with torch.autocast("cpu", torch.bfloat16, enabled=fast_type("cpu") == torch.bfloat16):
                loss = module(next(batches))
            module.zero_grad()
            loss.backward()
        for mine, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
            mine.grad = (mine.grad + other.grad) / 2
        spent = step / options.steps
        optimizer.param_groups[0]["lr"] = options.learning_rate * min((spent + 1e-3) / 0.02, 1 - spent)
        optimizer.step()
    return modules[0].network.state_dict()


@pytest.mark.slow
def test_two_devices_learn_what_the_mean_of_two_gradients_teaches(trained: Path, patches: Path) -> None:
    """To the bit: halves of gradients are exact. The running statistics are those of the first device's batches."""
    expected, found = by_hand(patches, TWO), load_file(trained)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.slow
def test_a_run_on_two_devices_that_was_stopped_ends_with_the_same_weights(
    trained: Path, patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, real = [], losses.LOSSES["hardnet"].function

    def stopping(*args: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)  # as the command line takes it: like Ctrl-C
        return real(*args)

    output = tmp_path / "two.safetensors"
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(losses.LOSSES.built_in, "hardnet", DescriptorObjective(stopping))
        train([patches], output, TWO, CPU, validation=[patches])
    signal.signal(signal.SIGTERM, before)
    assert not output.exists()
    with pytest.raises(HardnetSfmError, match="a run that did not finish"):
        train([patches], output, TWO, CPU, validation=[patches])
    with pytest.raises(HardnetSfmError, match="with other options"):
        train([patches], output, replace(TWO, devices=1, resume=True), CPU, validation=[patches])
    assert train([patches], output, replace(TWO, resume=True), CPU, validation=[patches]).steps == 4
    expected, found = load_file(trained), load_file(output)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert not (tmp_path / "two.training" / "last.ckpt").exists()
    measured = [read_weights(path).metadata["measures"] for path in (trained, output)]
    assert measured[0] == measured[1]


@pytest.mark.slow
def test_three_devices_measure_what_one_does(patches: Path, tmp_path: Path) -> None:
    """Of eight batches each has three, and the ninth does not count."""
    scenes = [tmp_path / "easy.h5", tmp_path / "hard.h5"]
    for scene, noise in zip(scenes, (10, 120), strict=True):
        write_noisy_patches(scene, noise=noise)
    output = tmp_path / "out.safetensors"
    report = train([patches], output, replace(TWO, steps=1, devices=3), CPU, validation=scenes)
    network = load_network(output).network
    one, other = (validate_network(network, HeldOutBatches([read_patches(of)]), 32, "cpu")["map"] for of in scenes)
    assert one > other + 0.2
    assert report.measures["map"] == pytest.approx((one + other) / 2, abs=0.01)


@pytest.mark.slow
def test_two_devices_end_together_when_the_time_is_over(patches: Path, tmp_path: Path) -> None:
    """The second one would hang in its next step if it had not counted the same time."""
    options = TrainOptions(minutes=0.01, devices=2, sampling=SamplingOptions(batch_size=16))
    report = train([patches], tmp_path / "out.safetensors", options, CPU)
    assert report.steps >= 1
    assert report.minutes >= 0.01


def test_batches_of_the_devices_are_disjoint_and_together_those_of_one(patches: Path) -> None:
    sampler = Sampler([read_patches(patches)], [1.0], BRIEF.sampling, 0)
    for first in (0, 3):
        batches = [iter(Batches(sampler, 3 * first + number, 3)) for number in range(3)]
        for step in range(2):
            for number, of_device in enumerate(batches):
                expected = sampler(3 * (first + step) + number).anchors
                np.testing.assert_array_equal(next(of_device)["anchors"], expected)


def _fails(how: str) -> None:
    if how == "says why":
        raise HardnetSfmError("out of luck")
    if how == "dies":
        os._exit(9)
    assert rank() == 1 and torch.distributed.get_world_size() == 2


@pytest.mark.slow
@pytest.mark.parametrize(("how", "message"), [("says why", "device 1: out of luck"), ("dies", "device 1: its process")])
def test_a_device_that_fails_stops_the_first_one(how: str, message: str) -> None:
    with pytest.raises(HardnetSfmError, match=message), run_on_devices(2, "cpu", _fails, how):
        time.sleep(60)
    with run_on_devices(2, "cpu", _fails, "not"):
        assert rank() == 0 and torch.distributed.get_world_size() == 2
    assert rank() == 0 and not torch.distributed.is_initialized()


def test_as_many_devices_as_there_are(patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--devices must be above 0"):
        train([patches], tmp_path / "out.safetensors", replace(BRIEF, devices=0), CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="--devices 2: torch finds 1 CUDA devices"):
        train([patches], tmp_path / "out.safetensors", TWO, Resources(device="cuda"))
