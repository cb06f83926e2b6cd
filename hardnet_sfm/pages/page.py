"""A page that needs nothing but itself: a template, styles, scripts and data, in one file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.workspace import replacing

Kind = Literal["reconstruction", "training", "retrieval", "landmarks", "scores"]
_SCRIPTS: dict[Kind, tuple[str, ...]] = {
    "reconstruction": ("page.js", "charts.js", "model.js", "pictures.js", "reconstruction.js"),
    "training": ("page.js", "charts.js", "training.js"),
    "retrieval": ("page.js", "charts.js", "pictures.js", "retrieval.js"),
    "landmarks": ("page.js", "charts.js", "pictures.js", "landmarks.js"),
    "scores": ("page.js", "charts.js", "scores.js"),
}
MOST_BYTES = 15_000_000
"""No page is larger. The parts of a page have shares of it, in bytes of their own before base64 adds a third."""


def packed(array: NDArray[Any]) -> dict[str, Any]:
    """An array as JSON holds it in the least space: its type and its bytes, little-endian, in base64."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"type": array.dtype.name, "bytes": base64.b64encode(little.tobytes()).decode("ascii")}


def picture(data: bytes, form: str = "webp") -> str:
    """The address under which a page has a picture in itself."""
    return f"data:image/{form};base64,{base64.b64encode(data).decode('ascii')}"


def along_sides(xy: NDArray[np.floating[Any]], size: tuple[int, int]) -> NDArray[np.uint16]:
    """Positions along the sides of a photo as 0 to 65535; pixels have their centres at whole numbers."""
    share = (np.asarray(xy, np.float64) + 0.5) / size
    return (share.clip(0, 1) * 65535).round().astype(np.uint16)


def box_along_sides(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    """A box of a photo, x0, y0, x1, y1 in pixels, as shares of its sides."""
    ends: list[float] = (along_sides(np.reshape(box, (2, 2)), size).reshape(-1) / 65535).round(5).tolist()
    return ends


def histogram(values: NDArray[Any], edges: Sequence[float] | NDArray[Any]) -> dict[str, Any]:
    """Counts between edges; values beyond the last are counted in the last bin, those that are not finite nowhere."""
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    counts, _ = np.histogram(finite.clip(max=edges[-1]), edges)
    return {
        "edges": np.asarray(edges, np.float64).round(6).tolist(),
        "counts": counts.tolist(),
        "median": float(np.median(finite)) if len(finite) else None,
        "mean": float(finite.mean()) if len(finite) else None,
    }


def check_page(target: Path) -> None:
    """Raises UsageError where no page can be written: a file that no browser opens, or a folder that is missing."""
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{target}: not a page", "Give it a name that ends in .html.")
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {target}: no such folder: {target.parent}", "Make the folder first.")


def write_page(target: Path, title: str, kind: Kind, data: Mapping[str, Any]) -> None:
    """Writes a page.

    Args:
        target: the .html file.
        title: of the page; any text.
        kind: which script draws it.
        data: what it shows, fit for JSON.

    Raises:
        HardnetSfmError: the file cannot be written.
    """
    text = page(title, kind, data)
    try:
        with replacing(target) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HardnetSfmError(f"cannot write {target}: {error.strerror}", "Choose another place for it.") from error


def page(title: str, kind: Kind, data: Mapping[str, Any]) -> str:
    """The text of a page, see `write_page`."""
    static = files("hardnet_sfm.pages") / "static"

    def read(name: str) -> str:
        return (static / name).read_text(encoding="utf-8")

    parts = {
        "title": html.escape(title),
        "styles": read("page.css"),
        "data": _within_script(data),
        "scripts": "".join(map(read, _SCRIPTS[kind])),
    }
    # Put together piece by piece: what is put in is never looked at for further marks.
    pieces = []
    for number, piece in enumerate(read("page.html").split("@@")):
        pieces.append(parts[piece] if number % 2 else piece)
    return "".join(pieces)


def _within_script(data: Mapping[str, Any]) -> str:
    """JSON in which no text can end the script element that it is in, whatever a photo is called."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
