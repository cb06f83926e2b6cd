"""Mutual nearest neighbours against a brute force over all pairs, and against COLMAP's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardnet_sfm.colmap.log import native_log
from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
from hardnet_sfm.features.detectors import DetectorOptions, make_detector
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.keypoints import Matches
from hardnet_sfm.matching import nearest
from hardnet_sfm.matching.nearest import Acceptance, mutual_nearest_neighbours, prepare, rounded_product, rounding_for
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.scene import Scene

Float16 = NDArray[np.float16]
Float64 = NDArray[np.float64]

SIZES = (0, 1, 2, 63, 64, 65, 127, 128, 129, 130)
# Every CPU multiplies float16, if slowly, so that CUDA's path is tested too.
TYPES = {"int8": torch.int8, "float16": torch.float16, "float32": torch.float32}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=sorted(TYPES), autouse=True)
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs as on a CPU with fast int8 products, as on one without, and as on CUDA."""
    if request.param == "int8" and nearest._product_type("cpu") != torch.int8:
        pytest.skip("this CPU has no VNNI: its sums of int8 products overflow")
    monkeypatch.setattr(nearest, "_product_type", lambda _: TYPES[request.param])
    return str(request.param)


@pytest.fixture(scope="module")
def photos(small_scene: tuple[Path, Scene]) -> list[Float16]:
    """RootSIFT of four photos."""
    folder, scene = small_scene
    detect = make_detector("opencv-dog", DetectorOptions(1500, 0.02 / 3, 10, upright=False, affine_shape=False))
    describe = PatchDescriber(make_descriptor("rootsift", None), "cpu")
    described = []
    for name in (*scene.names[:3], scene.names[5]):
        grey = read_photo(folder / name).grey
        found = detect(grey)
        patches = extract_patches(grey, found.xy, found.frames(), 32, 15)
        described.append(np.concatenate([describe(patches[at : at + 128]) for at in range(0, len(patches), 128)]))
    return described


@dataclass(frozen=True)
class BruteForce:
    """The answer by definition, from all similarities in float64.

    Attributes:
        certain: pairs that are right whatever the last digits are.
        possible: pairs that are right for some rounding of the last digits, float32's; they contain the certain ones.
        cosine: (N0, N1).
    """

    certain: frozenset[tuple[int, int]]
    possible: frozenset[tuple[int, int]]
    cosine: Float64


def brute_force(first: Float16, second: Float16, accept: Acceptance) -> BruteForce:
    cosine = first.astype(np.float64) @ second.astype(np.float64).T
    if not cosine.size:
        return BruteForce(frozenset(), frozenset(), cosine)
    forth, back = _believed(cosine, accept), _believed(cosine.T, accept)
    certain, possible = (
        frozenset(map(tuple, np.argwhere(rows & columns.T).tolist())) for rows, columns in zip(forth, back, strict=True)
    )
    return BruteForce(certain, possible, cosine)


def _believed(cosine: Float64, accept: Acceptance) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where each row's nearest neighbour certainly is and passes the tests, and where it possibly is and does."""
    unsure = 3e-7  # of a sum of 128 products in float32
    ordered = np.partition(cosine, range(-min(2, cosine.shape[1]), 0), axis=1)
    best = ordered[:, -1:]
    # A lone neighbour is held against one as far away as can be.
    following = ordered[:, -2:-1] if cosine.shape[1] > 1 else np.full_like(best, -1)

    def passes(best: Float64, following: Float64) -> NDArray[np.bool_]:
        near, next_nearest = (np.sqrt(np.maximum(0, 2 - 2 * similarity)) for similarity in (best, following))
        return (near <= accept.max_distance) & ((accept.max_ratio >= 1) | (near < accept.max_ratio * next_nearest))

    certain = (cosine == best) & (best - following > unsure) & passes(best - unsure, following + unsure)
    return certain, (best - cosine <= unsure) & passes(best + unsure, following - unsure)


def match(first: Float16, second: Float16, accept: Acceptance) -> Matches:
    rounding = rounding_for(first, "cpu")
    return mutual_nearest_neighbours(prepare(first, rounding), prepare(second, rounding), accept)


