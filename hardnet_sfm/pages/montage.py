"""Draws the answer to a query as one picture: the query with its box, the ranked photos, and their verified matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32, spread
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.keypoints import Box, RankedImage
from hardnet_sfm.photos import PhotoSource

Picture = NDArray[np.uint8]

MOST_RESULTS = 60
# All lengths are in pixels of the page. A cell is a caption above a panel. The panel holds the photo and, if
# correspondences were verified, the query to its left.
_WIDTH, _MARGIN, _GAP = 1800, 36, 24
_CAPTION, _PANEL, _PADDING = 54, 276, 8
_QUERY_SHARE = 0.36
_HEADER = 380
_MOST_LINES = 100
_PAPER, _SHADE, _INK, _FAINT, _BOX = (255, 255, 255), (241, 243, 245), (28, 32, 38), (110, 118, 129), (255, 120, 0)
_NORMAL, _BOLD = 400, 700


@dataclass(frozen=True)
class _Area:
    """A rectangle of the page."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class _Placed:
    """Position and scale of a photo, or of a part of it, on the page."""

    area: _Area
    corner: tuple[int, int]
    factor: float

    def points(self, xy: Float32) -> NDArray[np.float64]:
        """Maps (N, 2) pixels of the photo to pixels of the page. Pixel centres are at whole numbers in both."""
        return np.asarray((xy - self.corner + 0.5) * self.factor - 0.5 + (self.area.x, self.area.y), np.float64)

    def holds(self, xy: Float32) -> NDArray[np.bool_]:
        at = self.points(xy) - (self.area.x, self.area.y)
        return np.asarray(((at >= -0.5) & (at <= (self.area.width, self.area.height))).all(axis=1))


