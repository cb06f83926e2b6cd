"""The verb `report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.commands.common import output
from hardnet_sfm.resources import Resources
from hardnet_sfm.workspace import DEFAULT


@dataclass(frozen=True)
class Report:
    """Draw a page of what is in a workspace, to look at."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm report",
        "hardnet-sfm report out/ --images moved/ -o page.html",
    )

    source: Annotated[Path, Positional, arg(metavar="WORKSPACE")] = DEFAULT
    """Folder that `reconstruct` or `map` made a model in."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """.html file to write. Default: report.html in the workspace."""
    images: Path | None = None
    """Where the photos are now, if no longer where features were extracted from."""
    debug: bool = False
    """Show where in the program an error came from."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.report.write import write_report

        page = write_report(self.source, self.output, images=self.images, resources=self.resources)
        output.print(escape(str(page)))
