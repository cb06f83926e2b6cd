"""The page about search results: each query, its ranked photos, and the spatially verified matches in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from hardnet_sfm.arrays import spread
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.keypoints import Box, RankedImage
from hardnet_sfm.pages.page import embed_picture, make_page, pack_array, scale_box_to_sides, scale_to_sides
from hardnet_sfm.pages.previews import make_previews
from hardnet_sfm.photos import PhotoSource, Size
from hardnet_sfm.versions import versions

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
        query: name of the query photo.
        results: ranked photos, best first.
        bbox: x0, y0, x1, y1 of the query in pixels of the upright photo; None means the whole photo.
    """

    query: str
    results: Sequence[RankedImage]
    bbox: Box | None = None


class _Photos(NamedTuple):
    """The ranked photos: their numbers by name, and their sizes by number; None if a photo is no longer readable."""

    number: dict[str, int]
    sizes: list[Size | None]


@dataclass(frozen=True)
class SearchFacts:
    """How the answers were found.

    Attributes:
        search: facts about the search. The overview shows `method` and `photos`.
        features: options that the features were made with, as in `Index.options`.
        weights: the descriptor and its weights.
        notes: remarks for the reader.
    """

    search: Mapping[str, Any]
    features: Mapping[str, Any]
    weights: Mapping[str, str]
    notes: Sequence[str] = ()


def make_retrieval_page(
    answers: Sequence[Answer], facts: SearchFacts, photos: PhotoSource, queries: PhotoSource, threads: int
) -> str:
    """Makes the HTML about the answers to one or several queries.

    Most of the time goes into decoding each photo once at a small size. All answers together have at most 20,000 photos
    and 100,000 lines, in equal shares.

    Args:
        answers: at least one answer. The photos of the queries must be readable.
        facts: how the answers were found.
        photos: gives the ranked photos. If a photo is no longer readable, the page says so.
        queries: gives the photos of the queries.
        threads: number of threads to decode photos with.

    Raises:
        HardnetSfmError: a query cannot be read.
    """
    shown = [answer.results[: max(1, MOST_ROWS // len(answers))] for answer in answers]
    names = list(dict.fromkeys(found.image for results in shown for found in results))
    ranked = _Photos({name: at for at, name in enumerate(names)}, [_find_size(photos, name) for name in names])
    verified = sum(found.lines is not None for results in shown for found in results)
    lines = min(_LINES, MOST_LINES // max(1, verified))
    previews = make_previews(photos, names, PREVIEW_BYTES, threads, largest=_SIDE)
    row_of = {name: at for at, name in enumerate(dict.fromkeys(answer.query for answer in answers))}
    of_queries = make_previews(queries, list(row_of), QUERY_BYTES, threads, largest=_SIDE)
    data = {
        "notes": list(facts.notes),
        "search": dict(facts.search),
        "names": names,
        "sizes": ranked.sizes,
        "previews": [embed_picture(previews.webp[name]) if name in previews.webp else None for name in names],
        "missing": [previews.missing.get(name, "").rpartition(": ")[2] for name in names],
        "queries": [embed_picture(of_queries.webp[name]) if name in of_queries.webp else None for name in row_of],
        "answers": [
            {
                **_collect_answer(answer, queries.size(answer.query), results, ranked, lines),
                "picture": row_of[answer.query],
            }
            for answer, results in zip(answers, shown, strict=True)
        ],
        "features": {k: value for k, value in facts.features.items() if k not in ("descriptor", "weights_sha256")},
        "weights": dict(facts.weights),
        "versions": versions(),
    }
    first = PurePath(answers[0].query).name
    title = f"{first}: photos found" if len(answers) == 1 else f"{len(answers)} queries: photos found"
    return make_page(title, "retrieval", data)


def _collect_answer(
    answer: Answer, size: Size, results: Sequence[RankedImage], photos: _Photos, lines: int
) -> dict[str, Any]:
    """Collects a query, its box in pixels and as shares of the photo's sides, and the results to show."""
    numbers = [photos.number[found.image] for found in results]
    return {
        "query": answer.query,
        "size": size,
        "bbox": answer.bbox,
        "box": None if answer.bbox is None else scale_box_to_sides(answer.bbox, size),
        "found": len(answer.results),
        "accepted": sum(bool(found.accepted) for found in answer.results),
        "image": numbers,
        "score": [float(f"{found.score:.6g}") for found in results],
        "inliers": [found.inliers for found in results],
        "shows": [found.accepted for found in results],
        "identical": [found.identical for found in results],
        "lines": [
            _pack_lines(found, size, photos.sizes[number], lines)
            for found, number in zip(results, numbers, strict=True)
        ],
    }


def _find_size(photos: PhotoSource, name: str) -> Size | None:
    """Reads the size of a photo; None if it is no longer readable."""
    try:
        return photos.size(name)
    except HardnetSfmError:
        return None


def _pack_lines(found: RankedImage, query: Size, photo: Size | None, most: int) -> dict[str, Any] | None:
    """Packs both ends of at most `most` verified matches, spread evenly: x, y, x, y as in `scale_to_sides`."""
    if photo is None or found.lines is None or not len(found.lines):
        return None
    kept = found.lines[spread(len(found.lines), most)]
    return pack_array(np.concatenate([scale_to_sides(kept[:, :2], query), scale_to_sides(kept[:, 2:], photo)], 1))
