"""The options that all commands share, and the printing of results and errors."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError, find_cause, list_some
from hardnet_sfm.files.ledger import NAME, Ledger
from hardnet_sfm.files.workspace import DEFAULT, Workspace
from hardnet_sfm.flags import flag_of, is_given
from hardnet_sfm.progress import ExactConsole
from hardnet_sfm.progress import console as errors
from hardnet_sfm.stages import StageResult

if TYPE_CHECKING:  # decoders of photos take a moment to import; `--help` does without
    from hardnet_sfm.files.photo_folders import NotTaken

output = ExactConsole()

_INTERRUPTED = 130
# Stages whose options a workspace remembers: fields of commands.
_STAGES = ("extract", "pair", "match", "views", "map", "retry", "vocabulary")
# Options without which the other options of their stage have no effect.
_CHOICES = {"pair": ("pairing", "retrieval", "pairs_file"), "match": ("rescore",), "views": ("view_synthesis",)}
GOES_ON = "Interrupted. Finished work is kept: the same command resumes."

Images = Annotated[Path, Positional, arg(metavar="IMAGES")]
Prune = Annotated[
    bool,
    arg(
        help="Drop the features and matches of photos that are gone, even if these are a tenth of the photos or more, "
        "or all photos of a folder. Fewer are dropped without it."
    ),
]


class Command(Protocol):
    """A verb on the command line: a frozen dataclass of its options.

    The first line of its docstring is the verb's help line. Two or more examples follow: command lines of at most 80
    columns. A command has the option `debug`, its own or that of `common`. Running most commands again resumes them
    after ctrl-c. A command that does not resume by itself says how to in a class variable `interrupted`.
    """

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
    if not debug:
        threading.excepthook = _report_thread
    try:
        yield
    except BrokenPipeError:
        # The reader closed the pipe (for example `| head`): discard the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print(escape(interrupted))
        sys.exit(_INTERRUPTED)
    except Exception as error:  # the user cannot do anything with a traceback
        if debug:
            raise
        message, hint = _explain(error)
        errors.print(f"[bold red]error:[/] {escape(message)}")
        if hint := hint or (usage if isinstance(error, UsageError) else ""):
            errors.print(escape(hint))
        sys.exit(error.exit_status if isinstance(error, HardnetSfmError) else 1)


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """Reports an error in a thread of a library in a line. The command goes on: the thread writes logs or curves."""
    reason = str(failed.exc_value) or failed.exc_type.__name__
    errors.print(f"[yellow]warning:[/] {escape(failed.thread.name if failed.thread else 'a thread')}: {escape(reason)}")


def _explain(error: Exception) -> tuple[str, str]:
    """Returns what is wrong, and what to do about it."""
    if isinstance(error, HardnetSfmError):
        return error.message, error.hint
    if isinstance(error, OSError):
        reason, hint = find_cause(error) or (error.strerror or str(error), "")
        return (f"{error.filename}: {reason}" if error.filename else reason), hint
    if isinstance(error, MemoryError):
        what = f"not enough memory: {error}" if str(error) else "not enough memory"
        return what, "Use fewer --workers or a smaller --max-image-size."
    reason = f"{type(error).__name__}: {error}".strip()
    return f"this is a fault of hardnet-sfm: {reason}", "Run it with --debug, and report what it prints."


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


def print_not_taken(not_taken: NotTaken) -> None:
    """Prints one line about what a folder of photos holds besides photos that are read, if there is anything."""
    what, hint = not_taken.summary(), not_taken.hint()
    if what:
        errors.print(f"[yellow]not taken:[/] {escape(f'{what}. {hint}' if hint else what)}")


def print_truncated(names: Sequence[str]) -> None:
    """Prints one line about photos whose end is missing, if there are any."""
    if names:
        errors.print(f"[yellow]truncated:[/] {escape(list_some(names))}: read as far as they go")


def print_findings(result: StageResult) -> None:
    """Prints lines about the photos whose end is missing, and about files that the stage did not take, if any."""
    print_truncated(getattr(result, "truncated", ()))
    if hasattr(result, "not_taken"):
        print_not_taken(result.not_taken)


def print_result(stage: str, result: StageResult) -> None:
    """Prints one line for a stage, and lines about the photos that the stage skipped, found damaged or did not take."""
    output.print(f"[bold]{stage:>8}[/]  {escape(result.summary())}")
    print_skipped(getattr(result, "skipped", {}))
    print_findings(result)


def recall_options(kind: type[Command], root: Path, args: Sequence[str]) -> dict[str, Any]:
    """Returns the options of each stage of a verb that a workspace remembers, by the name of the stage.

    Args:
        kind: the verb.
        root: folder of the workspace.
        args: command line that is not parsed yet. A new choice, such as --pairing, replaces all
            remembered options of its stage.

    Raises:
        HardnetSfmError: workspace.json is damaged.
    """
    ledger = Ledger(root)
    kinds: dict[str, Any] = {of.name: of.default_factory for of in fields(cast(Any, kind))}
    recalled = {stage: ledger.recall(stage, kinds[stage]) for stage in _STAGES if is_dataclass(kinds.get(stage))}
    for stage, names in _CHOICES.items():
        if recalled.get(stage) and any(is_given(name, args) for name in names):
            # A flag that is on stays, as only such a flag has a negative form.
            on = [name for name in names if getattr(recalled[stage], name) is True]
            recalled[stage] = kinds[stage](**dict.fromkeys(on, True))
    return {stage: options for stage, options in recalled.items() if options is not None}


def print_recalled(command: Command, args: Sequence[str]) -> None:
    """Prints the options that a verb takes from its workspace because the command line does not give them."""
    common: Common | None = getattr(command, "common", None)
    if common is None:
        return
    flags = []
    for stage, recalled in recall_options(type(command), common.workspace, args).items():
        used, default = getattr(command, stage), type(recalled)()
        for name in (of.name for of in fields(recalled)):
            value = getattr(recalled, name)
            if value == getattr(used, name) != getattr(default, name) and not is_given(name, args):
                flags.append(flag_of(name, value))
    if flags and not is_given("preset", args):
        where = escape(str(common.workspace / NAME))
        errors.print(f"[dim]remembered:[/] {escape(' '.join(flags))} ({where})")
