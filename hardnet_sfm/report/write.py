"""The command `report`: a page about whatever it is given."""

from __future__ import annotations

from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.report.reconstruction import reconstruction_page
from hardnet_sfm.resources import Resources
from hardnet_sfm.workspace import Workspace


def write_report(
    source: Workspace | Path | str,
    output: Path | str | None = None,
    *,
    images: Path | str | None = None,
    resources: Resources | None = None,
) -> Path:
    """Writes a page that needs no network and nothing beside it, to be opened in any browser of 2023 or later.

    Args:
        source: a workspace with a reconstruction.
        output: the .html file to write. Default: report.html in the workspace.
        images: folder of the photos, where it is no longer the one that features were made from. Where there is none,
            the page does without photos.
        resources: how much of the machine.

    Returns:
        The path of the page.

    Raises:
        HardnetSfmError: there is nothing to report on, a file is damaged, or the page cannot be written.
    """
    place = source if isinstance(source, Workspace) else Workspace(Path(source))
    if not place.root.is_dir():
        raise HardnetSfmError(f"no workspace at {place.root}", "Run `hardnet-sfm reconstruct IMAGES` first.")
    target = Path(output) if output else place.report
    reconstruction_page(place, target, Path(images) if images else None, resources)
    return target
