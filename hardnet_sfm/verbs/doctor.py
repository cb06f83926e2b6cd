"""The command `doctor` checks the installation or a store of features."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.checks.findings import Finding
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import output, print_json

_COLOURS = {"ok": "green", "note": "yellow", "unknown": "yellow", "broken": "bold red"}


def doctor(
    store: Path | str | None = None, images: Path | str | None = None, resources: Resources | None = None
) -> list[Finding]:
    """Checks the installation with a short self test, or a store of features.

    Args:
        store: features.h5, a file of another program in hloc's layout, or a workspace; None for the installation.
        images: folder of the store's photos, which make its conventions certain. Default: the folder that it names.
        resources: threads and device that the self test uses.

    Returns:
        What was found. A finding whose state is "broken" needs to be mended.

    Raises:
        HardnetSfmError: there is no such store.
        UsageError: images are given without a store, or there is no such folder.
    """
    if store is None:
        if images is not None:
            raise UsageError("--images has no effect without a store", "Give the store that these photos belong to.")
        from hardnet_sfm.checks.machine import machine
        from hardnet_sfm.checks.selftest import self_test

        return machine() + self_test(resources or Resources())
    from hardnet_sfm.checks.store import check_store

    if images is not None and not Path(images).is_dir():
        raise UsageError(f"no such folder: {images}", "Give the folder of the store's photos.")
    return check_store(Path(store), None if images is None else Path(images))


@dataclass(frozen=True)
class DoctorCommand:
    """Options of `hardnet-sfm doctor`.

    Examples:
        hardnet-sfm doctor
        hardnet-sfm doctor features.h5 --images photos/
        hardnet-sfm doctor hardnet-sfm-out/ --json
    """

    store: Annotated[Path | None, Positional, arg(metavar="STORE")] = None
    """Features to check: features.h5, a file of another program in hloc's layout, or a workspace. Default: check the
    installation with a short self test."""
    images: Path | None = None
    """Folder of the store's photos. With them the conventions are certain. Default: the folder that the store names."""
    json: bool = False
    """Print the findings as a JSON object."""
    debug: bool = False
    """Show where in the program an error came from."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        findings = doctor(self.store, self.images, self.resources)
        broken = [found.what for found in findings if found.state == "broken"]
        if self.json:
            content = {"broken": broken, "findings": [asdict(found) for found in findings]}
            print_json(content, indent=1)
        else:
            for found in findings:
                colour = _COLOURS[found.state]
                output.print(f"[{colour}]{found.state:>7}[/]  [bold]{escape(found.what)}[/]  {escape(found.said)}")
                if found.hint:
                    output.print(f"         [dim]{escape(found.hint)}[/]")
        if broken:
            raise HardnetSfmError(f"broken: {', '.join(broken)}", "The lines above say what to do.")