def assert_same(found: Matches, expected: BruteForce) -> None:
    pairs = {*map(tuple, found.pairs.tolist())}
    assert expected.certain <= pairs <= expected.possible
    assert len(found) == len(pairs)
    cosines = expected.cosine[found.pairs[:, 0], found.pairs[:, 1]]
    np.testing.assert_allclose(found.scores, ((1 + cosines) / 2).clip(0, 1), atol=1e-6)
    assert (found.pairs.dtype, found.scores.dtype) == (np.int32, np.float32)


def unit(vectors: Float64) -> Float16:
    """As they are stored."""
    return np.float16(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def random_pair(count0: int, count1: int, seed: int, *, signed: bool, noise: float) -> tuple[Float16, Float16]:
    """Descriptors of which about half have a noisy counterpart in the other photo, in another order."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(count0, 128)), rng.normal(size=(count1, 128))
    if not signed:
        first, second = np.abs(first), np.abs(second)
    both = min(count0, count1) // 2
    second[rng.permutation(count1)[:both]] = first[:both] + noise * rng.normal(size=(both, 128))
    return unit(first), unit(second if signed else np.abs(second))


def clustered_pair(count0: int, count1: int, seed: int) -> tuple[Float16, Float16]:
    """Descriptors in a few tight clusters, so that many neighbours are nearer together than bfloat16 can tell."""
    rng = np.random.default_rng(seed)
    centres = np.abs(rng.normal(size=(7, 128)))
    first, second = (
        centres[rng.integers(0, 7, count)] + rng.choice([0.05, 0.3, 0.6], (count, 1)) * rng.normal(size=(count, 128))
        for count in (count0, count1)
    )
    return unit(first), unit(second)


ACCEPTANCES = st.builds(Acceptance, st.sampled_from([0.6, 0.8, 0.95, 1.0]), st.sampled_from([0.5, 0.7, 2.0]))
checked = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@checked
@given(
    st.sampled_from(SIZES),
    st.sampled_from(SIZES),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from([0.05, 0.3, 0.7]),
    ACCEPTANCES,
)
def test_random_descriptors(
    count0: int, count1: int, seed: int, signed: bool, noise: float, accept: Acceptance
) -> None:
    first, second = random_pair(count0, count1, seed, signed=signed, noise=noise)
    assert_same(match(first, second, accept), brute_force(first, second, accept))


@checked
@given(st.sampled_from(SIZES), st.sampled_from(SIZES), st.integers(0, 1000), ACCEPTANCES)
def test_near_ties(count0: int, count1: int, seed: int, accept: Acceptance) -> None:
    first, second = clustered_pair(count0, count1, seed)
    assert_same(match(first, second, accept), brute_force(first, second, accept))


@pytest.mark.parametrize("accept", [Acceptance(0.8, 2), Acceptance(0.95, 0.7), Acceptance(1, 2)], ids=str)
def test_more_descriptors_than_fit_a_block(accept: Acceptance) -> None:
    for first, second in (
        random_pair(1500, 1000, 5, signed=True, noise=0.4),
        random_pair(1000, 1500, 6, signed=False, noise=0.4),
        clustered_pair(1100, 1300, 7),
    ):
        assert_same(match(first, second, accept), brute_force(first, second, accept))


@pytest.mark.parametrize("accept", [Acceptance(0.8, 2), Acceptance(1, 2)], ids=str)
def test_a_repeated_texture(accept: Acceptance) -> None:
    """All descriptors are nearly alike, so that the fast product rules out none; a few have a clear counterpart."""
    rng = np.random.default_rng(10)
    texture = np.abs(rng.normal(size=128))
    first, second = (texture + 0.05 * rng.normal(size=(count, 128)) for count in (1200, 1400))
    second[100:160] = first[700:760] + 0.01 * rng.normal(size=(60, 128))
    expected = brute_force(unit(first), unit(second), accept)
    assert len(expected.certain) >= 60
    assert_same(match(unit(first), unit(second), accept), expected)


@pytest.mark.parametrize("accept", [Acceptance(), Acceptance(0.95, 0.7), Acceptance(1, 2)], ids=str)
def test_photos(photos: list[Float16], accept: Acceptance) -> None:
    for first, second in ((photos[0], photos[1]), (photos[3], photos[0])):
        expected = brute_force(first, second, accept)
        assert len(expected.certain) > 150
        assert len(expected.possible) <= len(expected.certain) + 2
        assert_same(match(first, second, accept), expected)


@pytest.mark.parametrize("count", [90, 128])
def test_descriptors_that_are_all_unlike_each_other(count: int) -> None:
    """No similarity is positive: zeros of the padding, where there is any, look nearer than every neighbour."""
    rng = np.random.default_rng(3)
    first = unit(np.abs(rng.normal(size=(128, 128))))
    second = unit(-np.abs(rng.normal(size=(count, 128))))
    for accept in (Acceptance(1, 2), Acceptance(0.999, 2), Acceptance(0.8, 2), Acceptance(1, 1.75), Acceptance(1, 0.7)):
        assert_same(match(first, second, accept), brute_force(first, second, accept))
    assert len(match(first, second, Acceptance(1, 2))) > len(match(first, second, Acceptance(1, 1.75))) > 3


def test_one_of_equal_descriptors_wins_where_every_ratio_is_accepted() -> None:
    """With any other ratio none does."""
    vectors = unit(np.random.default_rng(4).normal(size=(3, 128)))
    order = [2, 0, 1, 1, 2, 0]
    found = match(vectors, np.concatenate([vectors, vectors])[order], Acceptance(1, 2)).pairs
    assert found[:, 0].tolist() == [0, 1, 2] == [order[number] for number in found[:, 1]]
    assert len(match(vectors, np.concatenate([vectors, vectors]), Acceptance(0.99, 2))) == 0


def test_a_photo_against_itself(photos: list[Float16]) -> None:
    own = photos[0][:700]
    found = match(own, own, Acceptance(0.8, 0.1))
    np.testing.assert_array_equal(found.pairs[:, 0], found.pairs[:, 1])
    assert_same(found, brute_force(own, own, Acceptance(0.8, 0.1)))
    assert len(found) > 650
    assert found.scores.max() <= 1  # though float16 may have made a vector longer than 1


def test_the_order_of_the_photos_does_not_matter(photos: list[Float16]) -> None:
    forth, back = match(photos[0], photos[2], Acceptance()), match(photos[2], photos[0], Acceptance())
    assert {(i, j) for i, j in forth.pairs.tolist()} == {(i, j) for j, i in back.pairs.tolist()}
    assert np.all(np.diff(forth.pairs[:, 0]) > 0), "rows come in order"


def test_agrees_with_colmaps_exact_matcher(photos: list[Float16]) -> None:
    """Not in all pairs: COLMAP compares bytes (512 to the unit) and takes the ratio of angles, not of chords."""
    options = pycolmap.FeatureMatchingOptions(use_gpu=False)
    options.sift.max_ratio, options.sift.max_distance, options.sift.cpu_brute_force_matcher = 0.8, 0.7, True
    with native_log(None):
        matcher = pycolmap.FeatureMatcher.create(options)
    no_keypoints = pycolmap.FeatureKeypoints()
    colmaps = [
        pycolmap.FeatureDescriptors(
            pycolmap.FeatureExtractorType.SIFT, np.rint(np.float32(described) * 512).clip(0, 255).astype(np.uint8)
        )
        for described in photos
    ]
    for first, second in ((0, 1), (1, 2)):
        rows = matcher.match(no_keypoints, colmaps[first], no_keypoints, colmaps[second])
        theirs = {*map(tuple, np.asarray(rows).tolist())}
        ours = {*map(tuple, match(photos[first], photos[second], Acceptance(0.8, 0.7)).pairs.tolist())}
        assert len(theirs) > 400
        assert len(ours & theirs) / len(ours | theirs) > 0.98  # measured: 0.99 to 0.998


class TestErrorOfTheFastProduct:
    """The product in low precision may miss the true one by no more than the bound that the matcher relies on.

    Rounding to float16 errs most just above a power of two: by half a step, 2**-11 of the value, for both factors
    together twice, and once more for the result.
    """

    DOWN, UP = 1 + 2.0**-11, 1 + 3 * 2.0**-11  # both lie half way between two numbers of float16

    def test_random_vectors_keep_within_the_bound(self, fast: str, photos: list[Float16]) -> None:
        signed = random_pair(500, 500, 8, signed=True, noise=0.01)
        for first, second in (signed, clustered_pair(500, 500, 9), (photos[0][:500], photos[1][:500])):
            self.check_bound(fast, first, second, first)

    def test_vectors_unlike_those_the_rounding_was_made_for_keep_within_the_bound(self, fast: str) -> None:
        """They are cut off, in their elements and in their product with the centre."""
        first, second = random_pair(300, 300, 11, signed=True, noise=0.1)
        for sample in (np.abs(first), unit(1 + 0.01 * np.float64(first)), -np.abs(second)[:1], first[:0]):
            self.check_bound(fast, first, second, sample)
            self.check_bound(fast, first, np.eye(300, 128, dtype=np.float16), sample)

    @pytest.mark.parametrize("value", [DOWN, UP])
    def test_the_worst_vectors_keep_within_the_bound(self, fast: str, value: float) -> None:
        vector = np.zeros((1, 128))
        vector[0, :62] = 0.125 * value
        vector[0, 127] = np.sqrt(1 - (vector**2).sum())
        self.check_bound(fast, np.float16(vector), np.float16(vector), np.eye(2, 128, dtype=np.float16))

    def test_a_pair_is_not_lost_to_rounding(self, fast: str) -> None:
        """The nearest neighbour seems farther than it is, so that the ratio test seems to fail, which it does not."""
        step = 1 / 500  # of int8, where nothing is known of the descriptors
        query, best, other = np.zeros((3, 128))
        query[:100] = best[:100] = 45.4 * step
        other[:99] = 45.6 * step
        for number, vector in enumerate((query, best, other)):
            vector[110 + number] = np.sqrt(max(0, 1 - vector @ vector))
        first, second = np.float16([query]), np.float16([best, *np.eye(128)[60:124], other])
        rounding = rounding_for(first[:0], "cpu")
        prepared = prepare(first, rounding), prepare(second, rounding)
        accept = Acceptance(0.995, 2)
        expected = brute_force(first, second, accept)
        assert expected.certain == expected.possible == {(0, 0)}
        if fast == "int8":
            seeming = rounded_product(prepared[0].rounded, prepared[1].columns)[0, : len(second)]
            assert seeming.argmax() == len(second) - 1
        assert_same(mutual_nearest_neighbours(*prepared, accept), expected)

    @staticmethod
    def check_bound(fast: str, first: Float16, second: Float16, sample: Float16) -> None:
        rounding = rounding_for(sample, "cpu")
        one, other = prepare(first, rounding), prepare(second, rounding)
        assert one.rounded.dtype == TYPES[fast]
        product = rounded_product(one.rounded, other.columns)[:, : len(other)].double()
        computed = (product / rounding.scale**2 + one.offsets[:, None]).numpy()
        errors = np.abs(computed - first.astype(np.float64) @ second.astype(np.float64).T).max(1)
        assert np.all(errors < nearest._error_bound(one, other).numpy())


def test_prepared_descriptors_are_padded_with_zeros_to_whole_groups(fast: str) -> None:
    for count, columns in ((0, 0), (1, 64), (128, 128), (129, 192)):
        vectors = unit(np.random.default_rng(count).normal(size=(count, 128))) if count else np.zeros((0, 128), "f2")
        prepared = prepare(vectors, rounding_for(vectors, "cpu"))
        assert len(prepared) == count
        assert prepared.rounded.dtype == TYPES[fast]
        np.testing.assert_array_equal(prepared.exact.numpy(), vectors.astype(np.float32))
        assert prepared.columns.shape == (133 if fast == "int8" else 128, columns)
        assert torch.equal(prepared.columns[:128, :count], prepared.rounded[:, :128].T)
        assert not prepared.columns[:, count:].any()
