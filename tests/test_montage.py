"""The picture of an answer: what is drawn where, on photos of one colour each."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.keypoints import RankedImage
from hardnet_sfm.pages.montage import MOST_RESULTS
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.retrieve import montage

QUERY, RED, BLUE, BOX = (90, 90, 90), (200, 30, 30), (30, 30, 200), (255, 120, 0)


def photo(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (400, 300)) -> Path:
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), colour[::-1], np.uint8))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photo(tmp_path / "query.png", QUERY, (600, 800))
    photo(tmp_path / "red.png", RED)
    photo(tmp_path / "blue.png", BLUE, (300, 400))
    return tmp_path


def draw(
    folder: Path, results: list[RankedImage], box: tuple[float, float, float, float] | None = None
) -> NDArray[np.uint8]:
    montage(folder / "query.png", results, folder, folder / "out.png", bbox=box)
    return np.asarray(cv2.imread(str(folder / "out.png"))[..., ::-1], np.uint8)


def where(page: NDArray[np.uint8], colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what has a colour, the last two included."""
    y, x = np.nonzero((page == colour).all(axis=2))
    return int(x.min()), int(y.min()), int(x.max()), int(y.max())


class TestWhatIsDrawn:
    def test_query_above_and_results_in_a_row_in_their_order(self, folder: Path) -> None:
        page = draw(folder, [RankedImage("blue.png", 2.0, None), RankedImage("red.png", 1.0, None)])
        query, blue, red = (where(page, colour) for colour in (QUERY, BLUE, RED))
        assert query[3] < min(blue[1], red[1])
        assert blue[2] < red[0]
        assert (blue[1] + blue[3]) // 2 == (red[1] + red[3]) // 2, "not on one line"
        for (left, top, right, bottom), ratio in ((blue, 3 / 4), (red, 4 / 3), (query, 3 / 4)):
            assert (right - left + 1) / (bottom - top + 1) == pytest.approx(ratio, rel=0.02)

    def test_box_is_where_it_is_in_the_query(self, folder: Path) -> None:
        page = draw(folder, [], (150, 200, 450, 600))
        left, top, right, bottom = where(page, QUERY)
        expected = [
            left + (right - left) / 4,
            top + (bottom - top) / 4,
            right - (right - left) / 4,
            bottom - (bottom - top) / 4,
        ]
        assert where(page, BOX) == pytest.approx(expected, abs=4)

    def test_lines_join_the_two_ends_of_each_correspondence(self, folder: Path) -> None:
        """Three quarters down at the left edge of the box; a quarter down at the right edge of the photo."""
        lines = np.array([[300, 625, 399, 75]], np.float32)
        page = draw(folder, [RankedImage("red.png", 1.0, 1, lines)], (300, 400, 500, 700))
        red = where(page, RED)
        beside = page[red[1] - 60 : red[3] + 60]
        part = where(beside[:, : red[0]], QUERY)
        part = (part[0], part[1] + red[1] - 60, part[2], part[3] + red[1] - 60)
        assert (part[2] - part[0] + 1) / (part[3] - part[1] + 1) == pytest.approx(200 / 300, rel=0.03), (
            "not the box alone"
        )
        for x, y, at in (
            (part[0], part[1] + 0.75 * (part[3] - part[1]), QUERY),
            (red[2], red[1] + 0.25 * (red[3] - red[1]), RED),
        ):
            here = page[round(y), round(x)].astype(int)
            assert np.abs(here - at).max() > 60, "no end of a line"
        middle = page[:, (part[2] + red[0]) // 2].astype(int)
        crossing = np.flatnonzero(np.ptp(middle, axis=1) > 60)
        assert len(crossing) > 0, "no line between the photos"

    def test_correspondences_outside_the_box_are_not_drawn(self, folder: Path) -> None:
        lines = np.array([[10, 10, 200, 150]], np.float32)
        page = draw(folder, [RankedImage("red.png", 1.0, 1, lines)], (300, 400, 500, 700))
        left, top, right, bottom = where(page, RED)
        assert (page[top : bottom + 1, left : right + 1] == RED).all()

    def test_photo_that_is_gone_or_damaged_leaves_its_place_empty(self, folder: Path) -> None:
        (folder / "bad.png").write_bytes(b"no photo")
        results = [RankedImage(name, 1.0, None) for name in ("gone.png", "bad.png", "red.png")]
        assert where(draw(folder, results), RED)[0] > 700, "not in the third place"

    def test_long_names_of_any_script_keep_to_their_cell(self, folder: Path) -> None:
        name = "église/長い名前/" + "x" * 300 + ".png"
        plain = draw(folder, [RankedImage("gone.png", 1.0, None)])
        page = draw(folder, [RankedImage(name, 1.0, None)])
        beyond = 36 + (1800 - 2 * 36) // 5
        assert np.array_equal(page[420:, beyond:], plain[420:, beyond:])

    def test_no_result_still_has_the_query(self, folder: Path) -> None:
        assert where(draw(folder, []), QUERY)

    def test_no_more_results_than_fit_a_picture(self, folder: Path) -> None:
        results = [RankedImage("red.png", 1.0, None)] * (MOST_RESULTS + 5)
        assert draw(folder, results).shape == draw(folder, results[:MOST_RESULTS]).shape

    def test_grey_pixels_as_a_query(self, folder: Path) -> None:
        montage(np.full((80, 60), 77, np.uint8), [], folder, folder / "out.jpg")
        assert (folder / "out.jpg").is_file()

    def test_photo_stored_on_its_side_is_drawn_upright(self, folder: Path) -> None:
        from PIL import Image

        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (400, 300), RED).save(folder / "turned.png", exif=exif)
        left, top, right, bottom = where(draw(folder, [RankedImage("turned.png", 1.0, None)]), RED)
        assert (right - left) < (bottom - top)


