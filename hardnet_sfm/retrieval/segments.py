"""Inverted lists of up to 65536 photos in a folder of memory-mapped columns.

A segment never changes once it is written. The manifest of the index marks removed photos, added photos form a new
segment, and segments are merged occasionally. A feature takes 14 bytes: 8 of signature, 2 of its image's number in the
segment, 4 of geometry. They are in the order of the lists, so that scoring reads 10 of them sequentially. An affine
frame takes 4 more, for its shape. In addition, each word takes 8 bytes in a segment, and each photo its name,
fingerprint and size.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.errors import HardnetSfmError, file_error
from hardnet_sfm.files.workspace import PHOTOS, digest
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.retrieval import kernels
from hardnet_sfm.retrieval.methods import MOST_PHOTOS
from hardnet_sfm.retrieval.visual_words import Signatures, Words

FEATURE_BYTES = 14
_COLUMNS: dict[str, tuple[type[np.generic], ...]] = {
    "offsets": (np.int64,),
    "images": (np.uint16,),
    "signatures": (np.uint64,),
    "geometry": (np.uint32, np.uint64),
}
_POSITIONS, _TURNS, _SCALES = 1024, 64, 64
_OCTAVES_A_STEP, _SMALLEST_OCTAVE = 1 / 8, -1.0
_STRETCHES, _DIRECTIONS = 4096, 65536  # steps in an octave and in half a turn
_HINT = "Move the folder of the index away and run `hardnet-sfm index` again."


Packed = NDArray[np.uint32] | NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class IndexedPhoto:
    """One photo to add to a segment.

    Attributes:
        name: name in the image folder.
        fingerprint: fingerprint of its features.
        size: width and height, pixels.
        words: (N,) int32.
        signatures: (N,) uint64.
        geometry: (N,) uint32 or uint64, see `pack_geometry`.
    """

    name: str
    fingerprint: str
    size: tuple[int, int]
    words: Words
    signatures: Signatures
    geometry: Packed


class Segment:
    """An open segment.

    Attributes:
        folder: folder of the segment.
        names, fingerprints, sizes: names, fingerprints of features and sizes of its photos by number.
        offsets, images, signatures, geometry: memory-mapped columns.
        alive: (65536,) uint8; 1 for photos that exist and have not been removed.

    Raises:
        HardnetSfmError: a file is missing or of another length, or its checksum is wrong. With `thorough` all checksums
            are verified, otherwise only those of the small files.
    """

    def __init__(self, folder: Path, words: int, removed: Sequence[int] = (), *, thorough: bool = False) -> None:
        self.folder = folder
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
                columns[name] = column
            if len(columns["offsets"]) != words + 1:
                raise ValueError("it has another number of words")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise file_error(getattr(error, "filename", None) or folder, error, "a part of an index", _HINT) from error
        self.names: list[str] = content["names"]
        self.fingerprints: list[str] = content["fingerprints"]
        self.sizes: NDArray[np.int64] = np.array(content["sizes"], np.int64).reshape(-1, 2)
        # These are plain array views of the memory maps. numba has one type for them and for arrays, so it compiles
        # once.
        self.offsets, self.images, self.signatures, self.geometry = (
            np.asarray(columns[name]).view(np.ndarray) for name in _COLUMNS
        )
        self.removed = sorted(removed)
        self.alive = np.zeros(MOST_PHOTOS, np.uint8)
        self.alive[: len(self.names)] = 1
        self.alive[self.removed] = 0

    def __len__(self) -> int:
        """Number of photos that have not been removed."""
        return len(self.names) - len(self.removed)

    @property
    def lists(self) -> tuple[NDArray[np.int64], Signatures, NDArray[np.uint16]]:
        """Offsets, signatures and images, in the order that most of the compiled loops expect."""
        return self.offsets, self.signatures, self.images

    @property
    def features(self) -> int:
        """Number of entries, including those of removed photos."""
        return len(self.images)


def geometry_of(keypoints: Keypoints) -> Float32:
    """Returns (N, 4) float32: x, y, scale in pixels, orientation in radians; or (N, 6) if there are affine frames.

    An affine frame is a rotation after a stretch: R(orientation) P. Its scale is the root of its determinant. Its
    orientation is that of the nearest rotation. The two other columns are log2 of the ratio of the axes of P, and the
    direction of its longer axis, radians from 0 to pi.
    """
    frames = keypoints.frames().astype(np.float64)
    scale = np.sqrt(np.maximum(np.abs(np.linalg.det(frames)), 1e-12))
    turn = np.arctan2(frames[:, 1, 0] - frames[:, 0, 1], frames[:, 0, 0] + frames[:, 1, 1])
    columns = [keypoints.xy, scale, turn]
    if keypoints.affines is not None:
        _, sizes, axes = np.linalg.svd(frames)
        columns += [
            np.log2(sizes[:, 0] / np.maximum(sizes[:, 1], 1e-6)),
            np.arctan2(axes[:, 0, 1], axes[:, 0, 0]) % np.pi,
        ]
    return np.column_stack(columns).astype(np.float32)


def pack_geometry(keypoints: Keypoints, size: tuple[int, int]) -> Packed:
    """Quantises geometry to 32 bits, or to 64 bits if there are affine frames.

    Positions are kept to a 1024th of the photo's sides, scales to an eighth of an octave, and orientations to 6
    degrees. The shape of an affine frame takes another 32 bits.

    Args:
        keypoints: N keypoints.
        size: width and height of the photo, pixels.

    Returns:
        (N,) uint32, from the highest bit: 10 of x, 10 of y, 6 of scale, 6 of orientation. Or (N,) uint64, in which 16
        bits of stretch and 16 of its direction precede these.
    """
    geometry = geometry_of(keypoints).astype(np.float64)
    scale, turn = geometry[:, 2:4].T
    parts = [
        np.clip((keypoints.xy[:, side] + 0.5) * _POSITIONS / size[side], 0, _POSITIONS - 1).astype(np.uint32)
        for side in (0, 1)
    ]
    octave = np.clip((np.log2(scale) - _SMALLEST_OCTAVE) / _OCTAVES_A_STEP, 0, _SCALES - 1).astype(np.uint32)
    angle = np.floor(np.mod(turn / (2 * np.pi), 1) * _TURNS).astype(np.uint32) % _TURNS
    similar = np.asarray(parts[0] << 22 | parts[1] << 12 | octave << 6 | angle, np.uint32)
    if keypoints.affines is None:
        return similar
    stretch = np.clip(np.rint(geometry[:, 4] * _STRETCHES), 0, 65535).astype(np.uint64)
    direction = (np.rint(geometry[:, 5] / np.pi * _DIRECTIONS) % _DIRECTIONS).astype(np.uint64)
    return np.asarray(stretch << np.uint64(48) | direction << np.uint64(32) | similar, np.uint64)


def unpack_geometry(packed: Packed, sizes: NDArray[np.int64]) -> Float32:
    """Returns the middle of the values that `pack_geometry` maps to the same bits.

    Args:
        packed: (N,) uint32 or uint64.
        sizes: (N, 2) or (2,) width and height of the photos, pixels.

    Returns:
        (N, 4) float32: x, y, scale (pixels) and orientation (radians); (N, 6) of affine frames, see `geometry_of`.
    """
    shapes: list[NDArray[np.float64]] = []
    if packed.dtype == np.uint64:
        stretch, direction = packed >> np.uint64(48), packed >> np.uint64(32) & np.uint64(65535)
        shapes = [stretch.astype(np.float64) / _STRETCHES, direction.astype(np.float64) * (np.pi / _DIRECTIONS)]
        packed = packed.astype(np.uint32)
    x, y = (packed >> 22).astype(np.float64), (packed >> 12 & 1023).astype(np.float64)
    xy = (np.stack([x, y], 1) + 0.5) * sizes / _POSITIONS - 0.5
    scale = 2 ** (((packed >> 6 & 63) + 0.5) * _OCTAVES_A_STEP + _SMALLEST_OCTAVE)
    angle = ((packed & 63) + 0.5) * (2 * np.pi / _TURNS)
    return np.column_stack([xy, scale, angle, *shapes]).astype(np.float32)


def write_segment(index: Path, photos: Sequence[IndexedPhoto], words: int) -> str:
    """Writes photos as a new segment of an index, and returns the segment's name.

    The segment is complete as soon as a folder of that name exists.

    Args:
        index: folder of the index.
        photos: photos, at most 65536.
        words: number of words of the vocabulary.

    Raises:
        HardnetSfmError: the disk is full or cannot be written.
    """
    counts = [len(photo.words) for photo in photos]
    assigned = np.concatenate([photo.words for photo in photos])
    images = np.repeat(np.arange(len(photos), dtype=np.uint16), counts)
    order = np.argsort(assigned, kind="stable")
    columns: dict[str, NDArray[Any]] = {
        "offsets": np.searchsorted(assigned[order], np.arange(words + 1)),
        "images": images[order],
        "signatures": np.concatenate([photo.signatures for photo in photos])[order],
        "geometry": np.concatenate([photo.geometry for photo in photos])[order],
    }
    facts = [(photo.name, photo.fingerprint, photo.size) for photo in photos]
    with _Draft(index) as draft:
        for name, kinds in _COLUMNS.items():
            column = columns[name]
            np.save(draft.folder / f"{name}.npy", column if column.dtype in kinds else column.astype(kinds[0]))
        return draft.finish(facts)


def merge_segments(index: Path, segments: Sequence[Segment], words: int) -> str:
    """Writes the photos of several segments as one new segment, without removed photos, and returns its name.

    Lower bound: 14 bytes a feature are read and written. On a disk that takes as long as a copy.

    Raises:
        HardnetSfmError: the disk is full or cannot be written.
    """
    facts: list[tuple[str, str, tuple[int, int]]] = []
    numbers, counts = [], np.zeros(words, np.int64)
    for segment in segments:
        number = np.full(MOST_PHOTOS, -1, np.int64)
        living = np.flatnonzero(segment.alive)
        number[living] = len(facts) + np.arange(len(living))
        facts += [
            (segment.names[photo], segment.fingerprints[photo], tuple(segment.sizes[photo].tolist()))
            for photo in living
        ]
        numbers.append(number)
        kernels.living_counts(segment.offsets, segment.images, number, counts)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    with _Draft(index) as draft:
        kinds = {name: np.result_type(*(getattr(segment, name).dtype for segment in segments)) for name in _COLUMNS}
        columns = {
            name: np.lib.format.open_memmap(
                draft.folder / f"{name}.npy", "w+", kind, (words + 1 if name == "offsets" else int(offsets[-1]),)
            )
            for name, kind in kinds.items()
        }
        columns["offsets"][:] = offsets
        cursors = offsets[:-1].copy()
        new = [np.asarray(columns[name]).view(np.ndarray) for name in ("images", "signatures", "geometry")]
        for segment, number in zip(segments, numbers, strict=True):
            old = (segment.offsets, segment.images, segment.signatures, segment.geometry)
            kernels.merge_lists(*old, number, *new, cursors)
        for column in columns.values():
            column.flush()
        return draft.finish(facts)


class _Draft:
    """A folder next to the segments. It gets its final name when it is complete, and is removed otherwise."""

    def __init__(self, index: Path) -> None:
        self._index, self.folder = index, index / ".draft"

    def __enter__(self) -> _Draft:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise HardnetSfmError(
                f"cannot write {self._index}: {error.strerror or error}",
                "Make room on the disk and run again: finished work is kept.",
            ) from error

    def finish(self, facts: Sequence[tuple[str, str, tuple[int, int]]]) -> str:
        names, fingerprints, sizes = (list(part) for part in zip(*facts, strict=True))
        content = {"names": names, "fingerprints": fingerprints, "sizes": [list(size) for size in sizes]}
        checks = {}
        for name in _COLUMNS:
            column = np.load(self.folder / f"{name}.npy", mmap_mode="r")
            checks[name] = [len(column), _checksum(column)]
        text = json.dumps({**content, "checks": checks}, ensure_ascii=True)
        (self.folder / PHOTOS).write_text(text, encoding="utf-8")
        target = self._index / f"segment-{digest(content, checks)}"
        shutil.rmtree(target, ignore_errors=True)
        self.folder.replace(target)
        return target.name


def _checksum(column: NDArray[Any]) -> int:
    """Computes the CRC-32 of an array's bytes, block by block."""
    crc, block = 0, 2**22
    for start in range(0, len(column), block):
        crc = zlib.crc32(np.ascontiguousarray(column[start : start + block]).data, crc)
    return crc
