"""The networks: their size by hand from the papers' tables, what they compute by other means, and their files."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import kornia.feature
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
from hardnet_sfm.files.weight_files import read_weights, write_weights
from hardnet_sfm.literature.deepdesc import DeepDesc, SparseConvolution
from hardnet_sfm.literature.pair_scoring import PairNetwork
from hardnet_sfm.networks.architectures import ARCHITECTURES, Architecture, recognised, under_names_of
from hardnet_sfm.networks.hardnet import HardNet
from hardnet_sfm.networks.loading import SHIPPED, load_network
from hardnet_sfm.verbs.weights import convert

pytestmark = pytest.mark.usefixtures("one_thread")

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
with_l2 = pytest.mark.parametrize("name", [name for name, of in ARCHITECTURES.items() if of.metric == "l2"])
with_network = pytest.mark.parametrize("name", [name for name, of in ARCHITECTURES.items() if of.metric != "l2"])


def conv(inputs: int, outputs: int, kernel: int) -> int:
    """Parameters of a convolution with bias."""
    return outputs * (inputs * kernel**2 + 1)


def linear(inputs: int, outputs: int) -> int:
    return outputs * (inputs + 1)


HARDNET = 9 * (32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 128 * 64 * 128
SIAM = conv(1, 96, 7) + conv(96, 192, 5) + conv(192, 256, 3)
STREAM = conv(1, 96, 4) + conv(96, 192, 3) + conv(192, 256, 3) + conv(256, 256, 3)
STREAM_OF_TWO = conv(2, 96, 5) + conv(96, 96, 3) + conv(96, 192, 3) + conv(192, 192, 3)
PARAMETERS = {
    "hardnet": HARDNET,
    "l2net": HARDNET,
    "hardnet-fast": 4 * 4 * 32 + 3 * 3 * (32 * 64 + 3 * 64 * 64) + 8 * 8 * 64 * 128,
    "l2net-cs": 2 * HARDNET,
    "convexopt": 80 * 4 + 128 * 8 * 80,
    "tfeat": conv(1, 32, 7) + conv(32, 64, 6) + linear(64 * 8 * 8, 128),
    "deepdesc": conv(1, 32, 7) + conv(8, 64, 6) + conv(8, 128, 5),
    "matchnet": conv(1, 24, 7)
    + conv(24, 64, 5)
    + conv(64, 96, 3)
    + conv(96, 96, 3)
    + conv(96, 64, 3)
    + linear(64 * 8 * 8, 512)
    + linear(2 * 512, 512)
    + linear(512, 512)
    + linear(512, 2),
    "deepcompare-2ch": conv(2, 96, 7) + conv(96, 192, 5) + conv(192, 256, 3) + linear(256, 1),
    "deepcompare-2ch2stream": 2 * STREAM_OF_TWO + linear(2 * 192 * 2 * 2, 768) + linear(768, 1),
    "deepcompare-siam": SIAM + linear(512, 512) + linear(512, 1),
    "deepcompare-pseudo-siam": 2 * SIAM + linear(512, 512) + linear(512, 1),
    "deepcompare-siam2stream": 2 * STREAM + linear(1024, 1024) + linear(1024, 1),
    "deepcompare-siam-l2": SIAM,
    "deepcompare-siam2stream-l2": 2 * STREAM,
}
# Of the binary files that the authors of DeepCompare published, which hold the weights alone, MiB of float32.
PUBLISHED_MIB = {
    "deepcompare-2ch": 3.48,
    "deepcompare-2ch2stream": 8.98,
    "deepcompare-siam": 4.47,
    "deepcompare-siam2stream": 13.17,
}


def built(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ARCHITECTURES[name].build().eval()


def patches_for(architecture: Architecture, count: int = 3, seed: int = 1) -> Tensor:
    size = architecture.patch_size
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@every_architecture
def test_has_the_parameters_of_the_papers_table(architecture: Architecture) -> None:
    assert parameters_of(built(architecture.name)) == PARAMETERS[architecture.name]


@pytest.mark.parametrize(("name", "mebibytes"), PUBLISHED_MIB.items())
def test_deepcompare_has_the_size_of_the_published_files(name: str, mebibytes: float) -> None:
    assert 4 * parameters_of(built(name)) / 2**20 == pytest.approx(mebibytes, abs=0.01)


def test_deepdesc_has_the_parameters_that_the_paper_counts() -> None:
    """Its library's L2 pooling has a weight and a bias a map, 1 and 0, which its count of 46 272 includes."""
    assert parameters_of(DeepDesc()) + 2 * (32 + 64 + 128) == 46_272


