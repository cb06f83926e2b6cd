"""The table of descriptors and all their measures, for the terminal, as Markdown, as CSV and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from hardnet_sfm.files.workspace import replacing
from hardnet_sfm.literature.experiments import figure_class

_ACROSS = 4  # columns of a table on the terminal


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: name in the CSV.
        title: title for the reader.
        form: format specification of a value. `.1%` gives a percentage without the sign.
        better: "lower" or "higher"; "" if the value is a cost or a fact.
    """

    name: str
    title: str
    form: str
    better: str = ""

    def cell(self, value: float | None) -> str:
        return "-" if value is None else format(value, self.form).removesuffix("%")

    def best(self, values: Iterable[float]) -> float | None:
        """Returns the best of the values; None if the column has no better direction or there are no values."""
        choose = {"lower": min, "higher": max}.get(self.better)
        return choose(values, default=None) if choose else None


@dataclass(frozen=True)
class DescriptorTable:
    """Values by the name of the descriptor and the name of the column. Some values may be missing."""

    columns: list[Column]
    values: dict[str, dict[str, float]]

    def _cells(self, column: Column, bold: str) -> list[str]:
        """Formats the cell of each descriptor. If several values are known, the best is formatted by `bold`."""
        known = [row[column.name] for row in self.values.values() if column.name in row]
        best = column.best(known) if len(known) > 1 else None
        return [
            bold.format(column.cell(value)) if value is not None and value == best else column.cell(value)
            for value in (row.get(column.name) for row in self.values.values())
        ]

    def printed(self) -> Iterator[Table]:
        """Yields tables of a few columns, which fit any terminal, with a row for each descriptor."""
        for first in range(0, len(self.columns), _ACROSS):
            shown = self.columns[first : first + _ACROSS]
            table = Table()
            table.add_column("", no_wrap=True)
            for column in shown:
                table.add_column(escape(column.title), justify="right")
            cells = [self._cells(column, "[bold]{}[/]") for column in shown]
            for name, *row in zip(self.values, *cells, strict=True):
                table.add_row(escape(name), *row)
            yield table

    def as_markdown(self) -> str:
        """Writes a Markdown table with a row for each descriptor."""
        cells = [self._cells(column, "**{}**") for column in self.columns]
        lines = [["", *(column.title for column in self.columns)], ["---", *("---:" for _ in self.columns)]]
        lines += [[name, *row] for name, row in zip(self.values, zip(*cells, strict=True), strict=True)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def as_csv(self) -> str:
        """Writes a line for each descriptor as CSV. Shares are from 0 to 1."""
        text = io.StringIO()
        names = [column.name for column in self.columns]
        writer = csv.DictWriter(text, ["descriptor", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"descriptor": name, **row} for name, row in self.values.items())
        return text.getvalue()

    def draw(self, path: Path) -> None:
        """Draws a panel of bars for each measure that has a better direction."""
        drawn = [column for column in self.columns if column.better]
        across = min(4, len(drawn))
        down = -(-len(drawn) // across)
        figure = figure_class()(figsize=(3.2 * across + 1, down * (0.9 + 0.3 * len(self.values))), layout="constrained")
        axes = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
        names = list(self.values)
        for one, column in zip(axes, drawn, strict=False):
            scale = 100 if column.form.endswith("%") else 1
            known = {name: scale * row[column.name] for name, row in self.values.items() if column.name in row}
            bars = one.barh([names.index(name) for name in known], list(known.values()), color="C0", height=0.6)
            one.bar_label(bars, [column.cell(value / scale) for value in known.values()], padding=3, fontsize="small")
            one.margins(x=0.25)
            one.set_yticks(range(len(names)), names)
            one.set_title(f"{column.title} ({column.better} is better)", fontsize="small")
            one.spines[["top", "right"]].set_visible(False)
        axes[0].invert_yaxis()
        for one in axes[len(drawn) :]:
            one.set_visible(False)
        with replacing(path) as beside:
            figure.savefig(beside, format="png", dpi=120)
