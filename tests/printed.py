"""What tables print, as tests look at it."""

from __future__ import annotations

import io

from rich.console import Console

from hardnet_sfm.evaluation.scores import ScoreTable
from hardnet_sfm.evaluation.tables import LandmarkTable


def text(table: ScoreTable | LandmarkTable) -> list[str]:
    """Lines of all that a table prints."""
    console = Console(file=io.StringIO(), width=100, record=True)
    for title, one in table.printed():
        console.print(title)
        console.print(one)
    return console.export_text().splitlines()


def cells(line: str) -> list[str]:
    """Of a row, without the frame."""
    return [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]
