"""Files that systems leave next to those of a user: hidden files, and what a Mac or a NAS stores with them."""

from __future__ import annotations

from pathlib import Path

# Folders of resource forks, thumbnails and deleted files, in lower case.
_FOLDERS = ("__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "$recycle.bin", "lost+found")


def is_clutter(name: str) -> bool:
    """Says whether no user made a file or folder of this name: `._a.jpg`, `.DS_Store`, `__MACOSX`, `@eaDir` ..."""
    return name.startswith(".") or name.lower() in _FOLDERS


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Finds what matches a pattern of `Path.glob` below a folder, in the order of the paths. Clutter is passed over."""
    found = (path for path in folder.glob(pattern) if not any(map(is_clutter, path.relative_to(folder).parts)))
    return sorted(found)
