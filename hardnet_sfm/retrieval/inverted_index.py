"""The index on disk: segments of inverted lists, and the manifest that lists the valid segments.

    index/
      manifest.json        format, options of the features, segments and their removed photos
      vocabulary-DIGEST/   a copy of the vocabulary, which makes the index self-contained
      segment-DIGEST/      never changed once written

A change writes new segments first and replaces the manifest last. So a reader sees either the old state or the new one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.workspace import MANIFEST, digest, read_json, write_json
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval import kernels
from hardnet_sfm.retrieval.methods import MOST_PHOTOS
from hardnet_sfm.retrieval.segments import Segment, unpack_geometry
from hardnet_sfm.retrieval.visual_words import Signatures, Vocabulary, Words

FORMAT = "hardnet-sfm index"
VERSION = 1
# The finished work of a killed run; it becomes the manifest at the end.
UNFINISHED = "unfinished.json"

Result = TypeVar("Result")


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
            raise HardnetSfmError(
                f"{path}: not the manifest of an index, or damaged: {error}",
                "Move the folder of the index away and run `hardnet-sfm index` again.",
            ) from error

    def write(self, path: Path) -> None:
        """Replaces a manifest."""
        content = dict(vars(self))
        write_json(path, {"format": FORMAT, "version": VERSION, "check": digest(content), **content})


class InvertedIndex:
    """An index that is open for reading. Lists stay on disk, memory-mapped, until they are accessed.

    Args:
        folder: folder of the index, or a workspace that contains one.
        resources: how many threads search.
        thorough: whether to verify the checksums of all files, not only of the small ones.

    Attributes:
        manifest: list of segments.
        vocabulary: vocabulary of the index.
        segments: open segments with the lists.
        names: names of its photos. A photo's number in the index is its position here: `starts[segment]` plus its
            number in the segment.
        starts: number of each segment's first photo.
        threads: number of threads that search.

    Raises:
        HardnetSfmError: the index is missing, damaged or of another version.
    """

    def __init__(self, folder: Path, resources: Resources | None = None, *, thorough: bool = False) -> None:
        self.folder = folder if (folder / MANIFEST).is_file() else folder / "index"
        if not (self.folder / MANIFEST).is_file():
            raise HardnetSfmError(f"no index at {self.folder}", "Run `hardnet-sfm index IMAGES` first.")
        self.manifest = Manifest.read(self.folder / MANIFEST)
        self.vocabulary = Vocabulary.open(self.folder / self.manifest.vocabulary_folder)
        if self.vocabulary.fingerprint != self.manifest.vocabulary:
            raise HardnetSfmError(
                f"{self.folder}: its vocabulary is not the one that it was made with",
                f"Move {self.folder} away and run `hardnet-sfm index IMAGES` again.",
            )
        words = self.manifest.words
        self.segments = [
            Segment(self.folder / name, words, removed, thorough=thorough)
            for name, removed in self.manifest.segments.items()
        ]
        self.names = [name for segment in self.segments for name in segment.names]
        self.starts = np.cumsum([0, *(len(segment.names) for segment in self.segments)])
        self.threads = (resources or Resources()).threads

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
        """Number of entries of all lists, including those of removed photos."""
        return sum(segment.features for segment in self.segments)

    @cached_property
    def idf(self) -> NDArray[np.float64]:
        """(W,) log(number of photos / number of photos with the word), 0 if no photo has the word."""
        frequencies = np.zeros(len(self.vocabulary), np.int64)
        for segment in self.segments:
            kernels.document_frequencies(segment.offsets, segment.images, segment.alive, frequencies)
        return np.where(frequencies > 0, np.log(max(1, len(self)) / np.maximum(frequencies, 1)), 0.0)

    @cached_property
    def _norms(self) -> NDArray[np.float64]:
        parts = [np.zeros((3, 0))]
        for segment in self.segments:
            norms = np.zeros((3, MOST_PHOTOS))
            kernels.squared_norms(segment.offsets, segment.images, self.idf, *norms)
            parts.append(norms[:, : len(segment.names)])
        return np.maximum(np.sqrt(np.concatenate(parts, 1)), 1e-12)

    @property
    def count_norms(self) -> NDArray[np.float64]:
        """(N,) lengths of the photos' tf-idf vectors."""
        return np.asarray(self._norms[0])

    @property
    def word_norms(self) -> NDArray[np.float64]:
        """(N,) lengths of the photos' vectors with the idf of each word that they have."""
        return np.asarray(self._norms[1])

    @property
    def present_norms(self) -> NDArray[np.float64]:
        """(N,) square roots of the number of words in each photo."""
        return np.asarray(self._norms[2])

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
            features = np.linspace(0, segment.features, 4 * self.threads + 1)
            cuts = np.searchsorted(segment.offsets, features).tolist()
            tasks += [(first, last, segment.offsets, segment.images, following) for first, last in pairwise(cuts)]
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
        return np.asarray(self.segments[segment].images[rows] + self.starts[segment], np.int64)

    def geometry_of(self, segment: int, rows: NDArray[np.int64]) -> Float32:
        """Returns the geometry of entries of a segment's lists.

        It is (M, 4) x, y, scale, radians, or (M, 6) with affine frames, see
        `hardnet_sfm.retrieval.segments.geometry_of`.
        """
        of = self.segments[segment]
        return unpack_geometry(of.geometry[rows], of.sizes[of.images[rows]])

    def signatures_of(self, entries: Entries) -> Signatures:
        """Returns the (N,) signatures of features in the index."""
        found = np.empty(len(entries), np.uint64)
        segments = self.segment_of(entries.photos)
        for number, segment in enumerate(self.segments):
            inside = segments == number
            found[inside] = segment.signatures[entries.rows[inside]]
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


def sweep(folder: Path) -> None:
    """Removes folders that no manifest of the index names: leftovers of killed runs and of replaced states."""
    manifests = [Manifest.read(folder / name) for name in (MANIFEST, UNFINISHED) if (folder / name).is_file()]
    kept = {name for manifest in manifests for name in manifest.segments}
    kept |= {manifest.vocabulary_folder for manifest in manifests}
    for path in [*folder.glob("segment-*"), *folder.glob("vocabulary-*"), *folder.glob(".draft")]:
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
