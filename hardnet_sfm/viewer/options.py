"""Options of the viewer."""

from __future__ import annotations

from dataclasses import dataclass

from hardnet_sfm.errors import UsageError


@dataclass(frozen=True)
class ViewOptions:
    """Address of the viewer, and how much it shows."""

    host: str = "127.0.0.1"
    """Address to listen on. If others can reach it, as with 0.0.0.0, the viewer asks for a token. Nothing is
    encrypted."""
    port: int = 8080
    """Port to listen on. 0 takes a free one."""
    token: bool = False
    """Ask for a token on this machine, too. Use it if others have accounts on it."""
    max_points: int = 200_000
    """Most points to show. If more have tracks that are long enough, the viewer shows a part of them, spread evenly."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        if self.max_points < 1:
            raise UsageError("--max-points must be at least 1")
