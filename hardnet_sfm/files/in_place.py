"""Changes an HDF5 file in place, so that a kill at any moment leaves the old or the new content.

HDF5 overwrites parts of a file that it changes. A kill in the middle would ruin the file. Here HDF5 works on a file
object that keeps the old bytes of the file as they are:

1. HDF5 appends new data behind the old end of the file. The object keeps all other changes, a few pages, in memory.
   A reader that opens the file meanwhile finds the old content, because nothing in it refers to the appended data.
2. The appended data is flushed to disk. The pages go into a small file next to it (`.features.h5.redo`). From the
   moment when this file is complete, the change is made.
3. The pages are written to their places, and the small file is removed. A run that is killed in this step leaves the
   small file. The next run, also one that only reads, completes the change from it.

Step 3 takes milliseconds. An exclusive lock keeps readers out, and the HDF5 mark "open for writing" keeps them out even
after a kill. Readers hold a shared lock as long as they have the file open, so nothing changes under their hands.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py

from hardnet_sfm.errors import HardnetSfmError

# From HDF5 1.10 on, an attribute may be larger than 64 KiB.
FORMAT = ("v110", "latest")
# Readers of another process have this long to close the file, seconds.
PATIENCE = 2.0
_PAGE = 4096
_MAGIC = b"hardnet-sfm redo 1\n"
_HEAD, _PLACE = struct.Struct("<48sQQ"), struct.Struct("<QQ")
# A superblock of version 2 or 3: signature, version, ..., flags at 11, end of the file at 28, checksum at 44.
_SUPERBLOCK, _SIGNATURE, _OPEN_FOR_WRITING = 48, b"\x89HDF\r\n\x1a\n", 1


def change_in_place(path: Path, change: Callable[[h5py.File], None]) -> bool:
    """Changes an HDF5 file, completely or not at all.

    Args:
        path: path of the file.
        change: makes the changes in the open file.

    Returns:
        Whether the file was changed. It stays as it is if another program has it open for longer than 2 s, or if its
        version of HDF5 cannot be changed in this way. On Windows, it always stays as it is.

    Raises:
        OSError, RuntimeError: the disk is full or cannot be written. The file stays as it is.
    """
    if sys.platform == "win32":  # it has neither such locks nor positioned writes
        return False
    with path.open("r+b", buffering=0) as file:
        old = _superblock(file)
        if old is None:
            return False
        kept = _end_of(old)
        os.ftruncate(file.fileno(), kept)  # a killed run may have appended data that nothing refers to
        pending = PendingFile(file, kept)
        try:
            with h5py.File(pending, "r+", libver=FORMAT) as opened:
                change(opened)
            pending.check()
            os.fsync(file.fileno())
            if not _lock(file, PATIENCE):
                os.ftruncate(file.fileno(), kept)
                return False
            changes = _Changes(old, pending.size, pending.pages)
            _write_durably(_redo_of(path), changes.encode())
        except BaseException as error:
            _redo_of(path).unlink(missing_ok=True)
            os.ftruncate(file.fileno(), kept)
            pending.check(error)
            raise
        finally:
            pending.leave()
        changes.apply(file)
        _redo_of(path).unlink()
    return True


def _finish_changes(path: Path) -> None:
    """Completes the change of a killed run, if there was one.

    Raises:
        HardnetSfmError: the file cannot be written, or another program has it open.
    """
    redo = _redo_of(path)
    if not redo.is_file():
        return
    try:
        with path.open("r+b", buffering=0) as file:
            if _lock(file, PATIENCE):
                if redo.is_file():  # the run that was at work may just have ended
                    changes = _Changes.decode(redo.read_bytes())
                    if changes is not None and changes.are_of(file):
                        changes.apply(file)
                    redo.unlink()
            else:
                raise HardnetSfmError(f"another program has {path} open", "Close it, and run again.")
    except OSError as error:
        raise HardnetSfmError(
            f"{path}: a killed run left {redo.name}, and the change in it cannot be completed: {error}",
            "Make the folder writable and run again. Keep both files.",
        ) from error


def open_to_read(path: Path) -> h5py.File:
    """Opens an HDF5 file. It first completes the change of a killed run, and waits for a change that is under way.

    Raises:
        BlockingIOError: another program keeps the file locked for longer than 2 s.
        OSError: it cannot be opened.
        HardnetSfmError: a change is to be completed, but the file cannot be written.
    """
    _finish_changes(path)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return h5py.File(path, "r")
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


class PendingFile:
    """A file object for h5py that appends to a file, and keeps changes of its old part in memory.

    Args:
        file: the file, open for reading and writing without a buffer.
        kept: length of the old part, bytes.

    Attributes:
        size: length that the file will have.
        pages: new content of pages of the old part by their place in the file.
    """

    def __init__(self, file: BinaryIO, kept: int) -> None:
        self._number, self._kept, self._place = file.fileno(), kept, 0
        self._left = False
        self._error: OSError | None = None
        self.size, self.pages = kept, dict[int, bytearray]()

    def check(self, cause: BaseException | None = None) -> None:
        """Raises the error of a failed write.

        HDF5 does not end well if a write fails. So later writes do nothing, and the error comes here.
        """
        if self._error is not None:
            raise self._error from cause

    def leave(self) -> None:
        """Leaves the file alone from now on. HDF5 may keep the object after a failure, and write when it lets go."""
        self._left = True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:
        into = memoryview(buffer).cast("B")
        start, end = self._place, self._place + len(into)
        done = 0
        while done < len(into) and not self._left and (read := os.pread(self._number, len(into) - done, start + done)):
            into[done : done + len(read)] = read
            done += len(read)
        into[done:] = bytes(len(into) - done)
        for place in range(start - start % _PAGE, min(end, self._kept), _PAGE):
            if place in self.pages:
                page = self.pages[place]
                low, high = max(start, place), min(end, place + len(page))
                if low < high:
                    into[low - start : high - start] = page[low - place : high - place]
        self._place = end
        return len(into)

    def read(self, count: int = -1) -> bytes:
        content = bytearray(self.size - self._place if count < 0 else count)
        self.readinto(memoryview(content))
        return bytes(content)

    def write(self, data: memoryview) -> int:
        content = memoryview(data).cast("B")
        length, start, end = len(content), self._place, self._place + len(content)
        self._place, self.size = end, max(self.size, end)
        if self._left:
            return length
        while start < min(end, self._kept):
            place = start - start % _PAGE
            page = self._page(place)
            part = content[: place + len(page) - start]
            page[start - place : start - place + len(part)] = part
            content, start = content[len(part) :], start + len(part)
        while len(content) and self._error is None:
            try:
                written = os.pwrite(self._number, content, start)
            except OSError as error:
                self._error = error
            else:
                content, start = content[written:], start + written
        return length

    def truncate(self, size: int | None = None) -> int:
        self.size = self._place if size is None else size
        if self._error is None and not self._left:
            try:
                os.ftruncate(self._number, max(self.size, self._kept))
            except OSError as error:
                self._error = error
        return self.size

    def flush(self) -> None:
        """Does nothing: `change_in_place` flushes at the end."""

    def _page(self, place: int) -> bytearray:
        if place not in self.pages:
            self.pages[place] = bytearray(os.pread(self._number, min(_PAGE, self._kept - place), place))
        return self.pages[place]


@dataclass(frozen=True)
class _Changes:
    """Changes of the old part of a file.

    Attributes:
        old: superblock of the file before the change.
        size: length of the file after the change.
        pages: new content of pages by their place in the file.
    """

    old: bytes
    size: int
    pages: dict[int, bytearray]

    def encode(self) -> bytes:
        parts = [_MAGIC, _HEAD.pack(self.old, self.size, len(self.pages))]
        for place, page in self.pages.items():
            parts += [_PLACE.pack(place, len(page)), bytes(page)]
        content = b"".join(parts)
        return content + hashlib.sha256(content).digest()

    @classmethod
    def decode(cls, content: bytes) -> _Changes | None:
        """Reads what `encode` returned; None if it is incomplete."""
        body, checksum = content[:-32], content[-32:]
        if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != checksum:
            return None
        old, size, count = _HEAD.unpack_from(body, len(_MAGIC))
        place, pages = len(_MAGIC) + _HEAD.size, dict[int, bytearray]()
        for _ in range(count):
            where, length = _PLACE.unpack_from(body, place)
            place += _PLACE.size
            pages[where] = bytearray(body[place : place + length])
            place += length
        return cls(old, size, pages)

    def are_of(self, file: BinaryIO) -> bool:
        """Says whether the file is the one to change: with its old content, or with some of the changes."""
        found = os.pread(file.fileno(), _SUPERBLOCK, 0)
        mixed = zip(found, self.old, self._new(), _marked(self._new()), strict=False)
        return len(found) == _SUPERBLOCK and all(byte in possible for byte, *possible in mixed)

    def apply(self, file: BinaryIO) -> None:
        """Writes the changes. Repeating it does no harm.

        The superblock comes first with a mark, and last without it. HDF5 refuses a file with the mark.
        """
        number, new = file.fileno(), self._new()
        os.pwrite(number, _marked(new), 0)
        os.fsync(number)
        for place, page in self.pages.items():
            skipped = _SUPERBLOCK if place == 0 else 0
            os.pwrite(number, page[skipped:], place + skipped)
        os.ftruncate(number, self.size)
        os.fsync(number)
        os.pwrite(number, new, 0)
        os.fsync(number)

    def _new(self) -> bytes:
        return bytes(self.pages[0][:_SUPERBLOCK]) if 0 in self.pages else self.old


def _redo_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.redo")


def _superblock(file: BinaryIO) -> bytes | None:
    """Returns the superblock of an HDF5 file as `StoreWriter` writes it; None for any other file."""
    found = os.pread(file.fileno(), _SUPERBLOCK, 0)
    ours = len(found) == _SUPERBLOCK and found.startswith(_SIGNATURE) and found[8] in (2, 3) and found[9] == 8
    return found if ours and os.fstat(file.fileno()).st_size >= _end_of(found) else None


def _end_of(superblock: bytes) -> int:
    """Returns the end of the file as HDF5 knows it."""
    return int.from_bytes(superblock[28:36], "little")


def _marked(superblock: bytes) -> bytes:
    """Returns the superblock with the mark that the file is open for writing."""
    body = bytearray(superblock[:44])
    body[11] |= _OPEN_FOR_WRITING
    return bytes(body) + lookup3(bytes(body)).to_bytes(4, "little")


def lookup3(key: bytes) -> int:
    """Returns Bob Jenkins' hash lookup3 of a text of bytes, 32 bits. HDF5 uses it as the checksum of its metadata.

    The key must not be empty.
    """

    def turned(value: int, bits: int) -> int:
        return (value << bits | value >> 32 - bits) & 0xFFFFFFFF

    a = b = c = (0xDEADBEEF + len(key)) & 0xFFFFFFFF
    words = [int.from_bytes(key[at : at + 4], "little") for at in range(0, -(-len(key) // 12) * 12, 4)]
    for at in range(0, len(words), 3):
        a, b, c = ((one + other) & 0xFFFFFFFF for one, other in zip((a, b, c), words[at : at + 3], strict=True))
        if at + 3 < len(words):
            for bits in (4, 6, 8, 16, 19, 4):
                a = (a - c & 0xFFFFFFFF) ^ turned(c, bits)
                c = c + b & 0xFFFFFFFF
                a, b, c = b, c, a
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - turned(b, bits)) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b


def _lock(file: BinaryIO, patience: float) -> bool:
    """Gets the exclusive lock of a file, which ends when the file is closed; says whether it did."""
    import fcntl

    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        except OSError:
            return False  # the file system has no locks
        else:
            return True


def _write_durably(path: Path, content: bytes) -> None:
    """Writes a file that is complete on disk when it gets its name."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
