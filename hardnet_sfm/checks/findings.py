"""Findings of the checks of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "unknown", "broken"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        what: subject of the check.
        state: "ok"; "note": it works, but the user should know something; "unknown": the check cannot tell; "broken".
        said: result of the check, with its figures.
        hint: what to do about it, or what would make it known.
    """

    what: str
    state: State
    said: str
    hint: str = ""
