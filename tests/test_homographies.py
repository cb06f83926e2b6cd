"""Sequences of homographies: their files, the truth and scores against loops, and the whole chain on a known one."""

from __future__ import annotations

import csv
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from clutter import litter
from numpy.typing import NDArray
from PIL import Image

from hardnet_sfm.cli import main
from hardnet_sfm.competitors import Competitor
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.sequences import read_sequences
from hardnet_sfm.evaluation.homographies import (
    MatchingScores,
    RankedMatches,
    accuracy_by_threshold,
    homography_scores,
    matching_scores,
    pair_truth,
)
from hardnet_sfm.evaluation.photo_scores import COLMAP, evaluate_homographies
from hardnet_sfm.evaluation.scores import ScoreTable
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.scene import Scene

Float64 = NDArray[np.float64]

ROOTSIFT = Competitor("rootsift", "rootsift", None, "")
TILT = np.array([[0.9, 0.3, -20.0], [-0.2, 1.1, 30.0], [2e-4, -1e-4, 1.0]])


def text(matrix: Float64) -> str:
    return "".join(" ".join(map(repr, map(float, row))) + " \n" for row in matrix)


def write_sequence(folder: Path, photo: str = "{}.ppm", homography: str = "H_1_{}") -> Float64:
    """Six tiny photos and five homographies of recognisable numbers."""
    folder.mkdir(parents=True)
    for number in range(1, 7):
        Image.new("L", (40, 30), number).save(folder / photo.format(number))
    matrices = np.array([TILT + number * np.eye(3) for number in range(2, 7)])
    for number, matrix in enumerate(matrices, 2):
        (folder / homography.format(number)).write_text(text(matrix), "ascii")
    return matrices


class TestReadSequences:
    @pytest.mark.parametrize(
        ("photo", "homography"),
        [
            ("img{}.ppm", "H1to{}p"),
            ("{}.ppm", "H_1_{}"),
            ("img{}.png", "H_1_{}"),
            ("{}.jpg", "H1to{}p"),
            ("img{}.pgm", "H1to{}p"),
        ],
    )
    def test_of_either_data_set(self, tmp_path: Path, photo: str, homography: str) -> None:
        matrices = write_sequence(tmp_path / "wall", photo, homography)
        (sequence,), _ = read_sequences(tmp_path / "wall")
        assert sequence.name == "wall"
        assert sequence.photos == tuple(tmp_path / "wall" / photo.format(number) for number in range(1, 7))
        np.testing.assert_array_equal(sequence.homographies, matrices)

    def test_of_a_folder_by_name(self, tmp_path: Path) -> None:
        for name in ("v_wall", "i_street"):
            write_sequence(tmp_path / name)
        (tmp_path / ".thumbnails").mkdir()
        (tmp_path / "README").write_text("of HPatches")
        assert [sequence.name for sequence in read_sequences(tmp_path)[0]] == ["i_street", "v_wall"]

    def test_of_a_folder_with_another_in_it(self, tmp_path: Path) -> None:
        write_sequence(tmp_path / "wall")
        (tmp_path / "wall" / "thumbnails").mkdir()
        assert [sequence.name for sequence in read_sequences(tmp_path / "wall")[0]] == ["wall"]

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match="no such folder"):
            read_sequences(tmp_path / "none")

    def test_a_missing_photo_and_an_ambiguous_one(self, tmp_path: Path) -> None:
        write_sequence(tmp_path / "wall")
        (tmp_path / "wall/4.ppm").rename(tmp_path / "wall/4.ppm.part")
        with pytest.raises(HardnetSfmError, match="wall: no photo with number 4") as refused:
            read_sequences(tmp_path / "wall")
        assert "img1 to img6" in refused.value.hint
        for copy in ("4.ppm", "4.png"):
            shutil.copy(tmp_path / "wall/3.ppm", tmp_path / "wall" / copy)
        with pytest.raises(HardnetSfmError, match="wall: several photos with number 4"):
            read_sequences(tmp_path / "wall")

    def test_a_bad_sequence_is_left_out_and_named(self, tmp_path: Path) -> None:
        for name in ("bark", "wall"):
            write_sequence(tmp_path / name)
        litter(tmp_path)
        assert [sequence.name for sequence in read_sequences(tmp_path)[0]] == ["bark", "wall"]
        (tmp_path / "bark/H_1_5").unlink()
        (kept,), left_out = read_sequences(tmp_path)
        assert kept.name == "wall"
        assert list(left_out) == ["bark"]
        assert "bark: no homography H_1_5 or H1to5p" in left_out["bark"].message

    def test_a_missing_homography(self, tmp_path: Path) -> None:
        write_sequence(tmp_path / "wall")
        (tmp_path / "wall/H_1_5").unlink()
        with pytest.raises(HardnetSfmError, match="wall: no homography H_1_5 or H1to5p"):
            read_sequences(tmp_path)

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("1 0 0 0 1 0 0 0", "8 numbers"),
            ("", "0 numbers"),
            ("one 0 0 0 1 0 0 0 1", "could not convert"),
            ("1 0 0 0 1 0 0 0 \xb9", "codec"),
            ("1 0 0 0 1 0 0 0 nan", "cannot be inverted"),
            ("1 2 3 2 4 6 0 0 1", "cannot be inverted"),
        ],
    )
    def test_a_damaged_homography(self, tmp_path: Path, content: str, problem: str) -> None:
        write_sequence(tmp_path / "wall")
        (tmp_path / "wall/H_1_3").write_text(content, "utf-8")
        with pytest.raises(HardnetSfmError, match=rf"H_1_3.*{problem}"):
            read_sequences(tmp_path / "wall")

    def test_real_ones(self, shared_data: Path) -> None:
        """Their homographies take one photo to the other: grey values agree."""
        sequences, _ = read_sequences(shared_data / "homography")
        assert [sequence.name for sequence in sequences] == ["bikes", "boat", "graf", "leuven", "v_churchill"]
        for sequence in (sequences[1], sequences[2], sequences[4]):
            first, second = (read_photo(path).grey for path in sequence.photos[:2])
            size = (second.shape[1], second.shape[0])
            inside = cv2.warpPerspective(np.ones_like(first), sequence.homographies[0], size) > 0
            moved = cv2.warpPerspective(first, sequence.homographies[0], size)
            assert np.corrcoef(moved[inside], second[inside])[0, 1] > 0.8


