"""Augmentation against OpenCV, and training as a user runs it, on a few patches."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from processes import running
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from hardnet_sfm import training_run, versions
from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.datasets.brown import write_brown
from hardnet_sfm.features.descriptors import make_descriptor
from hardnet_sfm.files.checkpoints import write_checkpoint
from hardnet_sfm.files.patch_sets import read_patches, write_patches
from hardnet_sfm.files.training_curves import curves_file, read_curves
from hardnet_sfm.files.weight_files import read_weights, write_weights
from hardnet_sfm.files.workspace import locked
from hardnet_sfm.literature.published_losses import l2net
from hardnet_sfm.networks.architectures import ARCHITECTURES
from hardnet_sfm.patch_set import PATCH_SIZE, PatchSet
from hardnet_sfm.resources import Resources
from hardnet_sfm.training import losses
from hardnet_sfm.training.augment import AugmentOptions, augment_pairs
from hardnet_sfm.training.batch_loss import BatchLoss
from hardnet_sfm.training.batches import Batches, draw_batches
from hardnet_sfm.training.objectives import DescriptorObjective
from hardnet_sfm.training.sampling import Sampler, SamplingOptions
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.verbs.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

NONE = AugmentOptions(flip=False, shift=0, turn=0, scale=0, light=0, noise=0)
CPU = Resources(device="cpu", workers=1)
BRIEF = TrainOptions(steps=6, validate_every=3, sampling=SamplingOptions(batch_size=16))


def random_patches(count: int, seed: int = 0) -> np.ndarray:
    """Smooth ones, as photos are."""
    noise = np.random.default_rng(seed).normal(size=(count, PATCH_SIZE, PATCH_SIZE))
    smooth = [cv2.GaussianBlur(patch, (0, 0), 5) for patch in noise]
    return np.uint8([cv2.normalize(patch, None, 0, 255, cv2.NORM_MINMAX) for patch in smooth])


class TestAugmentation:
    def test_without_any_change_patches_are_halved(self) -> None:
        patches = random_patches(3)
        first, second = augment_pairs(*map(torch.from_numpy, (patches, patches[::-1].copy())), 32, NONE)
        expected = [cv2.resize(patch, (32, 32), interpolation=cv2.INTER_AREA) for patch in patches]
        np.testing.assert_allclose(255 * first[:, 0].numpy(), expected, atol=0.51)
        assert torch.equal(first, second.flip(0))

    def test_flips_and_quarter_turns_are_those_of_the_pair(self) -> None:
        patches = torch.from_numpy(random_patches(64))
        torch.manual_seed(0)
        first, second = augment_pairs(patches, patches, 32, AugmentOptions(True, 0, 0, 0, 0, 0))
        assert torch.equal(first, second)
        plain = augment_pairs(patches, patches, 32, NONE)[0]
        symmetries = [torch.rot90(side, quarter, (2, 3)) for quarter in range(4) for side in (plain, plain.flip(3))]
        differences = torch.stack([(first - symmetry).abs().amax((1, 2, 3)) for symmetry in symmetries])
        assert differences.amin(0).max() < 1e-4
        assert len(set(differences.argmin(0).tolist())) == 8

    def test_turn_scale_and_shift_are_opencvs(self) -> None:
        """Each alone, as far as its deviation drawn with the same seed says."""
        patches = torch.from_numpy(random_patches(1))
        options = AugmentOptions(False, shift=0.05, turn=10, scale=0.2, light=0, noise=0)
        torch.manual_seed(3)
        first = augment_pairs(patches, patches, 32, options)[0][0, 0].numpy()
        torch.manual_seed(3)
        turn, scale = 10 * torch.randn(2)[0].item(), np.exp(0.2 * torch.randn(2)[0].item())
        shift = 0.05 * torch.randn(2, 2, 1)[0, :, 0].numpy() * PATCH_SIZE
        angle = np.deg2rad(turn)
        # Where a pixel of the result lies in the patch: both have their centre at half their size less half a pixel.
        linear = 2 * scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.column_stack([linear, 31.5 + shift - linear @ [15.5, 15.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        expected = cv2.warpAffine(patches[0].numpy(), matrix, (32, 32), flags=flags, borderMode=cv2.BORDER_REFLECT)
        np.testing.assert_allclose(255 * first, expected, atol=2)

    def test_light_and_noise_keep_their_bounds(self) -> None:
        patches = torch.from_numpy(random_patches(50))
        plain = augment_pairs(patches, patches, 32, NONE)[0]
        torch.manual_seed(0)
        gamma = augment_pairs(patches, patches, 32, AugmentOptions(False, 0, 0, 0, light=0.3, noise=0))[0]
        exponents = (gamma.log() / plain.clamp(1e-3, 1).log())[:, 0, 10, 10]
        assert 0.74 <= exponents.min() < 0.8 < 1.25 < exponents.max() <= 1.35
        noisy = augment_pairs(patches, patches, 32, AugmentOptions(False, 0, 0, 0, 0, noise=0.02))[0] - plain
        assert 0.015 < noisy.flatten(1).std(1).max() < 0.022
        assert noisy.flatten(1).std(1).min() < 0.003

    def test_relit_patches_are_exposed_and_partly_shaded(self) -> None:
        """On a flat patch, one side of the edge keeps the exposure, and the other loses 20 to 80 % of it."""
        flat = torch.full((400, PATCH_SIZE, PATCH_SIZE), 51, dtype=torch.uint8)
        torch.manual_seed(0)
        relit = augment_pairs(flat, flat, 32, AugmentOptions(False, 0, 0, 0, 0, 0, relight=0.5))[0]
        lit, shaded = relit.flatten(1).amax(1), relit.flatten(1).amin(1)
        changed = (lit - shaded) > 1e-4
        assert 0.42 < changed.float().mean() < 0.58
        exposures = lit[changed] / 0.2
        assert 2**-1.5 - 1e-3 <= exposures.min() < 0.45 and 2 < exposures.max() <= 2**1.5 + 1e-3
        assert 0.19 <= (shaded / lit)[changed].min() < 0.3


def make_module(loss: str, norm_batch: int | None) -> BatchLoss:
    """In training, without dropout."""
    options = TrainOptions(loss=loss, augment=NONE, dropout=0, norm_batch=norm_batch)
    return BatchLoss(ARCHITECTURES["hardnet"], options).train()


class TestGroupsOfBatchNormalisation:
    PATCHES = torch.from_numpy(random_patches(24)[:, None, ::2, ::2].copy()).float() / 255

    @pytest.mark.parametrize("norm_batch", [None, 24, 100])
    def test_one_that_holds_all_is_the_plain_network(self, norm_batch: int | None) -> None:
        module = make_module("hardnet", norm_batch)
        described, layers = module.describe(self.PATCHES)
        assert torch.equal(described, module.network(self.PATCHES))
        assert layers == []

    @pytest.mark.parametrize(("norm_batch", "groups"), [(12, 2), (8, 3), (7, 3), (5, 4)])
    def test_several_are_a_loop_over_them(self, norm_batch: int, groups: int) -> None:
        """Patch k is normalised with those k + groups, k + 2 groups ... away; 24 = 7 * 3 + 3 puts the rest in too."""
        module = make_module("hardnet", norm_batch)
        found, _ = module.describe(self.PATCHES)
        plain = module.network(self.PATCHES)
        for first in range(groups):
            members = [number for number in range(24) if number % groups == first]
            of_group = module.network(self.PATCHES[members])
            for row, member in enumerate(members):
                torch.testing.assert_close(found[member], of_group[row], atol=1e-6, rtol=0)
        assert (found - plain).norm(dim=1).min() > 0.01  # so that it makes a difference which are normalised together

    @pytest.mark.parametrize("norm_batch", [None, 8])
    def test_the_layers_that_l2net_sees_are_in_the_order_of_the_patches(self, norm_batch: int | None) -> None:
        module = make_module("l2net", norm_batch)
        groups = 1 if norm_batch is None else 3
        seen: dict[str, torch.Tensor] = {}
        described, layers = module.describe(self.PATCHES)
        for number, name in enumerate(("features.1", "features.20")):
            module.network.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, name=name: seen.update({name: output.flatten(1)})
            )
            for first in range(groups):
                module.network(self.PATCHES[first::groups])
                torch.testing.assert_close(layers[number][first::groups], seen[name], atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.nn.functional.normalize(layers[1], dim=1), described, atol=1e-5, rtol=0)
        assert [layer.shape for layer in layers] == [(24, 32 * 32 * 32), (24, 128)]


def test_budget_is_whichever_ends_first() -> None:
    assert TrainOptions(steps=100).spent(1e6, 50) == 0.5
    assert TrainOptions(minutes=10).spent(150, 50) == 0.25
    assert TrainOptions(minutes=10, steps=100).spent(150, 50) == 0.5
    assert TrainOptions(minutes=10, steps=100).spent(6000, 50) == 1


def write_noisy_patches(path: Path, points: int = 60, noise: float = 10) -> None:
    """A patches.h5 of points in three photos of different noise."""
    looks = np.repeat(random_patches(points, 1), 3, 0)
    looks = np.uint8((looks + np.random.default_rng(1).normal(0, noise, looks.shape)).clip(0, 255))
    unknown = np.full((3 * points, 2, 3), np.nan, np.float32)
    point, image = np.repeat(np.arange(points), 3), np.tile(np.arange(3, dtype=np.int32), points)
    places = np.full((points, 3), np.nan, np.float32)
    write_patches(
        path, PatchSet(str(path), "sfm", 12, ("a", "b", "c"), looks, point, image, unknown, unknown[:, 0, 0], places)
    )


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patches") / "made.h5"
    write_noisy_patches(path)
    return path


@pytest.fixture(scope="module")
def trained(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a run without interruption."""
    output = tmp_path_factory.mktemp("trained") / "whole.safetensors"
    report = train([patches], output, BRIEF, CPU, validation=[patches])
    assert report.steps == 6
    assert set(report.measures) == {"fpr95", "map"}
    return output


