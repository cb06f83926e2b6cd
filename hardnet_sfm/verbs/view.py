"""The command `view` shows a model in the browser."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.workspace import DEFAULT
from hardnet_sfm.terminal import output
from hardnet_sfm.viewer.options import ViewOptions


@dataclass(frozen=True)
class ViewCommand:
    """Look at a model in the browser (needs hardnet-sfm[view])."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm view",
        "hardnet-sfm view model/ --images photos/ --port 8090",
    )

    workspace: Annotated[Path, Positional, arg(metavar="WORKSPACE")] = DEFAULT
    """Workspace that `reconstruct` made, or the folder of any COLMAP model."""
    images: Path | None = None
    """Folder of the photos, if they moved after `extract`."""
    debug: bool = False
    """Show where in the program an error came from."""
    view: ViewOptions = field(default_factory=ViewOptions)

    def run(self) -> None:
        try:
            from hardnet_sfm.viewer.window import viewing
        except ModuleNotFoundError as error:
            raise HardnetSfmError(
                f"the viewer needs more packages: {error}", "Install them: pip install hardnet-sfm[view]"
            ) from error
        with viewing(self.workspace, self.images, self.view) as (window, address, elsewhere):
            if window.notice:
                output.print(f"[yellow]no photos:[/] {escape(window.notice)}")
            output.print(f"[bold]open[/]  {escape(address)}")
            if elsewhere:
                output.print(f"[bold]  or[/]  {escape(elsewhere)} from elsewhere; the connection is not encrypted")
            output.print("Ctrl-C stops it.")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                output.print("Stopped.")
