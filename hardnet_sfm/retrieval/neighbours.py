"""Finds the most similar photos of photos that are in an index."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from hardnet_sfm.progress import progress
from hardnet_sfm.retrieval.inverted_index import InvertedIndex
from hardnet_sfm.retrieval.scoring import Query, score_he

# Number of photos whose features are read in one pass over the index.
_BLOCK = 256


def most_alike(index: InvertedIndex, names: Collection[str] | None, neighbours: int) -> Iterator[tuple[str, list[str]]]:
    """Yields photos of an index by name, each with those that score best for it by Hamming embedding, best first.

    The query is the photo's features in the index, so nothing is described or assigned again.

    Args:
        index: the index.
        names: names of the query photos; None for all.
        neighbours: number of photos for each photo.
    """
    alive = np.flatnonzero(index.alive).tolist()
    asked = [photo for photo in alive if names is None or index.names[photo] in names]
    order = sorted(asked, key=lambda photo: index.names[photo])
    with progress("propose", len(order)) as advance:
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            entries = index.entries(block)
            by_photo = np.argsort(entries.photos, kind="stable")
            bounds = np.searchsorted(entries.photos[by_photo], [[photo, photo + 1] for photo in block])
            for photo, (first, last) in zip(block, bounds.tolist(), strict=True):
                own = entries.select(by_photo[first:last])
                scores = score_he(index, Query.single(own.words, index.signatures_of(own)))
                scores[photo] = 0
                yield index.names[photo], [index.names[other] for other in index.rank(scores, neighbours)]
                advance(note=index.names[photo])
