"""Errors for the user at the terminal: each says what is wrong, in which file, and what to do."""

import math
from pathlib import Path
from typing import Any, get_args


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


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises UsageError if the value of an option is not one of the values of a Literal type."""
    if value not in get_args(choices):
        raise UsageError(f"--{name}: {value} is not one of {', '.join(map(str, get_args(choices)))}")


def check_least(options: object, **least: float) -> None:
    """Raises UsageError if an option is less than its given bound or not finite. None passes."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and not bound <= value < math.inf:
            raise UsageError(f"{_flag(name)} must be at least {bound}{_and_finite(value)}")


def check_above(options: object, **bounds: float) -> None:
    """Raises UsageError if an option is not above its given bound or not finite. None passes."""
    for name, bound in bounds.items():
        value = getattr(options, name)
        if value is not None and not bound < value < math.inf:
            raise UsageError(f"{_flag(name)} must be above {bound}{_and_finite(value)}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _and_finite(value: float) -> str:
    return "" if isinstance(value, int) else " and finite"
