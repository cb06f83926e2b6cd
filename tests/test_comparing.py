"""Networks that compare patches on the benchmarks: scores are the network's, one pair at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_benchmarks import ROOTSIFT, looks, write_brown, write_hpatches
from test_hpatches import area_by_hand, ranked
from test_measures import fpr95_by_hand
from test_rescore import by_loop, saved, unit
from torch import nn

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.colmap.baseline import ColmapSift
from hardnet_sfm.competitors import Competitor, competitors
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.patch_scores import evaluate_brown, evaluate_hpatches, evaluate_w1bs
from hardnet_sfm.evaluation.patch_streams import PairStream, PatchStream
from hardnet_sfm.evaluation.photo_scores import (
    Comparing,
    Describing,
    DetectedPhoto,
    evaluate_homographies,
    ranked_by_scores,
)
from hardnet_sfm.features.descriptors import make_descriptor
from hardnet_sfm.literature import pair_scoring
from hardnet_sfm.literature.pair_scoring import PairNetwork
from hardnet_sfm.matching.rescore import SHORT_LIST, short_lists
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.resources import Resources
from hardnet_sfm.verbs.match import MatchOptions

Grey = NDArray[np.uint8]
ONE = Resources(device="cpu", workers=1)
# One that looks at both patches at once, one whose sides differ, one whose patches are described before.
NAMES = ("deepcompare-2ch", "deepcompare-pseudo-siam", "matchnet")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_scoring, "fast_type", lambda _: torch.float32)


def row_of(name: str, folder: Path) -> Competitor:
    return competitors((), [str(saved(name, folder))])[0]


def scores_of(network: nn.Module, pairs: Iterable[tuple[Grey, Grey]]) -> NDArray[np.float32]:
    """Of pairs of patches, by OpenCV's resize and the network alone."""
    sides = []
    for side in zip(*pairs, strict=True):
        small = [
            one if one.shape == (64, 64) else cv2.resize(one, (64, 64), interpolation=cv2.INTER_AREA) for one in side
        ]
        sides.append(torch.from_numpy(np.array(small))[:, None].float() / 255)
    with torch.inference_mode():
        return np.concatenate(
            [network(*pair).numpy() for pair in zip(*(side.split(64) for side in sides), strict=True)]
        )


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_scored_in_order_whatever_the_blocks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hardnet_sfm.literature.scorer._BATCH", {"cpu": 5})
    row, patches = row_of(name, tmp_path), looks(9, 2, 65, 0).reshape(-1, 65, 65)
    pairs = np.array([[0, 17], [17, 0], [3, 4], [3, 3], [12, 4], [8, 9], [1, 16]])
    network = row.load().network
    stream = PairStream(row.load(), Resources(device="cpu", workers=2))
    asked: list[int] = []

    def blocks() -> list[Grey]:
        asked.append(1)
        return [patches[:1], patches[1:13], patches[13:13], patches[13:]]

    told: list[int] = []
    found = stream(blocks, pairs, told.append)
    assert sum(told) == len(pairs)
    expected = scores_of(network, [(patches[a], patches[b]) for a, b in pairs])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
    assert np.std(expected) > 0.01
    assert len(asked) == (2 if name == "deepcompare-pseudo-siam" else 1)


def test_brown_is_that_of_a_loop_over_the_pairs(tmp_path: Path) -> None:
    patches, pairs = write_brown(tmp_path / "yosemite", 0, points=8)
    row = row_of("deepcompare-siam", tmp_path)
    network = row.load().network
    table = evaluate_brown(tmp_path, [ROOTSIFT, row], ONE)
    scores = scores_of(network, [(patches[a], patches[b]) for a, b, _ in pairs])
    expected = fpr95_by_hand(-scores, pairs[:, 2].astype(bool))
    (measure,) = table.measures
    assert list(measure.values) == ["rootsift", row.name]
    assert 0 < expected < 1
    assert measure.values[row.name]["yosemite"] == pytest.approx(expected, abs=0.01)
    assert table.facts[row.name]["patch_size"] == 64


@pytest.mark.slow
def test_hpatches_verifies_and_says_that_it_does_no_more(tmp_path: Path) -> None:
    sequences, row = write_hpatches(tmp_path), row_of("deepcompare-pseudo-siam", tmp_path)
    network = row.load().network
    table = evaluate_hpatches(tmp_path, [row, ROOTSIFT], ONE)
    verification, matching, retrieval = table.measures
    assert list(verification.values) == [row.name, "rootsift"]
    assert list(matching.values) == list(retrieval.values) == ["rootsift"]
    assert any(row.name in note and "verification alone" in note for note in table.notes)
    lists = {}
    for kind in ("pos", "neg_intra", "neg_inter"):
        lines = (tmp_path / f"tasks/verif_{kind}_split-full.csv").read_text().splitlines()[1:]
        lists[kind] = [line.split(",") for line in lines]
    for level, start in (("easy", 0), ("hard", 5), ("tough", 10)):
        scores = {}
        for kind, rows in lists.items():
            ends = [((r[0], int(r[1]), int(r[2])), (r[3], int(r[4]), int(r[5]))) for r in rows]
            patches = [[sequences[s][i, t + start if t else 0] for s, t, i in pair] for pair in ends]
            scores[kind] = scores_of(network, [(first, second) for first, second in patches])
        few = [(-value, True) for value in scores["pos"][:10]]
        for kind in ("intra", "inter"):
            labels = ranked([(-value, False) for value in scores[f"neg_{kind}"]] + few)
            found = verification.values[row.name][f"{level} {kind}"]
            assert found == pytest.approx(area_by_hand(labels, 10), abs=0.01)
    alone = evaluate_hpatches(tmp_path, [row], ONE)
    assert [measure.name for measure in alone.measures] == ["verification_ap"]
    (tmp_path / "alone.json").write_text(json.dumps(alone.as_json()))
    assert row.name in hardnet_sfm.write_report(tmp_path / "alone.json").read_text()


