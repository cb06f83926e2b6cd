"""Progress bars on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hardnet_sfm import progress as progress_module
from hardnet_sfm.progress import progress


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
