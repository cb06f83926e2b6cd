"""The folder of an index: segments of inverted lists, and the manifest that lists the valid segments.

    index/
      manifest.json        format, options of the features, segments and their removed photos
      vocabulary-DIGEST/   a copy of the vocabulary, which makes the index self-contained
      segment-DIGEST/      memory-mapped columns, never changed once written
      .checked.json        which segments were checked, see `CheckedSegments`

A change writes new segments first and replaces the manifest last. So a reader sees either the old state or the new one.
A feature takes 14 bytes in a segment: 8 of signature, 2 of its image's number in the segment, 4 of geometry. They are
in the order of the lists, so that scoring reads 10 of them sequentially. An affine frame takes 4 more, for its shape.
In addition, each word takes 8 bytes in a segment, and each photo its name, fingerprint and size.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError, file_error, write_error
from hardnet_sfm.files.workspace import MANIFEST, PHOTOS, digest, read_json, write_json
from hardnet_sfm.inverted_lists import Columns, PhotoFacts, Segment

FORMAT = "hardnet-sfm index"
VERSION = 1
# The finished work of a killed run; it becomes the manifest at the end.
UNFINISHED = "unfinished.json"
_COLUMNS: dict[str, tuple[type[np.generic], ...]] = {
    "offsets": (np.int64,),
    "images": (np.uint16,),
    "signatures": (np.uint64,),
    "geometry": (np.uint32, np.uint64),
}
_HINT = "Move the folder of the index away and run `hardnet-sfm index` again."


@dataclass(frozen=True)
class Manifest:
    """The segments of an index.

    Attributes:
        images: folder of the photos.
        options: options that their features were made with.
        vocabulary: sha256 of the vocabulary's numbers.
        words: number of words of the vocabulary.
        segments: numbers of removed photos by the segment's name, in order.
    """

    images: str
    options: dict[str, Any]
    vocabulary: str
    words: int
    segments: dict[str, list[int]]

    @property
    def vocabulary_folder(self) -> str:
        """Name of the vocabulary's copy in the folder of the index."""
        return f"vocabulary-{self.vocabulary[:8]}"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads a manifest.

        Raises:
            HardnetSfmError: the manifest is missing, damaged or of another version.
        """
        content = read_json(path)
        try:
            if content.pop("format") != FORMAT:
                raise ValueError("its format is another one")
            if (version := content.pop("version")) != VERSION:
                raise ValueError(f"it has version {version}, this program reads version {VERSION}")
            if content.pop("check") != digest(content):
                raise ValueError("its checksum differs")
            return cls(**content)
        except (KeyError, TypeError, ValueError) as error:
            raise HardnetSfmError(f"{path}: not the manifest of an index, or damaged: {error}", _HINT) from error

    def write(self, path: Path) -> None:
        """Replaces a manifest."""
        content = dict(vars(self))
        write_json(path, {"format": FORMAT, "version": VERSION, "check": digest(content), **content})


def read_segment(folder: Path, words: int, removed: Sequence[int] = (), *, thorough: bool = False) -> Segment:
    """Opens a segment. Its columns stay on disk, memory-mapped, until they are accessed.

    Args:
        folder: folder of the segment.
        words: number of words of the vocabulary.
        removed: numbers of removed photos.
        thorough: whether to verify the checksums of all files, not only of the small ones.

    Raises:
        HardnetSfmError: a file is missing or of another length, or its checksum is wrong.
    """
    try:
        content = json.loads((folder / PHOTOS).read_text(encoding="utf-8"))
        checks = content.pop("checks")
        if digest(content, checks) != folder.name.removeprefix("segment-"):
            raise ValueError(f"{PHOTOS} has changed")
        columns = {}
        for name, kinds in _COLUMNS.items():
            column = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if column.dtype not in kinds or [len(column), column.ndim] != [checks[name][0], 1]:
                raise ValueError(f"{name}.npy has another length or type")
            if (thorough or name == "offsets") and _checksum(column) != checks[name][1]:
                raise ValueError(f"{name}.npy has changed")
            # These are plain array views of the memory maps. numba has one type for them and for arrays, so it
            # compiles once.
            columns[name] = np.asarray(column).view(np.ndarray)
        if len(columns["offsets"]) != words + 1:
            raise ValueError("it has another number of words")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, SyntaxError, TokenError) as error:
        path = (error.filename if isinstance(error, OSError) else None) or folder
        raise file_error(path, error, "a part of an index", _HINT) from error
    sizes = np.array(content["sizes"], np.int64).reshape(-1, 2)
    return Segment(folder.name, content["names"], content["fingerprints"], sizes, Columns(**columns), sorted(removed))


class CheckedSegments:
    """Remembers which segments were read and found sound, so that growing an index does not read all of it again.

    A segment counts as unchanged if its columns have the same sizes and times of their last change (ctime). Without the
    file that holds them, all segments are read again.

    Args:
        index: folder of the index.
    """

    def __init__(self, index: Path) -> None:
        self._path = index / ".checked.json"
        try:
            self._known = read_json(self._path)
        except HardnetSfmError:
            self._known = {}

    def __contains__(self, segment: Path) -> bool:
        return self._known.get(segment.name) == _state_of(segment)

    def note(self, segments: Sequence[Path]) -> None:
        """Notes the segments of an index, all of which were written or read thoroughly by this process."""
        now = {segment.name: _state_of(segment) for segment in segments}
        if now != self._known:
            write_json(self._path, now)


def _state_of(segment: Path) -> dict[str, list[int]]:
    """Returns the size and the time of the last change of each column; empty if one is missing."""
    try:
        stats = {name: (segment / f"{name}.npy").stat() for name in _COLUMNS}
    except OSError:
        return {}
    return {name: [stat.st_size, stat.st_ctime_ns] for name, stat in stats.items()}


class SegmentDraft:
    """A new segment, in a folder next to the others while the block runs.

    The folder gets its final name when it is complete, and is removed otherwise. So a segment is complete as soon as a
    folder of its name exists.

    Args:
        index: folder of the index.

    Raises:
        HardnetSfmError: the disk is full or cannot be written.
    """

    def __init__(self, index: Path) -> None:
        self._index, self._folder = index, index / ".draft"

    def __enter__(self) -> SegmentDraft:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise write_error(self._index, error) from error

    def column(self, name: str, kind: np.dtype[Any], length: int) -> NDArray[Any]:
        """Makes a column of the segment, (length,) memory-mapped, to be filled."""
        column = np.lib.format.open_memmap(self._folder / f"{name}.npy", "w+", kind, (length,))
        return np.asarray(column).view(np.ndarray)

    def finish(self, facts: Sequence[PhotoFacts]) -> str:
        """Publishes the segment with its photos, and returns its name."""
        names, fingerprints, sizes = (list(part) for part in zip(*facts, strict=True))
        content = {"names": names, "fingerprints": fingerprints, "sizes": [list(size) for size in sizes]}
        checks = {}
        for name in _COLUMNS:
            column = np.load(self._folder / f"{name}.npy", mmap_mode="r")
            checks[name] = [len(column), _checksum(column)]
        text = json.dumps({**content, "checks": checks}, ensure_ascii=True)
        (self._folder / PHOTOS).write_text(text, encoding="utf-8")
        target = self._index / f"segment-{digest(content, checks)}"
        shutil.rmtree(target, ignore_errors=True)
        self._folder.replace(target)
        return target.name


def _checksum(column: NDArray[Any]) -> int:
    """Computes the CRC-32 of an array's bytes, block by block."""
    crc, block = 0, 2**22
    for start in range(0, len(column), block):
        crc = zlib.crc32(np.ascontiguousarray(column[start : start + block]).data, crc)
    return crc


def sweep(folder: Path) -> None:
    """Removes folders that no manifest of the index names: leftovers of killed runs and of replaced states."""
    manifests = [Manifest.read(folder / name) for name in (MANIFEST, UNFINISHED) if (folder / name).is_file()]
    kept = {name for manifest in manifests for name in manifest.segments}
    kept |= {manifest.vocabulary_folder for manifest in manifests}
    for path in [*folder.glob("segment-*"), *folder.glob("vocabulary-*"), *folder.glob(".draft")]:
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