def taken(homography: Float64, x: float, y: float) -> tuple[float, float]:
    u, v, w = (float(row @ [x, y, 1]) for row in homography)
    return u / w, v / w


def scores_by_hand(
    homography: Float64, first: Float64, second: Float64, pairs: list[tuple[int, int]], ratios: list[float]
) -> tuple[float, float, float]:
    """Accuracy, right matches and average precision, of distinct ratios."""
    places = [taken(homography, *xy) for xy in first]

    def near(place: tuple[float, float], xy: Float64) -> bool:
        return (place[0] - xy[0]) ** 2 + (place[1] - xy[1]) ** 2 <= 9

    findable = sum(any(near(place, xy) for xy in second) for place in places)
    precision, right = 0.0, 0
    for rank, match in enumerate(np.argsort(ratios), 1):
        row, column = pairs[match]
        if near(places[row], second[column]):
            right += 1
            precision += right / rank
    return right / len(pairs), right, precision / findable


@pytest.fixture
def scattered() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], Float64]:
    """Keypoints of two photos, most of the second's near a place of the first's, and matches good and bad."""
    rng = np.random.default_rng(5)
    first = rng.uniform(0, 600, (1500, 2)).astype(np.float32)  # more than are looked at together
    places = np.array([taken(TILT, *xy) for xy in first])
    near = places[:900] + rng.normal(0, 2.5, (900, 2))
    second = np.concatenate([near, rng.uniform(0, 600, (80, 2))]).astype(np.float32)
    rows = rng.permutation(1500)[:700]
    columns = np.where((rows < 900) & (rng.random(700) < 0.7), rows, rng.integers(0, 980, 700))
    return first, second, np.column_stack([rows, columns]).astype(np.int32), rng.permutation(700) / 700


