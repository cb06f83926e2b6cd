"""RootSIFT against a loop over pixels written from the papers, and against COLMAP's own."""

from __future__ import annotations

import math
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from numpy.typing import NDArray

from hardnet_sfm.errors import UsageError
from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.networks.rootsift import RootSift
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.scene import Scene

Grey = NDArray[np.uint8]
Float64 = NDArray[np.float64]


@pytest.fixture(scope="module")
def photo(small_scene: tuple[Path, Scene]) -> Grey:
    folder, scene = small_scene
    return read_photo(folder / scene.names[3]).grey


@pytest.fixture(scope="module")
def cut(photo: Grey) -> Grey:
    """200 patches of 15 sigmas at random places, scales and angles."""
    rng = np.random.default_rng(0)
    angle, scale = rng.uniform(0, 2 * np.pi, 200), rng.uniform(1, 6, 200)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    frames = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2).astype(np.float32)
    return extract_patches(photo, rng.uniform((0, 0), (480, 360), (200, 2)).astype(np.float32), frames, 32, 15)


def describe(patches: Grey | Float64, measurement_size: float = 15) -> Float64:
    """(N, 4, 4, 8): rows, columns, orientations."""
    with torch.inference_mode():
        network = RootSift(patches.shape[-1], measurement_size)
        return network(torch.from_numpy(np.float32(patches))[:, None] / 255).double().numpy().reshape(-1, 4, 4, 8)


def by_hand(patch: Float64, measurement_size: float) -> Float64:
    """Lowe 2004, section 6, pixel by pixel, then the root of Arandjelovic and Zisserman 2012, section 2."""
    size = len(patch)
    sigma = 0.6 * size / measurement_size  # pixels
    reach = range(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1)
    weights = {(i, j): math.exp(-(i * i + j * j) / (2 * sigma**2)) for i, j in product(reach, reach)}
    total = sum(weights.values())

    def smooth(row: int, column: int) -> float:
        """Beyond its border a patch goes on as it ends there."""
        last = size - 1
        read = (w * patch[min(max(row + i, 0), last), min(max(column + j, 0), last)] for (i, j), w in weights.items())
        return sum(read) / total

    blurred = {(i, j): smooth(i, j) for i, j in product(range(-1, size + 1), repeat=2)}
    histogram = np.zeros((4, 4, 8))
    for row, column in product(range(size), repeat=2):
        dx = blurred[row, column + 1] - blurred[row, column - 1]
        dy = blurred[row + 1, column] - blurred[row - 1, column]
        # In bins of 3 sigmas from the centre of the patch.
        x, y = (((k + 0.5) / size - 0.5) * measurement_size / 3 for k in (column, row))
        # "A Gaussian weighting function with sigma equal to one half the width of the descriptor window": two bins.
        weight = math.hypot(dx, dy) * math.exp(-(x * x + y * y) / (2 * 2**2))
        orientation = math.atan2(dy, dx) / (2 * math.pi) * 8
        # "Trilinear interpolation": 1 - d for each dimension, d the distance from the bin's centre in bins.
        for r, c, o in product(range(4), range(4), range(8)):
            turn = abs(orientation - o) % 8
            distances = (abs(y + 1.5 - r), abs(x + 1.5 - c), min(turn, 8 - turn))
            histogram[r, c, o] += weight * math.prod(max(0, 1 - d) for d in distances)
    clipped = np.minimum(histogram / np.linalg.norm(histogram), 0.2)
    return np.sqrt(clipped / clipped.sum())


@pytest.mark.parametrize(("size", "measurement_size"), [(32, 15.0), (24, 12.0)])
def test_is_what_the_papers_define(cut: Grey, size: int, measurement_size: float) -> None:
    patches = np.ascontiguousarray(cut[:2, :size, :size])
    expected = [by_hand(patch / 255, measurement_size) for patch in patches]
    np.testing.assert_allclose(describe(patches, measurement_size), expected, atol=1e-4)


def test_strong_bins_are_clipped() -> None:
    """A step edge has one orientation only, so that a few bins would take all."""
    edge = np.zeros((1, 32, 32), np.uint8)
    edge[:, :, 16:] = 200
    found = describe(edge)[0]
    np.testing.assert_allclose(found, by_hand(edge[0] / 255, 15), atol=1e-4)
    squares = found**2  # L1 normalised
    # All clipped bins are equal: those beside the edge, towards +x, bin 0, in the middle rows.
    np.testing.assert_allclose(squares[1:3, 1:3, 0], squares.max(), rtol=1e-5)
    assert np.all(found[:, :, [2, 3, 4, 5, 6]] < 1e-3)


@pytest.mark.parametrize(("angle", "orientation"), [(0, 0), (45, 1), (90, 2), (135, 3), (180, 4), (-90, 6)])
def test_orientations_count_from_x_towards_y_which_is_down(angle: float, orientation: int) -> None:
    rows, columns = np.indices((32, 32)) - 15.5
    ramp = 127 + 3 * (columns * np.cos(np.radians(angle)) + rows * np.sin(np.radians(angle)))
    histogram = describe(ramp[None])[0].sum((0, 1))
    assert histogram.argmax() == orientation
    assert histogram[orientation] > 2 * np.delete(histogram, orientation).max()


