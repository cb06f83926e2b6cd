"""`evaluate` end to end on painted walls: what the table says is what the index answers."""

from __future__ import annotations

import csv
import importlib
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_landmarks import average_precision_as_described, write_query

from hardnet_sfm.cli import main
from hardnet_sfm.competitors import Competitor, competitors
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.landmarks import ORIGINAL
from hardnet_sfm.features.extraction import ExtractOptions, KeypointOptions
from hardnet_sfm.photo_index import Index
from hardnet_sfm.verbs.evaluate import evaluate_landmarks
from hardnet_sfm.verbs.extract import ExtractResult, extract
from hardnet_sfm.verbs.vocabulary import VocabularyOptions, vocabulary

WALLS, VIEWS = 3, 4
FEW = KeypointOptions(max_keypoints=400)
WORDS = VocabularyOptions(words=300)
METHODS = ("bow", "he+sv", "asmk")
ROOTSIFT = Competitor("rootsift", "rootsift", None, "")


def photograph(wall: int, view: int, path: Path) -> None:
    """A painted wall from another place each time."""
    random = np.random.default_rng(wall)
    paint = sum(
        weight * cv2.resize(random.standard_normal(size), (480, 360), interpolation=cv2.INTER_CUBIC)
        for weight, size in ((30, (9, 12)), (30, (36, 48)), (20, (90, 120)))
    )
    turned = cv2.getRotationMatrix2D((240, 180), 7.0 * view, 1 + 0.06 * view) - [[0, 0, 80], [0, 0, 60]]
    cv2.imwrite(str(path), np.clip(128 + cv2.warpAffine(paint, turned, (320, 240)), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three walls, four photos each, named wall_view, with ground truth of both protocols. Not to be changed."""
    folder = tmp_path_factory.mktemp("city")
    names = {wall: [f"{wall}_{view}" for view in range(VIEWS)] for wall in range(WALLS)}
    (folder / "images").mkdir()
    for wall, of in names.items():
        for view, name in enumerate(of):
            photograph(wall, view, folder / "images" / f"{name}.jpg")
    for wall, of in names.items():
        write_query(folder / "gt", f"wall{wall}_1", f"oxc1_{of[0]} 10 10 310 230", of[:1], of[2:], of[1:2])
    write_query(folder / "gt", "elsewhere_1", "oxc1_gone 0 0 9 9", ["gone"])
    listed = [name for of in names.values() for name in of[1:]]
    truth = [
        {"bbx": [10, 10, 310, 230], "easy": [3 * s + 1], "hard": [3 * s], "junk": [3 * s + 2]} for s in range(WALLS)
    ]
    content = {"imlist": listed, "qimlist": [of[0] for of in names.values()], "gnd": truth}
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, 2))
    return folder


@pytest.fixture(scope="module")
def other_city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other-city")
    for wall in range(10, 14):
        photograph(wall, 0, folder / f"{wall}.jpg")
    return folder


def compare(city: Path, workspace: Path, *vocabularies: Path, name: str = "oxford5k", **options: Any) -> Any:
    options = {"methods": METHODS, "keypoint_options": FEW, "vocabulary_options": WORDS, **options}
    return evaluate_landmarks(name, city, workspace, vocabularies, [ROOTSIFT], **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, city: Path, other_city: Path) -> Path:
    """Where the original protocol has been run once."""
    folder = tmp_path_factory.mktemp("workspace")
    compare(city, folder, other_city)
    return folder


class TestTable:
    def test_says_what_the_index_answers(self, city: Path, other_city: Path, workspace: Path) -> None:
        """Each query's average precision is that of the ranking that `Index.search` gives, by a loop over its ranks."""
        table = compare(city, workspace, other_city)
        assert table.photos == WALLS * VIEWS
        assert list(table.queries) == ["wall0_1", "wall1_1", "wall2_1"]
        assert table.left_out == {"elsewhere_1": "no photo that answers it is there"}
        assert table.unknown == ("gone",)
        (folder,) = (workspace / "evaluation" / "rootsift").glob("*/index-oxford5k")
        index = Index.open(folder)
        assert set(index.names) == {path.name for path in (city / "images").iterdir()}
        for method in METHODS:
            for wall in range(WALLS):
                found = index.search(city / "images" / f"{wall}_0.jpg", None, method, (10, 10, 310, 230))
                ranking = [result.image.removesuffix(".jpg") for result in found]
                expected = average_precision_as_described(
                    ranking, {f"{wall}_{view}" for view in (0, 2, 3)}, {f"{wall}_1"}
                )
                score = table.rows["rootsift"][method].scores[ORIGINAL][f"wall{wall}_1"]
                assert score.average_precision == pytest.approx(expected)
        # Three of eleven at random would have 0.35.
        assert table.rows["rootsift"]["bow"].mean(ORIGINAL).average_precision > 0.7

    def test_revisited_searches_listed_photos_only(self, city: Path, other_city: Path, workspace: Path) -> None:
        """The queries' own photos are not in the collection, so that none of them can take the first place."""
        table = compare(city, workspace, other_city, name="roxford5k")
        (folder,) = (workspace / "evaluation" / "rootsift").glob("*/index-roxford5k")
        assert set(Index.open(folder).names) == {f"{s}_{v}.jpg" for s in range(WALLS) for v in range(1, VIEWS)}
        assert table.photos == WALLS * (VIEWS - 1)
        assert set(table.setups) == {"easy", "medium", "hard"}
        for setup in table.setups:
            assert len(table.rows["rootsift"]["bow"].scores[setup]) == WALLS

    def test_a_second_run_computes_nothing_anew(self, city: Path, other_city: Path, workspace: Path) -> None:
        first = compare(city, workspace, other_city)
        stores = {path: path.stat().st_mtime_ns for path in workspace.rglob("*.h5")}
        words = {path: path.stat().st_mtime_ns for path in workspace.rglob("words-*.safetensors")}
        seen: list[ExtractResult] = []
        second = compare(city, workspace, other_city, on_extract=lambda _, report: seen.append(report))
        assert [report.computed for report in seen] == [0, 0]
        assert stores == {path: path.stat().st_mtime_ns for path in workspace.rglob("*.h5")}
        assert words == {path: path.stat().st_mtime_ns for path in workspace.rglob("words-*.safetensors")}
        assert {m: c.scores for m, c in first.rows["rootsift"].items()} == {
            m: c.scores for m, c in second.rows["rootsift"].items()
        }

    def test_takes_a_vocabulary_that_is_there(self, city: Path, workspace: Path) -> None:
        (words,) = (workspace / "evaluation" / "rootsift").glob("*/vocabulary")
        assert compare(city, workspace, words, vocabulary_options=None).rows["rootsift"].keys() == set(METHODS)
        with pytest.raises(UsageError, match="no effect if --vocabulary names an existing one"):
            compare(city, workspace, words)

    def test_photo_that_cannot_be_read_is_told_and_treated_as_missing(self, tmp_path: Path, other_city: Path) -> None:
        (tmp_path / "city" / "images").mkdir(parents=True)
        for number, name in enumerate("ab"):
            photograph(number, 0, tmp_path / "city" / "images" / f"{name}.jpg")
        (tmp_path / "city" / "images" / "bad.jpg").write_text("<html>302 Found</html>")
        write_query(tmp_path / "city" / "gt", "a_1", "oxc1_a 0 0 320 240", ["a", "bad"])
        table = compare(tmp_path / "city", tmp_path / "work", other_city, methods=("bow",))
        assert "bad.jpg: not a photo" in table.skipped["bad.jpg"]
        assert (table.photos, table.unknown) == (2, ("bad",))
        assert table.rows["rootsift"]["bow"].scores[ORIGINAL]["a_1"].average_precision == 1

    def test_descriptors_search_in_the_photos_that_all_of_them_could_read(
        self, city: Path, tmp_path: Path, other_city: Path
    ) -> None:
        """One photo is damaged while the first descriptor reads it, and repaired before the second one does."""
        folder = tmp_path / "city"
        shutil.copytree(city, folder)
        photo = folder / "images" / "1_3.jpg"
        content = photo.read_bytes()
        photo.write_text("<html>302 Found</html>")

        def repair(what: str, _: object) -> None:
            if what.startswith("rootsift city-"):
                photo.write_bytes(content)

        rows = [ROOTSIFT, replace(ROOTSIFT, name="again")]
        how = {"methods": ("bow",), "keypoint_options": FEW, "vocabulary_options": WORDS, "on_extract": repair}
        table = evaluate_landmarks("oxford5k", folder, tmp_path / "work", [other_city], rows, **how)  # type: ignore[arg-type]
        assert list(table.skipped) == ["1_3.jpg"] and table.unknown == ("1_3", "gone")
        assert table.photos == WALLS * VIEWS - 1
        for row in rows:
            (index,) = (tmp_path / "work" / "evaluation" / row.name).glob("*/index-oxford5k")
            assert "1_3.jpg" not in Index.open(index).names
        assert table.rows["rootsift"]["bow"].scores == table.rows["again"]["bow"].scores

    def test_query_without_keypoints_finds_nothing_and_stops_nobody(
        self, tmp_path: Path, other_city: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "city" / "images").mkdir(parents=True)
        for number, name in enumerate("ab"):
            photograph(number, 0, tmp_path / "city" / "images" / f"{name}.jpg")
        write_query(tmp_path / "city" / "gt", "a_1", "oxc1_a 0 0 320 240", ["a"])
        write_query(tmp_path / "city" / "gt", "b_1", "oxc1_b 0 0 0.4 0.4", ["b"])
        table = compare(tmp_path / "city", tmp_path / "work", other_city, methods=("bow",))
        scores = table.rows["rootsift"]["bow"].scores[ORIGINAL]
        assert {name: score.average_precision for name, score in scores.items()} == {"a_1": 1, "b_1": 0}
        assert "b_1: no keypoints in this query" in capsys.readouterr().err


class TestCommandLine:
    def test_prints_the_table_and_writes_it(
        self, city: Path, other_city: Path, workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = f"evaluate oxford5k {city} --vocabulary {other_city} --words 300 --max-keypoints 400 --method bow asmk"
        line += f" --descriptor rootsift --workspace {workspace} --csv {tmp_path}/t.csv --json {tmp_path}/t.json"
        main(line.split())
        said = capsys.readouterr()
        assert "oxford5k: mAP of 3 queries in 12 photos, %" in said.out
        assert "outside the collection" in said.err
        assert "not used: 1 (elsewhere_1) of the queries: no photo that answers it is there" in said.err
        with (tmp_path / "t.csv").open() as file:
            rows = {row["method"]: float(row["map"]) for row in csv.DictReader(file)}
        assert rows.keys() == {"bow", "asmk"}
        assert all(f"{100 * value:.1f}" in said.out for value in rows.values())
        content = json.loads((tmp_path / "t.json").read_text())
        assert content["descriptors"]["rootsift"]["vocabulary"]["words"] == 300
        for name, query in content["queries"].items():
            ranked = content["results"][0]["setups"][ORIGINAL]["queries"][name]["first"]
            assert ranked[0][0] == query["photo"]  # finds itself
            assert {kind for _, kind in ranked} <= {"positive", "negative", "junk"}

    def test_missing_folder_for_the_table_is_told_before_the_work(
        self, city: Path, other_city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = (
            f"evaluate oxford5k {city} --vocabulary {other_city} --workspace {tmp_path / 'w'} --csv {tmp_path}/no/t.csv"
        )
        with pytest.raises(SystemExit) as exit:
            main(line.split())
        assert exit.value.code == 2
        assert "no such folder" in capsys.readouterr().err
        assert not (tmp_path / "w").exists()

    def test_tables_are_written_to_files_each_its_own(
        self, city: Path, other_city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = f"evaluate oxford5k {city} --vocabulary {other_city} --workspace {tmp_path / 'w'}"
        for more, said in (
            (f"--json {tmp_path}", "is a folder"),
            ("--csv .", "is a folder"),
            (f"--csv {tmp_path}/t --json {tmp_path}/t", "--json and --csv are both"),
        ):
            with pytest.raises(SystemExit):
                main(f"{line} {more}".split())
            assert said in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_the_table_of_descriptors_has_the_same_figure(
    city: Path, other_city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "pipelines")  # type: ignore[no-untyped-call]
    script = importlib.import_module("descriptor_table")
    options = script.Options(tmp_path / "out", words=WORDS)
    found = dict(script.landmarks("oxford5k", city, other_city, options).run([ROOTSIFT]))
    table = compare(city, tmp_path / "by-hand", other_city, methods=["hqe+ma+sv"], keypoint_options=None)
    mean = table.rows["rootsift"]["hqe+ma+sv"].mean("original")
    assert found == {"rootsift": {"oxford5k_map": mean.average_precision}}


@pytest.mark.slow
def test_pipeline_from_official_archives_to_the_table_and_again(city: Path, other_city: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "pipelines" / "oxford5k.py"
    given, other = tmp_path / "oxford", tmp_path / "paris"
    for folder in (given, other):
        folder.mkdir()
    packed = [
        (given / "oxbuild_images.tgz", sorted((city / "images").iterdir()), ""),
        (given / "gt_files_170407.tgz", sorted((city / "gt").iterdir()), ""),
        (other / "paris_1.tgz", sorted(other_city.glob("*.jpg"))[:2], "paris/defense/"),
        (other / "paris_2.tgz", sorted(other_city.glob("*.jpg"))[2:], "paris/louvre/"),
    ]
    for target, files, within in packed:
        with tarfile.open(target, "w:gz") as archive:
            for path in files:
                archive.add(path, within + path.name)
    (given / "gnd_roxford5k.pkl").write_bytes((city / "gnd_roxford5k.pkl").read_bytes())
    line = [sys.executable, str(script), str(given), str(other), "--workspace", str(tmp_path / "work")]
    line += ["--words", "300", "--max-keypoints", "400", "--descriptor", "rootsift", "--method", "bow"]
    first, again, revisited = (
        subprocess.run(line + more, capture_output=True, text=True, check=True) for more in ([], [], ["--revisited"])
    )
    assert "oxford5k: mAP of 3 queries in 12 photos, %" in first.stdout
    assert first.stderr.count("computed") == 2
    assert again.stdout == first.stdout
    assert again.stderr.count("up to date") == 2
    assert [f"roxford5k, {setup}: mAP of 3 queries in 9 photos, %" in revisited.stdout for setup in ("easy", "hard")]
    assert {path.name for path in given.iterdir()} == {"oxbuild_images.tgz", "gt_files_170407.tgz", "gnd_roxford5k.pkl"}


class TestBadInput:
    def test_vocabulary_of_another_descriptor(self, city: Path, other_city: Path, tmp_path: Path) -> None:
        options = ExtractOptions(descriptor="hardnet", max_keypoints=50)
        extract(other_city, tmp_path / "features.h5", options)
        vocabulary(tmp_path / "features.h5", tmp_path / "vocabulary", VocabularyOptions(words=10))
        with pytest.raises(UsageError, match="a vocabulary of hardnet, which has no row"):
            compare(city, tmp_path, tmp_path / "vocabulary")

    def test_one_vocabulary_for_two_descriptors(self, city: Path, workspace: Path) -> None:
        (words,) = (workspace / "evaluation" / "rootsift").glob("*/vocabulary")
        rows = competitors(["rootsift", "hardnet"], [])
        with pytest.raises(UsageError, match="no vocabulary of hardnet-sfm is given"):
            evaluate_landmarks("oxford5k", city, workspace, [words], rows)

    def test_no_vocabulary_and_no_photos(self, city: Path, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match="no such folder"):
            compare(city, tmp_path, tmp_path / "none")
        with pytest.raises(UsageError, match="no vocabulary of rootsift"):
            compare(city, tmp_path)

    def test_options_that_make_no_sense_are_told_before_the_work(self, city: Path, other_city: Path) -> None:
        for options in (
            {"methods": ()},
            {"vocabulary_options": VocabularyOptions(words=1)},
            {"keypoint_options": KeypointOptions(max_keypoints=0)},
        ):
            with pytest.raises(UsageError):
                compare(city, Path("nowhere"), other_city, **options)
        assert not Path("nowhere").exists()

    def test_names_of_rows(self, tmp_path: Path) -> None:
        assert [row.name for row in competitors(["rootsift", "hardnet"], [])] == ["rootsift", "hardnet-sfm"]
        with pytest.raises(UsageError, match="two rows of the table would be called hardnet-sfm"):
            competitors(["hardnet"], ["hardnet-sfm"])
        with pytest.raises(UsageError, match="nothing to evaluate"):
            competitors([], [])
        with pytest.raises(HardnetSfmError, match="no shipped weights and no file named"):
            competitors([], [str(tmp_path / "none.safetensors")])
