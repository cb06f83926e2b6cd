"""Errors for the user at the terminal: each says what is wrong, in which file, and what to do."""

import errno
import math
import operator
import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

_LISTED = 5  # items to name in a message; the rest is counted


class HardnetSfmError(Exception):
    """Reports a problem with the photos, files or options that the user can fix (exit status 1).

    Args:
        message: what is wrong and in which file.
        hint: what the user can try, one or more sentences; printed on its own line.
    """

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class NoKeypoints(HardnetSfmError):
    """The query has no keypoints to search for."""


class NoModel(HardnetSfmError):
    """The photos were matched, but no mapper made a model from them.

    Args:
        message, hint: see `HardnetSfmError`.
        summary: results of the attempt, as in summary.json.
        database: COLMAP database of the attempt.
    """

    def __init__(self, message: str, hint: str, summary: dict[str, Any], database: Path) -> None:
        super().__init__(message, hint)
        self.summary = summary
        self.database = database


class UsageError(HardnetSfmError):
    """The options contradict each other or would have no effect (exit status 2)."""

    exit_status = 2


_IN_USE = (
    "in use by another program, or cannot be locked",
    "Close the program that uses it, such as a notebook. If none does, the file system may not support locks: set the "
    "environment variable HDF5_USE_FILE_LOCKING=FALSE. The file itself is not damaged.",
)
_DENIED = (os.strerror(errno.EACCES), "Change its permissions, or ask its owner to.")
_FULL = (os.strerror(errno.ENOSPC), "Make room on the disk, then run the same command again: it resumes.")
_READ_ONLY = (os.strerror(errno.EROFS), "Choose another place to write to.")
_DRIVE = (
    os.strerror(errno.EIO),
    "Make room on the disk, or check the connection of the network drive. Then run the same command again: it resumes.",
)
_MISSING = (os.strerror(errno.ENOENT), "Check the spelling of its name, and that its drive is connected.")
_MANY = (os.strerror(errno.EMFILE), "Close other programs, or raise the limit with `ulimit -n 4096`.")
_FOLDER = (os.strerror(errno.EISDIR), "Give the name of a file.")
_NOT_OPENED = (
    "cannot be opened",
    "Check that it is a file and not a folder, that you may read and write it, and that its drive is connected.",
)
_OPEN_FOR_WRITING = (
    "another program has it open for writing, or was killed while it wrote it",
    "Close that program. If it was killed, get a copy of the file, together with the .redo file next to it if there is "
    "one.",
)
_CAUSES: dict[int, tuple[str, str]] = {
    **dict.fromkeys((errno.EAGAIN, errno.EBUSY, errno.ENOLCK, errno.ETXTBSY, errno.EDEADLK), _IN_USE),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _DENIED),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN), _DRIVE),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), _MISSING),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _MANY),
    errno.EROFS: _READ_ONLY,
    errno.EISDIR: _FOLDER,
}
_SQLITE_CAUSES: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_BUSY: _IN_USE,
    sqlite3.SQLITE_LOCKED: _IN_USE,
    sqlite3.SQLITE_PERM: _DENIED,
    sqlite3.SQLITE_READONLY: _DENIED,
    sqlite3.SQLITE_CANTOPEN: _NOT_OPENED,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: _DRIVE,
}
# Texts by which HDF5, COLMAP and SQLite inside COLMAP name a cause that has no number.
_PHRASES: dict[str, tuple[str, str]] = {
    "unable to lock file": _IN_USE,
    "already open for": _OPEN_FOR_WRITING,
    "Permission denied": _DENIED,
    "No space left": _FULL,
    "disk is full": _FULL,
    "disk I/O error": _DRIVE,
    "database is locked": _IN_USE,
    "readonly database": _DENIED,
}


