"""HardNet against kornia's, and the files that weights come in."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import kornia.feature
import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
from hardnet_sfm.features.detectors import DetectorOptions, make_detector
from hardnet_sfm.files import weight_files
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.weight_files import read_weights, shipped
from hardnet_sfm.networks.device import in_type
from hardnet_sfm.networks.hardnet import HardNet
from hardnet_sfm.networks.loading import SHIPPED, load_into
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.scene import Scene

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def cut(small_scene: tuple[Path, Scene]) -> NDArray[np.uint8]:
    """160 patches around keypoints of a photo."""
    folder, scene = small_scene
    grey = read_photo(folder / scene.names[2]).grey
    found = make_detector("opencv-dog", DetectorOptions(8192, 0.02 / 3, 10, upright=False, affine_shape=False))(grey)
    chosen = found.select(np.random.default_rng(1).permutation(len(found))[:160])
    return extract_patches(grey, chosen.xy, chosen.frames(), 32, 12)


@pytest.fixture(scope="module")
def patches(cut: NDArray[np.uint8]) -> Tensor:
    """(160, 1, 32, 32) float32 in [0, 1]."""
    return torch.from_numpy(cut).float()[:, None] / 255


@pytest.fixture(scope="module")
def network(patches: Tensor) -> HardNet:
    """Random weights with the statistics that belong to them, so that descriptors differ as they do after training.

    With statistics drawn by chance all patches would get nearly the same descriptor, and any comparison would pass.
    """
    torch.manual_seed(0)
    network = HardNet(dropout=0).train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network(patches)
        described = network.eval()(patches)
    assert (described[:80] - described[80:]).norm(dim=1).mean() > 1.2
    return network


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(tensors: Tensors, name: str = "mine", **metadata: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
        return path

    return save


def test_is_kornias_hardnet(network: HardNet, patches: Tensor) -> None:
    """kornia adds 1e-6 to a patch's standard deviation, the authors and we 1e-7: nothing for grey values up to 255."""
    theirs = kornia.feature.HardNet(pretrained=False).eval()
    theirs.load_state_dict(network.state_dict())
    assert network.state_dict()["features.1.running_var"].std() > 0.01
    with torch.inference_mode():
        difference = network(patches * 255) - theirs(patches * 255)
    assert difference.abs().max() < 1e-5


def test_has_the_size_that_its_description_states(network: HardNet, patches: Tensor) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_334_560
    multiplications = 0

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal multiplications
        assert isinstance(layer, nn.Conv2d)
        multiplications += output[0].numel() * layer.weight[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    with torch.inference_mode():
        network(patches[:1])
    for hook in hooks:
        hook.remove()
    assert len(hooks) == 7
    assert multiplications == 39_092_224


def test_descriptors_have_unit_length(network: HardNet, patches: Tensor) -> None:
    with torch.inference_mode():
        described = network(patches)
    assert described.shape == (160, 128)
    torch.testing.assert_close(described.norm(dim=1), torch.ones(160), atol=1e-5, rtol=0)


def test_brightness_and_contrast_do_not_matter(network: HardNet, patches: Tensor) -> None:
    with torch.inference_mode():
        changed = network(patches * 0.3 + 0.2) - network(patches)
    assert changed.norm(dim=1).max() < 1e-3
    assert changed.norm(dim=1).median() < 1e-5


def test_a_flat_patch_gives_finite_numbers(network: HardNet) -> None:
    flat = torch.full((2, 1, 32, 32), 0.4)
    with torch.inference_mode():
        for form in (network, network.fused()):
            described = form(flat)
            assert described.isfinite().all()
            torch.testing.assert_close(described.norm(dim=1), torch.ones(2), atol=1e-5, rtol=0)


def test_fused_is_the_same_function(network: HardNet, patches: Tensor) -> None:
    with torch.inference_mode():
        difference = network.fused()(patches) - network(patches)
    assert difference.abs().max() < 1e-5


def test_fusing_leaves_the_network_as_it_was(network: HardNet) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.fused().to(torch.float64)
    after = network.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)


