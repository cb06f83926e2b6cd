"""Tables of descriptors and methods on Oxford5k, Paris6k and their revisited forms, as text, CSV and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from hardnet_sfm.evaluation.landmarks import CUTS, ORIGINAL, QueryScore
from hardnet_sfm.evaluation.scores import write_csv
from hardnet_sfm.keypoints import Box

Scores = Mapping[str, Mapping[str, QueryScore]]

_NAMES = {"bow": "BoW"}
_NAMED = 10  # unreadable photos to print; the JSON lists all


@dataclass(frozen=True)
class Cell:
    """Results of one method with one descriptor.

    Attributes:
        scores: scores by setup and query.
        seconds: mean time of a search in seconds. It does not include keypoints and descriptors of the query.
    """

    scores: Scores
    seconds: float

    def mean(self, setup: str) -> QueryScore | None:
        """Averages the scores over the queries; None if no query has a positive in the data set."""
        return QueryScore.mean(self.scores[setup].values()) if self.scores[setup] else None


@dataclass(frozen=True)
class LandmarkTable:
    """Results of descriptors and methods on one data set.

    Attributes:
        name: name of the data set.
        setups: setups of its ground truth.
        rows: results by descriptor and method.
        facts: facts about each descriptor, such as the sha256 of its weights and its vocabulary.
        photos: number of photos searched.
        queries: photo and box of each query that was used, by its name.
        left_out: maps the name of each unused query to the reason.
        skipped: maps the name of each unreadable photo to the reason.
        unknown: photos that the ground truth names and the data set does not have.
    """

    name: str
    setups: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Cell]]
    facts: Mapping[str, Mapping[str, Any]]
    photos: int
    queries: Mapping[str, tuple[str, Box]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def methods(self) -> list[str]:
        """Names of all methods, in the order of the columns."""
        return list(dict.fromkeys(method for row in self.rows.values() for method in row))

    def printed(self) -> list[tuple[str, Table]]:
        """Makes a title and a table for each setup, with mAP in per cent.

        In the revisited protocol, mP@1, mP@5 and mP@10 follow below.
        """
        return [(self._title(setup), self._printed(setup)) for setup in self.setups]

    def _title(self, setup: str) -> str:
        asked = max((len(cell.scores[setup]) for row in self.rows.values() for cell in row.values()), default=0)
        which = "" if setup == ORIGINAL else f", {setup}"
        return f"{self.name}{which}: mAP of {asked} queries in {self.photos} photos, %"

    def _printed(self, setup: str) -> Table:
        revisited = setup != ORIGINAL
        table = Table()
        table.add_column("", no_wrap=True)
        for method in self.methods:
            table.add_column(heading(method), justify="right")
        means = {name: {method: cell.mean(setup) for method, cell in row.items()} for name, row in self.rows.items()}
        best = max((mean.average_precision for row in means.values() for mean in row.values() if mean), default=0.0)
        for name, row in means.items():
            label = escape(name) + ("\n" + "\n".join(f"[dim]mP@{k}[/]" for k in CUTS) if revisited else "")
            table.add_row(label, *(_cell(row.get(method), best, revisited) for method in self.methods))
        return table

    def remarks(self) -> list[str]:
        """Says, with rich's markup, which parts of the data set are missing. The ground truth about them is ignored."""
        lines = [f"[yellow]skipped:[/] {escape(why)}" for why in list(self.skipped.values())[:_NAMED]]
        if len(self.skipped) > _NAMED:
            lines.append(f"and {len(self.skipped) - _NAMED} more photos: --json FILE has their names")
        if self.unknown:
            lines.append(
                f"[yellow]missing:[/] {_some(self.unknown)} of the photos in the ground truth. They count as outside "
                "the collection, so the results are not comparable with those of the whole data set"
            )
        for why in dict.fromkeys(self.left_out.values()):
            names = [name for name, reason in self.left_out.items() if reason == why]
            lines.append(f"[yellow]not used:[/] {_some(names)} of the queries: {escape(why)}")
        return lines

    def as_csv(self) -> str:
        """Writes a line for each descriptor, method and setup as CSV. Measures are from 0 to 1."""
        precisions = [f"mp_at_{k}" for k in CUTS]
        head = ("data_set", "descriptor", "method", "setup", "queries", "map", *precisions, "seconds_a_query")
        rows: list[tuple[object, ...]] = [head]
        for name, row in self.rows.items():
            for method, cell in row.items():
                for setup in self.setups:
                    mean = cell.mean(setup)
                    measures = (mean.average_precision, *mean.precision_at) if mean else ("",) * (1 + len(CUTS))
                    count = len(cell.scores[setup])
                    rows.append((self.name, name, method, setup, count, *measures, cell.seconds))
        return write_csv(rows)

    def as_json(self) -> dict[str, Any]:
        """Collects all contents for JSON, including the scores of each query. Measures are from 0 to 1."""
        return {
            "data_set": self.name,
            "photos": self.photos,
            "queries": {name: {"photo": photo, "box": list(box)} for name, (photo, box) in self.queries.items()},
            "left_out": dict(self.left_out),
            "skipped": dict(self.skipped),
            "not_there": list(self.unknown),
            "descriptors": {name: dict(facts) for name, facts in self.facts.items()},
            "results": [
                {
                    "descriptor": name,
                    "method": method,
                    "seconds_a_query": cell.seconds,
                    "setups": {setup: _as_json(cell.mean(setup), cell.scores[setup]) for setup in self.setups},
                }
                for name, row in self.rows.items()
                for method, cell in row.items()
            ],
        }


def _some(names: Sequence[str]) -> str:
    """Formats the number of names and the first three of them."""
    return f"{len(names)} ({escape(', '.join(names[:3]))}{' ...' if len(names) > 3 else ''})"


def heading(method: str) -> str:
    """Formats the name of a method as in the literature, with a line for each of its parts."""
    return "\n+".join(_NAMES.get(part, part.upper()) for part in method.split("+"))


def _cell(mean: QueryScore | None, best: float, revisited: bool) -> str:
    if mean is None:
        return "-"
    figure = f"{100 * mean.average_precision:.1f}"
    figure = f"[bold]{figure}[/]" if mean.average_precision == best else figure
    return figure + ("\n" + "\n".join(f"[dim]{100 * p:.1f}[/]" for p in mean.precision_at) if revisited else "")


def _as_json(mean: QueryScore | None, scores: Mapping[str, QueryScore]) -> dict[str, Any]:
    def one(score: QueryScore) -> dict[str, Any]:
        return {"ap": score.average_precision, "p_at": dict(zip(map(str, CUTS), score.precision_at, strict=True))}

    def ranked(score: QueryScore) -> dict[str, Any]:
        if not score.positives:
            return {}
        return {"ranks": list(score.ranks), "positives": score.positives, "first": [*map(list, score.first)]}

    each = {query: {**one(score), **ranked(score)} for query, score in scores.items()}
    if mean is None:
        return {"map": None, "mp_at": None, "queries": each}
    return {"map": mean.average_precision, "mp_at": one(mean)["p_at"], "queries": each}
