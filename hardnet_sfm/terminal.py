"""The options that all commands share, and the printing of results and errors."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError, find_cause
from hardnet_sfm.files.workspace import DEFAULT, Workspace
from hardnet_sfm.progress import ExactConsole
from hardnet_sfm.progress import console as errors
from hardnet_sfm.stages import StageResult

if TYPE_CHECKING:  # decoders of photos take a moment to import; `--help` does without
    from hardnet_sfm.files.photo_folders import NotTaken

output = ExactConsole()

_INTERRUPTED = 130
_NAMED = 5  # photos to name in a line
GOES_ON = "Interrupted. Finished work is kept: the same command resumes."

Images = Annotated[Path, Positional, arg(metavar="IMAGES")]


class Command(Protocol):
    """A verb on the command line: a frozen dataclass of its options, whose docstring is the verb's help line.

    A command has the option `debug`, its own or that of `common`. Running most commands again resumes them after
    ctrl-c. A command that does not resume by itself says how to in a class variable `interrupted`.
    """

    examples: ClassVar[tuple[str, ...]]
    """Two or more command lines for the help text, each of at most 80 columns."""

    def run(self) -> None: ...


@dataclass(frozen=True)
class Common:
    """Options that most verbs share."""

    workspace: Path = DEFAULT
    """Folder for all results. All verbs share it."""
    debug: bool = False
    """Show where in the program an error came from."""

    @property
    def place(self) -> Workspace:
        return Workspace(self.workspace)


@contextmanager
def report_errors(debug: bool = False, usage: str = "", interrupted: str = GOES_ON) -> Iterator[None]:
    """Runs the block. If it fails, prints the reason in a line or two and exits.

    The exit status is 1 if the command failed, 2 for wrong usage, and 130 after ctrl-c or `kill`. Errors that nobody
    foresaw are reported in a line, too.

    Args:
        debug: raise errors unchanged, so that the traceback is shown.
        usage: hint for a usage error that has no hint of its own.
        interrupted: message after ctrl-c.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` and `timeout` send SIGTERM
    try:
        yield
    except BrokenPipeError:
        # The reader closed the pipe (for example `| head`): discard the rest.
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
        reason, hint = find_cause(error) or (error.strerror or str(error), "")
        where = f"{error.filename}: " if error.filename else ""
        _print_error(f"{where}{reason}", hint)
        sys.exit(1)
    except MemoryError as error:
        if debug:
            raise
        what = f"not enough memory: {error}" if str(error) else "not enough memory"
        _print_error(what, "Use fewer --workers or a smaller --max-image-size.")
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print(escape(interrupted))
        sys.exit(_INTERRUPTED)
    except Exception as error:  # the user cannot do anything with a traceback
        if debug:
            raise
        reason = f"{type(error).__name__}: {error}".strip()
        _print_error(f"this is a fault of hardnet-sfm: {reason}", "Run it with --debug, and report what it prints.")
        sys.exit(1)


def _print_error(message: str, hint: str) -> None:
    errors.print(f"[bold red]error:[/] {escape(message)}")
    if hint:
        errors.print(escape(hint))


def keep_all_letters() -> None:
    """Lets stdout and stderr print every name: letters that their encoding lacks are printed as codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(content: Any, indent: int | None = None) -> None:
    """Prints JSON exactly, without markup and line breaks. Letters that stdout lacks become JSON's codes."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")
    sys.stdout.write(json.dumps(content, ensure_ascii=not unicode, indent=indent) + "\n")
    sys.stdout.flush()


def print_skipped(skipped: dict[str, str]) -> None:
    for why in skipped.values():
        errors.print(f"[yellow]skipped:[/] {escape(why)}")


def print_truncated(names: Sequence[str]) -> None:
    """Prints one line about photos whose end is missing, if there are any."""
    if names:
        some = ", ".join(names[:_NAMED]) + f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
        errors.print(f"[yellow]truncated:[/] {escape(some)}: read as far as they go", soft_wrap=True)


def print_not_taken(not_taken: NotTaken) -> None:
    """Prints one line about what a folder of photos holds besides photos that are read, if there is anything."""
    what, hint = not_taken.summary(), not_taken.hint()
    if what:
        errors.print(f"[yellow]not taken:[/] {escape(f'{what}. {hint}' if hint else what)}", soft_wrap=True)


def print_result(stage: str, result: StageResult) -> None:
    """Prints one line for a stage, and lines about the photos that the stage skipped, found damaged or did not take."""
    output.print(f"[bold]{stage:>8}[/]  {escape(result.summary())}")
    print_skipped(getattr(result, "skipped", {}))
    print_truncated(getattr(result, "truncated", ()))
    if hasattr(result, "not_taken"):
        print_not_taken(result.not_taken)
