"""Options of the viewer."""

from __future__ import annotations

from dataclasses import dataclass

from hardnet_sfm.errors import UsageError


@dataclass(frozen=True)
class ViewOptions:
    """How the viewer is reached, and how much it shows."""

    host: str = "127.0.0.1"
    """Address to listen on. Where others can reach it, as 0.0.0.0, a token is asked for; nothing is encrypted."""
    port: int = 8080
    """Port to listen on; 0 takes one that is free."""
    token: bool = False
    """Ask for a token on this machine too, where others have accounts."""
    max_points: int = 200_000
    """Most points to show: of more with tracks long enough, some are left out evenly along COLMAP's numbers."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        if self.max_points < 1:
            raise UsageError("--max-points must be at least 1")
