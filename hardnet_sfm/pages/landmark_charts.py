"""The page about an evaluation on landmarks: mean average precision, curves of precision over recall, each query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.pages.page import embed_picture, scale_box_to_sides
from hardnet_sfm.pages.previews import make_previews
from hardnet_sfm.photos import PhotoSource
from hardnet_sfm.versions import versions

RECALLS = np.linspace(0, 1, 51)
PREVIEW_BYTES = 6_000_000  # before base64, which adds a third
_SIDE = 360  # longest side of a picture, pixels


def collect_landmarks(table: Mapping[str, Any], photos: PhotoSource | None, threads: int) -> dict[str, Any]:
    """Collects the data of the page from the results of `evaluate oxford5k`, `paris6k`, `roxford5k` or `rparis6k`.

    Args:
        table: contents of the .json file.
        photos: gives the photos of the data set; the page then shows the first photos found for each query.
        threads: number of threads to decode photos with.

    Raises:
        HardnetSfmError: there are no photos.
        KeyError, TypeError, ValueError, AttributeError: the table has other contents.
    """
    rows = [_collect_row(row) for row in table["results"]]
    return {
        **{name: table[name] for name in ("data_set", "photos", "left_out", "not_there", "descriptors")},
        "queries": list(table["queries"]),
        "setups": list(rows[0]["setups"]) if rows else [],
        "recalls": RECALLS.round(4).tolist(),
        "rows": rows,
        "found": None if photos is None else _collect_found(table, photos, threads),
        "versions": versions(),
    }


def _collect_found(table: Mapping[str, Any], photos: PhotoSource, threads: int) -> dict[str, Any]:
    """Collects pictures of the queries and of the first photos found for each, with the kind of each photo.

    Photos have the names of the ground truth, without folder and suffix. If the photo of a query is missing, a crop
    with the name of the query is shown.
    """
    paths = {PurePosixPath(name).stem: name for name in reversed(photos.names())}
    asked = {name: _describe_query(photos, paths, name, query) for name, query in table["queries"].items()}
    first = [
        {setup: {name: query.get("first", []) for name, query in of["queries"].items()} for setup, of in row.items()}
        for row in (row["setups"] for row in table["results"])
    ]
    found = (photo for row in first for setup in row.values() for ranked in setup.values() for photo, _ in ranked)
    stems = [stem for stem in dict.fromkeys([*(query["photo"] for query in asked.values()), *found]) if stem in paths]
    previews = make_previews(photos, [paths[stem] for stem in stems], PREVIEW_BYTES, threads, largest=_SIDE)
    return {
        "pictures": {stem: embed_picture(previews.webp[paths[stem]]) for stem in stems if paths[stem] in previews.webp},
        "asked": asked,
        "first": first,
    }


def _describe_query(
    photos: PhotoSource, paths: Mapping[str, str], name: str, query: Mapping[str, Any]
) -> dict[str, Any]:
    """Describes how to show a query: by its photo and box (shares of the sides) or by a crop; with the pixel size."""
    whole = query["photo"] in paths
    photo = query["photo"] if whole else name
    try:
        size = photos.size(paths[photo]) if photo in paths else None
    except HardnetSfmError:
        size = None
    return {"photo": photo, "size": size, "box": scale_box_to_sides(query["box"], size) if size and whole else None}


def _collect_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Collects the results of one method with one descriptor, with curves computed from its rankings."""
    setups = {}
    for setup, scores in row["setups"].items():
        curves = [
            interpolate_precision(query["ranks"], query["positives"])
            for query in scores["queries"].values()
            if "ranks" in query
        ]
        setups[setup] = {
            "map": scores["map"],
            "mp_at": scores["mp_at"],
            "queries": {name: round(query["ap"], 5) for name, query in scores["queries"].items()},
            "precision": np.mean(curves, axis=0).round(5).tolist() if curves else None,
        }
    return {
        **{name: row[name] for name in ("descriptor", "method", "seconds_a_query")},
        "setups": setups,
    }


def interpolate_precision(ranks: Sequence[int], positives: int) -> NDArray[np.float64]:
    """Computes precision at each of `RECALLS`: the highest precision at that recall or above.

    TREC and PASCAL VOC use the same interpolation.
    Manning, Raghavan, Schütze: Introduction to Information Retrieval, 2008, section 8.4, equation 8.7.

    Args:
        ranks: rising ranks of the positives found, counted from 1.
        positives: number of all positives.
    """
    found = np.arange(1, len(ranks) + 1)
    precision, recall = found / np.asarray(ranks, np.float64).reshape(-1), found / positives
    highest_after = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, RECALLS - 1e-9)
    return np.append(highest_after, 0.0)[first]
