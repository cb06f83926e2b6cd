"""Query expansion: what the best photos add to a query.

Hamming query expansion follows Tolias and Jegou (Pattern Recognition 47(10), 2014), average query expansion Chum et al.
(ICCV 2007, section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hardnet_sfm.retrieval import kernels
from hardnet_sfm.retrieval.index import Entries, InvertedIndex
from hardnet_sfm.retrieval.options import MOST_PHOTOS
from hardnet_sfm.retrieval.scoring import Query, Scores, score_word_vector
from hardnet_sfm.retrieval.spatial import Verified

Region = tuple[float, float, float, float]
# A match this strict is hardly ever chance: 64 random bits agree to 48 of them once in 17000 pairs.
_STRICT = 16
_SHORTLIST = 100
_RELIABLE_MATCHES = 5
_MOST_RELIABLE = 20
_RELIABLE_INLIERS = 8
# Words alone let more chance through than signatures do.
_AVERAGED_INLIERS = 16
# New words, as a share of the number of words of the query.
_NEW_WORDS = 1.0
_NEW_WORD_PHOTOS = 2


def reliable_photos(index: InvertedIndex, query: Query, scores: Scores) -> list[int]:
    """Photos among the first 100 in which 5 or more features of the query have a strict match; at most 20, best first.

    Without multiple assignment: a strict match is in the nearest word nearly always.
    """
    first = index.rank(scores, _SHORTLIST)
    strict = query.nearest_only()
    counts = np.zeros((len(index.segments), MOST_PHOTOS), np.int64)
    rows = (strict.starts, strict.words, strict.signatures, _STRICT)
    tasks = [
        (*rows, segment.offsets, segment.signatures, segment.images, index.wanted(number, first), counts[number])
        for number, segment in enumerate(index.segments)
    ]
    index.threaded(kernels.strict_matches, tasks)
    matches = index.joined(counts)
    return [photo for photo in first if matches[photo] >= _RELIABLE_MATCHES][:_MOST_RELIABLE]


def reliable_verified(
    verified: Mapping[int, Verified], names: Sequence[str], least: int = _RELIABLE_INLIERS
) -> list[int]:
    """Photos with 8 or more inliers, or another number, those with most first; at most 20."""
    enough = [found for found in verified.values() if found.inliers >= least]
    ordered = sorted(enough, key=lambda found: (-found.inliers, names[found.photo]))
    return [found.photo for found in ordered][:_MOST_RELIABLE]


def expand_query(index: InvertedIndex, query: Query, entries: Entries, ranks: Mapping[int, int]) -> Query:
    """The query with its signatures averaged with those of reliable photos, and with features that these agree on.

    All words of the query are kept, and as many others at most, those that most of the reliable photos have (two at
    least). Within a word, features whose signatures are within 16 bits are put together, those of the query first, and
    each group becomes one feature, with the majority of each bit. A group without a feature of the query stays only
    where it comes from two photos or more.

    Args:
        index: for idf.
        query: as it was asked.
        entries: features of the reliable photos.
        ranks: of the reliable photos, 0 the best.

    Returns:
        A query without geometry.
    """
    own = np.unique(query.words)
    once = np.unique(entries.photos * len(index.vocabulary) + entries.words)
    candidates, support = np.unique(once % len(index.vocabulary), return_counts=True)
    new = ~np.isin(candidates, own) & (support >= _NEW_WORD_PHOTOS)
    order = np.lexsort((candidates[new], -index.idf[candidates[new]], -support[new]))
    kept_words = np.concatenate([own, candidates[new][order][: round(_NEW_WORDS * len(own))]])
    kept = np.isin(entries.words, kept_words)
    source = np.array([1 + ranks[photo] for photo in entries.photos[kept].tolist()], np.int64)
    words = np.concatenate([query.words, entries.words[kept]]).astype(np.int64)
    signatures = np.concatenate([query.signatures, entries.signatures[kept]])
    sources = np.concatenate([np.zeros(len(query.words), np.int64), source])
    order = np.lexsort((signatures, sources, words))
    grouped_words, grouped = kernels.aggregate(
        words[order], signatures[order], sources[order], _STRICT, _NEW_WORD_PHOTOS
    )
    return Query.single(grouped_words.astype(np.int32), grouped, np.zeros((len(grouped), 4), np.float32))


def within_region(entries: Entries, verified: Mapping[int, Verified], region: Region) -> Entries:
    """Features of verified photos that lie, taken back to the query, in a box there.

    Args:
        entries: of verified photos.
        verified: what of the photos agrees with the query.
        region: x0, y0, x1, y1, pixels of the query.
    """
    inside = np.zeros(len(entries), bool)
    for photo in np.unique(entries.photos).tolist():
        rows = np.flatnonzero(entries.photos == photo)
        transformation = verified[photo].transformation
        moved = entries.geometry[rows, :2] - transformation[:, 2]
        back = np.linalg.solve(transformation[:, :2], moved.T.astype(np.float64)).T
        inside[rows] = ((back >= region[:2]) & (back <= region[2:])).all(1)
    return entries.select(inside)


def score_averaged(index: InvertedIndex, query: Query, verified: Mapping[int, Verified], region: Region) -> Scores:
    """Bag of words with the mean of the query's counts of words and those of the best verified photos."""
    photos = reliable_verified(verified, index.names, _AVERAGED_INLIERS)
    entries = within_region(index.entries(photos), verified, region)
    counts = np.bincount(query.words, minlength=len(index.vocabulary)).astype(np.float64)
    counts += np.bincount(entries.words, minlength=len(index.vocabulary))
    words = np.flatnonzero(counts)
    return score_word_vector(index, words, counts[words] / (1 + len(photos)))
