"""What the stages of a chain have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class StageResult(Protocol):
    """What a stage made."""

    def summary(self) -> str:
        """One line: what there is now, and what had to be computed for it."""


OnStage = Callable[[str, StageResult], None]
"""Is called with the name and the result of each stage when it ends."""
