"""What is printed: names exactly, lines that break between words, and JSON as it is."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.markup import escape

from hardnet_sfm.progress import ExactConsole
from hardnet_sfm.terminal import report_errors

NAMES = ["cam:x:1.jpg", "a[bold]b.jpg", "[red]", "[/].jpg", "tab\there.jpg", "a\\[b].jpg", "two  spaces.jpg", "x" * 300]


def printed(text: str, width: int | None = None) -> str:
    console = ExactConsole()
    console.file = io.StringIO()
    if width is not None:
        console._force_terminal, console.width = True, width
        console.no_color = True
    console.print(text)
    return str(console.file.getvalue())


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is(name: str) -> None:
    assert printed(f"[bold]skipped:[/] {escape(name)}") == f"skipped: {name}\n"


def test_lines_break_between_words_and_never_within_one() -> None:
    path = "/a/very/long/path/that/does/not/fit/into/sixty/columns/of/a/terminal/features.h5"
    words = f"{path}: some other program has this file open for writing, so it cannot be read now".split()
    lines = printed(escape(" ".join(words)), width=60).splitlines()
    assert [word for line in lines for word in line.split()] == words
    assert lines[0] == f"{path}:" and len(lines) > 2 and all(len(line) <= 60 for line in lines if path not in line)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_names_that_the_terminal_cannot_encode_end_nothing(encoding: str) -> None:
    name = "写真:x:é\udcff[b].jpg"
    code = (
        "from rich.markup import escape; from hardnet_sfm.terminal import keep_all_letters, output, print_json;"
        f"keep_all_letters(); name = {name!r}; output.print(escape(name)); print_json({{'image': name}})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": encoding}, timeout=60
    )
    assert run.returncode == 0, run.stderr
    shown, as_json = run.stdout.decode(encoding).splitlines()
    assert ":x:" in shown and shown.endswith("[b].jpg")
    assert json.loads(as_json) == {"image": name}


def test_a_fault_of_the_program_gives_no_traceback_without_debug(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, report_errors():
        raise RuntimeError("conversion from LAB")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "RuntimeError: conversion from LAB" in said and "--debug" in said and "Traceback" not in said
    with pytest.raises(RuntimeError), report_errors(debug=True):
        raise RuntimeError("conversion from LAB")


def test_an_error_in_a_thread_is_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A library writes curves of training in a thread, also on a full disk."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with report_errors():
        thread = threading.Thread(target=Path("/nowhere/at/all").read_bytes, name="writer")
        thread.start()
        thread.join()
    said = capsys.readouterr().err
    assert said.startswith("warning: writer: ") and "No such file" in said and "Traceback" not in said
