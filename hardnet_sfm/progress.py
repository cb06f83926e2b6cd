"""The consoles of the terminal, and progress: bars on a terminal, otherwise a line every half minute."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import progress as bars
from rich.cells import cell_len
from rich.console import Console
from rich.markup import render
from rich.text import Text

_SECONDS_BETWEEN_LINES = 30.0


class ExactConsole(Console):
    """Prints text with markup. What is not markup is printed as it is, as names and paths must be.

    There are no emoji codes, so that `cam:x:1.jpg` keeps its name. A terminal gets lines that break between words but
    never within one, so that paths stay whole. A file or a pipe gets the lines unbroken.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        # Tables on stdout are as wide as they need to be, so that a reader of the output finds whole rows.
        super().__init__(stderr=stderr, highlight=False, emoji=False, soft_wrap=not stderr)

    def print(self, *objects: Any, markup: bool | None = True, **options: Any) -> None:
        if len(objects) != 1 or not isinstance(objects[0], str):
            super().print(*objects, **options)
            return
        text = render(objects[0], emoji=False) if markup else Text(objects[0])
        if self.is_terminal:
            for line in _lines_of(text, self.width):
                super().print(line, soft_wrap=True)
        else:
            self.file.write(f"{text.plain}\n")
            self.file.flush()


def _lines_of(text: Text, width: int) -> Iterator[Text]:
    """Breaks a text between words. A word that is wider than the terminal gets a line of its own.

    Lines that continue another one are indented like it, or like the text after its label and two spaces.
    """
    for line in text.split("\n", allow_blank=True):
        label = re.match(r"\s*(\S+\s\s+)?", line.plain)
        indent = label.end() if label and label.end() <= width // 3 else 0
        breaks, used = [], indent
        for word in re.finditer(r"\S+\s*", line.plain[indent:]):
            if used > indent and used + cell_len(word[0].rstrip()) > width:
                breaks.append(indent + word.start())
                used = indent
            used += cell_len(word[0])
        for number, part in enumerate(line.divide(breaks)):
            part.rstrip()
            yield part if number == 0 else Text(" " * indent) + part


console = ExactConsole(stderr=True)


class Advance:
    """Handle of running progress."""

    def __init__(self, advance: Callable[[int, str], None], bar: bars.Progress | None = None) -> None:
        self._advance, self._bar = advance, bar

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Marks `steps` more steps as done, and shows the note, the item in progress."""
        self._advance(steps, note[-28:])

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hides the bar while the block runs, so that the block can print."""
        if self._bar is None:
            yield
            return
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


class _Rate(bars.ProgressColumn):
    def render(self, task: bars.Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def progress(title: str, total: int, done: int = 0, *, seconds: bool = False) -> Iterator[Advance]:
    """Shows progress while the block runs: a bar on a terminal, otherwise a line on stderr every half minute.

    Args:
        title: the verb, for instance "match".
        total: number of steps altogether.
        done: steps that an earlier run finished.
        seconds: whether a step is a second of a given time, which has no rate.
    """
    if not console.is_terminal:
        with _lines(title, total, done, seconds) as advance:
            yield advance
        return
    counts: tuple[bars.ProgressColumn, ...] = (bars.MofNCompleteColumn(), _Rate())
    if seconds:
        counts = (bars.TextColumn("{task.completed:.0f} of {task.total:.0f} s"),)
    columns = (
        bars.TextColumn("{task.description:>8}"),
        bars.BarColumn(bar_width=24),
        *counts,
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(compact=True),
        bars.TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with bars.Progress(*columns, console=console, transient=True) as bar:
        task: bars.TaskID = bar.add_task(title, total=total, completed=done, note="")
        yield Advance(lambda steps, note: bar.update(task, advance=steps, note=note), bar)


@contextmanager
def _lines(title: str, total: int, before: int, seconds: bool) -> Iterator[Advance]:
    """Prints a line every half minute while the block runs, also if no step ends for a while."""
    done, note, start, ended = before, "", time.monotonic(), threading.Event()

    def advance(steps: int, item: str) -> None:
        nonlocal done, note
        done, note = done + steps, item

    def report() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LINES):
            took = time.monotonic() - start
            console.print(_line(title, total, done, done - before, took, note, seconds), markup=False)

    reporter = threading.Thread(target=report, name="progress", daemon=True)
    reporter.start()
    try:
        yield Advance(advance)
    finally:
        ended.set()
        reporter.join()


def _line(title: str, total: int, done: int, in_this_run: int, took: float, note: str, seconds: bool) -> str:
    """One line about the progress: `match: 120 of 600, 2.0/s, 1:00 so far, about 4:00 left (a.jpg b.jpg)`."""
    parts = [f"{done} of {total}{' s' if seconds else ''}"]
    if in_this_run and not seconds:
        rate = in_this_run / took
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2g}/s")
    parts.append(f"{_clock(took)} so far")
    if in_this_run > 0 and done < total:
        parts.append(f"about {_clock((total - done) * took / in_this_run)} left")
    return f"{title.strip()}: {', '.join(parts)}{f' ({note})' if note else ''}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