def test_bfloat16_moves_a_descriptor_little(network: HardNet, patches: Tensor) -> None:
    """Measured: 0.02 on average and 0.04 at most, where unrelated patches are 1.4 apart.

    Random weights are the worst case: after 80 steps of training it was 0.004 and 0.007.
    """
    with torch.inference_mode():
        with in_type(torch.device("cpu"), torch.bfloat16):
            reduced = network.fused()(patches)
        moved = (reduced - network(patches)).norm(dim=1)
    assert moved.mean() < 0.03
    assert moved.max() < 0.05


class TestPatchDescriber:
    """Patches are described in batches of 128, padded, so that the company of a patch does not change its bits."""

    def test_describes_as_the_network_does(self, save: Callable[..., Path], network: HardNet, patches: Tensor) -> None:
        describe = PatchDescriber(make_descriptor("hardnet", save(network.state_dict())), "cpu")
        with torch.inference_mode():
            expected = network(patches[:100])
        found = describe((patches[:100, 0] * 255).round().byte().numpy())
        assert found.dtype == np.float16
        assert np.linalg.norm(found.astype(np.float32) - expected.numpy(), axis=1).max() < 0.05
        np.testing.assert_allclose(np.linalg.norm(found.astype(np.float32), axis=1), 1, atol=2e-3)

    def test_gives_the_same_bits_in_any_company(
        self, save: Callable[..., Path], network: HardNet, cut: NDArray[np.uint8]
    ) -> None:
        describe = PatchDescriber(make_descriptor("hardnet", save(network.state_dict())), "cpu")
        together = describe(cut[:128])
        np.testing.assert_array_equal(describe(cut[:1])[0], together[0])
        np.testing.assert_array_equal(describe(cut[20:97]), together[20:97])
        np.testing.assert_array_equal(describe(cut[:128][::-1].copy())[::-1], together)

    def test_nothing_in_nothing_out(self, save: Callable[..., Path], network: HardNet) -> None:
        describe = PatchDescriber(make_descriptor("hardnet", save(network.state_dict())), "cpu")
        assert describe(np.zeros((0, 32, 32), np.uint8)).shape == (0, 128)


