"""Short lists and what a network's scores make of them, against loops; and re-scoring as a user runs it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.stores import FeatureStore, MatchStore
from hardnet_sfm.files.weight_files import write_weights
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.literature import pair_scoring
from hardnet_sfm.literature.pair_scoring import PairNetwork
from hardnet_sfm.matching import rescore as rescore_module
from hardnet_sfm.matching.rescore import Rescorer, Rules, best_of_both, short_lists
from hardnet_sfm.networks.architectures import ARCHITECTURES, LoadedNetwork
from hardnet_sfm.networks.loading import load_network
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.photos import resize_to_fit
from hardnet_sfm.resources import Resources
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.verbs.match import MatchOptions, match

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Resources(device="cpu", workers=1)
PAIR = ("a.png", "b.png")


def unit(count: int, seed: int) -> Tensor:
    rows = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize(
    ("counts", "k", "far"),
    [((40, 30), 3, 2.0), ((40, 30), 3, 0.6), ((5, 2), 3, 2.0), ((0, 4), 2, 2.0), ((4, 0), 2, 2.0)],
)
def test_short_lists_are_those_of_a_loop(
    counts: tuple[int, int], k: int, far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescore_module, "_VALUES", 100)  # several blocks
    first, second = unit(counts[0], 1), unit(counts[1], 2)
    distances = torch.cdist(first, second).numpy()
    expected = set()
    for i in range(counts[0]):
        expected |= {(i, int(j)) for j in np.argsort(distances[i])[:k] if distances[i, j] <= far}
    for j in range(counts[1]):
        expected |= {(int(i), j) for i in np.argsort(distances[:, j])[:k] if distances[i, j] <= far}
    assert short_lists(first, second, k, far).tolist() == sorted(map(list, expected))


def by_loop(
    candidates: NDArray[np.int64], scores: NDArray[np.float32], min_score: float, max_ratio: float
) -> dict[int, tuple[int, float]]:
    """Matches and their probabilities by row of the first photo."""
    found = {}
    for (i, j), score in zip(candidates.tolist(), scores.tolist(), strict=True):
        rivals = [
            other for (k, m), other in zip(candidates.tolist(), scores.tolist(), strict=True) if (k == i) != (m == j)
        ]
        # Of either keypoint the next best: the worst case of both decides.
        if score >= min_score and all(
            score > other and math.exp(other) <= max_ratio * math.exp(score) for other in rivals
        ):
            found[i] = (j, 1 / (1 + math.exp(-score)))
    return found


@pytest.mark.parametrize("min_score", [-10.0, 0.0, 0.5])
@pytest.mark.parametrize("max_ratio", [1.0, 0.8, 0.3])
def test_accepted_are_the_best_of_both_that_stand_out(min_score: float, max_ratio: float) -> None:
    candidates = short_lists(unit(30, 1), unit(25, 2), 4).numpy()
    scores = np.random.default_rng(0).normal(0, 3, len(candidates)).astype(np.float32)
    found = best_of_both(candidates, scores, (30, 25), min_score, max_ratio)
    expected = by_loop(candidates, scores, min_score, max_ratio)
    assert len(expected) > 1
    assert {int(i): int(j) for i, j in found.pairs} == {i: j for i, (j, _) in expected.items()}
    assert found.pairs[:, 0].tolist() == sorted(expected)
    np.testing.assert_allclose(found.scores, [expected[i][1] for i in sorted(expected)], rtol=1e-6)


def test_hand_computed_matches() -> None:
    """Keypoint 0 has two candidates of nearly the same odds, 1 has one, and 2's best likes 1 better."""
    candidates = np.array([[0, 0], [0, 1], [1, 2], [2, 2], [3, 3]])
    scores = np.array([2.0, 1.9, 3.0, 1.0, -0.1], np.float32)
    everything = best_of_both(candidates, scores, (4, 4), -1, 1.0)
    assert everything.pairs.tolist() == [[0, 0], [1, 2], [3, 3]]
    assert everything.scores == pytest.approx([0.8808, 0.9526, 0.4750], abs=1e-4)
    # exp(1.9 - 2.0) = 0.905 is above 0.8, exp(1 - 3) = 0.135 is not; -0.1 is below even odds.
    assert best_of_both(candidates, scores, (4, 4), 0, 0.8).pairs.tolist() == [[1, 2]]
    assert best_of_both(candidates, scores, (4, 4), 0, 0.91).pairs.tolist() == [[0, 0], [1, 2]]