def draw_montage(
    name: str,
    query: Picture,
    results: Sequence[RankedImage],
    photos: PhotoSource,
    *,
    bbox: Box | None = None,
    facts: Sequence[str] = (),
) -> Picture:
    """Draws the answer to a query.

    Args:
        name: name of the query, to print.
        query: upright pixels of the query, (H, W) or (H, W, 3) RGB.
        results: ranked photos, best first. The first 60 are drawn, each with at most 100 lines if it has any.
        photos: gives the ranked photos. If a photo is no longer readable, its place shows the reason.
        bbox: x0, y0, x1, y1 of the query in pixels; None means the whole photo.
        facts: lines to print next to the query, for instance the method.

    Returns:
        (H, 1800, 3) RGB.

    Raises:
        UsageError: the box does not overlap the photo.
    """
    photo = np.repeat(query[..., None], 3, axis=2) if query.ndim == 2 else query
    part, corner = _cut(photo, bbox)
    shown = results[:MOST_RESULTS]
    verified = any(one.lines is not None and len(one.lines) for one in shown)
    columns = 3 if verified else 5
    rows = -(-len(shown) // columns)
    height = _MARGIN + _HEADER + rows * (_GAP + _CAPTION + _PANEL) + _MARGIN
    page = np.full((height, _WIDTH, 3), _PAPER, np.uint8)
    _draw_header(page, photo, bbox, name, [*facts, *_summarize(results, bbox)])
    step = (_WIDTH - 2 * _MARGIN + _GAP) / columns
    for place, result in enumerate(shown):
        row, column = divmod(place, columns)
        left = _MARGIN + round(column * step)
        top = _MARGIN + _HEADER + _GAP + row * (_GAP + _CAPTION + _PANEL)
        cell = _Area(left, top, _MARGIN + round((column + 1) * step) - _GAP - left, _CAPTION + _PANEL)
        _draw_result(page, cell, place + 1, result, photos, (part, corner) if verified else None)
    return page


def _summarize(results: Sequence[RankedImage], bbox: Box | None) -> list[str]:
    box = [f"box {', '.join(f'{x:g}' for x in bbox)}"] if bbox else []
    if not results:
        return [*box, "no photo has anything in common with it"]
    accepted = sum(bool(one.accepted) for one in results)
    count = f"{len(results)} results" if len(results) > 1 else "1 result"
    count += f", the first {MOST_RESULTS} are shown" if len(results) > MOST_RESULTS else ""
    return [
        *box,
        count,
        *([f"{accepted or 'none'} accepted"] if any(one.accepted is not None for one in results) else []),
    ]


def _cut(photo: Picture, bbox: Box | None) -> tuple[Picture, tuple[int, int]]:
    """Crops the box from a photo. Returns the crop and the pixel of its top-left corner."""
    height, width = photo.shape[:2]
    x0, y0, x1, y1 = bbox or (0, 0, width, height)
    left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
    part = photo[top : min(height, int(np.ceil(y1))), left : min(width, int(np.ceil(x1)))]
    if not part.size:
        raise UsageError(
            f"the box {x0:g} {y0:g} {x1:g} {y1:g} does not overlap the photo",
            "A box is left top right bottom, in pixels of the upright photo.",
        )
    return part, (left, top)


def _draw_header(page: Picture, photo: Picture, bbox: Box | None, name: str, facts: Sequence[str]) -> None:
    panel = _Area(_MARGIN, _MARGIN, 560, _HEADER)
    _shade(page, panel)
    placed = _place(page, photo, panel)
    if bbox:
        first, last = placed.points(np.array([bbox[:2], bbox[2:]], np.float32)).round().astype(int)
        for colour, width in ((_PAPER, 6), (_BOX, 3)):
            cv2.rectangle(page, first.tolist(), last.tolist(), colour, width, cv2.LINE_AA)
    left, room = panel.x + panel.width + 2 * _GAP, _WIDTH - _MARGIN - (panel.x + panel.width + 2 * _GAP)
    _write_text(page, "query", (left, panel.y + 40), 20, _FAINT, _NORMAL)
    _write_text(page, _shorten(name, room, 36, _BOLD), (left, panel.y + 84), 36, _INK, _BOLD)
    for line, fact in enumerate(facts):
        _write_text(page, _shorten(fact, room, 24, _NORMAL), (left, panel.y + 136 + 38 * line), 24, _INK, _NORMAL)


def _draw_result(
    page: Picture,
    cell: _Area,
    rank: int,
    result: RankedImage,
    photos: PhotoSource,
    query: tuple[Picture, tuple[int, int]] | None,
) -> None:
    """Draws a caption and a panel with the photo, and the query next to it if correspondences were verified."""
    after = cell.x + _write_text(page, f"{rank}", (cell.x, cell.y + 20), 22, _INK, _BOLD) + 10
    name = _shorten(result.image, cell.x + cell.width - after, 20, _NORMAL)
    _write_text(page, name, (after, cell.y + 20), 20, _INK, _NORMAL)
    said = f"score {result.score:.4g}"
    if result.inliers is not None:
        said += f"   {result.inliers} inlier{'s' if result.inliers != 1 else ''}"
    if result.accepted is not None:
        said += "   same file" if result.identical else "   accepted" if result.accepted else "   not accepted"
    _write_text(page, said, (after, cell.y + 44), 18, _FAINT, _NORMAL)
    panel = _Area(cell.x, cell.y + _CAPTION, cell.width, _PANEL)
    _shade(page, panel)
    try:
        photo = photos.colours(result.image)
    except HardnetSfmError as error:
        why = _shorten(error.message.rpartition(": ")[2], panel.width - 2 * _GAP, 18, _NORMAL)
        _write_text(page, why, (panel.x + _GAP, panel.y + _PANEL // 2), 18, _FAINT, _NORMAL)
        return
    if query is None or result.lines is None or not len(result.lines):
        _place(page, photo, panel)
        return
    part, corner = query
    share = round(panel.width * _QUERY_SHARE)
    beside = _place(page, part, _Area(panel.x, panel.y, share + _PADDING, panel.height), corner)
    placed = _place(page, photo, _Area(panel.x + share, panel.y, panel.width - share, panel.height))
    _draw_lines(page, panel, result.lines, beside, placed)


def _draw_lines(page: Picture, panel: _Area, lines: Float32, query: _Placed, photo: _Placed) -> None:
    """Draws a line for each correspondence. Colours run down the query, so that crossing lines stand out."""
    lines = lines[query.holds(lines[:, :2]) & photo.holds(lines[:, 2:])]
    lines = lines[spread(len(lines), _MOST_LINES)]
    if not len(lines):
        return
    first, second = query.points(lines[:, :2]), photo.points(lines[:, 2:])
    down = (first[:, 1] - query.area.y) / query.area.height
    ramp = np.clip(40 + 190 * down, 0, 255).astype(np.uint8)[:, None]  # the ends of the colour map are too dark
    colours = cv2.cvtColor(cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)[:, 0].tolist()
    under = page[panel.y : panel.y + panel.height, panel.x : panel.x + panel.width]
    drawn = under.copy()
    ends = np.concatenate([first, second], 1) - np.tile([panel.x, panel.y], 2)
    for colour, end in zip(colours, (ends * 16).round().astype(int).tolist(), strict=True):
        cv2.line(drawn, end[:2], end[2:], colour, 1, cv2.LINE_AA, 4)
        for at in (end[:2], end[2:]):
            cv2.circle(drawn, at, 40, colour, -1, cv2.LINE_AA, 4)
    cv2.addWeighted(drawn, 0.85, under, 0.15, 0, under)


def _place(page: Picture, photo: Picture, area: _Area, corner: tuple[int, int] = (0, 0)) -> _Placed:
    """Draws a photo in the middle of an area, as large as the area and its padding allow."""
    height, width = photo.shape[:2]
    factor = min((area.width - 2 * _PADDING) / width, (area.height - 2 * _PADDING) / height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    x, y = area.x + (area.width - size[0]) // 2, area.y + (area.height - size[1]) // 2
    page[y : y + size[1], x : x + size[0]] = small
    return _Placed(_Area(x, y, *size), corner, factor)


def _shade(page: Picture, area: _Area) -> None:
    page[area.y : area.y + area.height, area.x : area.x + area.width] = _SHADE


def _write_text(
    page: Picture, text: str, at: tuple[int, int], size: int, colour: tuple[int, int, int], weight: int
) -> int:
    """Writes a line of text whose baseline begins at a given place. Returns its width."""
    cv2.putText(page, text, at, colour, _font(), size, weight)
    return _measure_text(text, size, weight)


def _measure_text(text: str, size: int, weight: int) -> int:
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), _font(), size, weight)
    return int(width)


def _shorten(text: str, room: int, size: int, weight: int) -> str:
    """Shortens a text to fit, by replacing its middle with an ellipsis."""
    kept, short = len(text), text
    while kept > 2 and _measure_text(short, size, weight) > room:
        kept -= 1
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def _font() -> Any:
    """Returns OpenCV's built-in font, which has the letters of all common scripts."""
    return cv2.FontFace("sans")
