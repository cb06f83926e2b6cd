"""Data sets on disk: what is searched, what is asked, and what is missing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_landmarks import write_query

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.landmark_sets import DAMAGED_PARIS, open_landmark_set


def photos(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 30), number).save(folder / name)


def oxford(folder: Path) -> Path:
    """Two queries in photos that are there, one that has a crop, one that has nothing, one that nothing answers."""
    photos(folder / "jpg", "tower/a.jpg", "tower/b.jpg", "c.jpg", "d.jpg")
    photos(folder / "queries", "third_1.jpg")
    for name, photo, ok in (
        ("first_1", "a", "b"),
        ("second_1", "c", "a"),
        ("third_1", "x", "d"),
        ("fourth_1", "y", "d"),
    ):
        write_query(folder / "lab", name, f"oxc1_{photo} 1 2 30 20", [ok], ["gone"], ["d" if ok != "d" else "c"])
    write_query(folder / "lab", "fifth_1", "oxc1_a 1 2 30 20", ["gone"])
    return folder


def revisited(folder: Path, **changes: Any) -> Path:
    photos(folder / "images", "q.jpg", "a.jpg", "b.jpg", "distractor.jpg")
    truth = {"bbx": [1.2, 2, 30, 20], "easy": [0], "hard": [1], "junk": []}
    content = {"imlist": ["a", "b", "gone"], "qimlist": ["q"], "gnd": [truth]} | changes
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, 2))
    return folder


class TestOriginal:
    def test_all_photos_are_searched(self, tmp_path: Path) -> None:
        opened = open_landmark_set("oxford5k", oxford(tmp_path))
        assert opened.images == tmp_path / "jpg"
        assert opened.photos == {"a": "tower/a.jpg", "b": "tower/b.jpg", "c": "c.jpg", "d": "d.jpg"}
        assert opened.others == {}

    def test_composed_and_decomposed_names_are_the_same(self, tmp_path: Path) -> None:
        photos(tmp_path / "jpg", "cafe\u0301.jpg", "a.jpg")
        write_query(tmp_path / "lab", "first_1", "oxc1_a 1 2 30 20", ["caf\u00e9"])
        opened = open_landmark_set("oxford5k", tmp_path)
        assert opened.photos["caf\u00e9"] == "cafe\u0301.jpg"
        assert opened.truth.named() <= opened.photos.keys()

    def test_crops_of_queries_are_none_of_the_photos(self, tmp_path: Path) -> None:
        folder = oxford(tmp_path)
        for path in [*(folder / "jpg").iterdir()]:
            path.rename(folder / path.name)
        (folder / "jpg").rmdir()
        opened = open_landmark_set("oxford5k", folder)
        assert opened.images == folder
        assert opened.photos == {"a": "tower/a.jpg", "b": "tower/b.jpg", "c": "c.jpg", "d": "d.jpg"}
        assert "third_1" in opened.crops

    def test_photos_that_ground_truth_names_and_nobody_has_are_told(self, tmp_path: Path) -> None:
        assert open_landmark_set("oxford5k", oxford(tmp_path)).unknown == ["gone"]

    def test_asks_for_boxes_in_photos_and_for_crops_where_the_photo_is_missing(self, tmp_path: Path) -> None:
        asked, left_out = open_landmark_set("oxford5k", oxford(tmp_path)).questions()
        found = {question.query.name: (question.image, question.box) for question in asked}
        assert found == {
            "first_1": (tmp_path / "jpg" / "tower" / "a.jpg", (1, 2, 30, 20)),
            "second_1": (tmp_path / "jpg" / "c.jpg", (1, 2, 30, 20)),
            "third_1": (tmp_path / "queries" / "third_1.jpg", None),
        }
        assert left_out == {
            "fourth_1": "neither its photo nor a crop of it in queries/ is there",
            "fifth_1": "no photo that answers it is there",
        }

    def test_photos_that_cannot_be_read_are_not_searched(self, tmp_path: Path) -> None:
        opened = open_landmark_set("oxford5k", oxford(tmp_path)).without(["tower/b.jpg"])
        assert opened.photos.keys() == {"a", "c", "d"}
        assert opened.unknown == ["b", "gone"]
        assert "first_1" in opened.questions()[1]

    def test_known_damaged_photos_of_paris_are_not_searched_even_if_they_can_be_read(self, tmp_path: Path) -> None:
        damaged = min(DAMAGED_PARIS)
        photos(tmp_path / "images", f"{damaged}.jpg", "paris_a.jpg")
        write_query(tmp_path / "gt", "louvre_1", "paris_a 0 0 9 9", [], ["paris_a", damaged])
        opened = open_landmark_set("paris6k", tmp_path)
        assert opened.photos == {"paris_a": "paris_a.jpg"}
        assert opened.others == {damaged: f"{damaged}.jpg"}
        assert len(DAMAGED_PARIS) == 20

    def test_the_shared_subsets(self, shared_data: Path) -> None:
        asked, left_out = open_landmark_set("oxford5k", shared_data / "retrieval" / "oxford").questions()
        assert {question.query.name.rsplit("_", 1)[0] for question in asked} == {"all_souls", "ashmolean", "hertford"}
        assert (len(asked), len(left_out)) == (15, 40)
        asked, left_out = open_landmark_set("paris6k", shared_data / "retrieval" / "paris").questions()
        assert len(asked) + len(left_out) == 55
        assert all(question.box for question in asked)


class TestRevisited:
    def test_only_listed_photos_are_searched_and_the_box_is_cut_out_beforehand(self, tmp_path: Path) -> None:
        opened = open_landmark_set("roxford5k", revisited(tmp_path))
        assert opened.photos == {"a": "a.jpg", "b": "b.jpg"}
        assert opened.others == {"q": "q.jpg", "distractor": "distractor.jpg"}
        assert opened.unknown == ["gone"]
        (question,), left_out = opened.questions()
        assert not left_out
        assert isinstance(question.image, np.ndarray)
        assert (question.image.shape, question.box) == ((18, 29), None)

    def test_box_beyond_the_photo_ends_with_it(self, tmp_path: Path) -> None:
        truth = {"bbx": [-5, 10, 999, 999], "easy": [0], "hard": [], "junk": []}
        (question,), _ = open_landmark_set("roxford5k", revisited(tmp_path, gnd=[truth])).questions()
        assert isinstance(question.image, np.ndarray)
        assert question.image.shape == (20, 40)

    def test_box_of_another_photo(self, tmp_path: Path) -> None:
        truth = {"bbx": [500, 10, 600, 20], "easy": [0], "hard": [], "junk": []}
        with pytest.raises(HardnetSfmError, match=r"q\.jpg: the box of the query q is outside the photo"):
            open_landmark_set("roxford5k", revisited(tmp_path, gnd=[truth])).questions()

    def test_missing_ground_truth(self, tmp_path: Path) -> None:
        photos(tmp_path / "images", "a.jpg")
        with pytest.raises(HardnetSfmError, match=r"gnd_rparis6k.pkl: No such file"):
            open_landmark_set("rparis6k", tmp_path)


class TestBadInput:
    def test_folder_that_is_missing_or_has_no_photos(self, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match="no such folder"):
            open_landmark_set("oxford5k", tmp_path / "none")
        write_query(tmp_path / "gt", "a_1", "oxc1_a 0 0 1 1", ["a"])
        with pytest.raises(HardnetSfmError, match="no photos in it"):
            open_landmark_set("oxford5k", tmp_path)

    def test_ground_truth_of_another_data_set(self, tmp_path: Path) -> None:
        photos(tmp_path / "images", "mine.jpg")
        write_query(tmp_path / "gt", "a_1", "oxc1_a 0 0 1 1", ["b"])
        with pytest.raises(HardnetSfmError, match="none of the photos in the ground truth of oxford5k are there"):
            open_landmark_set("oxford5k", tmp_path)

    def test_two_photos_of_one_name(self, tmp_path: Path) -> None:
        photos(tmp_path / "images", "a/x.jpg", "b/x.png")
        write_query(tmp_path / "gt", "a_1", "oxc1_x 0 0 1 1", ["x"])
        with pytest.raises(HardnetSfmError, match=r"a/x.jpg and b/x.png have the same name"):
            open_landmark_set("oxford5k", tmp_path)
