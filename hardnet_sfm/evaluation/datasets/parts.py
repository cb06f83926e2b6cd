"""Reads data sets part by part: a bad part is left out and named, and the others are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import TypeVar

from hardnet_sfm.errors import HardnetSfmError, list_some

LeftOut = dict[str, HardnetSfmError]
"""Reasons why parts of a data set are left out, by name."""
Source = TypeVar("Source")
Part = TypeVar("Part")


def read_parts(sources: Iterable[tuple[str, Source]], read: Callable[[Source], Part]) -> tuple[list[Part], LeftOut]:
    """Reads the parts of a data set, and the reasons why some cannot be read.

    Args:
        sources: name of each part, and what to read it from.
        read: reads a part. It raises HardnetSfmError for a bad one.

    Raises:
        HardnetSfmError: no part can be read. It is the error of the first one.
    """
    parts: list[Part] = []
    left_out: LeftOut = {}
    for name, source in sources:
        try:
            parts.append(read(source))
        except HardnetSfmError as error:
            left_out[name] = error
    check_any(parts, left_out)
    return parts, left_out


def read_rows(path: Path, parse: Callable[[str], Part], hint: str, start: int = 1) -> tuple[dict[int, Part], LeftOut]:
    """Parses a text file line by line. Empty lines are skipped.

    Args:
        path: path of the file.
        parse: parses a line. It raises ValueError or IndexError for a bad one.
        hint: what to do about a bad line.
        start: number of the first line to parse, counted from 1.

    Returns:
        What was parsed by the number of the line, and the reasons why other lines are left out.
    """
    rows: dict[int, Part] = {}
    left_out: LeftOut = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if number < start or not line.strip():
                continue
            try:
                rows[number] = parse(line)
            except (ValueError, IndexError) as error:
                left_out[f"{path}:{number}"] = HardnetSfmError(f"{path}: line {number}: {error}", hint)
    return rows, left_out


def check_any(parts: Sized, left_out: LeftOut) -> None:
    """Raises the first of the reasons if every part is left out."""
    if left_out and not len(parts):
        raise next(iter(left_out.values()))


def describe_left_out(left_out: LeftOut) -> tuple[str, ...]:
    """Counts and names the parts that are left out; empty if there are none."""
    if not left_out:
        return ()
    reasons = [error.message for error in left_out.values()]
    what = f"left out: {len(reasons)}, so the results are not those of the whole data set"
    return (f"{what}: {list_some(reasons, '; ')}",)
