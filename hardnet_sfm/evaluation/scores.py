"""Tables of descriptors and their measures, as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

MEAN = "mean"


@dataclass(frozen=True)
class Measure:
    """One measure of all descriptors.

    Attributes:
        name: name in files, for instance `fpr95`.
        title: title above the table.
        values: values by descriptor and column.
        form: format specification of a value in the table. `.1%` gives a percentage without the sign.
        lower_is_better: True if a smaller value is better.
        marked: cells, as (descriptor, column), that must not be compared with the others. They get a star.
        mark: why cells are marked, as text for the user.
    """

    name: str
    title: str
    values: Mapping[str, Mapping[str, float]]
    form: str = ".3f"
    lower_is_better: bool = False
    marked: frozenset[tuple[str, str]] = frozenset()
    mark: str = ""

    @property
    def columns(self) -> list[str]:
        """Names of all columns with a value, in their order."""
        return list(dict.fromkeys(column for row in self.values.values() for column in row))

    def best(self, column: str) -> float:
        """Returns the best value of a column among the unmarked cells; NaN if there is none."""
        found = [
            row[column] for name, row in self.values.items() if column in row and (name, column) not in self.marked
        ]
        return (min if self.lower_is_better else max)(found, default=math.nan)

    def cell(self, descriptor: str, column: str) -> str:
        """Formats the value of a cell for the table."""
        value = self.values[descriptor].get(column)
        if value is None:
            return "-"
        text = format(value, self.form).removesuffix("%")
        if (descriptor, column) in self.marked:
            return f"{text}*"
        return f"[bold]{text}[/]" if value == self.best(column) and len(self.values) > 1 else text


@dataclass(frozen=True)
class ScoreTable:
    """Results of descriptors on one data set.

    Attributes:
        data_set: name of the data set.
        measures: measures; each is printed as a table.
        facts: facts about each descriptor, such as the sha256 of its weights and the size of its patches. The tables
            show the fact `trained_on`.
        details: additional contents of the JSON.
        notes: remarks for the reader of the tables.
        across: True if descriptors are the columns of the tables instead of the rows.
    """

    data_set: str
    measures: tuple[Measure, ...]
    facts: Mapping[str, Mapping[str, Any]]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    across: bool = False

    def printed(self) -> list[tuple[str, Table]]:
        """Makes a title and a table for each measure."""
        return [(f"{self.data_set}: {measure.title}", self._printed(measure)) for measure in self.measures]

    def _printed(self, measure: Measure) -> Table:
        table = Table(caption=f"* {escape(measure.mark)}" if measure.marked else None, caption_justify="left")
        rows, columns = list(measure.values), measure.columns
        cells = {(row, column): measure.cell(row, column) for row in rows for column in columns}
        if self.across:
            cells = {(column, row): text for (row, column), text in cells.items()}
            rows, columns = columns, rows
        table.add_column("", no_wrap=True)
        trained = {} if self.across else {row: self.facts.get(row, {}).get("trained_on", ()) for row in rows}
        if any(trained.values()):
            table.add_column("trained on")
        for column in columns:
            table.add_column(escape(column), justify="right")
        for row in rows:
            if row == MEAN:
                table.add_section()
            stated = [escape(", ".join(trained[row]))] if any(trained.values()) else []
            table.add_row(escape(row), *stated, *(cells[row, column] for column in columns))
        return table

    def as_csv(self) -> str:
        """Writes a line for each value as CSV. Shares are from 0 to 1."""
        rows: list[tuple[object, ...]] = [("data_set", "measure", "descriptor", "column", "value", "mark")]
        for measure in self.measures:
            for descriptor, row in measure.values.items():
                for column, value in row.items():
                    mark = measure.mark if (descriptor, column) in measure.marked else ""
                    rows.append((self.data_set, measure.name, descriptor, column, value, mark))
        return write_csv(rows)

    def as_json(self) -> dict[str, Any]:
        """Collects all contents for JSON. Shares are from 0 to 1. `tables` says how `report` draws the measures."""
        return {
            "data_set": self.data_set,
            "descriptors": {name: dict(facts) for name, facts in self.facts.items()},
            "measures": {
                measure.name: {name: dict(row) for name, row in measure.values.items()} for measure in self.measures
            },
            "tables": {
                measure.name: {
                    "title": measure.title,
                    "form": measure.form,
                    "lower_is_better": measure.lower_is_better,
                    "mark": measure.mark,
                }
                for measure in self.measures
            },
            "across": self.across,
            "marked": {
                measure.name: [*map(list, sorted(measure.marked))] for measure in self.measures if measure.marked
            },
            "notes": list(self.notes),
            **self.details,
        }


def write_csv(rows: Iterable[Sequence[object]]) -> str:
    """Writes rows of a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def append_mean(row: Mapping[str, float]) -> dict[str, float]:
    """Appends the mean to a row of values."""
    return {**row, MEAN: sum(row.values()) / len(row)}