def find_cause(error: BaseException) -> tuple[str, str] | None:
    """Returns the cause of a failed access to a file and what to do about it, if the file itself is not the cause.

    It knows errors of the system, of SQLite and of HDF5. HDF5 often gives the system's number only in its text. None
    means that the content of the file is the likely cause.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE_CAUSES.get(code & 0xFF)
    text = str(error)
    stated = re.search(r"errno = (\d+)", text)
    number = getattr(error, "errno", None) or (int(stated[1]) if stated else 0)
    known = (cause for phrase, cause in _PHRASES.items() if phrase in text)
    return next(known, None) or _CAUSES.get(number)


def file_error(path: Path | str, error: BaseException, kind: str = "", remedy: str = "") -> HardnetSfmError:
    """Turns a failed access to a file into an error with its cause: a lock, a permission, the disk, or damage.

    Args:
        path: path of the file or folder.
        error: error of the system or of the format's reader.
        kind: what the file should be, such as "a COLMAP database". It is named if the content is the likely cause.
        remedy: how to get a good file, a full sentence, if the content is the likely cause or the file is missing. It
            must not advise to delete anything. The default says how to get a copy.
    """
    cause = _denied(path) or find_cause(error)
    if cause is not None:
        return HardnetSfmError(f"{path}: {cause[0]}", remedy or cause[1] if cause is _MISSING else cause[1])
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    remedy = remedy or "Copy it again from where it came from."
    if _is_empty(path):
        return HardnetSfmError(f"{path}: the file is empty", remedy)
    if "truncated" in text:
        return HardnetSfmError(f"{path}: truncated, so its end is missing ({text})", remedy)
    if "signature not found" in text:
        return HardnetSfmError(f"{path}: not an HDF5 file, or its start is damaged", remedy)
    return HardnetSfmError(f"{path}: {f'not {kind}, or damaged' if kind else 'damaged'}: {text}", remedy)


def write_error(path: Path | str, error: BaseException) -> HardnetSfmError:
    """Turns a failed writing of a file into an error with its cause."""
    reason, hint = find_cause(error) or (str(error), "Check the disk, then run again: finished work is kept.")
    return HardnetSfmError(f"cannot write {path}: {reason}", hint)


def _denied(path: Path | str) -> tuple[str, str] | None:
    """Returns the cause why a file cannot be opened; None if it can be, or if it is no file. Some readers hide it."""
    try:
        if Path(path).is_file():
            with Path(path).open("rb"):
                return None
    except OSError as error:
        return find_cause(error)
    return None


def _is_empty(path: Path | str) -> bool:
    try:
        return Path(path).is_file() and Path(path).stat().st_size == 0
    except OSError:
        return False


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises UsageError if the value of an option is not one of the values of a Literal type."""
    if value not in get_args(choices):
        raise UsageError(f"--{name}: {value} is not one of {', '.join(map(str, get_args(choices)))}")


def check_least(options: object, **least: float) -> None:
    """Raises UsageError if an option is less than its given bound or not finite. None passes."""
    for name, bound in least.items():
        _check_bound(name, getattr(options, name), bound, f"at least {bound}", operator.ge)


def check_above(options: object, **bounds: float) -> None:
    """Raises UsageError if an option is not above its given bound or not finite. None passes."""
    for name, bound in bounds.items():
        _check_bound(name, getattr(options, name), bound, f"above {bound}", operator.gt)


def _check_bound(
    name: str, value: float | None, bound: float, words: str, holds: Callable[[float, float], bool]
) -> None:
    if value is not None and not (holds(value, bound) and value < math.inf):
        finite = "" if isinstance(value, int) else " and finite"
        raise UsageError(f"{_flag(name)} must be {words}{finite}")


def refuse_without(options: Any, names: Sequence[str], choice: str) -> None:
    """Raises UsageError if one of these options differs from its default, as it has no effect without a choice."""
    for of in fields(options):
        if of.name in names and getattr(options, of.name) != of.default:
            raise UsageError(
                f"{_flag(of.name)} has no effect without {choice}", f"Add {choice}, or leave out {_flag(of.name)}."
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def list_some(items: Sequence[str], separator: str = ", ") -> str:
    """Lists the first five items, and counts the others: "a, b, c, d, e and 3 more"."""
    rest = len(items) - _LISTED
    more = f"{separator.rstrip(', ')} and {rest} more" if rest > 0 else ""
    return separator.join(items[:_LISTED]) + more
