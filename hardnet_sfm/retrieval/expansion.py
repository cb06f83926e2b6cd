"""Query expansion: adds features of the best photos to a query.

Hamming query expansion follows Tolias and Jegou (Pattern Recognition 47(10), 2014). Average query expansion follows
Chum et al. (ICCV 2007, section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.keypoints import Box
from hardnet_sfm.retrieval.grouping import aggregate
from hardnet_sfm.retrieval.inverted_index import Entries, InvertedIndex
from hardnet_sfm.retrieval.scoring import STRICT, Query, Scores, score_word_vector
from hardnet_sfm.retrieval.spatial import Verified

_SHORTLIST = 100
_RELIABLE_MATCHES = 5
_MOST_RELIABLE = 20
_AVERAGED_INLIERS = 16
# Largest number of new words, as a share of the number of the query's words.
_NEW_WORDS = 1.0
_NEW_WORD_PHOTOS = 2


def reliable_photos(index: InvertedIndex, scores: Scores, strict: NDArray[np.int64]) -> list[int]:
    """Selects reliable photos among the first 100; at most 20, best first.

    In a reliable photo, 5 or more features of the query have a strict match.

    Args:
        index: index, which orders photos of equal score.
        scores, strict: (N,) each, see `score_and_count`.
    """
    return [photo for photo in index.rank(scores, _SHORTLIST) if strict[photo] >= _RELIABLE_MATCHES][:_MOST_RELIABLE]


def reliable_verified(verified: Iterable[Verified], names: Sequence[str]) -> list[int]:
    """Returns the numbers of photos, those with most inliers first; at most 20."""
    ordered = sorted(verified, key=lambda found: (-found.inliers, names[found.photo]))
    return [found.photo for found in ordered][:_MOST_RELIABLE]


def expand_query(index: InvertedIndex, query: Query, entries: Entries, ranks: Mapping[int, int]) -> Query:
    """Averages a query's signatures with those of reliable photos, and adds features that these photos agree on.

    All words of the query are kept. At most as many other words are added: those that most of the reliable photos have
    (at least two). Within a word, features whose signatures differ by at most 16 bits form a group, starting with those
    of the query. Each group becomes one feature, with the majority of each bit. A group without a feature of the query
    is kept only if it comes from two photos or more.

    Args:
        index: index, for the idf.
        query: the original query.
        entries: features of the reliable photos.
        ranks: ranks of the reliable photos, 0 for the best.

    Returns:
        A query without geometry.
    """
    entries = entries.select(_kept_words(index, query, entries)[entries.words])
    source_of = np.zeros(len(index.names), np.int64)
    source_of[list(ranks)] = [1 + rank for rank in ranks.values()]
    words = np.concatenate([query.words, entries.words]).astype(np.int64)
    signatures = np.concatenate([query.signatures, index.signatures_of(entries)])
    sources = np.concatenate([np.zeros(len(query.words), np.int64), source_of[entries.photos]])
    order = np.lexsort((signatures, sources, words))
    grouped_words, grouped = aggregate(words[order], signatures[order], sources[order], STRICT, _NEW_WORD_PHOTOS)
    return Query.single(grouped_words.astype(np.int32), grouped)


def _kept_words(index: InvertedIndex, query: Query, entries: Entries) -> NDArray[np.bool_]:
    """Returns (W,) which words an expanded query has."""
    own = np.unique(query.words)
    # Entries of one photo in one word are adjacent.
    once = (np.diff(entries.photos, prepend=-1) != 0) | (np.diff(entries.words, prepend=np.int32(-1)) != 0)
    support = np.bincount(entries.words[once], minlength=len(index.vocabulary))
    support[own] = 0
    new = np.flatnonzero(support >= _NEW_WORD_PHOTOS)
    order = np.lexsort((new, -index.idf[new], -support[new]))
    kept = np.zeros(len(index.vocabulary), bool)
    kept[own] = True
    kept[new[order][: round(_NEW_WORDS * len(own))]] = True
    return kept


def within_region(index: InvertedIndex, entries: Entries, verified: Mapping[int, Verified], region: Box) -> Entries:
    """Selects features of verified photos that lie in a box of the query after mapping them back to it.

    Args:
        index: index of the photos.
        entries: entries of verified photos.
        verified: verification of the photos.
        region: x0, y0, x1, y1, pixels of the query.
    """
    inside = np.zeros(len(entries), bool)
    photos = np.unique(entries.photos)
    for photo, segment in zip(photos.tolist(), index.segment_of(photos).tolist(), strict=True):
        rows = np.flatnonzero(entries.photos == photo)
        transformation = verified[photo].transformation
        moved = index.geometry_of(segment, entries.rows[rows])[:, :2] - transformation[:, 2]
        back = np.linalg.solve(transformation[:, :2], moved.T.astype(np.float64)).T
        inside[rows] = ((back >= region[:2]) & (back <= region[2:])).all(1)
    return entries.select(inside)


def score_averaged(index: InvertedIndex, query: Query, verified: Mapping[int, Verified], region: Box) -> Scores:
    """Scores a bag of words with the mean word counts of the query and of the best verified photos."""
    enough = [found for found in verified.values() if found.inliers >= _AVERAGED_INLIERS]
    photos = reliable_verified(enough, index.names)
    entries = within_region(index, index.entries(photos), verified, region)
    counts = np.bincount(query.words, minlength=len(index.vocabulary)).astype(np.float64)
    counts += np.bincount(entries.words, minlength=len(index.vocabulary))
    words = np.flatnonzero(counts)
    return score_word_vector(index, words, counts[words] / (1 + len(photos)))
