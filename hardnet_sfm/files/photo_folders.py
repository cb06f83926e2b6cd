"""Lists the photos of a folder, and says which files and folders in it are not taken, and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.clutter import is_clutter
from hardnet_sfm.files.photo_decoding import CAN_READ_AVIF, CAN_READ_HEIC, HEIC_HINT, exif_orientation
from hardnet_sfm.files.photo_files import read_colours, read_photo, read_small, size_of
from hardnet_sfm.photos import Photo

_HEIC, _AVIF = (".heic", ".heif", ".hif"), (".avif",)
# A photo is what its content says. These endings only tell photos from other files.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".webp"),
    *(".gif", ".jp2", ".j2k", ".mpo"),
    *(_HEIC if CAN_READ_HEIC else ()),
    *(_AVIF if CAN_READ_AVIF else ()),
)
_RAW = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".x3f", ".3fr", ".fff", ".iiq", ".rwl", ".raw", ".erf", ".kdc", ".dcr", ".mrw", ".gpr", ".mos"),
)
_VIDEO = (".mp4", ".mov", ".avi", ".mkv", ".m4v", ".mts", ".webm", ".insv")
_OTHER = (".jxl", ".psd", ".exr", ".hdr", ".jxr", ".bpg")
_NAMED = 3  # folders and links to name; the rest is counted


@dataclass(frozen=True)
class NotTaken:
    """Files and folders that may hold photos and are not taken. Folders and links are POSIX paths.

    Attributes:
        formats: number of files in formats that are not read, by their ending in lower case.
        folders: folders of thumbnails, deleted files or resource forks.
        unreadable: folders that cannot be read, with the reason.
        dangling: links whose target does not exist.
        repeated: linked folders whose photos are taken already by another name.
    """

    formats: Mapping[str, int] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    dangling: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()

    def summary(self) -> str:
        """Says what was not taken, in one line; empty if everything was."""
        parts = [", ".join(f"{count} {suffix}" for suffix, count in self.formats.items())]
        for why in dict.fromkeys(self.unreadable.values()):
            closed = [folder for folder, of in self.unreadable.items() if of == why]
            parts.append(_named(_as_folders(closed), f"cannot be read ({why})"))
        parts += [
            _named(_as_folders(self.folders), "holds thumbnails or deleted files", "hold thumbnails or deleted files"),
            _named(self.dangling, "is a link to nothing", "are links to nothing"),
            _named(_as_folders(self.repeated), "is taken by another name", "are taken by other names"),
        ]
        return "; ".join(part for part in parts if part)

    def hint(self) -> str:
        """Says how to get at photos in the formats that are not read; empty if there are none."""
        hints = (
            (_HEIC, HEIC_HINT),
            (_AVIF, "To read AVIF photos, run `pip install --upgrade pillow`, or export them as JPEG."),
            (_RAW, "Develop raw photos as JPEG or TIFF, all with the same settings."),
            (_VIDEO, "Extract frames of videos as JPEG, for example with ffmpeg."),
            (_OTHER, "Convert photos in other formats to JPEG or PNG."),
        )
        return " ".join(hint for suffixes, hint in hints if self.formats.keys() & set(suffixes))


def _as_folders(names: Iterable[str]) -> list[str]:
    return [f"{name}/" for name in names]


def _named(names: Sequence[str], one: str, several: str = "") -> str:
    """Names the first of some things, counts the rest, and says what they are. No things give an empty text."""
    if not names:
        return ""
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    *first, last = [*names[:_NAMED], *more]
    return f"{', '.join(first)} and {last} {several or one}" if first else f"{last} {one}"


@dataclass(frozen=True)
class PhotoList:
    """The photos of a folder.

    Attributes:
        names: POSIX paths of the photos, relative to the folder, in natural order: img2 before img10.
        not_taken: what the folder holds besides.
    """

    names: list[str]
    not_taken: NotTaken


def list_photos(folder: Path) -> PhotoList:
    """Lists all photos below a folder.

    Links are followed, but each folder is taken once, by its own name rather than by a link. Files and folders whose
    name starts with a dot are skipped.

    Raises:
        HardnetSfmError: the folder is missing, is a file, cannot be read or holds no photo.
    """
    if not folder.exists():
        raise HardnetSfmError(f"no such folder: {folder}", "Give the folder that holds your photos.")
    if not folder.is_dir():
        raise HardnetSfmError(f"{folder} is a file, not a folder", "Give the folder that holds your photos.")
    search = _Search(folder)
    search.run()
    not_taken = search.not_taken()
    if search.names:
        return PhotoList(sorted(search.names, key=_natural_order), not_taken)
    what, endings = not_taken.summary(), f"Photos are files that end in {', '.join(EXTENSIONS)}."
    if what:
        raise HardnetSfmError(f"{folder}: no photos in it; not taken: {what}", not_taken.hint() or endings)
    raise HardnetSfmError(f"{folder}: {'it is empty' if search.is_empty else 'no photos in it'}", endings)


class _Search:
    """Walks through a folder: first through all real folders, then through linked ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[tuple[int, int]] = set()
        self._links: list[str] = []
        self.names: list[str] = []
        self.formats: Counter[str] = Counter()
        self.skipped: list[str] = []
        self.unreadable: dict[str, str] = {}
        self.dangling: list[str] = []
        self.repeated: list[str] = []
        self.is_empty = True

    def not_taken(self) -> NotTaken:
        folders, dangling, repeated = (
            tuple(sorted(found, key=_natural_order)) for found in (self.skipped, self.dangling, self.repeated)
        )
        formats, unreadable = dict(sorted(self.formats.items())), dict(sorted(self.unreadable.items()))
        return NotTaken(formats, folders, unreadable, dangling, repeated)

    def run(self) -> None:
        self._walk("")
        while self._links:
            self._links.sort(key=_natural_order, reverse=True)
            self._walk(self._links.pop())

    def _walk(self, start: str) -> None:
        due = [start]
        while due:
            inner = due.pop()
            place = self._folder / inner
            try:
                identity = _identity(place)
                if start and identity in self._seen:  # a linked folder may hold the folder that the link is in
                    self.repeated.append(inner)
                    continue
                self._seen.add(identity)
                with os.scandir(place) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if not inner:
                    raise HardnetSfmError(
                        f"cannot read {place}: {(error.strerror or str(error)).lower()}",
                        "Make it readable, or give another folder.",
                    ) from error
                self.unreadable[inner] = (error.strerror or str(error)).lower()
                continue
            self.is_empty = self.is_empty and not found
            due += [name for entry in found if (name := self._look(entry, inner))]

    def _look(self, entry: os.DirEntry[str], inner: str) -> str:
        """Notes one entry of a folder. Returns its name if it is a real folder to walk through, otherwise ""."""
        name = f"{inner}/{entry.name}" if inner else entry.name
        if entry.name.startswith("."):
            return ""
        try:
            is_folder, is_file, is_link = entry.is_dir(), entry.is_file(), entry.is_symlink()
        except OSError:  # the folder may be listed but not entered, or a link leads to itself
            is_folder, is_file, is_link = False, False, True
        suffix = PurePosixPath(entry.name).suffix.lower()
        if is_folder:
            if is_clutter(entry.name):
                self.skipped.append(name)
            elif is_link:
                self._links.append(name)
            else:
                return name
        elif is_file and (suffix in EXTENSIONS or self._is_misnamed(suffix, name)):
            self.names.append(name)
        elif is_file and suffix in (*_RAW, *_VIDEO, *_OTHER, *_HEIC, *_AVIF):
            self.formats[suffix] += 1
        elif is_link and not is_file and suffix in ("", *EXTENSIONS):
            self.dangling.append(name)
        return ""

    def _is_misnamed(self, suffix: str, name: str) -> bool:
        """Says whether a file is named as a HEIC or AVIF photo but is a JPEG or PNG, as exports of some phones are."""
        if suffix not in (*_HEIC, *_AVIF):
            return False
        try:
            with (self._folder / name).open("rb") as file:
                head = file.read(4)
        except OSError:
            return True  # the attempt to read the photo reports the error
        return head.startswith((b"\xff\xd8", b"\x89PNG"))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _natural_order(name: str) -> tuple[list[tuple[int, int | str]], str]:
    # The name itself breaks ties such as "1.jpg" and "01.jpg", so that the order never depends on the file system.
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name.casefold())], name


@dataclass(frozen=True)
class PhotoFolder:
    """A `hardnet_sfm.photos.PhotoSource` of the files in a folder. Absolute names lead to photos elsewhere."""

    path: Path

    def names(self) -> list[str]:
        return list_photos(self.path).names

    def photo(self, name: str) -> Photo:
        return read_photo(self.path / name)

    def colours(self, name: str) -> NDArray[np.uint8]:
        return read_colours(self.path / name)

    def small(self, name: str, longest_side: int) -> NDArray[np.uint8]:
        return read_small(self.path / name, longest_side)

    def size(self, name: str) -> tuple[int, int]:
        return size_of(self.path / name)

    def orientation(self, name: str) -> int:
        return exif_orientation(self.path / name)
