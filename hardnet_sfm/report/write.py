"""The command `report`: a page about whatever it is given."""

from __future__ import annotations

from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.report.evaluation import evaluation_page
from hardnet_sfm.report.page import check_page
from hardnet_sfm.report.reconstruction import reconstruction_page
from hardnet_sfm.report.training import training_page
from hardnet_sfm.resources import Resources
from hardnet_sfm.workspace import Workspace


def write_report(
    source: Workspace | Path | str,
    output: Path | str | None = None,
    *,
    images: Path | str | None = None,
    patches: Path | str | None = None,
    resources: Resources | None = None,
) -> Path:
    """Writes a page that needs no network and nothing beside it, to be opened in any browser of 2024 or later.

    Args:
        source: a workspace with a reconstruction; a .safetensors file that `train` made or is making; or a .json file
            that `evaluate` wrote, of any data set.
        output: the .html file to write. Default: report.html in the workspace, or NAME.html beside the file.
        images: of a workspace: folder of the photos, where it is no longer the one that features were made from. Where
            there is none, the page does without photos. Of an evaluation on landmarks: the data set, or the folder of
            its photos; without it the page does not show what was found.
        patches: of weights: a patches.h5 to find the hardest positives and negatives in.
        resources: how much of the machine.

    Returns:
        The path of the page.

    Raises:
        HardnetSfmError: there is nothing to report on, a file is damaged, or the page cannot be written.
        UsageError: the output is no .html file, or images or patches are given for something that has none.
    """
    if output is not None:
        check_page(Path(output))
    kind = "" if isinstance(source, Workspace) else Path(source).suffix
    for name, given, wanted in (("images", images, ("", ".json")), ("patches", patches, (".safetensors",))):
        if given is not None and kind not in wanted:
            raise UsageError(f"--{name} has no effect on the page about {source}", "Leave it out.")
    if kind in (".safetensors", ".json"):
        assert not isinstance(source, Workspace)
        file = Path(source)
        target = Path(output) if output else file.with_suffix(".html")
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
    reconstruction_page(place, target, Path(images) if images else None, resources)
    return target
