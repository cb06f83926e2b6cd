"""The retrieval methods by name: the scores, verification and expansion of each. Also the photos most alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.keypoints import Box, RankedImage
from hardnet_sfm.progress import progress
from hardnet_sfm.retrieval.expansion import (
    expand_query,
    reliable_photos,
    reliable_verified,
    score_averaged,
    within_region,
)
from hardnet_sfm.retrieval.inverted_index import Entries, InvertedIndex
from hardnet_sfm.retrieval.methods import Method
from hardnet_sfm.retrieval.scoring import MULTIPLE, Query, Scores, score_and_count, score_asmk, score_bow, score_he
from hardnet_sfm.retrieval.spatial import Verified, verify

# Number of photos with the best scores that are verified.
_VERIFIED = 200
_ANY_DISTANCE = 64
# This many inliers double a score.
_INLIERS = 10
_REACH = 24
# Number of photos whose features are read in one pass over the index.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Described:
    """A described query.

    Attributes:
        descriptors: (F, D) of unit length.
        geometry: (F, 4) float32: x, y, scale in pixels, orientation in radians; or (F, 6), see `geometry_of`.
        region: x0, y0, x1, y1, the part of the photo that is searched for, pixels.
    """

    descriptors: NDArray[np.floating]
    geometry: Float32
    region: Box


def multiple_of(method: Method) -> int:
    """Returns the number of words that each feature of a query is assigned to."""
    return MULTIPLE if "+ma" in method or method == "asmk" else 1


def search(
    index: InvertedIndex, described: Described, method: Method, top: int | None, min_inliers: int | None = None
) -> list[RankedImage]:
    """Ranks the photos of an index.

    Args:
        index: index of photos that were described like the query.
        described: the query.
        method: one of METHODS.
        top: largest number of photos; None for all.
        min_inliers: number of inliers from which on a photo is accepted. None accepts a photo if chance does not
            explain its inliers.

    Returns:
        Photos with a score above 0, best first.
    """
    query = Query.of(index.vocabulary, described.descriptors, described.geometry, multiple_of(method))
    scores, verified = score(index, query, described.region, method)
    results = [_ranked(index, query, photo, float(scores[photo]), verified) for photo in index.rank(scores, top)]
    if "+sv" not in method:
        return results
    accepted = {
        index.names[photo]
        for photo, found in verified.items()
        if (found.accepted if min_inliers is None else found.inliers >= min_inliers)
    }
    return [replace(result, accepted=result.image in accepted) for result in results]


def score(index: InvertedIndex, query: Query, region: Box, method: Method) -> tuple[Scores, dict[int, Verified]]:
    """Returns the scores of all photos, and the verified photos."""
    if method == "asmk":
        return score_asmk(index, query), {}
    if method.startswith("bow"):
        scores = score_bow(index, query)
        if method == "bow":
            return scores, {}
        verified = _verify(index, query, scores, _ANY_DISTANCE)
        if method == "bow+sv":
            return with_verified(scores, verified), verified
        scores = score_averaged(index, query, verified, region)
        verified = _verify(index, query, scores, _ANY_DISTANCE)
        return with_verified(scores, verified), verified
    scores, strict = score_and_count(index, query)
    if method == "he":
        return scores, {}
    if method == "he+sv":
        verified = _verify(index, query, scores, _REACH)
        return with_verified(scores, verified), verified
    if not method.endswith("+sv"):
        photos = reliable_photos(index, scores, strict)
        entries = index.entries(photos)
        return _expanded(index, query, scores, photos, entries), {}
    verified = _verify(index, query, scores, _REACH)
    photos = reliable_verified([found for found in verified.values() if found.accepted], index.names)
    entries = within_region(index, index.entries(photos), verified, region)
    scores = _expanded(index, query, scores, photos, entries)
    verified = _verify(index, query, scores, _REACH)
    return with_verified(scores, verified), verified


def _expanded(index: InvertedIndex, query: Query, scores: Scores, photos: list[int], entries: Entries) -> Scores:
    if not photos:
        return scores
    ranks = {photo: rank for rank, photo in enumerate(photos)}
    return score_he(index, expand_query(index, query, entries, ranks))


def _verify(index: InvertedIndex, query: Query, scores: Scores, reach: int) -> dict[int, Verified]:
    return verify(index, query, index.rank(scores, _VERIFIED), reach)


def with_verified(scores: Scores, verified: Mapping[int, Verified]) -> Scores:
    """Multiplies scores by 1 + inliers / 10, so that a few chance inliers do not overtake a more similar photo."""
    strengthened = scores.copy()
    for photo, found in verified.items():
        strengthened[photo] *= 1 + found.inliers / _INLIERS
    return strengthened


def _ranked(
    index: InvertedIndex, query: Query, photo: int, score: float, verified: Mapping[int, Verified]
) -> RankedImage:
    found = verified.get(photo)
    if found is None:
        return RankedImage(index.names[photo], score, None)
    lines = np.concatenate([query.geometry[found.query_features, :2], found.points], 1).astype(np.float32)
    return RankedImage(index.names[photo], score, found.inliers, lines)


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