def test_trained_weights_are_used_as_any_other(trained: Path) -> None:
    descriptor = make_descriptor("hardnet", trained)
    assert (descriptor.patch_size, descriptor.measurement_size) == (32, 12)
    described = descriptor.network(torch.from_numpy(random_patches(2)[:, None, ::2, ::2].copy()).float() / 255)
    np.testing.assert_allclose(described.norm(dim=1).detach().numpy(), 1, atol=1e-5)


def test_metadata_say_how_they_were_made(trained: Path, patches: Path) -> None:
    metadata = read_weights(trained).metadata
    assert (metadata["architecture"], metadata["steps"], metadata["measurement_size"]) == ("hardnet", "6", "12.0")
    assert json.loads(metadata["data"]) == [f"sfm {patches.name}"]
    assert json.loads(metadata["options"])["learning_rate"] == 3e-3
    assert (metadata["patch_size"], metadata["seed"], metadata["licence"]) == ("32", "0", "not stated")
    assert metadata["max_ratio"] == "0.8"
    assert metadata["normalisation"] == "mean 0 and standard deviation 1 of each patch"
    assert set(json.loads(metadata["measures"])) == {"fpr95", "map"}


def test_metadata_have_the_command_and_the_commit(
    patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/bin/hardnet-sfm", "train", "a b.h5", "l\udce4nd.h5"])
    options = replace(BRIEF, steps=1, licence="CC0-1.0")
    train([patches], tmp_path / "out.safetensors", options, CPU)
    metadata = read_weights(tmp_path / "out.safetensors").metadata
    assert (metadata["licence"], metadata["command"]) == ("CC0-1.0", r"hardnet-sfm train 'a b.h5' 'l\udce4nd.h5'")
    clone = Path(__file__).parents[1]
    if (clone / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True)
        assert metadata["commit"].removesuffix("-dirty") == head.stdout.strip()


def test_a_package_outside_a_clone_names_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a repository of the user's may be around it."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "site-packages/hardnet_sfm/versions.py"))
    assert versions.find_commit() == ""


def test_curves_lie_beside_the_weights(patches: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    train([patches], output, replace(BRIEF, steps=12, validate_every=6), CPU, validation=[patches])
    curves = read_curves(curves_file(output))
    assert curves["loss"]["step"] == curves["learning rate"]["step"] == [10]
    assert curves["learning rate"]["value"] == pytest.approx([3e-3 * (1 - 9 / 12)])
    assert curves["map"]["step"] == curves["fpr95"]["step"] == [6, 12]
    measures = json.loads(read_weights(output).metadata["measures"])
    assert [curves[name]["value"][-1] for name in measures] == pytest.approx(list(measures.values()), rel=1e-5)
    events = EventAccumulator(str(tmp_path / "out.training" / "curves")).Reload()
    for name, curve in curves.items():
        assert [scalar.step for scalar in events.Scalars(name)] == curve["step"]
        assert [scalar.value for scalar in events.Scalars(name)] == pytest.approx(curve["value"], rel=1e-5)


def test_help_names_every_loss(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in [*losses.LOSSES, *ARCHITECTURES]:
        assert re.search(rf"[ ,.]{re.escape(name)}[ ,;.]", said), name


@contextmanager
def stopped_at_step_five(error: BaseException) -> Iterator[None]:
    """The fifth batch's loss raises the error, which comes out of the block."""
    steps, real = [], losses.LOSSES["hardnet"].function

    def stopping(*args: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 5:
            raise error
        return real(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error)):
        patch.setitem(losses.LOSSES.built_in, "hardnet", DescriptorObjective(stopping))
        yield


def test_a_run_that_was_stopped_ends_with_the_same_weights(trained: Path, patches: Path, tmp_path: Path) -> None:
    output = tmp_path / "whole.safetensors"
    with stopped_at_step_five(MemoryError("a process is killed")):
        train([patches], output, BRIEF, CPU, validation=[patches])
    assert not output.exists()
    report = train([patches], output, _resumed(BRIEF), CPU, validation=[patches])
    assert report.steps == 6
    expected, found = load_file(trained), load_file(output)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def _resumed(options: TrainOptions) -> TrainOptions:
    return replace(options, resume=True)


def test_training_learns(patches: Path, tmp_path: Path) -> None:
    """What it learned on the same few patches: the loss falls far below where it began."""
    seen: list[float] = []
    real = losses.LOSSES["hardnet"].function

    def watched(*args: torch.Tensor) -> torch.Tensor:
        loss = real(*args)
        seen.append(loss.item())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.LOSSES.built_in, "hardnet", DescriptorObjective(watched))
        options = TrainOptions(steps=25, learning_rate=1e-3, sampling=SamplingOptions(batch_size=32))
        train([patches], tmp_path / "out.safetensors", options, CPU)
    assert np.mean(seen[-5:]) < 0.6 * np.mean(seen[:3])


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, real = [], losses.LOSSES["hardnet"].function

    def diverging(*args: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return real(*args) * (np.nan if len(steps) == 5 else 1)

    monkeypatch.setitem(losses.LOSSES.built_in, "hardnet", DescriptorObjective(diverging))
    with pytest.raises(HardnetSfmError, match="the loss is nan at step 4") as raised:
        train([patches], tmp_path / "out.safetensors", BRIEF, CPU)
    assert "--resume" in raised.value.hint
    kept = torch.load(tmp_path / "out.training" / "last.ckpt", weights_only=True)
    assert kept["step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in kept["network"].values())
    assert not (tmp_path / "out.safetensors").exists()


def test_a_diverged_run_names_its_initial_weights(
    trained: Path, patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(anchors: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return anchors.sum() * np.nan

    monkeypatch.setitem(losses.LOSSES.built_in, "hardnet", DescriptorObjective(diverging))
    with pytest.raises(HardnetSfmError, match="the loss is nan at step 0") as raised:
        train([patches], tmp_path / "out.safetensors", replace(BRIEF, init=str(trained)), CPU)
    assert f"initial weights {trained}" in raised.value.hint


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.training" / "last.ckpt"
    path.parent.mkdir()
    write_checkpoint(path, {"step": 1}, "of these options")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(HardnetSfmError, match=r"cannot write .*last\.ckpt: No space left"):
            write_checkpoint(path, {"step": 2}, "of these options")
    assert torch.load(path, weights_only=True) == {"step": 1, "recipe": "of these options"}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_folder_without_a_checkpoint_does_not_block_a_new_run(trained: Path, patches: Path, tmp_path: Path) -> None:
    (tmp_path / "out.training" / "curves").mkdir(parents=True)
    train([patches], tmp_path / "out.safetensors", BRIEF, CPU)
    expected, found = load_file(trained), load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_l2nets_loss_sees_the_layers_between(patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the first and the last batch normalisation, of anchors and positives in the order of the batch."""
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = []

    def watched(anchors: torch.Tensor, positives: torch.Tensor, allowed: torch.Tensor, features: list) -> torch.Tensor:
        seen.append(features)
        last = [torch.nn.functional.normalize(side, dim=1) for side in features[1]]
        torch.testing.assert_close(last[0], anchors, atol=1e-5, rtol=0)
        torch.testing.assert_close(last[1], positives, atol=1e-5, rtol=0)
        return l2net(anchors, positives, allowed, features)

    monkeypatch.setitem(losses.LOSSES.built_in, "l2net", DescriptorObjective(watched, watches_layers=True))
    options = TrainOptions(steps=2, loss="l2net", sampling=SamplingOptions(batch_size=16))
    train([patches], tmp_path / "out.safetensors", options, CPU, validation=[patches])
    assert [[side.shape for side in layer] for layer in seen[0]] == [[(16, 32 * 32 * 32)] * 2, [(16, 128)] * 2]
    assert len(seen) == 2 and all(len(features) == 2 for features in seen)


@pytest.mark.parametrize("damage", ["nothing", "half", "bytes changed", "another file", "a list", "lightning"])
def test_a_damaged_checkpoint_is_a_clear_error(patches: Path, tmp_path: Path, damage: str) -> None:
    """And it is left as it is: somebody may be able to mend it."""
    last = tmp_path / "out.training" / "last.ckpt"
    with stopped_at_step_five(MemoryError("a process is killed")):
        train([patches], tmp_path / "out.safetensors", BRIEF, CPU)
    good = last.read_bytes()
    message = r"last\.ckpt: damaged"
    match damage:
        case "nothing":
            last.write_bytes(b"PK nothing")
        case "half":
            last.write_bytes(good[: len(good) // 2])
        case "bytes changed":
            last.write_bytes(good[:200_000] + bytes(byte ^ 1 for byte in good[200_000:200_100]) + good[200_100:])
        case "lightning":
            torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": {}, "loops": {}, "recipe": ""}, last)
            message = r"last\.ckpt: a checkpoint of an earlier version, which this version cannot resume"
        case _:
            torch.save({"state_dict": {}} if damage == "another file" else [1], last)
            message = r"last\.ckpt: not a checkpoint of `train`"
    before = last.read_bytes()
    with pytest.raises(HardnetSfmError, match=message) as raised:
        train([patches], tmp_path / "out.safetensors", _resumed(BRIEF), CPU)
    assert "start a new run" in raised.value.hint
    assert last.read_bytes() == before
    assert not (tmp_path / "out.safetensors").exists()


def test_too_few_points_for_a_batch_are_a_clear_error(trained: Path, patches: Path, tmp_path: Path) -> None:
    """An older file of weights stays."""
    output = Path(shutil.copy(trained, tmp_path / "out.safetensors"))
    before = output.read_bytes()
    message = r"made\.h5: 60 points seen in two photos are too few for batches of 61"
    with pytest.raises(HardnetSfmError, match=message) as raised:
        train([patches], output, replace(BRIEF, sampling=SamplingOptions(batch_size=61)), CPU, overwrite=True)
    assert "--batch-size" in raised.value.hint
    assert output.read_bytes() == before
    assert not (tmp_path / "out.training").exists()


def test_other_options_or_patches_do_not_resume_a_run(patches: Path, tmp_path: Path) -> None:
    with stopped_at_step_five(MemoryError("a process is killed")):
        train([patches], tmp_path / "out.safetensors", BRIEF, CPU)
    others = (replace(BRIEF, loss="softmax"), replace(BRIEF, sampling=SamplingOptions(batch_size=17)))
    for other in others:
        with pytest.raises(HardnetSfmError, match="a run on other patches or with other options"):
            train([patches], tmp_path / "out.safetensors", _resumed(other), CPU)
    changed = _resumed(replace(BRIEF, steps=5, learning_rate=1e-4))
    assert train([patches], tmp_path / "out.safetensors", changed, CPU).steps == 5


def test_weights_that_were_made_of_the_same_stay(trained: Path, patches: Path) -> None:
    before = trained.stat().st_mtime_ns
    report = train([patches], trained, BRIEF, CPU, validation=[patches])
    assert (report.steps, set(report.measures)) == (6, {"fpr95", "map"})
    assert trained.stat().st_mtime_ns == before


def test_weights_of_another_run_are_replaced_on_request_only(trained: Path, patches: Path, tmp_path: Path) -> None:
    output, other = tmp_path / "out.safetensors", replace(BRIEF, steps=1)
    shutil.copy(trained, output)
    before = output.read_bytes()
    with pytest.raises(HardnetSfmError, match="has weights that were made with other patches or options") as raised:
        train([patches], output, other, CPU)
    assert "--overwrite" in raised.value.hint
    assert output.read_bytes() == before and not (tmp_path / "out.training").exists()
    with stopped_at_step_five(MemoryError("a process is killed")):
        train([patches], output, replace(BRIEF, seed=1), CPU, overwrite=True)
    assert output.read_bytes() == before  # the last good weights stay until there are new ones
    train([patches], output, replace(_resumed(BRIEF), seed=1), CPU, overwrite=True)
    assert read_weights(output).metadata["steps"] == "6" and output.read_bytes() != before


def test_folders_in_browns_layout_are_trained_on(patches: Path, tmp_path: Path) -> None:
    write_brown(read_patches(patches), tmp_path / "brown", pairs=20)
    options = replace(BRIEF, steps=1, sampling=SamplingOptions(batch_size=16, same_photos=0))
    assert train([tmp_path / "brown"], tmp_path / "out.safetensors", options, CPU).steps == 1
    assert json.loads(read_weights(tmp_path / "out.safetensors").metadata["data"]) == ["brown brown"]


def test_training_starts_from_given_weights(trained: Path, patches: Path, tmp_path: Path) -> None:
    start, known = tmp_path / "start.safetensors", read_weights(trained)
    write_weights(start, known.tensors, known.metadata | {"max_ratio": "0.85"})
    options = TrainOptions(
        steps=1, learning_rate=1e-12, weight_decay=0, init=str(start), sampling=SamplingOptions(batch_size=16)
    )
    train([patches], tmp_path / "out.safetensors", options, CPU)
    expected, found = load_file(trained), load_file(tmp_path / "out.safetensors")
    np.testing.assert_allclose(found["features.0.weight"], expected["features.0.weight"], atol=1e-7)
    assert read_weights(tmp_path / "out.safetensors").metadata["max_ratio"] == "0.85"


def test_weights_say_what_they_were_started_from(trained: Path, patches: Path, tmp_path: Path) -> None:
    output, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    train([patches], output, replace(BRIEF, steps=1, init=str(trained)), CPU)
    train([patches], again, replace(BRIEF, steps=1, init=str(output)), CPU)
    start = read_weights(trained)
    known = {"file": trained.name, "sha256": start.sha256, "data": json.loads(start.metadata["data"])}
    assert json.loads(read_weights(output).metadata["init"]) == known
    second = json.loads(read_weights(again).metadata["init"])
    assert (second["file"], second["init"]) == (output.name, known)
    assert "init" not in start.metadata


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TrainOptions(loss="hinges"), "unknown loss: hinges"),
        (TrainOptions(network="hardnett"), "unknown network: hardnett"),
        (TrainOptions(loss="hinge"), "--loss hinge is of scores of pairs of patches, and hardnet gives none"),
        (TrainOptions(network="deepcompare-2ch", loss="softmax"), "--loss softmax is of distances .* scores pairs"),
        (TrainOptions(network="tfeat", loss="l2net"), "--loss l2net looks at normalised layers"),
        (TrainOptions(network="tfeat", dropout=0.2), "--dropout has no effect: tfeat has none"),
        (TrainOptions(network="tfeat", norm_batch=128), "--norm-batch has no effect: tfeat has no batch normalis"),
        (TrainOptions(minutes=0), "--minutes"),
        (TrainOptions(steps=-1), "--steps"),
        (TrainOptions(seed=-1), "--seed"),
        (TrainOptions(seed=10**14), "--seed must be below"),
        (TrainOptions(dropout=1.0), "--dropout"),
        (TrainOptions(dropout=math.nan), "--dropout"),
        (TrainOptions(minutes=math.inf), "--minutes must be above 0 and finite"),
        (TrainOptions(minutes=math.nan), "--minutes must be above 0 and finite"),
        (TrainOptions(learning_rate=math.inf), "--learning-rate must be above 0 and finite"),
        (TrainOptions(weight_decay=-1.0), "--weight-decay must be at least 0 and finite"),
        (TrainOptions(weight_decay=math.inf), "--weight-decay must be at least 0 and finite"),
        (TrainOptions(norm_batch=1), "--norm-batch must be at least 2$"),
        *(
            (TrainOptions(augment=replace(NONE, **{name: wrong})), f"--{name} must be at least 0 and finite")
            for name in ("shift", "turn", "scale", "light", "noise")
            for wrong in (-1.0, math.nan, math.inf)
        ),
        (TrainOptions(sampling=SamplingOptions(near=math.nan)), "--near must be at least 0 and finite"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    patches: Path, tmp_path: Path, options: TrainOptions, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train([patches], tmp_path / "out.safetensors", options, CPU)


def test_curves_are_those_of_the_last_run(patches: Path, tmp_path: Path) -> None:
    """And not of one whose weights it took the place of."""
    output = tmp_path / "out.safetensors"
    for steps in (20, 10):
        train([patches], output, replace(BRIEF, steps=steps), CPU, overwrite=True)
    assert read_curves(curves_file(output))["loss"]["step"] == [10]
    events = EventAccumulator(str(tmp_path / "out.training" / "curves")).Reload()
    assert [scalar.step for scalar in events.Scalars("loss")] == [10]


def test_measures_of_two_scenes_are_the_means_of_both(patches: Path, tmp_path: Path) -> None:
    """However many points a scene has, and so pairs its batches."""
    many, few, output = tmp_path / "many.h5", tmp_path / "few.h5", tmp_path / "out.safetensors"
    write_noisy_patches(many, noise=80)
    write_noisy_patches(few, points=12, noise=120)
    found = [
        train([patches], output, replace(BRIEF, steps=1), CPU, validation=held_out, overwrite=True)
        for held_out in ([many], [few], [many, few])
    ]
    assert all(report.computed for report in found)
    one, other, both = (report.measures for report in found)
    for name in ("fpr95", "map"):
        assert abs(one[name] - other[name]) > 0.02
        assert both[name] == pytest.approx((one[name] + other[name]) / 2, abs=1e-6)


@pytest.mark.parametrize("near", [False, True], ids=["one point", "two at one place"])
def test_a_scene_too_small_to_measure_with_is_refused_before_training(
    patches: Path, tmp_path: Path, near: bool
) -> None:
    write_noisy_patches(tmp_path / "small.h5", points=2 if near else 1)
    if near:
        found = read_patches(tmp_path / "small.h5")
        write_patches(tmp_path / "small.h5", replace(found, xyz=np.zeros((2, 3), np.float32), extent=1.0))
    with pytest.raises(HardnetSfmError, match=r"small\.h5: too little to measure with"):
        train([patches], tmp_path / "out.safetensors", BRIEF, CPU, validation=[tmp_path / "small.h5"])


def test_a_finished_run_that_could_not_write_its_weights_is_not_lost(
    trained: Path, patches: Path, tmp_path: Path
) -> None:
    output = tmp_path / "whole.safetensors"

    def full(path: Path, *_: object) -> None:
        raise HardnetSfmError(f"cannot write {path}", "Make room on the disk.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "write_weights", full)
        with pytest.raises(HardnetSfmError, match="cannot write"):
            train([patches], output, replace(BRIEF, validate_every=100), CPU, validation=[patches])
    assert torch.load(tmp_path / "whole.training" / "last.ckpt", weights_only=True)["step"] == 6
    report = train([patches], output, _resumed(BRIEF), CPU, validation=[patches])
    assert (report.steps, report.computed) == (6, True)
    expected, found = load_file(trained), load_file(output)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert report.measures == pytest.approx(json.loads(read_weights(trained).metadata["measures"]))


def test_a_run_that_finished_in_time_learns_nothing_more_when_it_is_resumed(patches: Path, tmp_path: Path) -> None:
    output, last = tmp_path / "out.safetensors", tmp_path / "out.training" / "last.ckpt"
    in_time = TrainOptions(minutes=0.01, sampling=BRIEF.sampling)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "write_weights", lambda *_: (_ for _ in ()).throw(HardnetSfmError("full")))
        with pytest.raises(HardnetSfmError, match="full"):
            train([patches], output, in_time, CPU)
    kept = torch.load(last, weights_only=True)
    assert train([patches], output, _resumed(in_time), CPU).steps == kept["step"]
    found = load_file(output)
    assert all(torch.equal(found[name], tensor) for name, tensor in kept["network"].items())


def test_a_disk_too_full_for_a_checkpoint_may_take_the_weights(trained: Path, patches: Path, tmp_path: Path) -> None:
    output = tmp_path / "whole.safetensors"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        train([patches], output, replace(BRIEF, validate_every=100), CPU)
    expected, found = load_file(trained), load_file(output)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def _holds(folder: Path, pipe: Connection) -> None:
    with locked(folder):
        pipe.send("locked")
        pipe.recv()


def test_a_run_beside_another_of_the_same_output_is_not_told_to_delete_anything(patches: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out.training"
    with running(_holds, folder) as (_, pipe):
        assert pipe.recv() == "locked"
        (folder / "last.ckpt").touch()
        with pytest.raises(HardnetSfmError, match="another hardnet-sfm run is working") as raised:
            train([patches], tmp_path / "out.safetensors", BRIEF, CPU)
    assert "elete" not in raised.value.hint


def test_folders_are_no_weights_and_not_all_are_patches(patches: Path, tmp_path: Path) -> None:
    (tmp_path / "out.safetensors").mkdir()
    with pytest.raises(UsageError, match=r"out\.safetensors is a folder"):
        train([patches], tmp_path / "out.safetensors", BRIEF, CPU)
    with pytest.raises(HardnetSfmError, match=r"neither info\.txt.*nor i_") as raised:
        train([tmp_path], tmp_path / "a.safetensors", BRIEF, CPU)
    assert "mine" in raised.value.hint


def test_patches_of_different_size_are_a_clear_error(patches: Path, tmp_path: Path) -> None:
    write_patches(tmp_path / "wide.h5", replace(read_patches(patches), measurement_size=15.0))
    with pytest.raises(HardnetSfmError, match=r"patches of different size, in sigmas: .*made\.h5: 12, .*wide\.h5: 15"):
        train([patches, tmp_path / "wide.h5"], tmp_path / "out.safetensors", BRIEF, CPU)


def test_patches_to_validate_with_have_the_same_size_and_no_file_comes_twice(patches: Path, tmp_path: Path) -> None:
    write_patches(tmp_path / "wide.h5", replace(read_patches(patches), measurement_size=15.0))
    with pytest.raises(HardnetSfmError, match=r"made\.h5: 12, .*wide\.h5: 15"):
        train([patches], tmp_path / "out.safetensors", BRIEF, CPU, validation=[tmp_path / "wide.h5"])
    with pytest.raises(UsageError, match=r"made\.h5 is given twice"):
        train([patches, patches], tmp_path / "out.safetensors", BRIEF, CPU)
    with pytest.raises(UsageError, match=r"made\.h5 is given twice"):
        train([patches], tmp_path / "out.safetensors", BRIEF, CPU, validation=[patches, patches])
    with pytest.raises(UsageError, match="no patches to train on") as raised:
        train([], tmp_path / "out.safetensors", BRIEF, CPU, validation=[patches])
    assert "--validation" in raised.value.hint


def test_another_licence_other_patches_to_validate_with_and_other_folders_are_other_runs(
    patches: Path, tmp_path: Path
) -> None:
    options, output = replace(BRIEF, steps=1), tmp_path / "out.safetensors"
    assert train([patches], output, options, CPU).computed
    assert not train([patches], output, options, CPU).computed
    assert train([patches], output, replace(options, licence="MIT"), CPU, overwrite=True).computed
    measured = train([patches], output, options, CPU, validation=[patches], overwrite=True)
    assert measured.measures.keys() == {"fpr95", "map"}
    write_brown(read_patches(patches), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    sheet = next((tmp_path / "other").glob("*.bmp"))
    changed = cv2.imread(str(sheet), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(sheet), np.ascontiguousarray(255 - changed))
    assert train([tmp_path / "one"], output, options, CPU, overwrite=True).computed
    assert train([tmp_path / "other"], output, options, CPU, overwrite=True).computed
    assert not train([tmp_path / "other"], output, options, CPU).computed


def test_an_unfinished_run_is_not_written_over(patches: Path, tmp_path: Path) -> None:
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training" / "last.ckpt").write_bytes(b"hours of work")
    with pytest.raises(HardnetSfmError, match="a run that did not finish") as raised:
        train([patches], tmp_path / "out.safetensors", BRIEF, CPU)
    assert "--resume" in raised.value.hint
    assert (tmp_path / "out.training" / "last.ckpt").read_bytes() == b"hours of work"


def test_ctrl_c_for_all_processes_of_a_terminal_leaves_those_that_draw_batches(patches: Path) -> None:
    batches = Batches(Sampler([read_patches(patches)], [1.0], BRIEF.sampling, 0), 0, 1)
    drawn = draw_batches(batches, workers=2)
    assert isinstance(drawn, _MultiProcessingDataLoaderIter)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    here = iter(batches)
    for _ in range(3):  # the first time before they have run a line of ours
        for worker in drawn._workers:
            os.kill(worker.pid, signal.SIGINT)
        assert all(torch.equal(next(drawn)["anchors"], next(here)["anchors"]) for _ in range(4))


def test_weights_that_are_no_numbers_are_kept_nowhere(patches: Path, tmp_path: Path) -> None:
    """The gradient is none, the loss was one: what follows the step must not take the place of the last checkpoint."""
    steps, real = [], losses.LOSSES["hardnet"].function

    def with_bad_gradient(*args: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        loss = real(*args)
        if len(steps) in (6, 7):
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    output, last = tmp_path / "out.safetensors", tmp_path / "out.training" / "last.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.LOSSES.built_in, "hardnet", DescriptorObjective(with_bad_gradient))
        with pytest.raises(HardnetSfmError, match=r"after step 6 not all numbers of .* are finite") as raised:
            train([patches], output, BRIEF, CPU)
        assert "--resume" in raised.value.hint
        assert torch.load(last, weights_only=True)["step"] == 3
        with pytest.raises(HardnetSfmError, match=r"not all numbers of .* are finite"):
            train([patches], tmp_path / "one.safetensors", replace(BRIEF, steps=1), CPU)
    assert not output.exists() and not (tmp_path / "one.safetensors").exists()
    with pytest.raises(HardnetSfmError, match=r"not written, because not all numbers of a are finite"):
        write_weights(output, {"a": torch.tensor([1.0, torch.inf])}, {})


@pytest.mark.parametrize(
    ("number", "times", "kept"), [(signal.SIGINT, 1, 5), (signal.SIGTERM, 1, 5), (signal.SIGINT, 2, 3)]
)
def test_ctrl_c_ends_a_run_after_the_batch_and_again_at_once(
    trained: Path, patches: Path, tmp_path: Path, number: int, times: int, kept: int
) -> None:
    steps, real = [], losses.LOSSES["hardnet"].function

    def interrupting(*args: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        for _ in range(times if len(steps) == 5 else 0):
            os.kill(os.getpid(), number)
        return real(*args)

    output = tmp_path / "whole.safetensors"
    # Where tests run in the background, shells have Ctrl-C ignored.
    before = [(of, signal.signal(of, signal.default_int_handler)) for of in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(losses.LOSSES.built_in, "hardnet", DescriptorObjective(interrupting))
        train([patches], output, BRIEF, CPU, validation=[patches])
    after = [signal.signal(of, answer) for of, answer in before]
    assert after == [signal.default_int_handler] * 2
    checkpoint = torch.load(tmp_path / "whole.training" / "last.ckpt", weights_only=True)
    assert checkpoint["step"] == kept
    train([patches], output, _resumed(BRIEF), CPU, validation=[patches])
    expected, found = load_file(trained), load_file(output)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_ctrl_c_in_the_last_batch_leaves_nothing_but_the_measures_to_make(
    trained: Path, patches: Path, tmp_path: Path
) -> None:
    steps, real = [], losses.LOSSES["hardnet"].function

    def interrupting(*args: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    output = tmp_path / "whole.safetensors"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(losses.LOSSES.built_in, "hardnet", DescriptorObjective(interrupting))
        train([patches], output, BRIEF, CPU, validation=[patches])
    train([patches], output, _resumed(BRIEF), CPU, validation=[patches])
    assert read_weights(output).metadata["measures"] == read_weights(trained).metadata["measures"]


def test_an_error_while_it_trains_leaves_ctrl_c_as_it_was(patches: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopped_at_step_five(KeyboardInterrupt()):
        train([patches], tmp_path / "out.safetensors", BRIEF, CPU)
    assert signal.getsignal(signal.SIGINT) == before
    assert (tmp_path / "out.training" / "last.ckpt").is_file()


def test_what_cannot_be_resumed_or_written_is_refused(patches: Path, tmp_path: Path) -> None:
    with pytest.raises(HardnetSfmError, match="no checkpoint"):
        train([patches], tmp_path / "out.safetensors", _resumed(BRIEF), CPU)
    with pytest.raises(UsageError, match=r"not a \.safetensors file"):
        train([patches], tmp_path / "out.pth", BRIEF, CPU)
