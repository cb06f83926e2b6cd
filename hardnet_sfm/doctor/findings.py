"""What the checks of `doctor` find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "unknown", "broken"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        what: was checked.
        state: ok; note: it works, and something should be known; unknown: it cannot be told; broken.
        said: what was found, with its figures.
        hint: what to do about it, or what would tell.
    """

    what: str
    state: State
    said: str
    hint: str = ""
