"""Scores of all photos of an index for one query: bag of words, Hamming embedding, ASMK."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.inverted_lists import MOST_PHOTOS, Signatures, Words
from hardnet_sfm.retrieval import kernels
from hardnet_sfm.retrieval.inverted_index import InvertedIndex
from hardnet_sfm.retrieval.visual_words import BITS, Vocabulary

Scores = NDArray[np.float64]
MULTIPLE = 5
# The published value of 16 (CVPR 2009) scores half a point lower on the development photos of both cities.
_SIGMA = 12.0
_REACH = 24
# A match this strict is rarely chance: two sets of 64 random bits agree in 48 of them once in 17000 pairs.
STRICT = 16
_ASMK_POWER, _ASMK_LEAST = 3.0, 0.0


@dataclass(frozen=True, eq=False)
class Query:
    """Features to search for.

    Attributes:
        starts: (F + 1,) int64, start of the rows of each feature.
        words: (R,) int32, words that features are assigned to.
        signatures: (R,) uint64, signatures within these words.
        geometry: (F, 4) float32, x, y, scale in pixels, orientation in radians; or (F, 6), see `geometry_of`.
    """

    starts: NDArray[np.int64]
    words: Words
    signatures: Signatures
    geometry: Float32

    def __len__(self) -> int:
        return len(self.geometry)

    @classmethod
    def of(cls, vocabulary: Vocabulary, descriptors: NDArray[np.floating], geometry: Float32, multiple: int) -> Query:
        """Assigns each of (F, D) descriptors to its `multiple` nearest words (Jegou et al., IJCV 2010, section 5.3)."""
        multiple = min(multiple, len(vocabulary))
        words = vocabulary.assign(descriptors, multiple)
        rows = np.repeat(np.arange(len(words)), multiple)
        signatures = vocabulary.signatures(np.asarray(descriptors)[rows], words.ravel())
        return cls(np.arange(len(words) + 1) * multiple, words.ravel(), signatures, geometry)

    @classmethod
    def single(cls, words: Words, signatures: Signatures) -> Query:
        """Makes a query of features with one word each and without geometry. It can be scored, but not verified."""
        return cls(np.arange(len(words) + 1), words, signatures, np.zeros((len(words), 4), np.float32))


def distance_weights(sigma: float = _SIGMA, reach: int = _REACH) -> NDArray[np.float64]:
    """Returns (65,) exp(-h^2 / sigma^2) of Hamming distances h up to `reach`, 0 beyond (CVPR 2009, equation 4)."""
    distances = np.arange(BITS + 1)
    return np.where(distances <= reach, np.exp(-((distances / sigma) ** 2)), 0.0)


def score_bow(index: InvertedIndex, query: Query) -> Scores:
    """Returns (N,) cosines of the tf-idf vectors (Sivic and Zisserman, ICCV 2003), 0 for removed photos."""
    words, counts = np.unique(query.words, return_counts=True)
    return score_word_vector(index, words.astype(np.int64), counts.astype(np.float64))


def score_word_vector(index: InvertedIndex, words: NDArray[np.int64], counts: NDArray[np.float64]) -> Scores:
    """Scores like `score_bow` a query given as (Q,) words and their counts."""
    values = counts * index.idf[words]
    weights = values * index.idf[words] / max(float(np.linalg.norm(values)), 1e-12)
    scores = np.zeros((len(index.segments), MOST_PHOTOS), np.int64)
    tasks = [
        (words, weights, segment.columns.offsets, segment.columns.images, row)
        for segment, row in zip(index.segments, scores, strict=True)
    ]
    index.threaded(kernels.score_words, tasks)
    return _normalised(index, scores, index.norms[0])


def score_he(index: InvertedIndex, query: Query) -> Scores:
    """Returns (N,) scores of Hamming embedding with bursts discounted.

    They are divided by the length of the photo's tf-idf vector.
    """
    return score_and_count(index, query)[0]


def score_and_count(index: InvertedIndex, query: Query) -> tuple[Scores, NDArray[np.int64]]:
    """Returns (N,) scores of Hamming embedding and (N,) numbers of strict matches of each photo.

    The number counts the query's features with a strict match in the photo. A match is strict if signatures differ by
    at most 16 bits, in the nearest word of a feature of the query. With multiple assignment, matches in its other words
    are nearly always chance.
    """
    weights = distance_weights()
    features = len(query)
    cuts = np.unique(np.linspace(0, features, 4 * index.threads + 1).astype(np.int64))
    chunks = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
    rows = (query.starts, query.words, query.signatures)
    tasks = [
        (first, last, *rows, weights, STRICT, index.idf, *segment.lists, segment.alive)
        for segment in index.segments
        for first, last in chunks
    ]
    if not tasks:
        return np.zeros(len(index.names)), np.zeros(len(index.names), np.int64)
    found = index.threaded(kernels.embedded_matches, tasks)
    totals = np.zeros(features, np.int64)
    for task, (_, matched, _, bounds) in zip(tasks, found, strict=True):
        kernels.sum_matches(bounds, matched, totals[task[0] : task[1]])
    scores, counts = np.zeros((2, len(index.segments), MOST_PHOTOS), np.int64)

    def add(segment: int) -> None:
        for at in range(segment * len(chunks), (segment + 1) * len(chunks)):
            images, matched, strict, bounds = found[at]
            first, last = chunks[at % len(chunks)]
            kernels.score_matches(bounds, images, matched, strict, totals[first:last], scores[segment], counts[segment])

    index.threaded(add, [(segment,) for segment in range(len(index.segments))])
    return _normalised(index, scores, index.norms[0]), index.joined(counts)


def score_asmk(
    index: InvertedIndex, query: Query, *, power: float = _ASMK_POWER, least: float = _ASMK_LEAST, use_idf: bool = True
) -> Scores:
    """Aggregated selective match kernel (Tolias, Avrithis, Jegou, IJCV 2016, section 4.3) over the index's signatures.

    Signatures are taken as vectors of +1 and -1. Those of one image in one word are summed and scaled to unit length.
    They are not made binary again, so the index needs no other data. This is ASMK with 64-bit residuals. It is coarser
    than ASMK* with 128 bits.

    Args:
        power: alpha, the exponent of similarities.
        least: tau, 0 or more; similarities below this count as 0.
        use_idf: whether to weigh words by idf^2.
    """
    order = np.argsort(query.words, kind="stable")
    words, starts = np.unique(query.words[order], return_index=True)
    starts = np.append(starts, len(order)).astype(np.int64)
    factors = index.idf**2 if use_idf else np.ones_like(index.idf)
    similarities = 1 - np.arange(BITS + 1) / (BITS / 2)
    of_distance = np.where((similarities > 0) & (similarities >= least), np.abs(similarities) ** power, 0.0)
    arguments = (starts, words.astype(np.int64), query.signatures[order], least, power, of_distance, factors)
    scores = np.zeros((len(index.segments), MOST_PHOTOS), np.int64)
    tasks = [(*arguments, *segment.lists, row) for segment, row in zip(index.segments, scores, strict=True)]
    index.threaded(kernels.score_aggregated, tasks)
    return _normalised(index, scores, index.norms[1 if use_idf else 2]) / max(
        float(np.sqrt(factors[words].sum())), 1e-12
    )


def _normalised(index: InvertedIndex, scores: NDArray[np.int64], lengths: NDArray[np.float64]) -> Scores:
    """Joins the scores of the photos of all segments, (N,), and divides them by lengths. Removed photos get 0."""
    return index.joined(scores) / kernels.UNIT * index.alive / lengths