class TestMatchingScores:
    def test_are_those_of_a_loop(
        self, scattered: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], Float64]
    ) -> None:
        first, second, pairs, ratios = scattered
        found = matching_scores(pair_truth(TILT, first, second), RankedMatches(pairs, ratios))
        expected = scores_by_hand(TILT, first, second, [(row, column) for row, column in pairs], ratios.tolist())
        assert 100 < expected[1] < 600
        assert (found.accuracy, found.right, found.average_precision) == pytest.approx(expected)

    def test_accuracy_by_threshold_is_that_of_a_loop(
        self, scattered: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], Float64]
    ) -> None:
        first, second, pairs, ratios = scattered
        errors = [np.hypot(*(np.array(taken(TILT, *first[row])) - second[column])) for row, column in pairs]
        truth, matches = pair_truth(TILT, first, second), RankedMatches(pairs, ratios)
        found = accuracy_by_threshold(truth, matches)
        expected = [sum(error <= pixels for error in errors) / len(errors) for pixels in range(1, 11)]
        assert found.tolist() == pytest.approx(expected)
        assert 0 < expected[0] < expected[9] < 1
        assert found[2] == pytest.approx(matching_scores(truth, matches).accuracy)

    def test_count_what_could_have_been_found(self) -> None:
        """Of five keypoints three have a counterpart, 3 px away at most; two are found, behind something wrong."""
        first = np.array([[0, 0], [50, 0], [100, 0], [150, 0], [200, 0]], np.float32)
        second = np.array([[10, 3], [60, 3.1], [110, 0], [162, 2], [400, 0]], np.float32)
        truth = pair_truth(np.array([[1.0, 0, 10], [0, 1, 0], [0, 0, 1]]), first, second)
        assert truth.matchable == 3
        np.testing.assert_allclose(truth.places, first + np.array([10, 0]))
        matches = RankedMatches(np.array([[4, 4], [0, 0], [2, 2]], np.int32), np.array([0.1, 0.2, 0.3]))
        assert matching_scores(truth, matches) == MatchingScores(2 / 3, 2, pytest.approx((1 / 2 + 2 / 3) / 3))

    def test_turned_twins_at_one_place_are_counterparts_of_each_other(self) -> None:
        both = np.zeros((2, 2), np.float32)
        truth = pair_truth(np.eye(3), both, both)
        swapped = RankedMatches(np.array([[0, 1], [1, 0]], np.int32), np.array([0.5, 0.6]))
        assert matching_scores(truth, swapped) == MatchingScores(1, 2, 1)

    def test_a_keypoint_at_infinity_has_no_counterpart(self) -> None:
        horizon = np.array([[1.0, 0, 0], [0, 1, 0], [0.01, 0, -1]])
        first, second = np.array([[100, 7], [0, 0]], np.float32), np.array([[0, 0], [1e30, 1e30]], np.float32)
        truth = pair_truth(horizon, first, second)
        assert truth.matchable == 1
        matches = RankedMatches(np.array([[0, 1]], np.int32), np.array([0.5]))
        assert matching_scores(truth, matches) == MatchingScores(0, 0, 0)

    @pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 0), (0, 3), (3, 3)])
    def test_without_matches_are_nothing(self, first: int, second: int) -> None:
        truth = pair_truth(np.eye(3), np.zeros((first, 2), np.float32), np.zeros((second, 2), np.float32))
        assert truth.matchable == (first if second else 0)
        none = RankedMatches(np.zeros((0, 2), np.int32), np.zeros(0))
        assert matching_scores(truth, none) == MatchingScores(0, 0, 0)
        assert accuracy_by_threshold(truth, none).tolist() == [0] * 10

    def test_of_a_sequence_are_the_mean_over_its_pairs(self) -> None:
        xy = np.array([[0, 0], [100, 0]], np.float32)
        truths = [pair_truth(np.eye(3), xy, xy)] * 2
        matches = [
            RankedMatches(np.array(pairs, np.int32), np.array([0.1, 0.2]))
            for pairs in ([[0, 0], [1, 1]], [[0, 1], [1, 1]])
        ]
        assert homography_scores(truths, matches) == MatchingScores(0.75, 1.5, (1 + 1 / 4) / 2)


