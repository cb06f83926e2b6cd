"""Types that all stages of a chain share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class StageResult(Protocol):
    """The result of a stage."""

    def summary(self) -> str:
        """Says in one line what the result contains and how much of it was computed now."""


OnStage = Callable[[str, StageResult], None]
"""A function that is called with the name and the result of each stage when the stage ends."""


def ignore(stage: str, result: StageResult) -> None:
    """Does nothing at the end of a stage."""