def mflop(run: Callable[[], object]) -> float:
    """Of convolutions, sparse ones as the dense ones that they are computed as, and matrix products."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return counter.get_total_flops() / 1e6


@every_architecture
def test_description_states_size_and_cost(architecture: Architecture) -> None:
    """In numbers of parameters and MFLOP a patch and a pair."""
    network, patches = built(architecture.name), patches_for(architecture, 1)
    said = " ".join((inspect.getdoc(type(network)) or "").split())
    if isinstance(network, PairNetwork):
        parts = network.describe(patches, 0), network.describe(patches, 1)
        costs = [
            mflop(lambda: network.describe(patches)),
            mflop(lambda: network.compare(*parts)),
        ]
    else:
        costs = [mflop(lambda: network(patches))]
        assert costs[0] > 0
    if architecture.name == "matchnet":
        assert isinstance(network.features, nn.Module) and isinstance(network.metric, nn.Module)
        counts = [parameters_of(network.features), parameters_of(network.metric)]
    else:
        counts = [PARAMETERS[architecture.name]]
    for count in counts:
        assert f"{count:_}".replace("_", " ") in said
    if architecture.name == "deepcompare-pseudo-siam":
        said = inspect.getdoc(type(built("deepcompare-siam"))) or ""  # which it refers to
    for cost in costs:
        assert (f"({cost:.0f} MFLOP)" in said) if cost > 10 else (not cost or f"({cost:.1f} MFLOP)" in said), cost


@every_architecture
def test_registered_facts_are_those_of_the_network(architecture: Architecture) -> None:
    network, patches = built(architecture.name), patches_for(architecture)
    with torch.inference_mode():
        if isinstance(network, PairNetwork):
            assert architecture.metric != "l2"
            described = network.describe(patches)
            scores = network.compare(described, network.describe(patches.flip(0), 1))
            assert scores.shape == (3,)
            torch.testing.assert_close(network(patches, patches.flip(0)), scores)
            if architecture.metric == "metric network":
                assert described.shape == (3, architecture.dimension)
            return
        described = network(patches)
    assert architecture.metric == "l2" and described.shape == (3, architecture.dimension)
    has_unit_length = bool(torch.allclose(described.norm(dim=1), torch.ones(3), atol=1e-5))
    assert has_unit_length == architecture.unit_length
    for name in architecture.supervised:
        assert isinstance(network.get_submodule(name), nn.BatchNorm2d)


@pytest.mark.parametrize("name", [name for name, of in ARCHITECTURES.items() if of.normalisation.startswith("mean 0")])
def test_what_the_network_takes_from_a_patch_does_not_matter(name: str) -> None:
    """Its mean, and where it is standardised its contrast."""
    architecture = ARCHITECTURES[name]
    network, patches = built(name), patches_for(architecture)
    contrast = 0.7 if "deviation" in architecture.normalisation else 1.0
    changed = contrast * patches + 0.1
    with torch.inference_mode():
        if isinstance(network, PairNetwork):
            found, expected = network(changed, patches.flip(0)), network(patches, patches.flip(0))
        else:
            found, expected = network(changed), network(patches)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_deepdesc_is_what_scipy_gives() -> None:
    network = built("deepdesc")
    patches = patches_for(ARCHITECTURES["deepdesc"], 2)
    window = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 1.25**2))
    window = np.outer(window, window) / window.sum() ** 2

    def convolved(features: np.ndarray, layer: nn.Module) -> np.ndarray:
        weight, bias = (tensor.detach().double().numpy() for tensor in (layer.weight, layer.bias))
        maps = layer.maps.numpy() if isinstance(layer, SparseConvolution) else np.zeros((32, 1), int)
        return np.stack(
            [
                sum(
                    scipy.signal.correlate2d(features[of], kernel, "valid")
                    for of, kernel in zip(seen, kernels, strict=True)
                )
                + offset
                for kernels, seen, offset in zip(weight, maps, bias, strict=True)
            ]
        )

    def pooled(features: np.ndarray, side: int) -> np.ndarray:
        count, height, width = features.shape
        blocks = features.reshape(count, height // side, side, width // side, side)
        return np.sqrt((blocks**2).sum((2, 4)))

    def normalised(features: np.ndarray) -> np.ndarray:
        mean = features.mean(0)
        covered = scipy.signal.convolve2d(np.ones_like(mean), window, "same")
        return features - scipy.signal.convolve2d(mean, window, "same") / covered

    layers = list(network.features)
    for number, patch in enumerate(patches[:, 0].double().numpy()):
        features = ((patch - patch.mean()) / patch.std(ddof=1))[None]
        for layer, side in ((0, 2), (4, 3), (8, 4)):
            features = pooled(np.tanh(convolved(features, layers[layer])), side)
            features = normalised(features) if side < 4 else features
        with torch.inference_mode():
            found = network(patches[number : number + 1])[0].numpy()
        np.testing.assert_allclose(found, features.ravel(), rtol=1e-4, atol=1e-4)


def test_sparse_maps_see_all_inputs_equally_often_and_are_always_the_same() -> None:
    first, second = SparseConvolution(32, 64, 3), SparseConvolution(32, 64, 3)
    assert torch.equal(first.maps, second.maps)
    assert first.maps.flatten().bincount().tolist() == [16] * 32
    assert all(len(set(row)) == 8 for row in first.maps.tolist())


def test_matchnet_is_the_papers_layers_one_by_one() -> None:
    """With the border of caffe's pooling written out; the score is the difference of what goes into the softmax."""
    network, patches = built("matchnet"), patches_for(ARCHITECTURES["matchnet"])
    weights = list(network.state_dict().values())

    def described(values: Tensor) -> Tensor:
        values = (255 * values - 128) / 160
        for number, pooling in enumerate((True, True, False, False, True)):
            weight, bias = weights[2 * number : 2 * number + 2]
            values = F.relu(F.conv2d(values, weight, bias, padding=weight.shape[-1] // 2))
            if pooling:
                values = F.max_pool2d(F.pad(values, (0, 1, 0, 1), value=-torch.inf), 3, 2)
        return F.relu(F.linear(values.flatten(1), *weights[10:12]))

    with torch.inference_mode():
        values = torch.cat([described(patches), described(patches.flip(0))], 1)
        for number in (12, 14):
            values = F.relu(F.linear(values, *weights[number : number + 2]))
        expected = F.softmax(F.linear(values, *weights[16:]), 1)[:, 1]
        torch.testing.assert_close(network(patches, patches.flip(0)).sigmoid(), expected)


def published(name: str) -> dict[str, Tensor]:
    """Weights by the names and in the order that the authors of DeepCompare give them in PyTorch."""
    drawn = list(built(name).state_dict().values())
    streams = {
        "deepcompare-2ch2stream": (("fovea", 4), ("retina", 4)),
        "deepcompare-siam2stream": (("retina", 4), ("fovea", 4)),
    }.get(name, (("", 3),))
    names = [f"{stream}.conv{k}".lstrip(".") for stream, layers in streams for k in range(layers)]
    names += ["fc"] if name == "deepcompare-2ch" else ["fc0", "fc1"]
    both = [f"{layer}.{what}" for layer in names for what in ("weight", "bias")]
    return dict(zip(both, drawn, strict=True))


def deepcompare(name: str, of: dict[str, Tensor], pair: Tensor) -> Tensor:
    """(N, 2, 64, 64) to (N,) scores, by functions of torch."""

    def layer(values: Tensor, base: str, stride: int = 1) -> Tensor:
        return F.conv2d(values, of[f"{base}.weight"], of[f"{base}.bias"], stride)

    def tower(values: Tensor) -> Tensor:
        values = F.max_pool2d(F.relu(layer(values, "conv0", 3)), 2)
        values = F.max_pool2d(F.relu(layer(values, "conv1")), 2)
        return F.relu(layer(values, "conv2")).flatten(1)

    def stream_of_two(values: Tensor, base: str) -> Tensor:
        values = F.max_pool2d(F.relu(layer(values, f"{base}.conv0")), 2)
        values = F.max_pool2d(F.relu(layer(values, f"{base}.conv1")), 2)
        return F.relu(layer(F.relu(layer(values, f"{base}.conv2")), f"{base}.conv3")).flatten(1)

    def stream_of_one(values: Tensor, base: str) -> Tensor:
        values = F.max_pool2d(F.relu(layer(values, f"{base}.conv0", 2)), 2)
        for number in (1, 2):
            values = F.relu(layer(values, f"{base}.conv{number}"))
        return layer(values, f"{base}.conv3").flatten(1)

    def decision(values: Tensor) -> Tensor:
        values = F.relu(F.linear(values, of["fc0.weight"], of["fc0.bias"]))
        return F.linear(values, of["fc1.weight"], of["fc1.bias"]).squeeze(1)

    pair = pair - pair.mean((2, 3), keepdim=True)
    half, middle = F.interpolate(pair, scale_factor=0.5, mode="area"), pair[:, :, 16:48, 16:48]
    match name:
        case "deepcompare-2ch":
            return F.linear(tower(pair), of["fc.weight"], of["fc.bias"]).squeeze(1)
        case "deepcompare-2ch2stream":
            return decision(torch.cat([stream_of_two(half, "fovea"), stream_of_two(middle, "retina")], 1))
        case "deepcompare-siam":
            return decision(torch.cat([tower(pair[:, :1]), tower(pair[:, 1:])], 1))
        case _:
            sides = [
                stream_of_one(what[:, side : side + 1], base)
                for side in (0, 1)
                for what, base in ((middle, "retina"), (half, "fovea"))
            ]
            return decision(torch.cat(sides, 1))


@pytest.mark.parametrize("name", PUBLISHED_MIB)
def test_deepcompare_by_the_names_of_the_authors_code_is_what_that_computes(name: str, tmp_path: Path) -> None:
    """Tensors of their Torch7 files have these names in their PyTorch code; no file of theirs is read here."""
    weights, architecture = published(name), ARCHITECTURES[name]
    torch.save(weights, tmp_path / "theirs.pth")
    convert(tmp_path / "theirs.pth", tmp_path / "ours.safetensors")
    loaded = load_network(tmp_path / "ours.safetensors")
    assert loaded.architecture is architecture
    patches = patches_for(architecture)
    with torch.inference_mode():
        expected = deepcompare(name, weights, torch.cat([patches, patches.flip(0)], 1))
        torch.testing.assert_close(loaded.network(patches, patches.flip(0)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["deepcompare-2ch2stream", "deepcompare-siam2stream"])
def test_streams_are_told_apart_by_their_names_whatever_their_order(name: str) -> None:
    theirs, ours = published(name), built(name).state_dict()
    for order in itertools.permutations(("fovea", "retina", "fc")):
        given = {key: tensor for start in order for key, tensor in theirs.items() if key.startswith(start)}
        found = under_names_of(ARCHITECTURES[name], given)
        assert found is not None and found.keys() == ours.keys()
        assert all(torch.equal(found[key], ours[key]) for key in ours)
    assert recognised(given) == name


@pytest.mark.parametrize("name", [name for name, of in ARCHITECTURES.items() if of.towers])
def test_towers_of_the_same_shapes_are_not_told_apart_by_their_order(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    tensors = {k: v for k, v in built(name).state_dict().items() if not k.endswith("num_batches_tracked")}
    modules = list(dict.fromkeys(key.split(".")[0] for key in tensors))
    assert tuple(modules[:2]) == architecture.towers
    turned = {f"module.{key}": tensors[key] for start in modules[::-1] for key in tensors if key.startswith(start)}
    found = under_names_of(architecture, turned)
    assert found is not None and all(torch.equal(found[key], tensors[key]) for key in tensors)
    torch.save({str(number): tensor for number, tensor in enumerate(tensors.values())}, tmp_path / "a.pth")
    with pytest.raises(HardnetSfmError, match="not weights of") as raised:
        convert(tmp_path / "a.pth", tmp_path / "a.safetensors", name)
    assert f"after their towers, {' and '.join(architecture.towers)}" in raised.value.hint
    with pytest.raises(HardnetSfmError, match="weights of an unknown network") as raised:
        convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert "tensors have to be named after them" in raised.value.hint


@pytest.mark.parametrize("name", ["deepcompare-siam", "deepcompare-siam2stream"])
class TestL2FormOfDeepCompare:
    def test_has_the_descriptions_of_the_network_that_scores_pairs(self, name: str, tmp_path: Path) -> None:
        whole, patches, path = built(name), patches_for(ARCHITECTURES[name]), tmp_path / "a.safetensors"
        assert isinstance(whole, PairNetwork)
        with torch.inference_mode():
            expected = F.normalize(whole.describe(patches))
        for metadata in ({"architecture": name, "measurement_size": "9.5"}, {"measurement_size": "9.5"}):
            write_weights(path, whole.state_dict(), metadata)
            descriptor = make_descriptor(f"{name}-l2", path)
            assert descriptor.measurement_size == 9.5
            assert descriptor.weights_sha256 == read_weights(path).sha256
            with torch.inference_mode():
                assert torch.equal(descriptor.network(patches), expected)
        assert load_network(path).architecture.name == name

    def test_is_converted_from_its_weights(self, name: str, tmp_path: Path) -> None:
        expected = built(name).state_dict()
        for tensors in (expected, published(name)):
            torch.save(tensors, tmp_path / "a.pth")
            convert(tmp_path / "a.pth", tmp_path / "a.safetensors", f"{name}-l2", 9.5)
            found = read_weights(tmp_path / "a.safetensors")
            assert (found.metadata["architecture"], found.metadata["measurement_size"]) == (f"{name}-l2", "9.5")
            assert found.tensors.keys() == {key for key in expected if not key.startswith("decision")}
            assert all(torch.equal(tensor, expected[key]) for key, tensor in found.tensors.items())

    def test_takes_no_other_weights(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        lacking = {key: tensor for key, tensor in built(name).state_dict().items() if key != "decision.0.bias"}
        write_weights(path, lacking, {"architecture": name})
        with pytest.raises(HardnetSfmError, match=f"weights of {name}, not of {name}-l2"):
            load_network(path, f"{name}-l2")
        write_weights(path, built(f"{name}-l2").state_dict(), {"architecture": f"{name}-l2"})
        with pytest.raises(HardnetSfmError, match=f"weights of {name}-l2, not of {name}"):
            load_network(path, name)
        pseudo = "deepcompare-pseudo-siam"
        write_weights(path, built(pseudo).state_dict(), {"architecture": pseudo})
        with pytest.raises(HardnetSfmError, match=f"weights of {pseudo}, not of {name}-l2"):
            load_network(path, f"{name}-l2")


def test_pseudo_siamese_is_siamese_where_both_towers_are_the_same() -> None:
    siamese, pseudo = built("deepcompare-siam"), built("deepcompare-pseudo-siam")
    patches = patches_for(ARCHITECTURES["deepcompare-siam"])
    with torch.inference_mode():
        assert not torch.allclose(pseudo(patches, patches.flip(0)), pseudo(patches.flip(0), patches), atol=1e-4)
        pseudo.first.load_state_dict(siamese.features.state_dict())
        pseudo.second.load_state_dict(siamese.features.state_dict())
        pseudo.decision.load_state_dict(siamese.decision.state_dict())
        torch.testing.assert_close(pseudo(patches, patches.flip(0)), siamese(patches, patches.flip(0)))


def test_centre_surround_l2net_is_two_hardnets() -> None:
    network, patches = built("l2net-cs"), patches_for(ARCHITECTURES["l2net-cs"])
    towers = [HardNet().eval(), HardNet().eval()]
    for tower, name in zip(towers, ("surround", "centre"), strict=True):
        tower.load_state_dict(network.get_submodule(name).state_dict())
    half = F.interpolate(patches, scale_factor=0.5, mode="area")
    with torch.inference_mode():
        expected = torch.cat([towers[0](half), towers[1](patches[:, :, 16:48, 16:48])], 1) / 2**0.5
        torch.testing.assert_close(network(patches), expected)
        torch.testing.assert_close(network.fused()(patches), expected, atol=1e-5, rtol=0)


class TestDescriptors:
    @with_l2
    def test_with_an_l2_metric_are_used_by_name(self, name: str, tmp_path: Path) -> None:
        architecture, network = ARCHITECTURES[name], built(name)
        path = tmp_path / "mine.safetensors"
        write_weights(path, network.state_dict(), {"architecture": name, "measurement_size": "9.5"})
        descriptor = make_descriptor(name, path)
        assert (descriptor.patch_size, descriptor.measurement_size) == (architecture.patch_size, 9.5)
        patches = patches_for(architecture, 5)
        describe = PatchDescriber(descriptor, "cpu")
        assert describe.dimension == architecture.dimension
        found = describe((255 * patches[:, 0]).round().byte().numpy()).astype(np.float32)
        with torch.inference_mode():
            expected = F.normalize(network((255 * patches).round() / 255)).numpy()
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)
        # Of layers in bfloat16; unrelated patches are 1 and more apart.
        assert np.linalg.norm(found - expected, axis=1).max() < (0.1 if architecture.reduced_precision else 2e-3)

    @with_l2
    def test_without_weights_say_where_to_get_them(self, name: str) -> None:
        if name in SHIPPED:
            assert make_descriptor(name, None).weights_sha256
            return
        with pytest.raises(HardnetSfmError, match=f"without trained {ARCHITECTURES[name].title} weights") as raised:
            make_descriptor(name, None)
        assert f"train --network {name}" in raised.value.hint

    @with_network
    def test_without_a_metric_are_refused_with_the_reason(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="compares patches with a network") as raised:
            make_descriptor(name, tmp_path / "any.safetensors")
        assert "visual words and indexes" in raised.value.message
        assert "match --rescore" in raised.value.hint

    def test_command_says_so_before_it_looks_at_a_photo(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from PIL import Image

        Image.new("L", (64, 64)).save(tmp_path / "a.png")
        for verb in ("extract", "vocabulary", "index"):
            with pytest.raises(SystemExit) as exit:
                main([verb, str(tmp_path), "--workspace", str(tmp_path / "out"), "--descriptor", "matchnet"])
            assert exit.value.code == 2
            assert "Nearest neighbours, visual words and indexes need" in " ".join(capsys.readouterr().err.split())


class TestWeights:
    def test_of_tfeat_in_the_authors_layout_describe_as_kornia_does(self, tmp_path: Path) -> None:
        torch.manual_seed(3)
        network = kornia.feature.TFeat(pretrained=False).eval()
        names = ["features.1.weight", "features.1.bias", "features.4.weight", "features.4.bias"]
        assert list(network.state_dict()) == [*names, "descr.0.weight", "descr.0.bias"]
        torch.save(network.state_dict(), tmp_path / "tfeat-liberty.params")
        convert(tmp_path / "tfeat-liberty.params", tmp_path / "tfeat.safetensors")
        metadata = read_weights(tmp_path / "tfeat.safetensors").metadata
        assert (metadata["architecture"], metadata["patch_size"]) == ("tfeat", "32")
        patches = patches_for(ARCHITECTURES["tfeat"])
        with torch.inference_mode():
            found = make_descriptor("tfeat", tmp_path / "tfeat.safetensors").network.eval()(patches)
            torch.testing.assert_close(found, F.normalize(network(patches)))

    @every_architecture
    def test_are_recognised(self, architecture: Architecture) -> None:
        """But those of L2-Net's layers, which are HardNet's."""
        expected = "hardnet" if architecture.name == "l2net" else architecture.name
        assert recognised(built(architecture.name).state_dict()) == expected

    @pytest.mark.parametrize("name", ["tfeat", "matchnet", "deepdesc", "hardnet"])
    def test_under_other_names_and_as_torchs_matrices_are_put_in_their_place(self, name: str) -> None:
        tensors = built(name).state_dict()
        kept = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
        torch7 = {
            f"module.{number}": tensor.flatten(1) if tensor.is_floating_point() and tensor.ndim == 4 else tensor
            for number, tensor in enumerate(kept.values())
        }
        assert recognised(torch7) == name
        found = under_names_of(ARCHITECTURES[name], torch7)
        assert found is not None and found.keys() == kept.keys()
        assert all(torch.equal(found[key], kept[key]) for key in kept)

    def test_of_no_network_are_refused(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.ones(3)}, tmp_path / "any.pth")
        with pytest.raises(HardnetSfmError, match="weights of an unknown network") as raised:
            convert(tmp_path / "any.pth", tmp_path / "out.safetensors")
        assert "tfeat" in raised.value.hint
        with pytest.raises(HardnetSfmError, match=r"any\.pth: not weights of TFeat"):
            convert(tmp_path / "any.pth", tmp_path / "out.safetensors", "tfeat")
        with pytest.raises(UsageError, match="unknown network: tfeet"):
            convert(tmp_path / "any.pth", tmp_path / "out.safetensors", "tfeet")
        assert not (tmp_path / "out.safetensors").exists()

    def test_that_name_another_network_are_not_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        write_weights(path, built("tfeat").state_dict(), {"architecture": "tfeat"})
        with pytest.raises(HardnetSfmError, match="weights of tfeat, not of deepdesc"):
            load_network(path, "deepdesc")
        write_weights(path, built("tfeat").state_dict(), {"architecture": "superpoint"})
        with pytest.raises(HardnetSfmError, match="weights of superpoint, an unknown network"):
            load_network(path)

    def test_command_converts_what_it_is_told(self, tmp_path: Path) -> None:
        torch.save(built("l2net").state_dict(), tmp_path / "a.pth")
        main(["weights", "convert", str(tmp_path / "a.pth"), "--architecture", "l2net"])
        assert read_weights(tmp_path / "a.safetensors").metadata["architecture"] == "l2net"
        with pytest.raises(SystemExit) as exit:
            main(["weights", "show", str(tmp_path / "a.safetensors"), "--architecture", "l2net"])
        assert exit.value.code == 2


def test_listing_all_networks_looks_through_the_installed_packages_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def count(**group: str) -> object:
        searches.append(group)
        return entry_points(**group)

    monkeypatch.setattr("hardnet_sfm.registry.entry_points", count)
    assert dict(ARCHITECTURES.items()) == {name: ARCHITECTURES[name] for name in ARCHITECTURES}
    searches.clear()
    assert len(dict(ARCHITECTURES.items())) > 10
    assert len(searches) == 1
