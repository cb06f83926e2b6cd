"""Inverted lists of all segments of an index, with the statistics and the orders that scores need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.inverted_lists import MOST_PHOTOS, Segment, Signatures, Words
from hardnet_sfm.retrieval import kernels
from hardnet_sfm.retrieval.segments import unpack_geometry
from hardnet_sfm.retrieval.visual_words import Vocabulary

Result = TypeVar("Result")


class InvertedIndex:
    """The inverted lists of an index, to search in.

    Args:
        vocabulary: vocabulary of the index.
        segments: segments with the lists. Their columns may be memory-mapped.
        threads: number of threads that search.

    Attributes:
        vocabulary, segments, threads: as given.
        names: names of its photos. A photo's number in the index is its position here: `starts[segment]` plus its
            number in the segment.
        starts: number of each segment's first photo.
    """

    def __init__(self, vocabulary: Vocabulary, segments: Sequence[Segment], threads: int = 1) -> None:
        self.vocabulary, self.segments, self.threads = vocabulary, segments, threads
        self.names = [name for segment in segments for name in segment.names]
        self.starts = np.cumsum([0, *(len(segment.names) for segment in segments)])

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """(N,) whether each photo is still in the index, not removed."""
        parts = [segment.alive[: len(segment.names)] for segment in self.segments]
        return np.concatenate([np.zeros(0, np.uint8), *parts]).astype(bool)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the features of the photos that have not been removed, by name."""
        marks = [mark for segment in self.segments for mark in segment.fingerprints]
        return {name: mark for name, mark, alive in zip(self.names, marks, self.alive, strict=True) if alive}

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    @property
    def features(self) -> int:
        """Number of features of the photos that have not been removed."""
        return sum(segment.features for segment in self.segments)

    @cached_property
    def idf(self) -> NDArray[np.float64]:
        """(W,) log((number of photos + 1) / number of photos with the word), 0 if no photo has the word.

        The 1 gives a value to words that all photos have. Without it, a collection of one photo would find nothing.
        """
        frequencies = np.zeros(len(self.vocabulary), np.int64)
        for segment in self.segments:
            kernels.document_frequencies(segment.columns.offsets, segment.columns.images, segment.alive, frequencies)
        return np.where(frequencies > 0, np.log((len(self) + 1) / np.maximum(frequencies, 1)), 0.0)

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """(3, N) lengths of each photo's vectors: tf-idf; the idf of each word that it has; 1 for each such word."""
        parts = [np.zeros((3, 0))]
        for segment in self.segments:
            norms = np.zeros((3, MOST_PHOTOS))
            kernels.squared_norms(segment.columns.offsets, segment.columns.images, self.idf, *norms)
            parts.append(norms[:, : len(segment.names)])
        return np.maximum(np.sqrt(np.concatenate(parts, 1)), 1e-12)

    def threaded(self, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]]) -> list[Result]:
        """Runs calls in parallel threads, and returns their results in the order of the tasks."""
        if self.threads == 1 or len(tasks) == 1:
            return [function(*task) for task in tasks]
        with ThreadPoolExecutor(self.threads, "search") as pool:
            return list(pool.map(lambda task: function(*task), tasks))

    def entries(self, photos: Sequence[int]) -> Entries:
        """Returns all features of given photos in the order of the lists: by segment, by word, by photo.

        It takes a pass over the images of all lists: 2 bytes a feature.
        """
        tasks, numbers = [], []
        for number, segment in enumerate(self.segments):
            wanted = np.flatnonzero(self.wanted(number, photos))
            if not len(wanted):
                continue
            gaps = np.diff(wanted, prepend=-1, append=MOST_PHOTOS - 1)
            following = np.repeat(np.append(wanted, MOST_PHOTOS), gaps)
            features = np.linspace(0, segment.entries, 4 * self.threads + 1)
            cuts = np.searchsorted(segment.columns.offsets, features).tolist()
            tasks += [
                (first, last, segment.columns.offsets, segment.columns.images, following)
                for first, last in pairwise(cuts)
            ]
            numbers += [number] * (len(cuts) - 1)
        empty = Entries(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64))
        parts = [empty]
        for number, (rows, words) in zip(numbers, self.threaded(kernels.entries_of, tasks), strict=True):
            parts.append(Entries(self.photos_of(number, rows), words, rows))
        return Entries(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(empty)))

    def joined(self, values: NDArray[Any]) -> NDArray[Any]:
        """Joins (S, 65536) values by segment into (N,) values of all photos."""
        parts = [row[: len(segment.names)] for row, segment in zip(values, self.segments, strict=True)]
        return np.concatenate([np.zeros(0, values.dtype), *parts])

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """(N,) position of each photo in the order of names."""
        places = np.empty(len(self.names), np.int64)
        places[sorted(range(len(self.names)), key=self.names.__getitem__)] = np.arange(len(self.names))
        return places

    def rank(self, scores: NDArray[np.float64], top: int | None = None) -> list[int]:
        """Returns the numbers of photos with a score above 0, best first.

        Names order equal scores, whatever the numbers.

        Args:
            scores: (N,) scores.
            top: largest number of photos.
        """
        least = 0.0
        if top is not None and top < len(scores):
            least = np.partition(scores, len(scores) - top)[len(scores) - top]
        candidates = np.flatnonzero((scores > 0) & (scores >= least))
        order = np.lexsort((self._places[candidates], -scores[candidates]))[:top]
        return [int(photo) for photo in candidates[order]]

    def wanted(self, segment: int, photos: Sequence[int]) -> NDArray[np.uint8]:
        """Returns (65536,) uint8, 1 for the given photos that are in a segment."""
        numbers = np.asarray(photos, np.int64) - self.starts[segment]
        flags = np.zeros(MOST_PHOTOS, np.uint8)
        flags[numbers[(numbers >= 0) & (numbers < len(self.segments[segment].names))]] = 1
        return flags

    def photos_of(self, segment: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the photos of entries of a segment's lists."""
        return np.asarray(self.segments[segment].columns.images[rows] + self.starts[segment], np.int64)

    def geometry_of(self, segment: int, rows: NDArray[np.int64]) -> Float32:
        """Returns the geometry of entries of a segment's lists.

        It is (M, 4) x, y, scale, radians, or (M, 6) with affine frames, see
        `hardnet_sfm.retrieval.segments.geometry_of`.
        """
        of = self.segments[segment]
        return unpack_geometry(of.columns.geometry[rows], of.sizes[of.columns.images[rows]])

    def signatures_of(self, entries: Entries) -> Signatures:
        """Returns the (N,) signatures of features in the index."""
        found = np.empty(len(entries), np.uint64)
        segments = self.segment_of(entries.photos)
        for number, segment in enumerate(self.segments):
            inside = segments == number
            found[inside] = segment.columns.signatures[entries.rows[inside]]
        return found

    def segment_of(self, photos: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the (N,) number of each photo's segment."""
        return np.asarray(np.searchsorted(self.starts, photos, "right") - 1, np.int64)


@dataclass(frozen=True, eq=False)
class Entries:
    """Positions of features in an index. Signatures and geometry are read later, as each read misses all caches.

    Attributes:
        photos: (N,) int64 numbers of photos.
        words: (N,) int32.
        rows: (N,) int64, rows in the lists of the photo's segment.
    """

    photos: NDArray[np.int64]
    words: Words
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.photos)

    def select(self, rows: NDArray[Any]) -> Entries:
        """Returns the entries in the given rows."""
        return Entries(self.photos[rows], self.words[rows], self.rows[rows])
