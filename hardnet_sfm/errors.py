"""Errors meant for the person at the terminal: what is wrong, in which file, what to do."""

import math
from typing import Any, get_args


class HardnetSfmError(Exception):
    """Something in the photos, files or options that the user can act on (exit status 1).

    Args:
        message: what is wrong and in which file.
        hint: what to try, one or more sentences; printed on a line of its own.
    """

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class NoKeypoints(HardnetSfmError):
    """A query has nothing that could be searched for."""


class NoModel(HardnetSfmError):
    """Photos were matched, and no mapper made a model of them."""


class UsageError(HardnetSfmError):
    """Options that contradict each other or would have no effect (exit status 2)."""

    exit_status = 2


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raises UsageError where the value of an option is none of those of a Literal type."""
    if value not in get_args(choices):
        raise UsageError(f"--{name}: {value} is not one of {', '.join(map(str, get_args(choices)))}")


def check_least(options: object, **least: float) -> None:
    """Raises UsageError where a field of the options is less than what is given for it, or not finite; None passes."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and not bound <= value < math.inf:
            raise UsageError(f"{_flag(name)} must be at least {bound}{_and_finite(value)}")


def check_above(options: object, **bounds: float) -> None:
    """Raises UsageError where a field of the options is not above what is given for it, or not finite; None passes."""
    for name, bound in bounds.items():
        value = getattr(options, name)
        if value is not None and not bound < value < math.inf:
            raise UsageError(f"{_flag(name)} must be above {bound}{_and_finite(value)}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _and_finite(value: float) -> str:
    return "" if isinstance(value, int) else " and finite"
