"""A real browser for the pages that the package makes: Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

SCREENSHOTS = Path(__file__).parents[1] / "screenshots"  # kept to be looked at; git does not
DESKTOP, PHONE = (1280, 900), (375, 812)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# 3D without a GPU, and no sandbox of its own: the tests may run as root in a container, on pages that they made.
_FLAGS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-accelerated-2d-canvas",  # which without a GPU draws a thousand times slower
)
_PATIENCE = 240_000  # milliseconds: of a busy machine without a GPU
_POLL = 200


def chromium() -> str | None:
    """The browser's program: $CHROMIUM, or one of the usual names on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """Starts Chromium; skips the test, with the reason, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium), and $CHROMIUM names none")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """An open page, and what it did that it should not have.

    Attributes:
        page: Playwright's.
        errors: what it wrote to the console as an error or a warning, and exceptions that nothing caught.
        requests: addresses of all it asked for, but the page itself and what is within it (data:, blob:).
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def keep(self, name: str, *, whole: bool = False) -> Path:
        """Saves a screenshot, of the whole page where asked for, among those that people look at."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=whole)
        return SCREENSHOTS / f"{name}.png"

    def pixels(self, selector: str) -> NDArray[np.uint8]:
        """What an element looks like: (H, W, 3) uint8, BGR."""
        picture = self.page.locator(selector).first.screenshot()
        return np.asarray(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR), np.uint8)

    def painted(self, canvas: Locator) -> int:
        """How many pixels of a canvas anything is drawn on."""
        pixels: int = canvas.evaluate(_PAINTED)
        return pixels

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Photos are decoded and pages drawn when the machine has time for it."""
        for _ in range(_PATIENCE // _POLL):
            if true():
                return
            self.page.wait_for_timeout(_POLL)
        raise AssertionError("waited in vain")

    def contrasts(self, selector: str) -> dict[str, float]:
        """The lowest WCAG 2 contrast, 1 to 21, of visible text within a selector to what is behind it, by its words.

        Colours are those that the browser computed; a half-transparent background is laid over the one behind it.
        """
        found: dict[str, float] = self.page.evaluate(_CONTRASTS, selector)
        return found

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window: above 0 it scrolls sideways."""
        wider: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return wider


@contextmanager
def visit(
    browser: Browser, address: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False, scale: float = 1
) -> Iterator[Visit]:
    """Opens an address in a window of its own.

    Args:
        browser: as the fixture gives it.
        address: file:// or http://.
        size: of the window, pixels of CSS.
        dark: whether the person asked for dark pages.
        scale: pixels of the screen a pixel of CSS.
    """
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        device_scale_factor=scale,
        has_touch=size[0] < 600,
        reduced_motion="reduce",
    )
    context.set_default_timeout(_PATIENCE)
    page = context.new_page()
    seen = Visit(page)
    page.on("console", lambda said: seen.errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))

    def note(url: str) -> None:
        if url != address and not url.startswith(("data:", "blob:")):
            seen.requests.append(url)

    page.on("request", lambda request: note(request.url))
    try:
        page.goto(address)
        yield seen
    finally:
        context.close()


_PAINTED = """
node => {
  const copy = new OffscreenCanvas(node.width, node.height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(node, 0, 0);
  return copy.getImageData(0, 0, node.width, node.height).data.filter((value, i) => i % 4 === 3 && value).length;
}
"""

_CONTRASTS = """
selector => {
  const parse = text => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const over = (top, under) => {
    const alpha = top[3] ?? 1;
    return [0, 1, 2].map(i => alpha * top[i] + (1 - alpha) * under[i]);
  };
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    const dark = matchMedia("(prefers-color-scheme: dark)").matches
      && getComputedStyle(document.documentElement).colorScheme.includes("dark");
    const canvas = dark ? [18, 18, 18] : [255, 255, 255];
    return layers.reverse().reduce((under, top) => over(top, under), canvas);
  };
  const luminance = colour => {
    const [r, g, b] = colour.map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = {};
  for (const root of document.querySelectorAll(selector)) {
    const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const element = texts.currentNode.parentElement, words = texts.currentNode.textContent.trim();
      if (!words || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
      if (["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
      const under = behind(element), style = getComputedStyle(element);
      const ink = over(parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color), under);
      const [low, high] = [luminance(ink), luminance(under)].sort((a, b) => a - b);
      const contrast = (high + 0.05) / (low + 0.05);
      found[words.slice(0, 60)] = Math.min(found[words.slice(0, 60)] ?? 21, contrast);
    }
  }
  return found;
}
"""
