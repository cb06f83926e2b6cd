"""Makes self-contained pages: a template, styles, scripts and data in one file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["reconstruction", "training", "retrieval", "landmarks", "scores"]
_SCRIPTS: dict[Kind, tuple[str, ...]] = {
    "reconstruction": ("page.js", "charts.js", "model.js", "pictures.js", "reconstruction.js"),
    "training": ("page.js", "charts.js", "training.js"),
    "retrieval": ("page.js", "charts.js", "pictures.js", "retrieval.js"),
    "landmarks": ("page.js", "charts.js", "pictures.js", "landmarks.js"),
    "scores": ("page.js", "charts.js", "scores.js"),
}
MOST_BYTES = 15_000_000
"""Largest size of a page. Each part of a page has its own limit in bytes, before base64 adds a third."""


def pack_array(array: NDArray[Any]) -> dict[str, Any]:
    """Packs an array compactly for JSON: its type, and its little-endian bytes in base64."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"type": array.dtype.name, "bytes": base64.b64encode(little.tobytes()).decode("ascii")}


def embed_picture(data: bytes, form: str = "webp") -> str:
    """Makes a data URL, by which a page embeds a picture."""
    return f"data:image/{form};base64,{base64.b64encode(data).decode('ascii')}"


def scale_to_sides(xy: NDArray[np.floating[Any]], size: tuple[int, int]) -> NDArray[np.uint16]:
    """Converts pixels of a photo to positions along its sides, 0 to 65535. Pixel centres are at whole numbers."""
    share = (np.asarray(xy, np.float64) + 0.5) / size
    return (share.clip(0, 1) * 65535).round().astype(np.uint16)


def scale_box_to_sides(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Converts a box in a photo, x0, y0, x1, y1 in pixels, to shares of its sides."""
    ends: list[float] = (scale_to_sides(np.reshape(box, (2, 2)), size).reshape(-1) / 65535).round(5).tolist()
    return ends


def make_histogram(values: NDArray[Any], edges: Sequence[float] | NDArray[Any]) -> dict[str, Any]:
    """Counts values between edges. The last bin also counts larger values; values that are not finite do not count."""
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    counts, _ = np.histogram(finite.clip(max=edges[-1]), edges)
    return {
        "edges": np.asarray(edges, np.float64).round(6).tolist(),
        "counts": counts.tolist(),
        "median": float(np.median(finite)) if len(finite) else None,
        "mean": float(finite.mean()) if len(finite) else None,
    }


def make_page(title: str, kind: Kind, data: Mapping[str, Any], mark: str = "") -> str:
    """Makes the HTML of a page.

    Args:
        title: title of the page; any text.
        kind: kind of page, which selects the scripts.
        data: contents of the page, in a form that JSON can hold.
        mark: digest of what the page was made from, kept in the page.
    """
    static = files("hardnet_sfm.pages") / "static"

    def read(name: str) -> str:
        return (static / name).read_text(encoding="utf-8")

    parts = {
        "title": html.escape(title),
        "mark": html.escape(mark),
        "styles": read("page.css"),
        "data": _encode_for_script(data),
        "scripts": "".join(map(read, _SCRIPTS[kind])),
    }
    # The page is joined from pieces, so that placeholders within inserted text are not replaced.
    pieces = []
    for number, piece in enumerate(read("page.html").split("@@")):
        pieces.append(parts[piece] if number % 2 else piece)
    return "".join(pieces)


def _encode_for_script(data: Mapping[str, Any]) -> str:
    """Writes JSON that is safe within a script element: no text, such as a photo's name, can end the element."""
    try:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise ValueError("a number is infinite or NaN") from error
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
