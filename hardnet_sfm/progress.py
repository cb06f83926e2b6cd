"""Progress bars with rates and remaining time. They show nothing if stderr is not a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True, highlight=False)


class Advance:
    """Handle of a running progress bar."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Marks `steps` more steps as done, and shows the note, the item in progress."""
        self._bar.update(self._task, advance=steps, note=note[-28:])

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hides the bar while the block runs, so that the block can print."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Shows a bar while the block runs.

    Args:
        title: the verb, for instance "match".
        total: number of steps altogether.
        done: steps that an earlier run finished.
    """
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Advance(bar, bar.add_task(title, total=total, completed=done, note=""))
