"""The verb `info`: what is in a workspace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.commands.common import output
from hardnet_sfm.report.info import Part, info
from hardnet_sfm.workspace import DEFAULT


@dataclass(frozen=True)
class Info:
    """Say what is in a workspace, and what is stale."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm info",
        "hardnet-sfm info out/",
    )

    workspace: Annotated[Path, Positional, arg(metavar="WORKSPACE")] = DEFAULT
    """Folder that `reconstruct` or another verb made."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        _print_parts(self.workspace, info(self.workspace))


def _print_parts(workspace: Path, parts: list[Part]) -> None:
    if not parts:
        output.print(f"{escape(str(workspace))}: nothing in it yet")
    for part in parts:
        state = f"[yellow]stale: {escape(part.stale)}[/]" if part.stale else "[green]up to date[/]"
        output.print(f"[bold]{part.name:>8}[/]  {escape(part.holds)}; {state}")
        chosen = ", ".join(f"{name} {value}" for name, value in part.options.items() if value not in ("", None))
        output.print(f"          [dim]{escape(chosen)}[/]")