class TestRetrieve:
    def test_draws_what_it_finds(self, indexed: Path, small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
        query = min(small_scene[0].glob("*.jpg"))
        line = f"retrieve --query {query} --bbox 100 80 400 300 --top 5 --workspace {indexed}"
        main([*line.split(), "--montage", str(tmp_path / "found.png")])
        page = cv2.imread(str(tmp_path / "found.png"))[..., ::-1]
        assert page.shape[1] == 1800
        left, top, right, bottom = where(np.asarray(page, np.uint8), BOX)
        assert (right - left) / (bottom - top) == pytest.approx(300 / 220, rel=0.05)

    def test_refuses_a_picture_of_several_queries(
        self, indexed: Path, small_scene: tuple[Path, Scene], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as exit:
            main(f"retrieve --query {small_scene[0]} --montage a.png --workspace {indexed}".split())
        assert exit.value.code == 2
        assert "--montage works with one query, not with" in capsys.readouterr().err

    def test_refuses_a_format_before_it_searches(
        self, indexed: Path, small_scene: tuple[Path, Scene], capsys: pytest.CaptureFixture[str]
    ) -> None:
        query = min(small_scene[0].glob("*.jpg"))
        with pytest.raises(SystemExit) as exit:
            main(f"retrieve --query {query} --montage a.gif --workspace {indexed}".split())
        assert exit.value.code == 2
        assert "a.gif: not a picture" in capsys.readouterr().err


class TestBadInput:
    def test_query_that_is_no_photo(self, folder: Path) -> None:
        (folder / "query.png").write_text("no photo")
        with pytest.raises(HardnetSfmError, match=r"query.png: not a photo"):
            draw(folder, [])

    def test_box_beside_the_photo(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="does not overlap the photo"):
            draw(folder, [], (700, 0, 900, 100))

    def test_unknown_format(self, folder: Path) -> None:
        with pytest.raises(UsageError, match=r"out.gif: not a picture format that can be written"):
            montage(folder / "query.png", [], folder, folder / "out.gif")

    def test_folder_that_is_missing(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="no such folder"):
            montage(folder / "query.png", [], folder, folder / "none" / "out.png")
