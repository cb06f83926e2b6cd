"""Makes the inverted lists of a segment from photos or from other segments, and packs the geometry of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.inverted_lists import MOST_PHOTOS, Columns, Packed, PhotoFacts, Segment, Signatures, Words
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.retrieval import kernels

_POSITIONS, _TURNS, _SCALES = 1024, 64, 64
_OCTAVES_A_STEP, _SMALLEST_OCTAVE = 1 / 8, -1.0
_STRETCHES, _DIRECTIONS = 4096, 65536  # steps in an octave and in half a turn

Room = Callable[[str, np.dtype[Any], int], NDArray[Any]]
"""Makes an array to fill, from the name of a column, its type and its length."""


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


def invert(photos: Sequence[IndexedPhoto], words: int) -> Columns:
    """Sorts the features of photos into inverted lists.

    Args:
        photos: photos, at most 65536.
        words: number of words of the vocabulary.
    """
    counts = [len(photo.words) for photo in photos]
    assigned = np.concatenate([photo.words for photo in photos])
    images = np.repeat(np.arange(len(photos), dtype=np.uint16), counts)
    order = np.argsort(assigned, kind="stable")
    return Columns(
        np.searchsorted(assigned[order], np.arange(words + 1)).astype(np.int64),
        images[order],
        np.concatenate([photo.signatures for photo in photos])[order],
        np.concatenate([photo.geometry for photo in photos])[order],
    )


def merge(segments: Sequence[Segment], words: int, room: Room) -> list[PhotoFacts]:
    """Merges several segments into one, without removed photos, and returns the facts of its photos.

    Lower bound: 14 bytes a feature are read and written. On a disk that takes as long as a copy.

    Args:
        segments: the segments, in order.
        words: number of words of the vocabulary.
        room: makes the columns of the new segment.
    """
    facts: list[PhotoFacts] = []
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
        kernels.living_counts(segment.columns.offsets, segment.columns.images, number, counts)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    room("offsets", np.dtype(np.int64), words + 1)[:] = offsets
    cursors, new = offsets[:-1].copy(), []
    for name in ("images", "signatures", "geometry"):
        kind = np.result_type(*(getattr(segment.columns, name).dtype for segment in segments))
        new.append(room(name, kind, int(offsets[-1])))
    for segment, number in zip(segments, numbers, strict=True):
        kernels.merge_lists(*vars(segment.columns).values(), number, *new, cursors)
    return facts
