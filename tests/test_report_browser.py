"""The page about a reconstruction in a real browser: it draws, sorts, opens, is legible, and asks for nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from browser import DESKTOP, PHONE, Visit, visit

import hardnet_sfm
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.workspace import Workspace, read_json, write_json
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.scene import Scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
PHOTOS = 8


@pytest.fixture(scope="module")
def page(browser: Browser, small_scene: tuple[Path, Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """The page of a small reconstruction; not made where there is no browser to look at it."""
    place = Workspace(tmp_path_factory.mktemp("looked-at"))
    hardnet_sfm.reconstruct(
        small_scene[0],
        place.root,
        extract_options=ExtractOptions(descriptor="rootsift", max_keypoints=1200),
        map_options=MapOptions(camera_mode="single"),
    )
    return place.report


@contextmanager
def opened(browser: Browser, page: Path, **how: object) -> Iterator[Visit]:
    """The page in a window; when the block ends, it must have had no errors and asked for nothing."""
    with visit(browser, page.as_uri(), **how) as seen:  # type: ignore[arg-type]
        yield seen
        assert seen.errors == [] and seen.requests == []


@pytest.fixture(scope="module")
def desktop(browser: Browser, page: Path) -> Iterator[Visit]:
    """One window for all that leaves the page as it was."""
    with opened(browser, page) as seen:
        seen.page.wait_for_timeout(300)
        seen.keep("report-light", whole=True)
        yield seen


def colours(pixels: np.ndarray) -> int:
    return len(np.unique(pixels.reshape(-1, 3), axis=0))


def test_model_is_drawn_and_turns(desktop: Visit) -> None:
    canvas = desktop.page.locator(".model canvas")
    canvas.scroll_into_view_if_needed()
    before = desktop.pixels(".model canvas")
    background = before[5, 5]
    drawn = (np.abs(before.astype(int) - background).max(axis=2) > 40).mean()
    assert drawn > 0.005 and colours(before) > 50
    canvas.focus()
    for _ in range(5):
        desktop.page.keyboard.press("ArrowLeft")
    turned = desktop.pixels(".model canvas")
    assert (np.abs(turned.astype(int) - before).max(axis=2) > 40).mean() > 0.003
    desktop.page.get_by_role("button", name="Reset view").click()
    canvas.focus()
    desktop.page.mouse.move(0, 0)
    assert (np.abs(desktop.pixels(".model canvas").astype(int) - before).max(axis=2) > 40).mean() < 0.001
    desktop.page.get_by_label("Cameras", exact=True).uncheck()
    without = desktop.pixels(".model canvas")
    assert (np.abs(without.astype(int) - before).max(axis=2) > 40).sum() > 100
    desktop.page.get_by_label("Cameras", exact=True).check()


def test_camera_says_its_name_and_opens_its_photo(desktop: Visit) -> None:
    canvas = desktop.page.locator(".model canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    x, y = desktop.page.evaluate("view.placeOf(data.cloud.tips[2])")
    desktop.page.mouse.move(box["x"] + x + 1, box["y"] + y)
    name = desktop.page.locator(".model .tip").text_content()
    assert name in desktop.page.evaluate("photos.name")
    desktop.keep("report-camera")
    desktop.page.mouse.click(box["x"] + x + 1, box["y"] + y)
    assert desktop.page.locator("dialog h2").text_content() == name
    desktop.page.keyboard.press("Escape")


def test_table_sorts_and_filters(desktop: Visit) -> None:
    def column(number: int) -> list[str]:
        return desktop.page.locator(f"#photos tbody td:nth-child({number})").all_text_contents()

    head = desktop.page.locator("#photos th", has_text="Observations")
    head.get_by_role("button").click()
    most_first = [int(text.replace(",", "")) for text in column(6)]
    assert most_first == sorted(most_first, reverse=True) and len(most_first) == PHOTOS
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").press("Enter")
    assert [int(text.replace(",", "")) for text in column(6)] == sorted(most_first)
    desktop.page.locator("#photos th", has_text="Name").get_by_role("button").click()
    names = column(2)
    assert names == sorted(names) and head.get_attribute("aria-sort") is None
    search = desktop.page.get_by_role("searchbox", name="Filter photos")
    search.fill(names[3])
    assert column(2) == [names[3]]
    search.fill("no such photo")
    assert column(2) == []
    search.fill("")
    assert len(column(2)) == PHOTOS


def test_photo_shows_its_keypoints_by_track_length(desktop: Visit) -> None:
    desktop.page.locator(".thumb").first.click()
    canvas = desktop.page.locator("dialog canvas")
    desktop.wait_until(lambda: desktop.painted(canvas) > 1000)
    everything = desktop.painted(canvas)
    desktop.keep("report-photo")
    least = desktop.page.locator("dialog input[type=range]")
    least.fill("3")
    desktop.wait_until(lambda: 0 < desktop.painted(canvas) < everything)
    first = desktop.page.locator("dialog h2").text_content()
    desktop.page.get_by_role("button", name="Next photo").click()
    assert desktop.page.locator("dialog h2").text_content() != first
    desktop.page.get_by_role("button", name="Close").click()
    assert not desktop.page.locator("dialog").is_visible()


def test_panels_of_pairs_open_and_draw_lines(desktop: Visit) -> None:
    panel = desktop.page.locator("#pairs details").nth(1)
    assert panel.get_attribute("open") is None
    panel.locator("summary").click()
    assert panel.get_attribute("open") is not None
    panel.locator("canvas").scroll_into_view_if_needed()
    desktop.wait_until(lambda: desktop.painted(panel.locator("canvas")) > 500)
    desktop.keep("report-pair")


def test_suspects_are_listed_and_drawn(browser: Browser, page: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "copy")
    shutil.copytree(page.parent, place.root)
    listed = [
        {"first": "view_000.jpg", "second": f"view_00{n}.jpg", "inliers": 100 * n, "explained": n / 10, "reason": "why"}
        for n in (1, 2)
    ]
    write_json(place.summary, {**read_json(place.summary), "suspects": listed, "suspect_pairs": 3})
    with opened(browser, hardnet_sfm.write_report(place)) as seen:
        section = seen.page.locator("#suspects")
        assert "3 pairs of photos look alike but disagree with the model" in section.locator(".lead").inner_text()
        assert "The worst 2 are listed." in section.locator(".lead").inner_text()
        assert section.locator("tbody td:nth-child(4)").all_text_contents() == ["10", "20"]
        assert section.locator("details").count() == 2
        panel = section.locator("details canvas").first
        panel.scroll_into_view_if_needed()
        seen.wait_until(lambda: seen.painted(panel) > 500)


def test_charts_have_what_they_show(desktop: Visit) -> None:
    assert desktop.page.locator("#statistics .bar-mark").count() == desktop.page.evaluate(
        "Object.values(data.histograms).reduce((sum, one) => sum + one.counts.length, 0)"
    )
    assert desktop.page.locator("#matches .vertex-mark").count() == PHOTOS
    assert colours(desktop.pixels("#matches .matrix canvas")) > 5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_is_legible_and_fits(browser: Browser, page: Path, size: tuple[int, int], dark: bool) -> None:
    name = f"report-{'phone' if size == PHONE else 'desktop'}-{'dark' if dark else 'light'}"
    with opened(browser, page, size=size, dark=dark) as seen:
        seen.page.wait_for_timeout(300)
        ground = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) < 150) == dark
        contrasts = seen.contrasts("body")
        assert len(contrasts) > 60 and min(contrasts.values()) >= 4.5  # WCAG 2, AA
        assert seen.overflow() <= 0
        seen.keep(name, whole=True)
        seen.page.locator(".thumb").first.click()
        assert min(seen.contrasts("dialog").values()) >= 4.5
        assert seen.overflow() <= 0
        seen.keep(f"{name}-photo")


def test_page_turns_dark_while_it_is_open(browser: Browser, page: Path) -> None:
    with opened(browser, page) as seen:
        canvas = "#matches .matrix canvas"
        unmatched = seen.pixels(canvas)[8, 8]  # the first photo with itself
        seen.page.emulate_media(color_scheme="dark")
        assert unmatched.min() > 200
        seen.wait_until(lambda: seen.pixels(canvas)[8, 8].max() < 60)