def test_equal_scores_match_the_same_way_every_time() -> None:
    candidates = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    found = best_of_both(candidates, np.ones(4, np.float32), (2, 2), 0, 1.0)
    assert found.pairs.tolist() == [[0, 0]]
    assert not len(best_of_both(candidates, np.ones(4, np.float32), (2, 2), 0, 0.99))
    assert not len(best_of_both(candidates[:0], np.ones(0, np.float32), (2, 2), 0, 1.0))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos of blobs, the second a shifted, darker, noisier one, their features and their pair."""
    root = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(5)
    blobs = np.zeros((260, 300), np.float32)
    for x, y, radius, value in zip(*rng.uniform([20, 20, 2, 80], [280, 240, 7, 255], (60, 4)).T, strict=True):
        cv2.circle(blobs, (int(x), int(y)), int(radius), float(value), -1)
    blobs = cv2.GaussianBlur(blobs, (0, 0), 1.2)
    (root / "images").mkdir()
    for name, shift, gain in zip(PAIR, (0, 9), (1.0, 0.8), strict=True):
        photo = np.roll(blobs, shift, 1) * gain + rng.normal(0, 2, blobs.shape)
        cv2.imwrite(str(root / "images" / name), np.uint8(photo.clip(0, 255)))
    options = ExtractOptions(descriptor="rootsift", max_keypoints=60, max_image_size=250)
    extract(root / "images", root / "features.h5", options, CPU)
    (root / "pairs.txt").write_text(" ".join(PAIR) + "\n")
    return root


def saved(name: str, folder: Path, seed: int = 0) -> Path:
    """A network that sees differences: drawn by chance, its scores spread."""
    torch.manual_seed(seed)
    network = ARCHITECTURES[name].build()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(layer.weight, 2**0.5)
    path = folder / f"{name}.safetensors"
    write_weights(path, network.state_dict(), {**ARCHITECTURES[name].metadata(), "measurement_size": "14"})
    return path


def shrunk(place: Path, store: FeatureStore, name: str) -> tuple[NDArray[np.uint8], Keypoints]:
    grey = resize_to_fit(read_photo(place / "images" / name).grey, 250)
    return grey, store.keypoints(name).resized((300, 260), (grey.shape[1], grey.shape[0]))


def patches_of(place: Path, store: FeatureStore, name: str) -> Tensor:
    grey, keypoints = shrunk(place, store, name)
    cut = extract_patches(grey, keypoints.xy, keypoints.frames(), 64, 14)
    return torch.from_numpy(cut)[:, None].float() / 255


@pytest.mark.parametrize("name", [name for name, of in ARCHITECTURES.items() if of.metric != "l2"])
def test_scores_are_the_networks_of_the_patches_of_each_candidate(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []

    def watched(candidates: NDArray[np.int64], scores: NDArray[np.float32], *rest: object) -> object:
        seen.append((candidates, scores))
        return best_of_both(candidates, scores, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rescore_module, "best_of_both", watched)
    loaded = load_network(saved(name, tmp_path))
    network = loaded.network
    assert isinstance(network, PairNetwork)
    with FeatureStore(place / "features.h5") as store:
        photos = store.descriptors, lambda name: shrunk(place, store, name)
        Rescorer(*photos, loaded, Rules(short_list=1))(PAIR)
        monkeypatch.setattr(pair_scoring, "fast_type", lambda _: torch.float32)
        Rescorer(*photos, loaded, Rules(short_list=1))(PAIR)
        (_, fast), (candidates, scores) = seen
        descriptors = [torch.from_numpy(store.descriptors(of).copy()).float() for of in PAIR]
        patches = [patches_of(place, store, of) for of in PAIR]
    assert candidates.tolist() == short_lists(*descriptors, 1).tolist()
    with torch.inference_mode():
        for row in range(0, len(candidates), 7):
            i, j = candidates[row]
            expected = network(patches[0][i : i + 1], patches[1][j : j + 1]).item()
            assert scores[row] == pytest.approx(expected, abs=2e-4, rel=1e-3)
    assert scores.std() > 0.01
    # Layers in bfloat16 round to one part in 256, each.
    np.testing.assert_allclose(fast, scores, rtol=0.02, atol=0.05)


def matched(
    place: Path, options: MatchOptions, output: Path, resources: Resources = CPU
) -> tuple[list[list[int]], int]:
    """The matches of the pair, and how many pairs were computed."""
    report = match(place / "features.h5", place / "pairs.txt", output, options, resources, images=place / "images")
    with MatchStore(output) as store:
        return store.matches(*PAIR).pairs.tolist(), report.computed


class TestMatch:
    def test_continues_and_starts_anew_where_options_or_weights_change(self, place: Path, tmp_path: Path) -> None:
        options = MatchOptions(rescore=saved("deepcompare-siam", tmp_path), max_ratio=1, min_score=-1e9, short_list=2)
        output = tmp_path / "matches.h5"
        pairs, computed = matched(place, options, output)
        assert computed == 1 and pairs
        assert matched(place, options, output) == (pairs, 0)
        assert matched(place, replace(options, short_list=3), output)[1] == 1
        assert matched(place, options, output, Resources(device="cpu", workers=3))[0] == pairs
        saved("deepcompare-siam", tmp_path, seed=1)
        assert matched(place, options, output)[1] == 1
        assert matched(place, MatchOptions(), output)[1] == 1
        with MatchStore(output) as store:  # as it was before there was re-scoring, so that old stores are not made anew
            assert store.header["options"] == {"max_ratio": 0.9, "max_distance": 2.0}

    def test_the_ratio_of_odds_is_none_that_a_descriptor_recommends(self, place: Path, tmp_path: Path) -> None:
        options, output = MatchOptions(rescore=saved("deepcompare-siam", tmp_path)), tmp_path / "matches.h5"
        with FeatureStore(place / "features.h5") as features:
            assert features.max_ratio() == 0.9
        matched(place, options, output)
        with MatchStore(output) as store:
            assert store.header["options"]["max_ratio"] == 0.8

    def test_finds_the_photos_where_features_were_extracted_from(self, place: Path, tmp_path: Path) -> None:
        options = MatchOptions(rescore=saved("deepcompare-siam", tmp_path), max_ratio=1, min_score=-1e9, short_list=1)
        report = match(place / "features.h5", place / "pairs.txt", tmp_path / "matches.h5", options, CPU)
        assert report.matches > 0

    def test_another_photo_of_the_same_name_is_refused(self, place: Path, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        for name in PAIR:
            cv2.imwrite(str(tmp_path / "images" / name), np.zeros((260, 300), np.uint8))
        options, output = MatchOptions(rescore=saved("deepcompare-siam", tmp_path)), tmp_path / "matches.h5"
        with pytest.raises(HardnetSfmError, match=r"a\.png: not the photo that features were extracted from"):
            match(place / "features.h5", place / "pairs.txt", output, options, CPU, images=tmp_path / "images")
        with pytest.raises(HardnetSfmError, match="no folder of photos") as raised:
            match(place / "features.h5", place / "pairs.txt", output, options, CPU, images=tmp_path / "gone")
        assert "--images" in raised.value.hint

    def test_a_descriptor_does_not_score_pairs(self, place: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="TFeat describes patches and cannot compare them") as raised:
            matched(place, MatchOptions(rescore=saved("tfeat", tmp_path)), tmp_path / "matches.h5")
        assert "--descriptor tfeat" in raised.value.hint

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (MatchOptions(short_list=3), "--short-list has no effect without --rescore"),
            (MatchOptions(min_score=1), "--min-score has no effect without --rescore"),
            (MatchOptions(rescore=Path("a"), short_list=0), "--short-list must be at least 1"),
            (MatchOptions(rescore=Path("a"), min_score=math.nan), "--min-score a number"),
        ],
    )
    def test_options_that_make_no_sense_are_refused(self, options: MatchOptions, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            options.check()

    def test_command_says_what_it_costs(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        with pytest.raises(SystemExit):
            main(["match", "--help"])
        assert "10 for each keypoint" in " ".join(capsys.readouterr().out.replace("│", " ").split())
        with pytest.raises(SystemExit) as exit:
            main(["match", "--workspace", str(tmp_path), "--images", str(tmp_path)])
        assert exit.value.code == 2
        assert "--images has no effect without --rescore" in capsys.readouterr().err


class Sameness(PairNetwork):
    """Scores pairs by how alike their patches are."""

    def describe(self, patches: Tensor, side: int = 0) -> Tensor:  # noqa: ARG002
        centred = (patches - patches.mean((1, 2, 3), keepdim=True)).flatten(1)
        return nn.functional.normalize(centred, dim=1)

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        return 20 * ((first * second).sum(1) - 0.8)


def test_a_network_that_sees_which_patches_are_alike_finds_the_shift(place: Path) -> None:
    """Blobs look alike; of the matches of correlation nearly all are of the same blob, nine pixels to the right."""
    loaded = LoadedNetwork(Sameness(), ARCHITECTURES["matchnet"], 30.0, "")
    with FeatureStore(place / "features.h5") as store:
        photos = store.descriptors, lambda name: shrunk(place, store, name)
        found = Rescorer(*photos, loaded, Rules())(PAIR)
        xy = [store.keypoints(name).xy[found.pairs[:, side]] for side, name in enumerate(PAIR)]
    assert len(found) > 10
    right = np.linalg.norm(xy[1] - xy[0] - [9, 0], axis=1) < 2
    assert right.mean() > 0.9
