"""Remembers the sha256 of files, so that a second run does not read photos that nobody has touched."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.workspace import write_json

# A file system may note the same time for two changes within this time, seconds.
_SETTLED = 2.0


class FileHashes:
    """The sha256 of files, kept in a JSON file. A file that is missing or damaged holds none.

    Args:
        path: path of the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._began = path, time.time_ns()
        self._known: dict[str, list[str]] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self._known = {str(name): [str(state), str(sha256)] for name, (state, sha256) in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass

    def sha256(self, file: Path) -> str:
        """Returns the sha256 of a file. It reads the file only if its size or one of its times changed.

        Raises:
            OSError: the file is missing or cannot be read.
        """
        state, settled = self._state_of(file)
        known, sha256 = self._known.get(str(file), ["", ""])
        if known == state:
            return sha256
        sha256 = sha256_of(file)
        if settled:
            self._known[str(file)] = [state, sha256]
        return sha256

    def note(self, file: Path, sha256: str) -> None:
        """Notes the sha256 of a file that the caller has read since this object was made."""
        with suppress(OSError):  # the file is gone meanwhile
            state, settled = self._state_of(file)
            if settled:
                self._known[str(file)] = [state, sha256]

    def save(self) -> None:
        """Writes the file."""
        write_json(self._path, self._known)

    def _state_of(self, file: Path) -> tuple[str, bool]:
        """Returns size and times of a file, and whether nobody has changed it since this object was made."""
        found = file.stat()
        # Nobody can set the second of the times, which every change of the file sets.
        state = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
        return state, max(found.st_mtime_ns, found.st_ctime_ns) < self._began - 1e9 * _SETTLED