def test_the_first_index_is_the_row_the_second_the_column(cut: Grey) -> None:
    """What happens in one corner of the patch shows in the bin of that corner."""
    flat = np.full((1, 32, 32), 100, np.uint8)
    flat[0, 2:8, 24:30] = cut[0, 2:8, 24:30]
    strength = describe(flat)[0].sum(2)
    assert np.unravel_index(strength.argmax(), (4, 4)) == (0, 3)
    assert strength[2:].max() == strength[:, :2].max() == 0


def test_turned_and_mirrored_patches_have_permuted_bins(cut: Grey) -> None:
    found = describe(cut)
    # Anticlockwise by 90 degrees, as people see it: x goes to -y. A gradient's angle loses 90 degrees, two bins.
    turned = np.roll(np.rot90(found, axes=(1, 2)), -2, axis=3)
    np.testing.assert_allclose(describe(np.rot90(cut, axes=(1, 2)).copy()), turned, atol=2e-4)
    mirrored = found[:, :, ::-1, (4 - np.arange(8)) % 8]
    np.testing.assert_allclose(describe(cut[:, :, ::-1].copy()), mirrored, atol=2e-4)


def test_brightness_and_contrast_do_not_matter(cut: Grey) -> None:
    np.testing.assert_allclose(describe(cut * 0.4 + 20), describe(cut * 1.0), atol=1e-4)


def test_descriptors_have_unit_length_and_no_negative_entries(cut: Grey) -> None:
    found = describe(cut).reshape(-1, 128)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert found.min() >= 0


@pytest.mark.parametrize("grey", [0, 255])
def test_a_flat_patch_is_described_as_uniform(grey: int) -> None:
    found = describe(np.full((2, 32, 32), grey, np.uint8))
    np.testing.assert_allclose(found, 1 / math.sqrt(128), rtol=1e-6)


def test_is_colmaps_but_for_the_sense_in_which_orientations_are_counted(photo: Grey) -> None:
    """COLMAP's descriptors at COLMAP's keypoints. It computes gradients in its pyramid, we in a resampled patch.

    Its bins are ours with the orientations counted from +x towards -y: number k is number -k modulo 8 here.
    """
    options = pycolmap.FeatureExtractionOptions(use_gpu=False)
    assert options.sift.normalization == pycolmap.Normalization.L1_ROOT
    keypoints, described = pycolmap.FeatureExtractor.create(options).extract_from_uint8_array(photo)
    theirs = described.data.astype(np.float32).reshape(-1, 4, 4, 8)[..., -np.arange(8) % 8].reshape(-1, 128) / 512
    np.testing.assert_allclose(np.linalg.norm(theirs, axis=1), 1, atol=0.01)

    rows = np.array([(p.x, p.y, p.a11, p.a12, p.a21, p.a22) for p in keypoints], np.float32)
    patches = extract_patches(photo, rows[:, :2] - np.float32(0.5), rows[:, 2:].reshape(-1, 2, 2), 32, 15)
    ours = np.float32(describe(patches).reshape(-1, 128))
    similarity = ours @ theirs.T
    assert len(similarity) > 2000
    own = np.diag(similarity)
    assert own.mean() > 0.97  # measured: 0.983
    assert np.percentile(own, 1) > 0.85
    own_number = np.arange(len(own))
    assert np.mean(similarity.argmax(1) == own_number) > 0.97
    assert np.mean(similarity.argmax(0) == own_number) > 0.97


class TestPatchDescriber:
    def test_describes_as_the_network_does(self, cut: Grey) -> None:
        describer = PatchDescriber(make_descriptor("rootsift", None), "cpu")
        assert (describer.batch, describer.dimension, describer.precision) == (128, 128, "float32")
        found = describer(cut[:128])
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, describe(cut[:128]).reshape(-1, 128), atol=3e-4)

    @pytest.mark.parametrize("cuts", [(0, 1, 2, 128), (0, 64, 128), (0, 3, 100, 127, 128)])
    def test_gives_the_same_bits_for_any_split(self, cut: Grey, cuts: tuple[int, ...]) -> None:
        describer = PatchDescriber(make_descriptor("rootsift", None), "cpu")
        together = describer(cut[:128])
        parts = np.concatenate([describer(cut[start:end]) for start, end in pairwise(cuts)])
        np.testing.assert_array_equal(parts.view(np.uint16), together.view(np.uint16))

    def test_gives_the_same_bits_in_any_company(self, cut: Grey) -> None:
        describer = PatchDescriber(make_descriptor("rootsift", None), "cpu")
        order = np.random.default_rng(1).permutation(128)
        np.testing.assert_array_equal(describer(cut[order]), describer(cut[:128])[order])
        np.testing.assert_array_equal(describer(cut[72:200])[:56], describer(cut[:128])[72:])


def test_weights_make_no_sense_for_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--weights has no effect with --descriptor rootsift"):
        make_descriptor("rootsift", tmp_path / "some.safetensors")