@pytest.fixture(scope="module")
def warped(small_scene: tuple[Path, Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered photo and five warped ones, each seen from farther aside."""
    folder, scene = small_scene
    sequence = tmp_path_factory.mktemp("sequences") / "v_square"
    sequence.mkdir()
    photo = read_photo(folder / scene.names[2]).grey
    cv2.imwrite(str(sequence / "1.png"), photo)
    for number in range(2, 7):
        homography = np.eye(3) + 0.15 * (number - 1) * (TILT - np.eye(3))
        moved = cv2.warpPerspective(photo, homography, photo.shape[::-1], borderMode=cv2.BORDER_REFLECT)
        cv2.imwrite(str(sequence / f"{number}.png"), moved)
        (sequence / f"H_1_{number}").write_text(text(homography), "ascii")
    return sequence


def colmap_rootsift(path: Path, max_features: int) -> tuple[Float64, NDArray[np.float32]]:
    options = pycolmap.FeatureExtractionOptions(use_gpu=False)
    options.sift.max_num_features = max_features
    found, described = pycolmap.FeatureExtractor.create(options).extract_from_uint8_array(read_photo(path).grey)
    rows = described.data.astype(np.float32)
    xy = np.array([(point.x - 0.5, point.y - 0.5) for point in found], np.float32).astype(np.float64)
    return xy, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def matched_by_hand(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> tuple[list[tuple[int, int]], list[float]]:
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(first, second, k=2)
    mutual = {(m.queryIdx, m.trainIdx) for m in cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(first, second)}
    kept = [(best, rival) for best, rival in nearest if (best.queryIdx, best.trainIdx) in mutual]
    return [(best.queryIdx, best.trainIdx) for best, _ in kept], [
        best.distance / rival.distance for best, rival in kept
    ]


def scores_of(table: ScoreTable, descriptor: str, column: str) -> tuple[float, float, float]:
    """Accuracy, right matches and average precision as a table has them."""
    accuracy, right, precision = (measure.values[descriptor][column] for measure in table.measures)
    return accuracy, right, precision


@pytest.mark.usefixtures("one_thread")
class TestEvaluate:
    @pytest.mark.slow
    def test_scores_are_those_of_opencvs_matcher_and_a_loop(self, warped: Path) -> None:
        table = evaluate_homographies(warped, [ROOTSIFT], max_features=250)
        assert [measure.name for measure in table.measures] == ["mma", "right", "map"]
        assert table.measures[0].columns == ["v_square", "mean"]
        assert scores_of(table, COLMAP, "mean") == scores_of(table, COLMAP, "v_square")
        features = [colmap_rootsift(warped / f"{number}.png", 250) for number in range(1, 7)]
        (sequence,), _ = read_sequences(warped)
        expected = []
        for homography, (xy, described) in zip(sequence.homographies, features[1:], strict=True):
            pairs, ratios = matched_by_hand(features[0][1], described)
            expected.append(scores_by_hand(homography, features[0][0], xy, pairs, ratios))
        accuracy, right, precision = np.mean(expected, axis=0)
        found = scores_of(table, COLMAP, "mean")
        assert 0.3 < accuracy < 0.95
        assert found[1] == pytest.approx(right, abs=0.5)
        assert found[0] == pytest.approx(accuracy, abs=0.005)
        assert found[2] == pytest.approx(precision, abs=0.005)
        # Ours at the same keypoints is about as good.
        assert scores_of(table, "rootsift", "mean")[2] == pytest.approx(precision, abs=0.06)

    def test_flat_photos_score_nothing(self, tmp_path: Path) -> None:
        write_sequence(tmp_path / "flat")
        table = evaluate_homographies(tmp_path, [ROOTSIFT])
        assert {scores_of(table, name, "mean") for name in (COLMAP, "rootsift")} == {(0, 0, 0)}
        assert table.details["accuracy_by_threshold"] == {name: {"flat": [0] * 10} for name in (COLMAP, "rootsift")}

    def test_the_pipeline_prints_what_the_verb_prints(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("v_flat", "i_[flat]"):
            write_sequence(tmp_path / "sequences" / name)
        path = Path(__file__).parents[1] / "pipelines/homography.py"
        line = [str(tmp_path / "sequences"), "--descriptor", "rootsift"]
        monkeypatch.setattr(sys, "argv", ["homography.py", *line, "--csv", str(tmp_path / "a.csv")])
        runpy.run_path(str(path), run_name="__main__")
        printed = capsys.readouterr().out
        assert all(word in printed for word in ("MMA @ 3 px", "right matches a pair", "mAP", "i_[flat]", "mean"))
        main(["evaluate", "homography", *line, "--csv", str(tmp_path / "b.csv")])
        assert capsys.readouterr().out.replace("b.csv", "a.csv") == printed
        assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
        with (tmp_path / "a.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 3 * 2 * 3
        assert rows[0] == {
            "data_set": "homography",
            "measure": "mma",
            "descriptor": COLMAP,
            "column": "i_[flat]",
            "value": "0.0",
            "mark": "",
        }

    def test_errors_are_said_without_a_traceback(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_sequence(tmp_path / "wall")
        path = Path(__file__).parents[1] / "pipelines/homography.py"
        for extra, status, words in (
            (["--weights", "old.pth"], 1, "no shipped weights and no file named old.pth"),
            (["--csv", str(tmp_path / "none/scores.csv")], 2, "no such folder"),
            (["--descriptor", "hardnot"], 2, "Did you mean hardnet?"),
            (["--max-features", "0"], 2, "--max-features must be at least 1"),
        ):
            monkeypatch.setattr(sys, "argv", ["homography.py", str(tmp_path), *extra])
            with pytest.raises(SystemExit) as exit:
                runpy.run_path(str(path), run_name="__main__")
            assert exit.value.code == status
            assert words in capsys.readouterr().err

    @pytest.mark.slow
    def test_the_table_measured_beforehand(self, shared_data: Path) -> None:
        """RootSIFT of COLMAP on leuven by a program of its own: 0.77."""
        table = evaluate_homographies(shared_data / "homography/leuven", [ROOTSIFT])
        assert scores_of(table, COLMAP, "leuven")[2] == pytest.approx(0.77, abs=0.005)
