"""An index as a whole: opens the index in a folder, and builds its next state while readers keep the current one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.index_files import (
    UNFINISHED,
    CheckedSegments,
    Manifest,
    SegmentDraft,
    read_segment,
    sweep,
)
from hardnet_sfm.files.vocabulary_files import read_vocabulary, write_vocabulary
from hardnet_sfm.files.workspace import CARD, MANIFEST, prepare_folder
from hardnet_sfm.inverted_lists import MOST_PHOTOS, Segment
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.inverted_index import InvertedIndex
from hardnet_sfm.retrieval.segments import IndexedPhoto, invert, merge
from hardnet_sfm.retrieval.visual_words import Vocabulary

# A segment is merged with the previous one if it has a quarter of that one's entries or more. It is rewritten if more
# than a quarter of its photos are removed. So each feature is copied only a few times, whatever the number of photos.
_QUARTER = 4


@dataclass(frozen=True)
class OpenIndex:
    """An index that is open for reading.

    Attributes:
        folder: folder of the index.
        manifest: what the folder contains.
        lists: the inverted lists, memory-mapped.
    """

    folder: Path
    manifest: Manifest
    lists: InvertedIndex


def open_vocabulary(folder: Path) -> Vocabulary:
    """Reads a vocabulary from its folder, or from a workspace that contains one.

    Raises:
        HardnetSfmError: the vocabulary is missing, damaged or of another version.
    """
    card, numbers = read_vocabulary(folder)
    return Vocabulary(card, **numbers)


def open_index(folder: Path, resources: Resources | None = None, *, thorough: bool = False) -> OpenIndex:
    """Opens an index. Its lists stay on disk until they are accessed.

    Args:
        folder: folder of the index, or a workspace that contains one.
        resources: how many threads search.
        thorough: whether to verify the checksums of all files, not only of the small ones.

    Raises:
        HardnetSfmError: the index is missing, damaged or of another version.
    """
    folder = folder if (folder / MANIFEST).is_file() else folder / "index"
    if not (folder / MANIFEST).is_file():
        raise HardnetSfmError(f"no index at {folder}", "Run `hardnet-sfm index IMAGES` first.")
    manifest = Manifest.read(folder / MANIFEST)
    vocabulary = open_vocabulary(folder / manifest.vocabulary_folder)
    if vocabulary.fingerprint != manifest.vocabulary:
        raise HardnetSfmError(
            f"{folder}: its vocabulary is not the one that it was made with",
            f"Move {folder} away and run `hardnet-sfm index IMAGES` again.",
        )
    segments = [
        read_segment(folder / name, manifest.words, removed, thorough=thorough)
        for name, removed in manifest.segments.items()
    ]
    threads = (resources or Resources()).threads
    return OpenIndex(folder, manifest, InvertedIndex(vocabulary, segments, threads))


class IndexBuilder:
    """Builds the next state of an index. Readers keep the current one until `finish`.

    Adding k photos to n reads and writes the features of the k photos. In addition, it reads the name and fingerprint
    of each of the n photos, some 100 bytes each, and 8 bytes for each word in each segment. Now and then segments are
    merged. By the rule of `_to_merge`, each feature is copied a number of times that grows with the logarithm of n.

    Args:
        folder: folder of the index; made if missing.
        vocabulary: vocabulary of the index.
        images: folder of the photos, for the manifest.
        options: options that features are made with. Photos with other options or another vocabulary are not taken
            over.

    Attributes:
        there: names of the photos that are kept, after `keep_only`.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, images: str, options: dict[str, Any]) -> None:
        prepare_folder(folder)
        self._folder, self._words = folder, len(vocabulary)
        fresh = Manifest(images, options, vocabulary.fingerprint, len(vocabulary), {})
        self._manifest = fresh
        self._complete = folder / MANIFEST
        for path in (folder / UNFINISHED, self._complete):
            if path.is_file():
                found = Manifest.read(path)
                if (found.options, found.vocabulary) == (fresh.options, fresh.vocabulary):
                    self._manifest = replace(found, images=fresh.images)
                    break
        sweep(folder)
        copy = folder / fresh.vocabulary_folder
        if not (copy / CARD).is_file():
            write_vocabulary(copy, vocabulary.card, vocabulary.numbers)
        self._waiting: list[IndexedPhoto] = []
        # A new state must not build on damaged data.
        self._checked = CheckedSegments(folder)
        self._segments = [
            read_segment(folder / name, self._words, removed, thorough=folder / name not in self._checked)
            for name, removed in self._manifest.segments.items()
        ]
        self.there: set[str] = set()

    def keep_only(self, wanted: dict[str, str]) -> int:
        """Keeps only the photos with the given fingerprints by name, and returns how many it removed."""
        before = sum(map(len, self._segments))
        segments = []
        for segment in self._segments:
            gone = set(segment.removed)
            for number, (name, mark) in enumerate(zip(segment.names, segment.fingerprints, strict=True)):
                if wanted.get(name) != mark or (number not in gone and name in self.there):
                    gone.add(number)
                if number not in gone:
                    self.there.add(name)
            segments.append(segment.without(sorted(gone)))
        self._segments = segments
        return before - sum(map(len, segments))

    def add(self, photo: IndexedPhoto, checkpoint: int) -> None:
        """Adds a photo. After every `checkpoint` photos the state is saved, so that a later run can resume."""
        self._waiting.append(photo)
        if len(self._waiting) >= checkpoint:
            self._flush()

    def finish(self) -> tuple[int, int, int]:
        """Publishes the new state for readers, and returns its number of photos, features and bytes."""
        self._flush()
        state = self._state()
        if not self._complete.is_file() or Manifest.read(self._complete) != state:
            state.write(self._complete)
        (self._folder / UNFINISHED).unlink(missing_ok=True)
        sweep(self._folder)
        self._checked.note([self._folder / segment.name for segment in self._segments])
        photos, features = sum(map(len, self._segments)), sum(segment.features for segment in self._segments)
        files = [path for segment in self._segments for path in (self._folder / segment.name).iterdir()]
        stored = sum(path.stat().st_size for path in [*files, self._complete])
        return photos, features, stored

    def _state(self) -> Manifest:
        return replace(self._manifest, segments={segment.name: list(segment.removed) for segment in self._segments})

    def _flush(self) -> None:
        if self._waiting:
            columns = invert(self._waiting, self._words)
            with SegmentDraft(self._folder) as draft:
                for name, column in vars(columns).items():
                    draft.column(name, column.dtype, len(column))[:] = column
                name = draft.finish([(photo.name, photo.fingerprint, photo.size) for photo in self._waiting])
            self._segments.append(self._reopened(name))
            self._waiting = []
        self._segments = [segment for segment in self._segments if len(segment)]
        while (run := self._to_merge()) is not None:
            first, last = run
            with SegmentDraft(self._folder) as draft:
                name = draft.finish(merge(self._segments[first:last], self._words, draft.column))
            self._segments[first:last] = [self._reopened(name)]
        state = self._state()
        if not self._complete.is_file() or Manifest.read(self._complete) != state:
            state.write(self._folder / UNFINISHED)

    def _reopened(self, name: str) -> Segment:
        return read_segment(self._folder / name, self._words)

    def _to_merge(self) -> tuple[int, int] | None:
        """Returns the segments to merge: two neighbours, or one with many removed photos."""
        for number, segment in enumerate(self._segments):
            if len(segment.removed) * _QUARTER > len(segment.names):
                return number, number + 1
        if len(self._segments) > 1:
            before, last = self._segments[-2:]
            if last.entries * _QUARTER >= before.entries and len(before) + len(last) <= MOST_PHOTOS:
                return len(self._segments) - 2, len(self._segments)
        return None
