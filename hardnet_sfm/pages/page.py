"""Makes self-contained pages: a template, styles, scripts and data in one file."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.ownership import check_output
from hardnet_sfm.files.workspace import replacing

Kind = Literal["reconstruction", "training", "retrieval", "landmarks", "scores"]
_HEAD = 4096  # number of characters at the beginning of a page that contain its mark
_SCRIPTS: dict[Kind, tuple[str, ...]] = {
    "reconstruction": ("page.js", "charts.js", "model.js", "pictures.js", "reconstruction.js"),
    "training": ("page.js", "charts.js", "training.js"),
    "retrieval": ("page.js", "charts.js", "pictures.js", "retrieval.js"),
    "landmarks": ("page.js", "charts.js", "pictures.js", "landmarks.js"),
    "scores": ("page.js", "charts.js", "scores.js"),
}
MOST_BYTES = 15_000_000
"""Largest size of a page. Each part of a page has its own limit in bytes, before base64 adds a third."""


def packed(array: NDArray[Any]) -> dict[str, Any]:
    """Packs an array compactly for JSON: its type, and its little-endian bytes in base64."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"type": array.dtype.name, "bytes": base64.b64encode(little.tobytes()).decode("ascii")}


def picture(data: bytes, form: str = "webp") -> str:
    """Makes a data URL, by which a page embeds a picture."""
    return f"data:image/{form};base64,{base64.b64encode(data).decode('ascii')}"


def along_sides(xy: NDArray[np.floating[Any]], size: tuple[int, int]) -> NDArray[np.uint16]:
    """Converts pixels of a photo to positions along its sides, 0 to 65535. Pixel centres are at whole numbers."""
    share = (np.asarray(xy, np.float64) + 0.5) / size
    return (share.clip(0, 1) * 65535).round().astype(np.uint16)


def box_along_sides(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Converts a box in a photo, x0, y0, x1, y1 in pixels, to shares of its sides."""
    ends: list[float] = (along_sides(np.reshape(box, (2, 2)), size).reshape(-1) / 65535).round(5).tolist()
    return ends


def histogram(values: NDArray[Any], edges: Sequence[float] | NDArray[Any]) -> dict[str, Any]:
    """Counts values between edges. The last bin also counts larger values; values that are not finite do not count."""
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    counts, _ = np.histogram(finite.clip(max=edges[-1]), edges)
    return {
        "edges": np.asarray(edges, np.float64).round(6).tolist(),
        "counts": counts.tolist(),
        "median": float(np.median(finite)) if len(finite) else None,
        "mean": float(finite.mean()) if len(finite) else None,
    }


def check_page(target: Path) -> None:
    """Checks that a page can be written.

    Raises:
        HardnetSfmError: a file is there that this package did not make.
        UsageError: its name is not that of a page, or its folder is missing.
    """
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{target}: not a page", "Give it a name that ends in .html.")
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {target}: no such folder: {target.parent}", "Make the folder first.")
    check_output(target)


def write_page(target: Path, title: str, kind: Kind, data: Mapping[str, Any], mark: str = "") -> None:
    """Writes a page.

    Args:
        target: the .html file.
        title: title of the page; any text.
        kind: kind of page, which selects the scripts.
        data: contents of the page, in a form that JSON can hold.
        mark: digest of the inputs of the page. `read_mark` reads it again.

    Raises:
        HardnetSfmError: the file cannot be written, or a file is there that this package did not make.
    """
    check_output(target)
    text = page(title, kind, data, mark)
    try:
        with replacing(target) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HardnetSfmError(f"cannot write {target}: {error.strerror}", "Choose another place for it.") from error


def read_mark(path: Path) -> str:
    """Returns the mark of a page, or an empty text if there is no page or it has no mark."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        found = re.search(r'<meta name="made-of" content="([0-9a-f]+)">', file.read(_HEAD))
    return found[1] if found else ""


def page(title: str, kind: Kind, data: Mapping[str, Any], mark: str = "") -> str:
    """Makes the text of a page, see `write_page`."""
    static = files("hardnet_sfm.pages") / "static"

    def read(name: str) -> str:
        return (static / name).read_text(encoding="utf-8")

    parts = {
        "title": html.escape(title),
        "mark": html.escape(mark),
        "styles": read("page.css"),
        "data": _within_script(data),
        "scripts": "".join(map(read, _SCRIPTS[kind])),
    }
    # The page is joined from pieces, so that placeholders within inserted text are not replaced.
    pieces = []
    for number, piece in enumerate(read("page.html").split("@@")):
        pieces.append(parts[piece] if number % 2 else piece)
    return "".join(pieces)


def _within_script(data: Mapping[str, Any]) -> str:
    """Writes JSON that is safe within a script element: no text, such as a photo's name, can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
