"""Pages about what was found and about evaluations in a real browser: what they say is what their data has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import DESKTOP, PHONE, Visit, visit
from test_report import data_of
from test_report_learning import landmark_table
from test_report_retrieval import photo
from test_report_scores import BROWN, HOMOGRAPHY, HPATCHES, W1BS

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.evaluation.scores import ScoreTable
from hardnet_sfm.scene import Scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
TABLES = {"brown": BROWN, "w1bs": W1BS, "hpatches": HPATCHES, "homography": HOMOGRAPHY}
LOOKS = [(DESKTOP, False), (DESKTOP, True), (PHONE, False), (PHONE, True)]
NAMED = [f"{'phone' if size == PHONE else 'desktop'}-{'dark' if dark else 'light'}" for size, dark in LOOKS]


@pytest.fixture(scope="module")
def found(
    browser: Browser,  # noqa: ARG001
    indexed: Path,
    small_scene: tuple[Path, Scene],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The page of one query with a box, and that of all photos as queries; not made where there is no browser."""
    folder = tmp_path_factory.mktemp("found")
    asked = {"one": f"{small_scene[0] / small_scene[1].names[0]} --bbox 100 80 400 300", "all": f"{small_scene[0]}"}
    for name, query in asked.items():
        main(f"retrieve --query {query} --workspace {indexed} --report {folder / name}.html".split())
    return {name: folder / f"{name}.html" for name in asked}