class TestWeightsFile:
    def test_comes_back_as_it_was_written(self, save: Callable[..., Path], network: HardNet, patches: Tensor) -> None:
        path = save(network.state_dict(), architecture="hardnet", measurement_size="9.5", training_data="photos")
        weights = read_weights(path)
        assert weights.path == path
        assert weights.metadata == {"architecture": "hardnet", "measurement_size": "9.5", "training_data": "photos"}
        assert weights.tensors.keys() == network.state_dict().keys()
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(weights.tensors[name], tensor, rtol=0, atol=0)
        other = HardNet().eval()
        load_into(other, weights, "hardnet")
        with torch.inference_mode():
            torch.testing.assert_close(other(patches), network(patches), rtol=0, atol=0)

    def test_says_how_much_of_the_photo_a_patch_covers(self, save: Callable[..., Path], network: HardNet) -> None:
        path = save(network.state_dict(), measurement_size="9.5")
        descriptor = make_descriptor("hardnet", path)
        assert (descriptor.measurement_size, descriptor.patch_size) == (9.5, 32)
        assert descriptor.weights_sha256 == weight_files.sha256_of(path)
        assert len(descriptor.weights_sha256) == 64
        assert make_descriptor("hardnet", save(network.state_dict(), "silent")).measurement_size == 12

    @pytest.mark.parametrize("size", ["wide", "", "0", "-12", "nan", "inf"])
    def test_with_a_senseless_measurement_size_is_refused(
        self, save: Callable[..., Path], network: HardNet, size: str
    ) -> None:
        path = save(network.state_dict(), measurement_size=size)
        with pytest.raises(HardnetSfmError, match="measurement_size") as refused:
            make_descriptor("hardnet", path)
        assert str(path) in refused.value.message

    def test_recommends_a_ratio_for_matching(self, save: Callable[..., Path], network: HardNet) -> None:
        assert make_descriptor("hardnet", save(network.state_dict(), max_ratio="0.87")).max_ratio == 0.87
        assert make_descriptor("hardnet", save(network.state_dict(), "silent")).max_ratio == 0.8

    @pytest.mark.parametrize("ratio", ["wide", "", "0", "-0.9", "1.01", "nan", "inf"])
    def test_with_a_senseless_ratio_is_refused(self, save: Callable[..., Path], network: HardNet, ratio: str) -> None:
        path = save(network.state_dict(), max_ratio=ratio)
        with pytest.raises(HardnetSfmError, match="metadata max_ratio") as refused:
            make_descriptor("hardnet", path)
        assert str(path) in refused.value.message

    def test_may_be_float16_and_lack_the_counters_of_batches(
        self, save: Callable[..., Path], network: HardNet, patches: Tensor
    ) -> None:
        lean = {
            name: tensor.half() for name, tensor in network.state_dict().items() if "num_batches_tracked" not in name
        }
        other = HardNet().eval()
        load_into(other, read_weights(save(lean)), "hardnet")
        assert all(parameter.dtype == torch.float32 for parameter in other.parameters())
        with torch.inference_mode():
            assert (other(patches) - network(patches)).norm(dim=1).max() < 0.02

    @pytest.mark.parametrize(
        ("change", "metadata", "complaint"),
        [
            (lambda t: t, {"architecture": "tfeat"}, "weights of tfeat, not of hardnet"),
            (lambda t: {k: v for k, v in t.items() if k != "features.9.weight"}, {}, "missing: features.9.weight"),
            (lambda t: {**t, "features.22.weight": torch.ones(3)}, {}, "unknown: features.22.weight"),
            (
                lambda t: {**t, "features.0.weight": torch.ones(32, 1, 5, 5)},
                {"architecture": "hardnet"},
                "of another shape: features.0.weight",
            ),
        ],
        ids=["architecture", "missing", "unknown", "reshaped"],
    )
    def test_of_another_network_is_refused_whole(
        self,
        save: Callable[..., Path],
        network: HardNet,
        change: Callable[[Tensors], Tensors],
        metadata: dict[str, str],
        complaint: str,
    ) -> None:
        path = save(change(dict(network.state_dict())), **metadata)
        other = HardNet()
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(HardnetSfmError) as refused:
            load_into(other, read_weights(path), "hardnet")
        assert str(path) in refused.value.message
        assert complaint in refused.value.message
        assert "--descriptor" in refused.value.hint
        for name, tensor in before.items():
            torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0)
        with pytest.raises(HardnetSfmError, match=path.name):
            make_descriptor("hardnet", path)

    def test_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match=r"no weights file at .*gone\.safetensors"):
            make_descriptor("hardnet", tmp_path / "gone.safetensors")

    def test_that_is_a_pickle_is_not_loaded(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
                return Path(tmp_path / "sprung").touch, ()

        path = tmp_path / "published.pth"
        path.write_bytes(pickle.dumps({"state_dict": Trap()}))
        with pytest.raises(HardnetSfmError, match=r"published\.pth: not a safetensors file, or damaged") as refused:
            make_descriptor("hardnet", path)
        assert ".safetensors" in refused.value.hint
        assert not (tmp_path / "sprung").exists()

    def test_that_is_cut_short_is_named(self, save: Callable[..., Path], network: HardNet) -> None:
        path = save(network.state_dict())
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(HardnetSfmError, match=r"mine\.safetensors: not a safetensors file, or damaged"):
            make_descriptor("hardnet", path)


class TestShippedWeights:
    def test_are_looked_for_in_the_folders_of_the_package(
        self, monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path], network: HardNet, tmp_path: Path
    ) -> None:
        path = save(network.state_dict(), SHIPPED["hardnet"], measurement_size="11")
        monkeypatch.setattr(weight_files, "_FOLDERS", (tmp_path / "nowhere", tmp_path))
        assert shipped(SHIPPED["hardnet"]) == path
        assert make_descriptor("hardnet", None).measurement_size == 11

    def test_where_there_are_none_the_user_learns_what_to_do(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(weight_files, "_FOLDERS", (tmp_path,))
        assert shipped(SHIPPED["hardnet"]) is None
        with pytest.raises(HardnetSfmError, match="without trained HardNet weights") as refused:
            make_descriptor("hardnet", None)
        assert "--weights FILE.safetensors" in refused.value.hint
        assert "--descriptor rootsift" in refused.value.hint


def test_unknown_descriptors_get_a_guess() -> None:
    with pytest.raises(UsageError, match="unknown descriptor: hardnett") as refused:
        make_descriptor("hardnett", None)
    assert "Did you mean hardnet?" in refused.value.hint
    assert "rootsift" in refused.value.hint
