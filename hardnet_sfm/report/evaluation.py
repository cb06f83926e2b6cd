"""The page about an evaluation. Of landmarks: mean average precision, curves of precision over recall, each query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.report.page import Kind, write_page
from hardnet_sfm.report.scores import scores_data
from hardnet_sfm.versions import versions
from hardnet_sfm.workspace import read_json

RECALLS = np.linspace(0, 1, 51)


def evaluation_page(results: Path, target: Path) -> None:
    """Writes the page about what `evaluate --json` wrote, of whichever data set.

    Raises:
        HardnetSfmError: the file is missing, or is something else; or the page cannot be written.
    """
    table = read_json(results)
    try:
        title = f"{table['data_set']}: evaluation"
        kind: Kind = "scores" if "measures" in table else "landmarks"
        data = scores_data(table) if kind == "scores" else _landmarks_data(table)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HardnetSfmError(
            f"{results}: not what `evaluate --json` writes: {error!r}",
            "Make it with `hardnet-sfm evaluate ... --json`.",
        ) from error
    write_page(target, title, kind, data)


def _landmarks_data(table: Mapping[str, Any]) -> dict[str, Any]:
    rows = [_row(row) for row in table["results"]]
    return {
        **{name: table[name] for name in ("data_set", "photos", "queries", "left_out", "not_there", "descriptors")},
        "setups": list(rows[0]["setups"]) if rows else [],
        "recalls": RECALLS.round(4).tolist(),
        "rows": rows,
        "versions": versions(),
    }


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One method with one descriptor, its rankings made curves."""
    setups = {}
    for setup, scores in row["setups"].items():
        curves = [
            interpolated_precision(query["ranks"], query["positives"])
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


def interpolated_precision(ranks: Sequence[int], positives: int) -> NDArray[np.float64]:
    """Precision at each of `RECALLS`: the highest at that recall or a higher one, as in TREC and PASCAL VOC.

    Manning, Raghavan, Schütze: Introduction to Information Retrieval, 2008, section 8.4, equation 8.7.

    Args:
        ranks: from 1, of the positives found, rising.
        positives: number of those there are.
    """
    found = np.arange(1, len(ranks) + 1)
    precision, recall = found / np.asarray(ranks, np.float64).reshape(-1), found / positives
    highest_after = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, RECALLS - 1e-9)
    return np.append(highest_after, 0.0)[first]