@pytest.fixture(scope="module")
def evaluated(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: ARG001
    """A page of each kind of table."""
    folder = tmp_path_factory.mktemp("evaluated")
    for name, table in TABLES.items():
        (folder / f"{name}.json").write_text(json.dumps(table.as_json()))
    return {name: hardnet_sfm.write_report(folder / f"{name}.json") for name in TABLES}


@contextmanager
def opened(browser: Browser, page: Path, size: tuple[int, int] = DESKTOP, dark: bool = False) -> Iterator[Visit]:
    """The page in a window; when the block ends, it must have had no errors and asked for nothing."""
    with visit(browser, page.as_uri(), size=size, dark=dark) as seen:
        seen.page.wait_for_timeout(200)
        yield seen
        assert seen.errors == [] and seen.requests == []


def check_legible(seen: Visit, selector: str = "body") -> None:
    assert min(seen.contrasts(selector).values()) >= 4.5  # WCAG 2, AA
    assert seen.overflow() <= 0


class TestFound:
    def test_photos_are_in_their_order_with_score_and_inliers(self, browser: Browser, found: dict[str, Path]) -> None:
        data = data_of(found["one"])
        (answer,) = data["answers"]
        with opened(browser, found["one"]) as seen:
            results = seen.page.locator(".result")
            assert results.count() == len(answer["image"]) > 3
            for place, image in enumerate(answer["image"]):
                name, inliers = data["names"][image], answer["inliers"][place]
                assert results.nth(place).get_attribute("title") == name
                assert results.nth(place).locator(".name").text_content() == f"{place + 1} {name}"
                said = results.nth(place).locator(".caption").text_content() or ""
                assert float(said.split()[1].removesuffix(f"{inliers}")) == pytest.approx(
                    answer["score"][place], rel=1e-3
                )
                assert inliers is None or f"{inliers} inlier" in said
                # Green is for accepted photos only.
                assert results.nth(place).locator(".state.registered").count() == int(answer["shows"][place])

    def test_box_is_where_it_was_asked_for(self, browser: Browser, found: dict[str, Path]) -> None:
        with opened(browser, found["one"]) as seen:
            photo, box = (seen.page.locator(f".asked {what}").bounding_box() for what in (".stage", ".box"))
            assert photo and box
            shares = [(box["x"] - photo["x"]) / photo["width"], (box["y"] - photo["y"]) / photo["height"]]
            assert shares == pytest.approx([100.5 / 480, 80.5 / 360], abs=0.01)
            assert box["width"] / photo["width"] == pytest.approx(300 / 480, abs=0.01)

    def test_a_photo_opens_beside_the_query_with_lines(self, browser: Browser, found: dict[str, Path]) -> None:
        data = data_of(found["one"])
        (answer,) = data["answers"]
        with opened(browser, found["one"]) as seen:
            seen.page.locator(".result").first.click()
            seen.wait_until(lambda: seen.painted(seen.page.locator("dialog canvas")) > 500)
            title = seen.page.locator("dialog h2")
            assert data["names"][answer["image"][0]] in (title.text_content() or "")
            seen.keep("retrieval-pair")
            seen.page.keyboard.press("ArrowLeft")  # round to the last
            last = answer["image"][-1]
            assert title.text_content() == f"{len(answer['image'])}  {data['names'][last]}"
            seen.page.get_by_role("button", name="Close").click()
            assert not seen.page.locator("dialog").is_visible()

    def test_a_query_that_is_chosen_shows_its_answer(self, browser: Browser, found: dict[str, Path]) -> None:
        data = data_of(found["all"])
        with opened(browser, found["all"]) as seen:
            assert seen.page.locator("#queries tbody tr").count() == len(data["answers"]) == 8
            answer = data["answers"][5]
            seen.page.locator("#queries tbody tr").nth(5).get_by_role("button").last.click()
            assert seen.page.locator(".asked h3").get_attribute("title") == answer["query"]
            first = seen.page.locator(".result").first
            assert first.get_attribute("title") == data["names"][answer["image"][0]]
            assert (answer["query"]).endswith(data["names"][answer["image"][0]])  # it finds itself

    @pytest.mark.parametrize(("size", "dark"), LOOKS, ids=NAMED)
    def test_page_is_legible_and_fits(
        self,
        browser: Browser,
        found: dict[str, Path],
        size: tuple[int, int],
        dark: bool,
        request: pytest.FixtureRequest,
    ) -> None:
        name = f"retrieval-{request.node.callspec.id}"
        with opened(browser, found["all"], size, dark) as seen:
            check_legible(seen)
            seen.keep(name, whole=True)
            seen.page.locator(".result").nth(1).click()
            check_legible(seen, "dialog")
            seen.keep(f"{name}-photo")


@pytest.fixture(scope="module")
def landmarks(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """The page of an evaluation on landmarks, with photos."""
    folder = tmp_path_factory.mktemp("landmarks")
    for name, colour in (("a", (200, 30, 30)), ("x", (30, 200, 30)), ("two", (30, 30, 200))):
        photo(folder / f"photos/{name}.png", colour, (400, 200))
    (folder / "oxford5k.json").write_text(json.dumps(landmark_table().as_json()))
    return hardnet_sfm.write_report(folder / "oxford5k.json", images=folder / "photos")


class TestLandmarks:
    def test_a_query_that_is_chosen_shows_what_was_found(self, browser: Browser, landmarks: Path) -> None:
        with opened(browser, landmarks) as seen:
            shown, asked = seen.page.locator(".result"), seen.page.locator(".asked h3")
            assert asked.text_content() == "one" and shown.count() == 6
            assert [kind.text_content() for kind in shown.locator(".state").all()][:3] == [
                "junk",
                "positive",
                "negative",
            ]
            assert shown.nth(1).locator(".name").text_content() == "2 a"
            pixels = seen.pixels(".result:nth-child(2) img")
            assert abs(int(pixels[len(pixels) // 2, pixels.shape[1] // 2, 2]) - 200) < 10  # red
            seen.page.get_by_role("button", name="two", exact=True).click()
            assert asked.text_content() == "two" and shown.count() == 2
            assert "AP 8.3 %" in (seen.page.locator(".asked").text_content() or "")

    @pytest.mark.parametrize(("size", "dark"), [LOOKS[0], LOOKS[3]], ids=[NAMED[0], NAMED[3]])
    def test_page_is_legible_and_fits(
        self, browser: Browser, landmarks: Path, size: tuple[int, int], dark: bool
    ) -> None:
        with opened(browser, landmarks, size, dark) as seen:
            check_legible(seen)
            seen.keep(f"evaluation-landmarks-{'phone' if size == PHONE else 'desktop'}", whole=True)


class TestEvaluated:
    @pytest.mark.parametrize(("name", "table"), TABLES.items(), ids=list(TABLES))
    def test_tables_say_what_is_printed_and_mark_the_best(
        self, browser: Browser, evaluated: dict[str, Path], name: str, table: ScoreTable
    ) -> None:
        with opened(browser, evaluated[name]) as seen:
            bodies = seen.page.locator("#measures tbody")
            assert bodies.count() == len(table.measures)
            for number, measure in enumerate(table.measures):
                rows, columns = list(measure.values), measure.columns
                if table.across:
                    rows, columns = columns, rows
                for row, said in zip(rows, bodies.nth(number).locator("tr").all(), strict=True):
                    cells = said.locator("td").all()[-len(columns) :]
                    for column, cell in zip(columns, cells, strict=True):
                        expected = measure.cell(*((column, row) if table.across else (row, column)))
                        plain = expected.replace("[bold]", "").replace("[/]", "").replace("-", "–")
                        assert cell.text_content() == plain
                        assert (cell.locator("strong").count() == 1) == ("[bold]" in expected)
            if any(measure.marked for measure in table.measures):
                assert "* trained on this very set" in (seen.page.locator("#measures").text_content() or "")

    def test_bars_are_as_long_as_their_values(self, browser: Browser, evaluated: dict[str, Path]) -> None:
        with opened(browser, evaluated["homography"]) as seen:
            bars = seen.page.locator("#measures .groups").first.locator(".bar-fill")
            widths = [bar.evaluate("bar => parseFloat(bar.style.width)") for bar in bars.all()]
            values = HOMOGRAPHY.measures[0].values
            expected = [values[name][column] for column in ("graf", "wall") for name in values]
            assert widths == pytest.approx([100 * value / max(expected) for value in expected], abs=0.01)
            colours = {bar.evaluate("bar => getComputedStyle(bar).backgroundColor") for bar in bars.all()}
            assert len(colours) == 2

    def test_curves_are_of_the_column_that_is_chosen(self, browser: Browser, evaluated: dict[str, Path]) -> None:
        curve = data_of(evaluated["homography"])["curves"][0]["series"]
        with opened(browser, evaluated["homography"]) as seen:

            def drawn() -> list[list[tuple[float, ...]]]:
                return [
                    [tuple(map(float, point.split(","))) for point in (line.get_attribute("points") or "").split()]
                    for line in seen.page.locator("#curves .line-mark").all()
                ]

            before: list[list[tuple[float, ...]]] = []
            for column in ("wall", "mean"):
                seen.page.get_by_label("Matching accuracy of").select_option(column)
                seen.wait_until(lambda before=before: len(drawn()) == 2 and drawn() != before)  # type: ignore[misc]
                before = lines = drawn()
                assert [len(line) for line in lines] == [10, 10]
                # The plot is linear: places of all points give one scale.
                (x0, y0), (x1, y1) = lines[0][0], lines[0][-1]
                first = curve[column][0]
                for line, series in zip(lines, curve[column], strict=True):
                    for (x, y), pixels, share in zip(line, series["x"], series["y"], strict=True):
                        assert x == pytest.approx(x0 + (x1 - x0) * (pixels - 1) / 9, abs=0.2)
                        if first["y"][0] != first["y"][-1]:
                            along = (share - first["y"][0]) / (first["y"][-1] - first["y"][0])
                            assert y == pytest.approx(y0 + (y1 - y0) * along, abs=0.5)

    def test_sizes_of_pools_are_on_a_logarithmic_scale(self, browser: Browser, evaluated: dict[str, Path]) -> None:
        with opened(browser, evaluated["hpatches"]) as seen:
            points = (seen.page.locator("#curves .line-mark").first.get_attribute("points") or "").split()
            x = [float(point.split(",")[0]) for point in points]
            # log 5 and log 200.
            assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(0.69897 / 2.30103, abs=0.002)

    @pytest.mark.parametrize("name", TABLES)
    @pytest.mark.parametrize(("size", "dark"), [LOOKS[0], LOOKS[3]], ids=[NAMED[0], NAMED[3]])
    def test_page_is_legible_and_fits(
        self, browser: Browser, evaluated: dict[str, Path], name: str, size: tuple[int, int], dark: bool
    ) -> None:
        with opened(browser, evaluated[name], size, dark) as seen:
            check_legible(seen)
            seen.keep(f"evaluation-{name}-{'phone' if size == PHONE else 'desktop'}", whole=True)
