"""What a Mac or a NAS leaves next to the files of a data set."""

from __future__ import annotations

import shutil
from pathlib import Path

FORK = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(range(256)) * 8


def litter(folder: Path) -> None:
    """Puts a resource fork next to each file and folder, a copy of all into __MACOSX, and @eaDir into each folder."""
    there = sorted(folder.rglob("*"))
    copy = folder.with_name(f"{folder.name}.copy")
    shutil.copytree(folder, copy)
    for path in there:
        path.with_name(f"._{path.name}").write_bytes(FORK)
        if path.is_dir():
            (path / "@eaDir" / "01.png").mkdir(parents=True)
            (path / ".DS_Store").write_bytes(b"Bud1")
    copy.rename(folder / "__MACOSX")