def test_nearest_neighbours_need_descriptors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"matchnet would have to compare all N\^2 pairs"):
        evaluate_w1bs(tmp_path, [row_of("matchnet", tmp_path)], ONE)


def test_descriptors_take_the_weights_that_are_theirs(tmp_path: Path) -> None:
    files = {name: str(saved(name, tmp_path)) for name in ("tfeat", "matchnet", "deepcompare-siam")}
    rows = competitors(["rootsift", "tfeat", "matchnet"], list(files.values()))
    expected = [("rootsift", False), ("tfeat", False), ("matchnet", True), ("deepcompare-siam", True)]
    assert [(row.name, row.compares) for row in rows] == expected
    assert [row.descriptor for row in rows] == [row.name for row in rows]
    assert [str(row.weights) for row in rows[1:]] == list(files.values())
    (tmp_path / "other.safetensors").write_bytes(Path(files["tfeat"]).read_bytes())
    both = competitors(["tfeat"], [files["tfeat"], str(tmp_path / "other.safetensors")])
    assert [(row.name, row.descriptor) for row in both] == [("tfeat", "tfeat"), ("other", "tfeat")]
    (without,) = competitors(["tfeat"], [])
    with pytest.raises(HardnetSfmError, match="without trained TFeat weights"):
        without.make()


def test_towers_of_a_network_that_compares_are_a_row_by_distance(tmp_path: Path) -> None:
    path = saved("deepcompare-siam", tmp_path)
    whole, towers = competitors(["deepcompare-siam", "deepcompare-siam-l2"], [str(path)])
    assert (whole.name, whole.compares) == ("deepcompare-siam", True)
    assert (towers.name, towers.compares) == ("deepcompare-siam-l2", False)
    assert whole.folder != towers.folder and towers.weights == whole.weights == path
    network, patches = whole.load().network, torch.rand(4, 1, 64, 64)
    assert isinstance(network, PairNetwork)
    with torch.inference_mode():
        expected = nn.functional.normalize(network.describe(patches))
        assert torch.equal(towers.make().network(patches), expected)
        assert torch.equal(towers.load().network(patches), expected)
    assert competitors(["deepcompare-siam-l2"], [str(path)]) == [towers]


def test_ranked_are_the_best_of_both_by_the_odds_of_the_next_best() -> None:
    candidates = short_lists(unit(30, 1), unit(25, 2), 4).numpy()
    scores = np.random.default_rng(0).normal(0, 3, len(candidates)).astype(np.float32)
    found = ranked_by_scores(candidates, scores, (30, 25))
    expected = by_loop(candidates, scores, -100, 1.0)
    assert [tuple(pair) for pair in found.pairs.tolist()] == [(i, expected[i][0]) for i in sorted(expected)]
    for (i, j), ratio in zip(found.pairs.tolist(), found.ratios, strict=True):
        of_i = {int(m): float(s) for (k, m), s in zip(candidates, scores, strict=True) if k == i}
        rivals = [value for m, value in of_i.items() if m != j]
        assert ratio == pytest.approx(np.exp(max(rivals) - of_i[j]) if rivals else 0, rel=1e-5)


def test_photos_are_matched_by_scores_of_hardnets_neighbours(tmp_path: Path) -> None:
    """Two photos of noise, the second a shifted one."""
    grey = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (140, 160), np.uint8), (0, 0), 2)
    grey = cv2.normalize(grey, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)  # type: ignore[call-overload]
    detect = ColmapSift(40)
    photos = [DetectedPhoto(photo, detect(photo)) for photo in (grey, np.roll(grey, 7, 1))]
    row, hardnet = row_of("deepcompare-pseudo-siam", tmp_path), make_descriptor("hardnet", None)
    base, network = Describing(PatchStream(hardnet, ONE), hardnet), row.load().network
    (found,) = Comparing(base, PairStream(row.load(), ONE))(photos)
    described = [torch.from_numpy(rows.astype(np.float32)) for rows in base.describe(photos)]
    candidates = short_lists(*described, 5).numpy()
    cut = [extract_patches(one.grey, one.features.xy, one.features.frames, 64, 14) for one in photos]
    scores = scores_of(network, [(cut[0][i], cut[1][j]) for i, j in candidates])
    expected = ranked_by_scores(candidates, scores, (len(cut[0]), len(cut[1])))
    assert len(expected.pairs) > 10
    assert found.pairs.tolist() == expected.pairs.tolist()
    np.testing.assert_allclose(found.ratios, expected.ratios, rtol=5e-3, atol=1e-5)


def test_evaluate_homography_has_a_column_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sequence = tmp_path / "sequences" / "wall"
    sequence.mkdir(parents=True)
    for number in range(1, 7):
        cv2.imwrite(str(sequence / f"{number}.png"), np.full((60, 80), 100, np.uint8))
        if number > 1:
            (sequence / f"H_1_{number}").write_text("1 0 0\n0 1 0\n0 0 1\n")
    path = saved("deepcompare-2ch", tmp_path)
    table = evaluate_homographies(tmp_path / "sequences", competitors((), [str(path)]), ONE)
    assert table.measures[2].values["deepcompare-2ch"] == {"wall": 0.0, "mean": 0.0}  # flat photos: nothing to match
    main(["evaluate", "homography", str(tmp_path / "sequences"), "--descriptor", "--weights", str(path)])
    assert "deepcompare-2ch" in capsys.readouterr().out


def test_short_lists_are_as_long_as_those_of_match() -> None:
    assert MatchOptions.short_list == SHORT_LIST
