"""Makes the HTML for a clicked camera or point. Names of photos are user text, so they pass through `escape`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.viewer.photo_panel import Cut, Drawn, KeypointColour
from hardnet_sfm.viewer.world import World, colour_by_ramp

_FRAME = "padding:0.6em 0.8em;font-size:0.85em;line-height:1.45"
_FAINT = "opacity:0.7"
_STOPS = 9

WELCOME = (
    f'<div style="{_FRAME}">Click a <b>camera</b> to see its photo with its keypoints, or a <b>point</b> to see its '
    "patches in all of its photos.</div>"
)


def format_notice(title: str, text: str) -> str:
    """Says why something cannot be shown."""
    return f'<div style="{_FRAME}"><b>{escape(title)}</b><p role="alert">{escape(text)}</p></div>'


def format_photo(world: World, number: int, drawn: Drawn, by: KeypointColour) -> str:
    """Shows a photo with its keypoints, and explains their colours."""
    name = escape(world.tracks.names[number])
    loose = drawn.keypoints - drawn.triangulated
    said = f"{drawn.keypoints} keypoints, {drawn.triangulated} of them see a point"
    if drawn.notice:
        key = f'<p role="alert">{escape(drawn.notice)}</p>'
    elif by == "track length":
        key = format_legend("track length", drawn.low, drawn.high)
    else:
        key = f'<p style="{_FAINT}">green: triangulated; small grey: the {loose} others</p>'
    picture = _embed_image(drawn.picture, ".jpg", f"{name} with its keypoints", "width:100%;border-radius:4px")
    return f'<div style="{_FRAME}"><b>{name}</b><br><span style="{_FAINT}">{said}</span>{key}{picture}</div>'


def format_point(world: World, number: int, cuts: Sequence[Cut]) -> str:
    """Shows the patches of a point, each with the name of its photo."""
    x, y, z = world.tracks.xyz[number]
    said = (
        f"seen by {len(cuts)} photos, mean reprojection error {world.errors[number]:.2f} px, "
        f"at ({x:.4g}, {y:.4g}, {z:.4g})"
    )
    figures = "".join(_format_figure(world.tracks.names[cut.photo], cut) for cut in cuts)
    grid = "display:grid;grid-template-columns:repeat(auto-fill,minmax(96px,1fr));gap:10px;margin-top:0.8em"
    title = f"point {world.tracks.point_ids[number]}"
    head = f'<b>{title}</b><br><span style="{_FAINT}">{said}</span>'
    return f'<div style="{_FRAME}">{head}<div style="{grid}">{figures}</div></div>'


def _format_figure(name: str, cut: Cut) -> str:
    box = "width:96px;height:96px;border-radius:3px;display:block"
    if cut.patch is None:
        shown = f'<div style="{box};background:#8884"></div>'
    else:
        shown = _embed_image(cut.patch, ".png", f"patch in {escape(name)}", box)
    special = f'<br><span role="alert">{escape(cut.notice)}</span>' if cut.notice else ""
    caption = f'{escape(name)}<br><span style="{_FAINT}">{cut.error:.2f} px</span>{special}'
    words = "font-size:0.8em;line-height:1.3;margin-top:3px;overflow-wrap:anywhere"
    return f'<figure style="margin:0">{shown}<figcaption style="{words}">{caption}</figcaption></figure>'


def format_legend(what: str, low: float, high: float, unit: str = "") -> str:
    """Shows the colour ramp with the values at its ends."""
    stops = colour_by_ramp(np.linspace(low, high, _STOPS), low, high).tolist()
    colours = ",".join(f"rgb({r},{g},{b})" for r, g, b in stops)
    bar = f"flex:1;height:0.7em;border-radius:3px;background:linear-gradient(90deg,{colours})"
    row = "font-size:0.85rem;display:flex;align-items:center;gap:0.6em;padding:0.4em 0.7em"
    low_end, high_end = (f"{end:.3g}" if end >= 1 else f"{end:.2f}" for end in (low, high))
    ends = (f"{what} {low_end}".strip(), f"{high_end}{unit} or more")
    first, last = (f"<span>{escape(end)}</span>" for end in ends)
    return f'<div style="{row}">{first}<span style="{bar}"></span>{last}</div>'


def _embed_image(pixels: NDArray[np.uint8], suffix: str, alt: str, style: str) -> str:
    """Embeds grey or RGB pixels in the page. The suffix .png makes it lossless."""
    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 88] if suffix == ".jpg" else []
    packed = base64.b64encode(cv2.imencode(suffix, bgr, quality)[1].tobytes()).decode()
    kind = "jpeg" if suffix == ".jpg" else "png"
    return f'<img alt="{alt}" style="{style}" src="data:image/{kind};base64,{packed}">'
