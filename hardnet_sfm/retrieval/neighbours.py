"""The stage `propose`: finds similar photos of a collection, as pairs to match."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hardnet_sfm.errors import UsageError
from hardnet_sfm.files.workspace import locked, replacing
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.inverted_index import InvertedIndex
from hardnet_sfm.retrieval.scoring import Query, score_he


# Number of photos whose features are read in one pass over the index.
@dataclass(frozen=True)
class ProposeResult:
    """The result of the stage: the number of photos and of pairs."""

    photos: int
    pairs: int

    def summary(self) -> str:
        """Says in one line what was found."""
        return f"{self.pairs} pairs of {self.photos} photos look alike"


_BLOCK = 256


def propose(
    index: Path | str, output: Path | str, neighbours: int, resources: Resources | None = None
) -> ProposeResult:
    """Writes pairs of each photo and the photos that score best for it by Hamming embedding, each pair once.

    The query is the photo's features in the index, so nothing is described or assigned again.

    Args:
        index: folder of the index.
        output: text file to make, with two names on each line, separated by a tab.
        neighbours: number of photos for each photo. It can get more partners, as other photos may choose it too.
        resources: how much of the machine to use.

    Raises:
        HardnetSfmError: the index is missing or damaged.
        UsageError: `neighbours` is less than 1.
    """
    if neighbours < 1:
        raise UsageError("--retrieval must be at least 1")
    output, pairs, photos = Path(output), set[tuple[str, str]](), 0
    for name, others in most_alike(index, None, neighbours, resources):
        photos += 1
        pairs.update((min(name, other), max(name, other)) for other in others)
    with locked(output.parent), replacing(output) as beside:
        beside.write_text("".join(f"{first}\t{second}\n" for first, second in sorted(pairs)), encoding="utf-8")
    return ProposeResult(photos, len(pairs))


def most_alike(
    index: Path | str, names: Collection[str] | None, neighbours: int, resources: Resources | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yields photos of an index by name, each with those that score best for it by Hamming embedding, best first.

    Args:
        index: folder of the index.
        names: names of the query photos; None for all.
        neighbours: number of photos for each photo.
        resources: how much of the machine to use.

    Raises:
        HardnetSfmError: the index is missing or damaged.
    """
    opened = InvertedIndex(Path(index), resources)
    alive = np.flatnonzero(opened.alive).tolist()
    asked = [photo for photo in alive if names is None or opened.names[photo] in names]
    order = sorted(asked, key=lambda photo: opened.names[photo])
    with progress("propose", len(order)) as advance:
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            entries = opened.entries(block)
            by_photo = np.argsort(entries.photos, kind="stable")
            bounds = np.searchsorted(entries.photos[by_photo], [[photo, photo + 1] for photo in block])
            for photo, (first, last) in zip(block, bounds.tolist(), strict=True):
                own = entries.select(by_photo[first:last])
                scores = score_he(opened, Query.single(own.words, opened.signatures_of(own)))
                scores[photo] = 0
                yield opened.names[photo], [opened.names[other] for other in opened.rank(scores, neighbours)]
                advance(note=opened.names[photo])
