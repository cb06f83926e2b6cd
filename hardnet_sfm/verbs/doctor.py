"""The command `doctor` checks the installation or a store of features."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import output

_COLOURS = {"ok": "green", "note": "yellow", "unknown": "yellow", "broken": "bold red"}


@dataclass(frozen=True)
class DoctorCommand:
    """Check the installation, or a store of features."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm doctor",
        "hardnet-sfm doctor features.h5 --images photos/",
        "hardnet-sfm doctor hardnet-sfm-out/ --json",
    )

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
        if self.images is not None and self.store is None:
            raise UsageError("--images has no effect without a store", "Give the store that these photos belong to.")
        if self.images is not None and not self.images.is_dir():
            raise UsageError(f"no such folder: {self.images}", "Give the folder of the store's photos.")
        if self.store is not None:
            from hardnet_sfm.doctor.store import check_store

            findings = check_store(self.store, self.images)
        else:
            from hardnet_sfm.doctor.machine import machine
            from hardnet_sfm.doctor.selftest import self_test

            findings = machine() + self_test(self.resources)
        broken = [found.what for found in findings if found.state == "broken"]
        if self.json:
            content = {"broken": broken, "findings": [asdict(found) for found in findings]}
            output.print(json.dumps(content, ensure_ascii=False, indent=1), markup=False)
        else:
            for found in findings:
                colour = _COLOURS[found.state]
                output.print(f"[{colour}]{found.state:>7}[/]  [bold]{escape(found.what)}[/]  {escape(found.said)}")
                if found.hint:
                    output.print(f"         [dim]{escape(found.hint)}[/]")
        if broken:
            raise HardnetSfmError(f"broken: {', '.join(broken)}", "The lines above say what to do.")
