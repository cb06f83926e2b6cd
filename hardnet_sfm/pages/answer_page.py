"""The page about what was found: each query, the ranked photos, and what was spatially verified in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_files import size_of
from hardnet_sfm.keypoints import RankedImage
from hardnet_sfm.pages.montage import Box
from hardnet_sfm.pages.page import along_sides, box_along_sides, packed, picture, write_page
from hardnet_sfm.pages.previews import make_previews
from hardnet_sfm.pages.provenance_notes import weights_facts
from hardnet_sfm.resources import Resources
from hardnet_sfm.versions import versions

Size = tuple[int, int]

# Bytes of the page before base64 makes four of three, and what else there is of it at most.
PREVIEW_BYTES = 5_000_000
QUERY_BYTES = 1_500_000
MOST_ROWS = 20_000
MOST_LINES = 100_000  # 8 bytes each
_LINES = 150  # of a photo
_SIDE = 720  # of a picture, pixels


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found for a query.

    Attributes:
        query: the photo.
        results: best first.
        bbox: x0, y0, x1, y1 of what was asked for, upright pixels; None: the whole photo.
    """

    query: Path
    results: Sequence[RankedImage]
    bbox: Box | None = None


class _Photos(NamedTuple):
    """The ranked photos: number by name, and sizes by number, None where a photo cannot be read any more."""

    number: dict[str, int]
    sizes: list[Size | None]


def retrieval_page(
    answers: Sequence[Answer],
    images: Path,
    target: Path,
    *,
    search: Mapping[str, Any],
    features: Mapping[str, Any],
    notes: Sequence[str] = (),
    resources: Resources | None = None,
) -> None:
    """Writes the page about the answers to one query or several. Its time is that of decoding each photo once, small.

    All answers together have 20,000 photos and 100,000 lines at most, an equal share each.

    Args:
        answers: at least one; the photos of the queries are there.
        images: folder of the ranked photos. Of one that cannot be read any more the page says so.
        target: the .html file to write.
        search: how it was searched, for instance `method` and `photos`, which are shown above all.
        features: options that the features were made with, as `Index.options` has them.
        notes: what a reader has to know.
        resources: how much of the machine.

    Raises:
        HardnetSfmError: a query cannot be read, or the page cannot be written.
    """
    threads = (resources or Resources()).threads
    shown = [answer.results[: max(1, MOST_ROWS // len(answers))] for answer in answers]
    names = list(dict.fromkeys(found.image for results in shown for found in results))
    photos = _Photos({name: at for at, name in enumerate(names)}, [_size(images / name) for name in names])
    verified = sum(found.lines is not None for results in shown for found in results)
    lines = min(_LINES, MOST_LINES // max(1, verified))
    previews = make_previews(images, names, PREVIEW_BYTES, threads, largest=_SIDE)
    queries = {path: at for at, path in enumerate(dict.fromkeys(str(answer.query.resolve()) for answer in answers))}
    of_queries = make_previews(Path(), list(queries), QUERY_BYTES, threads, largest=_SIDE)
    data = {
        "notes": list(notes),
        "search": dict(search),
        "names": names,
        "sizes": photos.sizes,
        "previews": [picture(previews.webp[name]) if name in previews.webp else None for name in names],
        "missing": [previews.missing.get(name, "").rpartition(": ")[2] for name in names],
        "queries": [picture(of_queries.webp[path]) if path in of_queries.webp else None for path in queries],
        "answers": [
            {**_answer(answer, results, photos, lines), "picture": queries[str(answer.query.resolve())]}
            for answer, results in zip(answers, shown, strict=True)
        ],
        "features": {key: value for key, value in features.items() if key not in ("descriptor", "weights_sha256")},
        "weights": weights_facts(features),
        "versions": versions(),
    }
    first = answers[0].query.name
    title = f"{first}: photos found" if len(answers) == 1 else f"{len(answers)} queries: photos found"
    write_page(target, title, "retrieval", data)


def _answer(answer: Answer, results: Sequence[RankedImage], photos: _Photos, lines: int) -> dict[str, Any]:
    """A query, its box in pixels and as shares of its photo's sides, and those of its results that are shown."""
    size = size_of(answer.query)
    numbers = [photos.number[found.image] for found in results]
    return {
        "query": answer.query.as_posix(),
        "size": size,
        "bbox": answer.bbox,
        "box": None if answer.bbox is None else box_along_sides(answer.bbox, size),
        "found": len(answer.results),
        "verified": sum(bool(found.inliers) for found in answer.results),
        "image": numbers,
        "score": [float(f"{found.score:.6g}") for found in results],
        "inliers": [found.inliers for found in results],
        "lines": [
            _lines(found, size, photos.sizes[number], lines) for found, number in zip(results, numbers, strict=True)
        ],
    }


def _size(photo: Path) -> Size | None:
    """Of a photo; None where it cannot be read any more."""
    try:
        return size_of(photo)
    except HardnetSfmError:
        return None


def _lines(found: RankedImage, query: Size, photo: Size | None, most: int) -> dict[str, Any] | None:
    """Both ends of what was verified, some of it where it is much: x, y, x, y as in `along_sides`."""
    if photo is None or found.lines is None or not len(found.lines):
        return None
    rows = np.unique(np.linspace(0, len(found.lines) - 1, min(most, len(found.lines))).round().astype(int))
    kept = found.lines[rows]
    return packed(np.concatenate([along_sides(kept[:, :2], query), along_sides(kept[:, 2:], photo)], 1))
