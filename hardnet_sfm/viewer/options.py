"""Options of the viewer."""

from __future__ import annotations

from dataclasses import dataclass

from hardnet_sfm.errors import UsageError


@dataclass(frozen=True)
class ViewOptions:
    """How the viewer is reached, and how much it shows."""

    host: str = "127.0.0.1"
    """Address to listen on. Where others can reach it, as with 0.0.0.0, it asks for a token, but nothing is encrypted:
    prefer `ssh -L`."""
    port: int = 8080
    """Port to listen on; 0 takes one that is free."""
    token: bool = False
    """Ask for a token on this machine too, where others have accounts."""
    max_points: int = 200_000
    """Most points to show. Of more, evenly many are left out all along COLMAP's numbers, after the least track length
    was applied."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        if self.max_points < 1:
            raise UsageError("--max-points must be at least 1")
