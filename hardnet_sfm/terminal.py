"""What every command takes, and how it prints results and errors."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Protocol

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.workspace import DEFAULT, Workspace
from hardnet_sfm.progress import console as errors
from hardnet_sfm.stages import StageResult

output = Console(highlight=False, soft_wrap=True)

_INTERRUPTED = 130
GOES_ON = "Interrupted. Finished work is kept: the same command goes on from here."
# Errors of the system that a person can do something about.
_SYSTEM = {
    errno.ENOSPC: "Make room on the disk, then run the same command again: it goes on from here.",
    errno.EDQUOT: "Make room in your quota, then run the same command again: it goes on from here.",
    errno.EACCES: "Make it accessible, or choose another place.",
    errno.EROFS: "Choose another place: this one cannot be written to.",
    errno.ENOENT: "Check how it is spelt.",
}

Images = Annotated[Path, Positional, arg(metavar="IMAGES")]


class Command(Protocol):
    """A verb on the command line: a frozen dataclass of its options. Its docstring is its line of help.

    It has the option `debug`, its own or that of `common`. One that does not go on by itself after ctrl-c says how in a
    class variable `interrupted`.
    """

    examples: ClassVar[tuple[str, ...]]
    """Two command lines or more of 80 columns at most, for its help."""

    def run(self) -> None: ...


@dataclass(frozen=True)
class Common:
    """What every verb takes."""

    workspace: Path = DEFAULT
    """Folder for everything that is made; all verbs share it."""
    debug: bool = False
    """Show where in the program an error came from."""

    @property
    def place(self) -> Workspace:
        return Workspace(self.workspace)


@contextmanager
def report_errors(debug: bool = False, usage: str = "", interrupted: str = GOES_ON) -> Iterator[None]:
    """Runs the block and, where it fails, says why in a line or two and exits.

    The status is 1 where it was not done, 2 for wrong usage, 130 after ctrl-c or `kill`.

    Args:
        debug: let errors through as they are, with where in the program they came from.
        usage: hint for wrong usage that has none of its own.
        interrupted: what is said after ctrl-c.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the end that `kill` and `timeout` ask for
    try:
        yield
    except BrokenPipeError:
        # Whoever read the output has had enough, as in `| head`. What is left of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except HardnetSfmError as error:
        if debug:
            raise
        _print_error(error.message, error.hint or (usage if isinstance(error, UsageError) else ""))
        sys.exit(error.exit_status)
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _print_error(f"{where}{error.strerror or error}", _SYSTEM.get(error.errno or 0, ""))
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print(interrupted)
        sys.exit(_INTERRUPTED)


def _print_error(message: str, hint: str) -> None:
    errors.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    if hint:
        errors.print(escape(hint), soft_wrap=True)


def print_skipped(skipped: dict[str, str]) -> None:
    for why in skipped.values():
        errors.print(f"[yellow]skipped:[/] {escape(why)}", soft_wrap=True)


def print_result(stage: str, result: StageResult) -> None:
    """Prints one line for a stage, and one for each photo that it skipped."""
    output.print(f"[bold]{stage:>8}[/]  {escape(result.summary())}")
    print_skipped(getattr(result, "skipped", {}))
