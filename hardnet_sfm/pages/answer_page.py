"""The page about search results: each query, its ranked photos, and the spatially verified matches in them."""

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

# Limits on the parts of the page. Bytes are before base64, which adds a third.
PREVIEW_BYTES = 5_000_000
QUERY_BYTES = 1_500_000
MOST_ROWS = 20_000
MOST_LINES = 100_000  # 8 bytes each
_LINES = 150  # most lines in a photo
_SIDE = 720  # longest side of a picture, pixels


@dataclass(frozen=True, eq=False)
class Answer:
    """Results of a query.

    Attributes:
        query: path of the query photo.
        results: ranked photos, best first.
        bbox: x0, y0, x1, y1 of the query in pixels of the upright photo; None means the whole photo.
    """

    query: Path
    results: Sequence[RankedImage]
    bbox: Box | None = None


class _Photos(NamedTuple):
    """The ranked photos: their numbers by name, and their sizes by number; None if a photo is no longer readable."""

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
    """Writes the page about the answers to one or several queries.

    Most of the time goes into decoding each photo once at a small size. All answers together have at most 20,000 photos
    and 100,000 lines, in equal shares.

    Args:
        answers: at least one answer. The photos of the queries must be readable.
        images: folder of the ranked photos. If a photo is no longer readable, the page says so.
        target: the .html file to write.
        search: facts about the search. The overview shows `method` and `photos`.
        features: options that the features were made with, as in `Index.options`.
        notes: remarks for the reader.
        resources: threads and device to use.

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
    """Collects a query, its box in pixels and as shares of the photo's sides, and the results to show."""
    size = size_of(answer.query)
    numbers = [photos.number[found.image] for found in results]
    return {
        "query": answer.query.as_posix(),
        "size": size,
        "bbox": answer.bbox,
        "box": None if answer.bbox is None else box_along_sides(answer.bbox, size),
        "found": len(answer.results),
        "accepted": sum(bool(found.accepted) for found in answer.results),
        "image": numbers,
        "score": [float(f"{found.score:.6g}") for found in results],
        "inliers": [found.inliers for found in results],
        "shows": [found.accepted for found in results],
        "identical": [found.identical for found in results],
        "lines": [
            _lines(found, size, photos.sizes[number], lines) for found, number in zip(results, numbers, strict=True)
        ],
    }


def _size(photo: Path) -> Size | None:
    """Reads the size of a photo; None if it is no longer readable."""
    try:
        return size_of(photo)
    except HardnetSfmError:
        return None


def _lines(found: RankedImage, query: Size, photo: Size | None, most: int) -> dict[str, Any] | None:
    """Packs both ends of at most `most` verified matches, spread evenly: x, y, x, y as in `along_sides`."""
    if photo is None or found.lines is None or not len(found.lines):
        return None
    rows = np.unique(np.linspace(0, len(found.lines) - 1, min(most, len(found.lines))).round().astype(int))
    kept = found.lines[rows]
    return packed(np.concatenate([along_sides(kept[:, :2], query), along_sides(kept[:, 2:], photo)], 1))
