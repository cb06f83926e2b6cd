"""Opens HDF5 files of any origin, so that a lock, a missing permission and damage give different errors.

HDF5 keeps texts in global heaps, which have no checksums. Its reader walks from object to object in a heap by their
sizes, and never ends if zeroed bytes give a size of 0. So `read_attributes` checks each heap before HDF5 sees it.

A store is therefore opened twice: once for its attributes, through a file object that finds and checks heaps, and once
by HDF5 itself for its arrays. One opening would not do. Arrays may contain the four letters by which heaps are found:
one of four billion words does. HDF5 locks the file only if it opens the file itself, and it reads arrays faster. The
second opening costs about a millisecond, because each attribute is read once.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import file_error
from hardnet_sfm.files.in_place import open_to_read

_HEAP = b"GCOL"
_HEAP_HEADER, _OBJECT_HEADER = 16, 16  # bytes; of a file with 8-byte lengths, as all programs write
_MOST = 1 << 30  # bytes of a heap
_MOST_COMPRESSED = 1100  # gzip shrinks data to a 1032nd at most


def open_hdf5(path: Path, remedy: str) -> h5py.File:
    """Opens an HDF5 file for reading. It first completes the change of a killed run.

    Args:
        path: path of the file.
        remedy: how to get a good file, if this one is damaged.

    Raises:
        HardnetSfmError: the file is in use, may not be read, is truncated, damaged or not HDF5.
    """
    try:
        return open_to_read(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise file_error(path, error, "an HDF5 file", remedy) from error


def read_attributes(path: Path) -> dict[str, Any]:
    """Reads the attributes of the root group. Damaged heaps raise an error instead of an endless loop.

    Raises:
        OSError: the file is damaged.
    """
    with _CheckedFile(path) as raw, h5py.File(raw, "r") as file:
        return dict(file.attrs)


def read_array(stored: h5py.Dataset) -> NDArray[Any]:
    """Reads a data set, whose size must be in proportion to what is stored. A damaged one may claim to be huge.

    Raises:
        OSError: the data set claims more than it can hold, or the file is damaged.
        TypeError: it is a group, or it holds texts or other objects, whose heaps are not checked.
    """
    if not isinstance(stored, h5py.Dataset) or stored.dtype.kind == "O":
        raise TypeError(f"{stored.name} is not a data set of numbers")
    if stored.nbytes > _MOST_COMPRESSED * stored.id.get_storage_size():
        raise OSError(f"{stored.name} claims {stored.nbytes} bytes, but {stored.id.get_storage_size()} are stored")
    return np.asarray(stored[()])


class _CheckedFile(io.FileIO):
    """A file that checks each global heap before the bytes that hold it are read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r")
        self._checked: set[int] = set()

    def readinto(self, buffer: Any, /) -> int:
        start = self.tell()
        count = super().readinto(buffer) or 0
        block = bytes(memoryview(buffer).cast("B")[:count])
        at = block.find(_HEAP)
        while at >= 0:
            if (start + at) % 8 == 0 and start + at not in self._checked:
                self._check_heap(start + at)
                self._checked.add(start + at)
            at = block.find(_HEAP, at + 1)
        return count

    def _check_heap(self, start: int) -> None:
        """Raises OSError if a walk through the heap at this address would not end at the heap's end.

        Format: a signature, a version, the size of the whole heap, then objects. Each has a number, a size and its
        content. The object with number 0 is the free space, and its size includes its header.
        """
        self.seek(start + 8)
        size = int.from_bytes(self.read(8), "little")
        if not _HEAP_HEADER <= size <= _MOST:
            raise OSError(f"the size of the heap at byte {start} is {size}")
        self.seek(start)
        heap = self.read(size)
        at = _HEAP_HEADER
        while at + _OBJECT_HEADER <= len(heap):
            number = int.from_bytes(heap[at : at + 2], "little")
            length = int.from_bytes(heap[at + 8 : at + 16], "little")
            step = _OBJECT_HEADER + -(-length // 8) * 8 if number else length
            if step < _OBJECT_HEADER or at + step > size:
                raise OSError(f"the heap at byte {start} is damaged at byte {start + at}")
            at += step
