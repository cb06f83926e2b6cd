"""The page about an evaluation on patches or on photos of known geometry: a table for each measure, and curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from typing import Any

from hardnet_sfm.versions import versions

Values = Mapping[str, Mapping[str, float]]

_MEAN = "mean"
_SHARE = {"low": 0, "high": 1, "ticks": [0, 0.2, 0.4, 0.6, 0.8, 1]}
_NUMBERS = {"form": ".3f", "lower_is_better": False, "mark": ""}


def collect_scores(table: Mapping[str, Any]) -> dict[str, Any]:
    """Collects the data of the page from results of `evaluate brown`, `w1bs`, `hpatches`, `homography` or `pairs`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the table has other contents.
    """
    marked = {name: {tuple(cell) for cell in cells} for name, cells in table["marked"].items()}
    measures = [
        _collect_measure(name, values, table["tables"][name], table["across"], marked.get(name, set()))
        for name, values in table["measures"].items()
    ]
    return {
        "data_set": table["data_set"],
        "notes": list(table["notes"]),
        "measures": measures,
        "details": [
            _collect_measure(name, of(table[name]), {**_NUMBERS, "title": title}, True, set())
            for name, (title, of) in _DETAILS.items()
            if name in table and isinstance(next(iter(table[name].values()), None), Mapping)
        ],
        "curves": [curve(table[name]) for name, curve in _CURVES.items() if name in table],
        "descriptors": table["descriptors"],
        "versions": versions(),
    }


def _collect_measure(
    name: str, values: Values, about: Mapping[str, Any], across: bool, marked: set[tuple[str, ...]]
) -> dict[str, Any]:
    """Collects a table with all columns that any descriptor has.

    `values` has a row for each descriptor. If `across` is True, the page shows descriptors as columns instead.
    """
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    form = about["form"]  # ".1%" or ".3f"
    return {
        "name": name,
        "title": about["title"],
        "digits": int(form[1:-1]),
        "per_cent": form.endswith("%"),
        "lower_is_better": about["lower_is_better"],
        "mark": about["mark"],
        "across": across,
        "columns": columns,
        "descriptors": list(values),
        "values": [[_finite_or_none(row.get(column)) for column in columns] for row in values.values()],
        "marked": [[(descriptor, column) in marked for column in columns] for descriptor in values],
    }


def _finite_or_none(value: float | None) -> float | None:
    """Returns None for NaN and infinity, which JSON does not have. The page shows it as a dash."""
    return value if value is None or isfinite(value) else None


def _flatten(values: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Values:
    """Joins the names of the two inner levels, so that values are by descriptor and joined name."""
    return {
        descriptor: {f"{outer} {inner}": value for outer, of in row.items() for inner, value in of.items()}
        for descriptor, row in values.items()
    }


# Tables of the single values behind the means, by the name in the file.
_DETAILS: dict[str, tuple[str, Callable[[Any], Values]]] = {
    "pairs": ("mAUC of each pair", dict),
    "verification_auc": ("verification, area under the receiver operating characteristic", dict),
    "matching_by_sequence": ("matching, average precision of each sequence", _flatten),
}


def _make_roc_curves(rates: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """Makes curves of recall over the false positive rate, up to twice the largest rate at 95 % recall."""
    recalls = [(step + 1) / 100 for step in range(100)]
    at_95 = max(rate[94] for row in rates.values() for rate in row.values())
    high = min(1.0, max(0.02, 2 * at_95))
    return _make_curves(
        "Receiver operating characteristic",
        "Recall over the false positive rate: FPR95 is the rate where a curve crosses 0.95.",
        {"low": 0, "high": high, "title": "false positive rate"},
        _SHARE,
        {
            descriptor: {
                column: _round_points([(x, y) for x, y in zip(rate, recalls, strict=True) if x <= high])
                for column, rate in row.items()
            }
            for descriptor, row in rates.items()
        },
    )


def _make_curves_over_pixels(
    shares: Mapping[str, Mapping[str, list[float]]], title: str, lead: str, first: int
) -> dict[str, Any]:
    """Makes curves of shares over thresholds in whole pixels, starting at `first`, for each column and their mean."""
    (count,) = {len(curve) for row in shares.values() for curve in row.values()}
    pixels = range(first, first + count)
    means = {
        name: {_MEAN: [sum(at) / len(at) for at in zip(*row.values(), strict=True)], **row}
        for name, row in shares.items()
    }
    return _make_curves(
        title,
        lead,
        {"low": first, "high": pixels[-1], "title": "threshold, px", "ticks": list(pixels)},
        _SHARE,
        {
            descriptor: {column: _round_points(list(zip(pixels, curve, strict=True))) for column, curve in row.items()}
            for descriptor, row in means.items()
        },
    )


def _make_retrieval_curves(by_pool: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Makes curves of mean average precision of retrieval over the size of the pool, for each level and their mean."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for descriptor, row in by_pool.items():
        levels = found[descriptor] = {}
        for name, value in row.items():
            level, _, pool = name.rpartition(" ")
            levels.setdefault(level, {})[int(pool)] = value
        mean = {
            pool: sum(level[pool] for level in levels.values()) / len(levels) for pool in next(iter(levels.values()))
        }
        found[descriptor] = {_MEAN: mean, **levels}
    pools = list(found[next(iter(found))][_MEAN])
    return _make_curves(
        "Retrieval",
        "Mean average precision over the number of distractors that a patch is to be told from.",
        {"low": min(pools), "high": max(pools), "title": "size of the pool", "log": True, "ticks": pools},
        _SHARE,
        {
            descriptor: {level: _round_points(list(of.items())) for level, of in levels.items()}
            for descriptor, levels in found.items()
        },
    )


def _round_points(pairs: list[tuple[float, float]]) -> dict[str, list[float]]:
    finite = [(x, y) for x, y in pairs if isfinite(x) and isfinite(y)]
    return {"x": [round(x, 6) for x, _ in finite], "y": [round(y, 6) for _, y in finite]}


def _make_curves(
    title: str, lead: str, x: Mapping[str, Any], y: Mapping[str, Any], of: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes a chart for each column, with a line for each descriptor."""
    columns = list(dict.fromkeys(column for row in of.values() for column in row))
    series = {
        column: [{"name": descriptor, **row[column]} for descriptor, row in of.items() if column in row]
        for column in columns
    }
    return {"title": title, "lead": lead, "x": dict(x), "y": dict(y), "series": series}


_CURVES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "false_positives_by_recall": _make_roc_curves,
    "accuracy_by_threshold": partial(
        _make_curves_over_pixels,
        title="Matching accuracy",
        lead="Share of the matches that are right within so many pixels.",
        first=1,
    ),
    "recall_by_threshold": partial(
        _make_curves_over_pixels,
        title="Recall of true correspondences",
        lead="Share of the marked correspondences that agree within so many pixels with the estimated geometry.",
        first=0,
    ),
    "retrieval_by_pool": _make_retrieval_curves,
}
