"""The page about what was found: pictures are those of the right photos, lines are where they were verified."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import data_of, unpacked

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_folders import PhotoFolder
from hardnet_sfm.keypoints import RankedImage
from hardnet_sfm.pages import answer_page
from hardnet_sfm.pages.answer_page import (
    MOST_LINES,
    MOST_ROWS,
    PREVIEW_BYTES,
    QUERY_BYTES,
    Answer,
    SearchFacts,
    make_retrieval_page,
)
from hardnet_sfm.pages.page import MOST_BYTES, make_page
from hardnet_sfm.scene import Scene

GREY, RED, BLUE = (90, 90, 90), (200, 30, 30), (30, 30, 200)
SEARCH: dict[str, Any] = {"method": "hqe+ma+sv", "photos": 7}
NAMES = ("b/red.png", "<script>blue.png")


def photo(path: Path, colour: tuple[int, int, int], size: tuple[int, int], orientation: int = 1) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, colour).save(path, exif=exif)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photo(tmp_path / "query.png", GREY, (600, 800))
    photo(tmp_path / NAMES[0], RED, (400, 300))
    photo(tmp_path / NAMES[1], BLUE, (200, 100), 6)  # on its side: 100 wide, 200 high
    return tmp_path


def shown(folder: Path, *answers: Answer) -> dict[str, Any]:
    facts = SearchFacts(SEARCH, {"descriptor": "rootsift"}, {"descriptor": "rootsift"})
    html = make_retrieval_page(answers, facts, PhotoFolder(folder), PhotoFolder(Path()), 1)
    (folder / "page.html").write_text(html, "utf-8")
    return data_of(folder / "page.html")


def decoded(address: str) -> np.ndarray:
    head, _, content = address.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def test_pictures_are_those_of_their_photos_upright(folder: Path) -> None:
    data = shown(folder, Answer(str(folder / "query.png"), [RankedImage(name, 1.0, None) for name in NAMES]))
    assert data["names"] == list(NAMES) and data["sizes"] == [[400, 300], [100, 200]]
    expected = [(RED, (300, 400, 3)), (BLUE, (200, 100, 3)), (GREY, (720, 540, 3))]
    for address, (colour, shape) in zip([*data["previews"], *data["queries"]], expected, strict=True):
        pixels = decoded(address)
        assert pixels.shape == shape
        assert np.abs(pixels.astype(int) - colour).max() < 8
    assert "<script>blue" not in (folder / "page.html").read_text("utf-8")


def test_ranks_scores_inliers_and_the_box_are_those_given(folder: Path) -> None:
    results = [
        RankedImage(NAMES[1], 12.3456789, 9, accepted=True),
        RankedImage(NAMES[0], 0.25, 7, accepted=False),
        RankedImage("gone.png", 0.1, None, accepted=True, identical=True),
    ]
    data = shown(folder, Answer(str(folder / "query.png"), results, (149.5, 199.5, 449.5, 599.5)))
    (answer,) = data["answers"]
    assert [data["names"][image] for image in answer["image"]] == [found.image for found in results]
    assert answer["score"] == [12.3457, 0.25, 0.1] and answer["inliers"] == [9, 7, None]
    assert answer["shows"] == [True, False, True] and answer["identical"] == [False, False, True]
    assert (answer["found"], answer["accepted"], answer["size"]) == (3, 2, [600, 800])
    # Pixels have their centres at whole numbers: the photo begins at -0.5.
    assert answer["box"] == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=2e-5)
    assert data["search"] == SEARCH and data["weights"] == {"descriptor": "rootsift"}
    assert (
        data["previews"][2] is None and data["sizes"][2] is None and data["missing"][2] == "No such file or directory"
    )


def test_lines_are_shares_of_the_two_photos(folder: Path) -> None:
    lines = np.array([[299.5, 199.5, 399.5, 299.5], [-0.5, 799.5, 99.5, -0.5]], np.float32)
    data = shown(folder, Answer(str(folder / "query.png"), [RankedImage(NAMES[0], 1.0, 2, lines)]))
    drawn = unpacked(data["answers"][0]["lines"][0]).reshape(-1, 4) / 65535
    np.testing.assert_allclose(drawn, [[0.5, 0.25, 1, 1], [0, 1, 0.25, 0]], atol=1e-5)


def test_of_many_lines_some_are_drawn_evenly(folder: Path) -> None:
    lines = np.stack([np.arange(600.0)] * 4, 1).astype(np.float32)
    data = shown(folder, Answer(str(folder / "query.png"), [RankedImage(NAMES[0], 1.0, 600, lines)]))
    x = unpacked(data["answers"][0]["lines"][0]).reshape(-1, 4)[:, 0] / 65535 * 600 - 0.5
    assert len(x) == 150 and x[0] == pytest.approx(0, abs=0.01) and x[-1] == pytest.approx(599, abs=0.01)
    assert np.diff(x).min() > 3 and np.diff(x).max() < 6


def test_photos_of_several_answers_are_there_once(folder: Path) -> None:
    photo(folder / "other/query.png", RED, (50, 40))
    answers = [
        Answer(str(folder / "query.png"), [RankedImage(NAMES[0], 2.0, None), RankedImage(NAMES[1], 1.0, None)]),
        Answer(str(folder / "other/query.png"), [RankedImage(NAMES[1], 3.0, None)]),
        Answer(str(folder / "query.png"), []),
    ]
    data = shown(folder, *answers)
    assert data["names"] == list(NAMES) and len(data["queries"]) == 2
    assert [answer["picture"] for answer in data["answers"]] == [0, 1, 0]
    assert [answer["image"] for answer in data["answers"]] == [[0, 1], [1], []]
    assert decoded(data["queries"][1]).shape == (40, 50, 3)


def test_too_many_results_are_cut_and_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_page, "MOST_ROWS", 6)
    results = [RankedImage(NAMES[0], 1.0, 0)] * 5
    data = shown(folder, *[Answer(str(folder / "query.png"), results)] * 2)
    assert [len(answer["image"]) for answer in data["answers"]] == [3, 3]
    assert [answer["found"] for answer in data["answers"]] == [5, 5]


def test_shares_of_a_page_are_no_more_than_all_of_it() -> None:
    """All that there can be of queries, photos and lines; base64 makes four bytes of three."""
    in_base64 = PREVIEW_BYTES + QUERY_BYTES + 8 * MOST_LINES
    rows = MOST_ROWS * (100 + 20 + 40)  # names and sizes; ranks; the heads of lines
    assert in_base64 * 4 / 3 + rows + len(make_page("", "retrieval", {}).encode()) < MOST_BYTES


def test_a_query_that_is_no_photo(folder: Path) -> None:
    (folder / "query.png").write_text("no photo")
    with pytest.raises(HardnetSfmError, match=r"query.png: not a photo"):
        shown(folder, Answer(str(folder / "query.png"), []))


class TestRetrieve:
    def test_page_has_what_is_printed(
        self, indexed: Path, small_scene: tuple[Path, Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        query = min(small_scene[0].glob("*.jpg"))
        line = f"retrieve --query {query} --bbox 100 80 400 300 --top 5 --workspace {indexed} --json"
        main([*line.split(), "--report", str(tmp_path / "found.html")])
        printed = json.loads(capsys.readouterr().out)["results"]
        data = data_of(tmp_path / "found.html")
        (answer,) = data["answers"]
        assert [data["names"][image] for image in answer["image"]] == [row["image"] for row in printed]
        assert answer["inliers"] == [row["inliers"] for row in printed]
        assert answer["shows"] == [row["accepted"] for row in printed]
        assert answer["identical"] == [row["identical"] for row in printed]
        assert answer["score"] == pytest.approx([row["score"] for row in printed], rel=1e-4, abs=1e-6)
        index = hardnet_sfm.Index.open(indexed)
        assert data["search"] == {
            "method": "hqe+ma+sv",
            "top": 5,
            "photos": 8,
            "features": index.features,
            "words": index.words,
        }
        assert data["features"]["max_keypoints"] == 300
        found = index.search(query, 5, bbox=(100, 80, 400, 300))
        assert found[0].lines is not None
        drawn = unpacked(answer["lines"][0]).reshape(-1, 4) / 65535 * [480, 360, 480, 360] - 0.5
        away = np.abs(drawn[:, None] - found[0].lines[None]).max(axis=2).min(axis=1)
        assert len(drawn) == min(150, len(found[0].lines)) and away.max() < 0.02

    def test_a_query_that_fails_is_said_on_the_page(
        self, indexed: Path, small_scene: tuple[Path, Scene], tmp_path: Path
    ) -> None:
        flat = photo(tmp_path / "flat.png", GREY, (480, 360))
        query = min(small_scene[0].glob("*.jpg"))
        with pytest.raises(SystemExit) as exit:
            line = f"retrieve --query {flat} {query} --workspace {indexed} --method bow --report {tmp_path / 'a.html'}"
            main(line.split())
        assert exit.value.code == 1
        data = data_of(tmp_path / "a.html")
        assert data["notes"] == [f"Not answered: {flat}: no keypoints in it"]
        assert [answer["query"] for answer in data["answers"]] == [query.as_posix()]

    def test_refuses_a_missing_folder_before_it_searches(
        self, indexed: Path, small_scene: tuple[Path, Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        query = min(small_scene[0].glob("*.jpg"))
        with pytest.raises(SystemExit) as exit:
            main(f"retrieve --query {query} --workspace {indexed} --report {tmp_path}/none/a.html".split())
        assert exit.value.code == 2
        said = capsys.readouterr()
        assert "no such folder" in said.err and not said.out
