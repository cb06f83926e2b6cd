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
    """Draw a page of a reconstruction, training or evaluation."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm report",
        "hardnet-sfm report out/ --images moved/ -o page.html",
        "hardnet-sfm report my.safetensors --patches held-out.h5",
        "hardnet-sfm report homography.json",
        "hardnet-sfm report oxford5k.json --images OXFORD",
    )

    source: Annotated[Path, Positional, arg(metavar="SOURCE")] = DEFAULT
    """Workspace with a model: cameras and points, photos, matches, statistics. Or .safetensors file that `train` made
    or is making: learning curves, hardest patches. Or .json file that `evaluate` made, of any data set: its tables,
    curves of precision over recall, ROC or matching accuracy, each query, pair or sequence."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """.html file to write. Default: report.html in the workspace, or NAME.html beside the file."""
    images: Path | None = None
    """Workspace: where the photos are now, if no longer where features were extracted from. Evaluation on landmarks:
    the data set, to show the first photos found for each query."""
    patches: Path | None = None
    """Weights: a patches.h5 to find the hardest positives and negatives in, best of scenes not trained on."""
    debug: bool = False
    """Show where in the program an error came from."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.report.write import write_report

        page = write_report(
            self.source, self.output, images=self.images, patches=self.patches, resources=self.resources
        )
        output.print(escape(str(page)))
