"""Builds the next state of an index while readers keep the current one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hardnet_sfm.files.workspace import CARD, MANIFEST, prepare_folder
from hardnet_sfm.retrieval.inverted_index import UNFINISHED, Manifest, sweep
from hardnet_sfm.retrieval.methods import MOST_PHOTOS
from hardnet_sfm.retrieval.segments import IndexedPhoto, Segment, merge_segments, write_segment
from hardnet_sfm.retrieval.visual_words import Vocabulary

# A segment is merged with the previous one if it has a quarter of that one's features or more. It is rewritten if more
# than a quarter of its photos are removed. So each feature is copied only a few times, whatever the number of photos.
_QUARTER = 4


class IndexBuilder:
    """Builds the next state of an index. Readers keep the current one until `finish`.

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
        self._folder, self._vocabulary = folder, vocabulary
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
            vocabulary.save(copy)
        self._waiting: list[IndexedPhoto] = []
        # A new state must not build on damaged data.
        self._segments = [
            Segment(folder / name, len(vocabulary), removed, thorough=True)
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
            changed = sorted(gone) != segment.removed
            segments.append(Segment(segment.folder, len(self._vocabulary), sorted(gone)) if changed else segment)
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
        photos, features = sum(map(len, self._segments)), sum(segment.features for segment in self._segments)
        files = [path for segment in self._segments for path in segment.folder.iterdir()]
        stored = sum(path.stat().st_size for path in [*files, self._complete])
        return photos, features, stored

    def _state(self) -> Manifest:
        return replace(self._manifest, segments={segment.folder.name: segment.removed for segment in self._segments})

    def _flush(self) -> None:
        words = len(self._vocabulary)
        if self._waiting:
            name = write_segment(self._folder, self._waiting, words)
            self._segments.append(Segment(self._folder / name, words))
            self._waiting = []
        self._segments = [segment for segment in self._segments if len(segment)]
        while (run := self._to_merge()) is not None:
            first, last = run
            name = merge_segments(self._folder, self._segments[first:last], words)
            self._segments[first:last] = [Segment(self._folder / name, words)]
        state = self._state()
        if not self._complete.is_file() or Manifest.read(self._complete) != state:
            state.write(self._folder / UNFINISHED)

    def _to_merge(self) -> tuple[int, int] | None:
        """Returns the segments to merge: two neighbours, or one with many removed photos."""
        for number, segment in enumerate(self._segments):
            if len(segment.removed) * _QUARTER > len(segment.names):
                return number, number + 1
        if len(self._segments) > 1:
            before, last = self._segments[-2:]
            if last.features * _QUARTER >= before.features and len(before) + len(last) <= MOST_PHOTOS:
                return len(self._segments) - 2, len(self._segments)
        return None
