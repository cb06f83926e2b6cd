"""Progress bars on a terminal."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from hardnet_sfm import progress as progress_module
from hardnet_sfm.progress import ExactConsole, progress


def test_a_hidden_bar_is_off_the_line_that_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(progress_module, "console", Console(file=terminal, force_terminal=True, width=80))
    with progress("retrieve", 3) as advance:
        advance(note="one.jpg")
        with advance.hidden():
            terminal.write("the answer\n")
        advance(note="two.jpg")
    before, after = terminal.getvalue().split("the answer\n")
    # The line with the bar is erased, and nothing was written to it since.
    assert "retrieve" in before and before.rsplit("retrieve", 1)[1].rstrip().endswith("\x1b[2K")
    assert "2/3" in after


def test_without_a_terminal_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress_module, "console", Console(file=file))
    with progress("retrieve", 3) as advance:
        advance()
        with advance.hidden():
            file.write("the answer\n")
    assert file.getvalue() == "the answer\n"


def test_without_a_terminal_there_is_a_line_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    console = ExactConsole(stderr=True)
    console.file = io.StringIO()
    monkeypatch.setattr(progress_module, "console", console)
    monkeypatch.setattr(progress_module, "_SECONDS_BETWEEN_LINES", 0.05)
    with progress("match", 6, 1) as advance:
        advance(2, note="a:x:.jpg")
        time.sleep(0.3)  # a step that takes long is reported, too
    lines = console.file.getvalue().splitlines()
    assert len(lines) >= 2
    form = r"match: 3 of 6, [\d.]+/s, 0:0\d so far, about 0:0\d left \(a:x:\.jpg\)"
    assert all(re.fullmatch(form, line) for line in lines)


def test_seconds_are_named_as_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(progress_module, "console", Console(file=terminal, force_terminal=True, width=100))
    with progress("train", 600, 120, seconds=True) as advance:
        advance(5, note="step 77")
    assert "125 of 600 s" in terminal.getvalue() and "step 77" in terminal.getvalue()
