"""Inverted lists of up to 65536 photos, and their array types: they travel between the files and the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MOST_PHOTOS = 65536  # of a segment, in which a photo's number has 16 bits

_BLOCK = 2**22  # entries that are counted at a time

Words = NDArray[np.int32]
Signatures = NDArray[np.uint64]
Packed = NDArray[np.uint32] | NDArray[np.uint64]
"""Packed geometry of features, see `hardnet_sfm.retrieval.segments.pack_geometry`."""
PhotoFacts = tuple[str, str, tuple[int, int]]
"""Name of a photo, fingerprint of its features, and its width and height in pixels."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The features of a segment in the order of the lists: by word, and within a word by photo.

    Attributes:
        offsets: (W + 1,) int64, start of each word's list.
        images: (E,) uint16, number of each entry's photo in the segment.
        signatures: (E,) uint64.
        geometry: (E,) uint32 or uint64.
    """

    offsets: NDArray[np.int64]
    images: NDArray[np.uint16]
    signatures: Signatures
    geometry: Packed


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of an index, which never changes except for the list of removed photos.

    Attributes:
        name: name of the segment in the index.
        names, fingerprints: names of its photos and fingerprints of their features, by number.
        sizes: (P, 2) int64, width and height of its photos, pixels.
        columns: its features.
        removed: numbers of removed photos, rising.
    """

    name: str
    names: list[str]
    fingerprints: list[str]
    sizes: NDArray[np.int64]
    columns: Columns
    removed: Sequence[int] = ()

    def __len__(self) -> int:
        """Number of photos that have not been removed."""
        return len(self.names) - len(self.removed)

    @cached_property
    def alive(self) -> NDArray[np.uint8]:
        """(65536,) 1 for photos that exist and have not been removed."""
        alive = np.zeros(MOST_PHOTOS, np.uint8)
        alive[: len(self.names)] = 1
        alive[list(self.removed)] = 0
        return alive

    @property
    def lists(self) -> tuple[NDArray[np.int64], Signatures, NDArray[np.uint16]]:
        """Offsets, signatures and images, in the order that most of the compiled loops expect."""
        return self.columns.offsets, self.columns.signatures, self.columns.images

    @property
    def entries(self) -> int:
        """Number of entries of all lists, including those of removed photos."""
        return len(self.columns.images)

    @cached_property
    def features(self) -> int:
        """Number of features of the photos that have not been removed."""
        if not self.removed:
            return self.entries
        blocks = range(0, self.entries, _BLOCK)
        return sum(int(self.alive[self.columns.images[start : start + _BLOCK]].sum()) for start in blocks)

    def without(self, removed: Sequence[int]) -> Segment:
        """Returns the segment with these photos removed, and no others."""
        return replace(self, removed=sorted(removed))
