"""The command `report` writes an HTML page about a reconstruction, a training run or an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.workspace import DEFAULT, Workspace
from hardnet_sfm.pages.evaluation_page import evaluation_page
from hardnet_sfm.pages.model_page import reconstruction_page
from hardnet_sfm.pages.page import check_page
from hardnet_sfm.pages.training_page import training_page
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import output


def write_report(
    source: Workspace | Path | str,
    output: Path | str | None = None,
    *,
    images: Path | str | None = None,
    patches: Path | str | None = None,
    resources: Resources | None = None,
) -> Path:
    """Writes a self-contained page. It opens without a network in any browser of 2024 or later.

    Args:
        source: a workspace with a reconstruction, a .safetensors file that `train` has written or is writing, or a
            .json file that `evaluate` wrote for any data set.
        output: the .html file to write. The default is report.html in the workspace, or NAME.html next to the file.
        images: for a workspace, the folder of the photos if they moved since their features were extracted. If the
            folder does not exist, the page has no photos. For an evaluation on landmarks, the data set or the folder of
            its photos; without it, the page does not show the photos found for each query.
        patches: for weights, a patches.h5 in which to find the hardest positives and negatives.
        resources: threads and device to use.

    Returns:
        The path of the page.

    Raises:
        HardnetSfmError: there is nothing to report on, a file is damaged, or the page cannot be written.
        UsageError: the output is not an .html file, or images or patches are given for a source that does not use them.
    """
    kind = "" if isinstance(source, Workspace) else Path(source).suffix
    for name, given, wanted in (("images", images, ("", ".json")), ("patches", patches, (".safetensors",))):
        if given is not None and kind not in wanted:
            raise UsageError(f"--{name} has no effect on the page about {source}", "Leave it out.")
    if kind in (".safetensors", ".json"):
        assert not isinstance(source, Workspace)
        file = Path(source)
        target = Path(output) if output else file.with_suffix(".html")
        check_page(target)
        if kind == ".json":
            evaluation_page(file, target, Path(images) if images else None, resources)
        else:
            training_page(file, target, Path(patches) if patches else None)
        return target
    place = source if isinstance(source, Workspace) else Workspace(Path(source))
    if not place.root.is_dir():
        raise HardnetSfmError(
            f"no workspace at {place.root}",
            "Run `hardnet-sfm reconstruct IMAGES` first, or name a .safetensors of `train` or a .json of `evaluate`.",
        )
    target = Path(output) if output else place.report
    check_page(target)
    reconstruction_page(place, target, Path(images) if images else None, resources)
    return target


@dataclass(frozen=True)
class ReportCommand:
    """Draw a page about a reconstruction, training or evaluation."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm report",
        "hardnet-sfm report out/ --images moved/ -o page.html",
        "hardnet-sfm report my.safetensors --patches held-out.h5",
        "hardnet-sfm report homography.json",
        "hardnet-sfm report oxford5k.json --images OXFORD",
    )

    source: Annotated[Path, Positional, arg(metavar="SOURCE")] = DEFAULT
    """Workspace or file to show. A workspace with a model: cameras and points, photos, matches, statistics. A
    .safetensors file that `train` made or is making: learning curves, hardest patches. A .json file that `evaluate`
    wrote: its tables, curves of precision over recall, ROC or matching accuracy, and each query, pair or sequence."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """.html file to write. Default: report.html in the workspace, or NAME.html next to the file."""
    images: Path | None = None
    """For a workspace: folder of the photos, if they moved after `extract`. For an evaluation on landmarks: the data
    set, to show the first photos found for each query."""
    patches: Path | None = None
    """For weights: a file of patches to find the hardest positives and negatives in. Take scenes that were not trained
    on."""
    debug: bool = False
    """Show where in the program an error came from."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        page = write_report(
            self.source, self.output, images=self.images, patches=self.patches, resources=self.resources
        )
        output.print(escape(str(page)))
