"""Oxford5k and Paris6k: queries for landmarks, their right answers, and the original protocol.

Philbin et al., Object retrieval with large vocabularies and fast spatial matching, CVPR 2007, and Lost in quantization,
CVPR 2008. Each query has four text files. `NAME_query.txt` has a photo and a box in it. `NAME_good.txt` and
`NAME_ok.txt` list photos that show the landmark. `NAME_junk.txt` lists photos that show little of it; they count
neither as right nor as wrong.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from hardnet_sfm.errors import HardnetSfmError, NoKeypoints
from hardnet_sfm.keypoints import Box
from hardnet_sfm.measures import precision_at, trapezoid_average_precision
from hardnet_sfm.progress import console, progress

if TYPE_CHECKING:  # torch takes seconds to import
    from hardnet_sfm.photo_index import Index

ORIGINAL = "original"
CUTS = (1, 5, 10)
FIRST = 10


@dataclass(frozen=True)
class Relevance:
    """Right answers to a query. Photos have names without folder and suffix. All other photos are negatives.

    Attributes:
        positives: photos to find.
        junk: photos that the evaluation removes from a ranking.
    """

    positives: frozenset[str]
    junk: frozenset[str]

    def kind(self, photo: str) -> str:
        """Classifies a photo as `positive`, `negative` or `junk`."""
        return "positive" if photo in self.positives else "junk" if photo in self.junk else "negative"

    def within(self, collection: Collection[str]) -> Relevance:
        """Restricts the answers to the photos of a collection."""
        return Relevance(self.positives.intersection(collection), self.junk.intersection(collection))


@dataclass(frozen=True)
class LandmarkQuery:
    """A query: a box in a photo.

    Attributes:
        name: name of the query, for instance `all_souls_1`.
        photo: name of the photo without folder and suffix.
        box: x0, y0, x1, y1 in pixels of the photo.
        relevance: right answers by setup. The setups are only `original`, or `easy`, `medium` and `hard`.
    """

    name: str
    photo: str
    box: Box
    relevance: Mapping[str, Relevance]


class Question(NamedTuple):
    """A query to search for.

    Attributes:
        query: the query in the ground truth.
        image: path of a photo, or the pixels of the query alone, (H, W) uint8 upright.
        box: box of the query in the photo; None if the whole image is the query.
    """

    query: LandmarkQuery
    image: Path | NDArray[np.uint8]
    box: Box | None


@dataclass(frozen=True)
class Landmarks:
    """The ground truth of a data set.

    Attributes:
        queries: queries in the order of their names or of the file.
        setups: names of the setups for which each query has its relevance.
        collection: names of the photos to search; None means all photos of the data set.
        left_out: maps the name of each query whose ground truth is damaged to the reason.
    """

    queries: tuple[LandmarkQuery, ...]
    setups: tuple[str, ...]
    collection: frozenset[str] | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def named(self) -> frozenset[str]:
        """All photos that the ground truth names: positives, junk and photos to search."""
        each = (set() if self.collection is None else set(self.collection),)
        return frozenset().union(*each, *(r.positives | r.junk for q in self.queries for r in q.relevance.values()))


def rank_photos(
    index: Index, questions: Sequence[Question], methods: Sequence[str], what: str
) -> tuple[dict[str, dict[str, list[str]]], dict[str, float]]:
    """Searches for every query by every method.

    Args:
        index: index of the photos to search.
        questions: queries to search for.
        methods: methods of `hardnet_sfm.retrieval`.
        what: what the index is made of, for the progress bar.

    Returns:
        Rankings by method and query, names of photos without folder and suffix; and the seconds of all searches by
        method.
    """
    rankings: dict[str, dict[str, list[str]]] = {method: {} for method in methods}
    seconds = dict.fromkeys(methods, 0.0)
    with progress("search", len(questions) * len(methods)) as advance:
        for question in questions:
            try:
                described = index.describe(question.image, question.box)
            except NoKeypoints:
                described = None
                console.print(f"{escape(question.query.name)}: no keypoints in this query, so it finds nothing")
            for method in methods:
                start = time.perf_counter()
                results = [] if described is None else index.search(described, top=None, method=method)
                seconds[method] += time.perf_counter() - start
                rankings[method][question.query.name] = [PurePosixPath(result.image).stem for result in results]
                advance(note=f"{what} {method}")
    return rankings, seconds


def check_box(box: Sequence[float], where: str) -> Box:
    """Returns the four numbers of a box after checking that its area is positive.

    Raises:
        HardnetSfmError: the numbers are not a valid box. The message begins with `where`.
    """
    if len(box) != 4 or not np.isfinite(box).all() or not (box[0] < box[2] and box[1] < box[3]):
        raise HardnetSfmError(
            f"{where}{' '.join(f'{x:g}' for x in box)} is not a box", "It is x0 y0 x1 y1 with x0 < x1, y0 < y1."
        )
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1, y1


@dataclass(frozen=True)
class QueryScore:
    """Quality of the answer to one query, or the mean over several queries.

    Attributes:
        average_precision: 0 to 1, see `hardnet_sfm.measures.trapezoid_average_precision`.
        precision_at: precision at each of `CUTS`, 0 to 1, see `hardnet_sfm.measures.precision_at`.
        ranks: ranks of the positives found, counted from 1 without junk; empty for a mean.
        positives: number of positives in the collection; 0 for a mean.
        first: the first `FIRST` photos of the ranking, including junk: each photo's name and its kind, `positive`,
            `negative` or `junk`.
    """

    average_precision: float
    precision_at: tuple[float, ...]
    ranks: tuple[int, ...] = field(default=(), compare=False)  # only scores are compared
    positives: int = field(default=0, compare=False)
    first: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @classmethod
    def mean(cls, scores: Collection[QueryScore]) -> QueryScore:
        """Computes mean average precision (mAP) and mean precision (mP@k) over several queries."""
        rows = np.array([(one.average_precision, *one.precision_at) for one in scores]).mean(axis=0)
        return cls(float(rows[0]), tuple(rows[1:].tolist()))


def score_ranking(ranking: Sequence[str], relevance: Relevance) -> QueryScore:
    """Scores the answer to one query.

    Args:
        ranking: names of photos without folder and suffix, best first. It need not have all photos of the collection.
        relevance: right answers, restricted to the collection by `Relevance.within`.

    Raises:
        ValueError: a photo is ranked twice, or there are no positives.
    """
    if len(set(ranking)) != len(ranking):
        raise ValueError("a photo is ranked twice")
    right = np.array([name in relevance.positives for name in ranking if name not in relevance.junk], np.bool_)
    average = trapezoid_average_precision(right, len(relevance.positives))
    ranks = tuple((np.flatnonzero(right) + 1).tolist())
    first = tuple((name, relevance.kind(name)) for name in ranking[:FIRST])
    return QueryScore(average, tuple(precision_at(right, k) for k in CUTS), ranks, len(relevance.positives), first)


def score_rankings(
    truth: Landmarks, rankings: Mapping[str, Sequence[str]], collection: Collection[str]
) -> dict[str, dict[str, QueryScore]]:
    """Scores all rankings in every setup of the ground truth.

    Photos outside the collection are treated as if the ground truth did not name them. A query without a positive in
    the collection is left out, as in the authors' programs.

    Args:
        truth: queries and their right answers.
        rankings: rankings by the query's name. A query without a ranking is left out.
        collection: names, without folder and suffix, of all photos that could be ranked.

    Returns:
        Scores by setup and query.
    """
    inside = set(collection)
    scores: dict[str, dict[str, QueryScore]] = {setup: {} for setup in truth.setups}
    for setup in truth.setups:
        for query in truth.queries:
            relevance = query.relevance[setup].within(inside)
            if query.name in rankings and relevance.positives:
                scores[setup][query.name] = score_ranking(rankings[query.name], relevance)
    return scores
