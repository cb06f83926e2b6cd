"""What a GPU computes beside what the CPU does; where there is no GPU the tests skip."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
from hardnet_sfm.files.patch_sets import write_patches
from hardnet_sfm.matching.nearest import Acceptance, mutual_nearest_neighbours, prepare, rounding_for
from hardnet_sfm.networks.architectures import ARCHITECTURES
from hardnet_sfm.patch_set import PATCH_SIZE, PatchSet
from hardnet_sfm.resources import Resources
from hardnet_sfm.training.losses import LOSSES
from hardnet_sfm.training.objectives import DescriptorObjective
from hardnet_sfm.training.sampling import SamplingOptions
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.verbs.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

GPU = Resources(device="cuda")


def smooth(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Patches that are as smooth as photos are."""
    noise = np.random.default_rng(seed).normal(size=(count, size, size))
    return np.uint8([cv2.normalize(cv2.GaussianBlur(one, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX) for one in noise])


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """Three patches of each of 200 points, the same but for noise."""
    of_point = np.repeat(smooth(200, PATCH_SIZE), 3, axis=0).astype(int)
    noisy = np.clip(of_point + np.random.default_rng(1).normal(0, 8, of_point.shape), 0, 255).astype(np.uint8)
    count, nothing = len(noisy), np.full(len(noisy), np.nan, np.float32)
    point, image = np.repeat(np.arange(200), 3), np.tile(np.arange(3, dtype=np.int32), 200)
    frame, xyz = np.full((count, 2, 3), np.nan, np.float32), np.full((200, 3), np.nan, np.float32)
    path = tmp_path / "patches.h5"
    write_patches(path, PatchSet(str(path), "sfm", 20, ("a", "b", "c"), noisy, point, image, frame, nothing, xyz))
    return path


@pytest.mark.parametrize("name", ["rootsift", "hardnet"])
def test_descriptors_are_the_cpus(name: str) -> None:
    patches = smooth(300, make_descriptor(name, None).patch_size)
    on_gpu = PatchDescriber(make_descriptor(name, None), "cuda")(patches)
    on_cpu = PatchDescriber(make_descriptor(name, None), "cpu")
    expected = np.concatenate([on_cpu(patches[at : at + on_cpu.batch]) for at in range(0, 300, on_cpu.batch)])
    cosine = (on_gpu.astype(np.float64) * expected.astype(np.float64)).sum(1)
    assert cosine.min() > 0.999


def test_matches_are_those_of_all_similarities() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(3000, 128))
    second = np.concatenate([first[:2000] + 0.4 * rng.normal(size=(2000, 128)), rng.normal(size=(1500, 128))])
    halves = [(side / np.linalg.norm(side, axis=1, keepdims=True)).astype(np.float16) for side in (first, second)]
    cosine = halves[0].astype(np.float64) @ halves[1].astype(np.float64).T
    nearest, back = cosine.argmax(1), cosine.argmax(0)
    expected = {(row, column) for row, column in enumerate(nearest.tolist()) if back[column] == row}
    rounding = rounding_for(np.concatenate(halves), "cuda")
    prepared = [prepare(side, rounding) for side in halves]
    found = mutual_nearest_neighbours(prepared[0], prepared[1], Acceptance(max_ratio=1.0))
    assert set(map(tuple, np.asarray(found.pairs).tolist())) == expected


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    options = TrainOptions(steps=6, validate_every=3, sampling=SamplingOptions(batch_size=32))
    train([patches], whole, options, GPU)
    calls, hardnet = itertools.count(), LOSSES["hardnet"].function

    def failing(*args: torch.Tensor) -> torch.Tensor:
        if next(calls) == 4:
            raise MemoryError("a process is killed")
        return hardnet(*args)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setitem(LOSSES.built_in, "hardnet", DescriptorObjective(failing))
        train([patches], stopped, options, GPU)
    train([patches], stopped, replace(options, resume=True), GPU)
    # Sums of a GPU are not the same to the bit in every run.
    found = load_file(stopped)
    for name, tensor in load_file(whole).items():
        torch.testing.assert_close(found[name], tensor, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("network", [name for name in ARCHITECTURES if name != "convexopt"])
def test_every_network_learns(network: str, patches: Path, tmp_path: Path) -> None:
    options = TrainOptions(network=network, steps=20, validate_every=20, sampling=SamplingOptions(batch_size=64))
    report = train([patches], tmp_path / f"{network}.safetensors", options, GPU, validation=[patches])
    assert report.steps == 20 and np.isfinite(list(report.measures.values())).all()
