"""`.photo-hashes.json`: the sha256 of photos, with which a run that is up to date need not read them again.

A note is trusted as make and git trust theirs: if size, times and inode of the file are the same. A file that changes
twice within the resolution of its time looks unchanged. So a file that is younger than two seconds gets no note: it may
still change within that time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_files import read_photo, sha256_of
from hardnet_sfm.files.workspace import read_json, write_json
from hardnet_sfm.photo_names import as_on_disk
from hardnet_sfm.photos import Photo

_YOUNG = 2_000_000_000  # ns; the coarsest file system, FAT, keeps times to two seconds


class PhotoHashes:
    """Gives the sha256 of the photos in a folder. Several threads may call it at once.

    Args:
        notes: file of notes from earlier runs; it need not exist. Notes about another folder are ignored.
        images: folder of the photos.

    Attributes:
        images: the folder, resolved.
    """

    def __init__(self, notes: Path, images: Path) -> None:
        self._path, self.images = notes, images.resolve()
        self._before = _read(notes, self.images)
        self._notes = dict(self._before)

    def sha256(self, name: str) -> str:
        """Returns the sha256 of a photo's file. It reads the file only if it differs from its note.

        Raises:
            OSError: the file cannot be read.
        """
        path = as_on_disk(self.images / name)
        stamp = _stamp(path)
        noted_stamp, _, noted = self._notes.get(name, "").rpartition(" ")
        if stamp and stamp == noted_stamp:
            return noted
        found = sha256_of(path)
        self._note(name, stamp, found)
        return found

    def photo(self, name: str) -> Photo:
        """Decodes a photo, and notes the sha256 of its file.

        Raises:
            HardnetSfmError: the photo cannot be read.
        """
        path = as_on_disk(self.images / name)
        stamp = _stamp(path)  # before reading: a file that changes meanwhile differs from its note
        photo = read_photo(path)
        self._note(name, stamp, photo.sha256)
        return photo

    def _note(self, name: str, stamp: str, sha256: str) -> None:
        self._notes[name] = f"{stamp} {sha256}" if stamp else ""

    def save(self, names: Collection[str]) -> None:
        """Writes the notes about these photos for later runs."""
        kept = {name: self._notes[name] for name in names if self._notes.get(name)}
        if kept != self._before:
            with contextlib.suppress(HardnetSfmError):  # notes only save time
                write_json(self._path, {"images": str(self.images), "photos": kept})


def _read(notes: Path, images: Path) -> dict[str, str]:
    try:
        read = read_json(notes)
        if read["images"] == str(images):
            return {str(name): str(note) for name, note in read["photos"].items()}
    except (HardnetSfmError, KeyError, AttributeError):
        pass  # missing or damaged notes are made again
    return {}


def _stamp(path: Path) -> str:
    """Returns what changes with the content of a file; empty if the file may change without changing it."""
    try:
        found = path.stat()
    except OSError:
        return ""
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _YOUNG:
        return ""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
