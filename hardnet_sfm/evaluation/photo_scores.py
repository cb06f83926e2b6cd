"""Runs `evaluate homography` and `evaluate pairs`: detects keypoints, describes and matches them, and scores matches.

All descriptors are computed at the same keypoints, which COLMAP's difference of Gaussians detects on photos of full
size. All are matched by mutual nearest neighbours. COLMAP's own RootSIFT of these keypoints is a separate row. Networks
that compare patches score HardNet's nearest neighbours, as many as `match --rescore` does by default. A pair is a match
if it is the best of both keypoints, whatever its score and its ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hardnet_sfm.colmap.baseline import ColmapSift, SiftFeatures
from hardnet_sfm.competitors import DESCRIPTORS, Competitor, Spanning, collect_facts, competitors
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.image_pairs import VALIDATION, ImagePair, read_image_pairs
from hardnet_sfm.evaluation.datasets.parts import LeftOut, check_any, describe_left_out
from hardnet_sfm.evaluation.datasets.sequences import PhotoGroup, read_sequences
from hardnet_sfm.evaluation.epipolar import THRESHOLDS, fundamental_matrix, recall_of_truth
from hardnet_sfm.evaluation.homographies import (
    TOLERANCE,
    MatchingScores,
    PairTruth,
    RankedMatches,
    accuracy_by_threshold,
    homography_scores,
    matching_scores,
    pair_truth,
)
from hardnet_sfm.evaluation.patch_streams import PairStream, PatchStream
from hardnet_sfm.evaluation.scores import MEAN, Measure, ScoreTable, append_mean
from hardnet_sfm.features.descriptors import Descriptor, make_descriptor
from hardnet_sfm.matching.nearest import (
    Acceptance,
    PreparedDescriptors,
    mutual_nearest_neighbours,
    prepare,
    rounding_for,
)
from hardnet_sfm.matching.rescore import SHORT_LIST, leads, short_lists
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.workers import torch_threads

COLMAP = "colmap rootsift"
MAX_FEATURES = 4000
# The fundamental matrix is estimated from matches with a ratio below this value, as by the authors of WxBS.
MAX_RATIO = 0.9

Described = Sequence[NDArray[np.float16]]
Scores = Mapping[str, Mapping[str, MatchingScores]]


class DetectedPhoto(NamedTuple):
    """A photo and the features that COLMAP's SIFT detects in it."""

    grey: NDArray[np.uint8]
    features: SiftFeatures


@dataclass(frozen=True)
class Describing:
    """Matches photos by mutual nearest neighbours of descriptors. Without a descriptor it uses COLMAP's RootSIFT."""

    stream: PatchStream
    descriptor: Descriptor | None

    def __call__(self, photos: Sequence[DetectedPhoto]) -> list[RankedMatches]:
        """Matches the first photo with each other photo."""
        described = self.describe(photos)
        with torch_threads(self.stream.threads) as pool:
            first, *others = pool.map(prepare, described, repeat(rounding_for(described[0], self.stream.device)))
            return list(pool.map(ranked_matches, repeat(first), others))

    def describe(self, photos: Sequence[DetectedPhoto]) -> Described:
        """Computes the (N, D) descriptors of each photo."""
        if self.descriptor is None:
            return [photo.features.rootsift for photo in photos]
        return [self.stream([_cut(photo, self.descriptor)]) for photo in photos]


@dataclass(frozen=True)
class Comparing:
    """Matches photos by a network's scores of nearest neighbours. A match is the best candidate of both keypoints."""

    base: Describing
    stream: PairStream

    def __call__(self, photos: Sequence[DetectedPhoto]) -> list[RankedMatches]:
        """Matches the first photo with each other photo."""
        described = [torch.from_numpy(rows).to(self.base.stream.device).float() for rows in self.base.describe(photos)]
        first, *others = (
            self.stream.prepare([_cut(photo, self.stream)], len(photo.features.xy), side=min(1, number))
            for number, photo in enumerate(photos)
        )
        with torch_threads(self.stream.threads) as pool:
            lists = list(pool.map(short_lists, repeat(described[0]), described[1:], repeat(SHORT_LIST)))
        found = []
        for rows, other, candidates in zip(described[1:], others, lists, strict=True):
            scores = self.stream.scores(first, other, candidates)
            found.append(ranked_by_scores(candidates.cpu().numpy(), scores, (len(described[0]), len(rows))))
        return found


Way = Describing | Comparing
Group = TypeVar("Group", bound=PhotoGroup)


def _cut(photo: DetectedPhoto, span: Spanning) -> NDArray[np.uint8]:
    """Cuts the (N, S, S) patches of a photo's keypoints."""
    return extract_patches(photo.grey, photo.features.xy, photo.features.frames, span.patch_size, span.measurement_size)


def evaluate_homographies(
    folder: Path | str,
    rows: Sequence[Competitor] | None = None,
    resources: Resources | None = None,
    *,
    max_features: int = MAX_FEATURES,
) -> ScoreTable:
    """Measures matching on sequences of photos related by homographies: the first photo with each other photo.

    Args:
        folder: a sequence, or a folder of sequences, see `hardnet_sfm.evaluation.homographies`.
        rows: descriptors, see `competitors`. None means RootSIFT, and HardNet with its shipped weights.
        resources: threads and device to use.
        max_features: COLMAP's limit on keypoints in a photo. A keypoint with two orientations gives two rows.

    Returns:
        Mean matching accuracy, number of right matches a pair and mean average precision, by sequence.

    Raises:
        HardnetSfmError: a sequence is incomplete or damaged, or a descriptor cannot be made.
    """
    rows, resources = competitors(DESCRIPTORS, ()) if rows is None else rows, resources or Resources()
    (sequences, left_out), ways = read_sequences(Path(folder)), _ways(rows, resources)
    scores: dict[str, dict[str, MatchingScores]] = {name: {} for name in ways}
    curves: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for sequence, photos, matched in _match_groups(sequences, ways, ColmapSift(max_features), left_out):
        first, *others = (photo.features.xy for photo in photos)
        truths = [pair_truth(h, first, xy) for h, xy in zip(sequence.homographies, others, strict=True)]
        for name, matches in matched:
            scores[name][sequence.name] = homography_scores(truths, matches)
            of_pairs = [accuracy_by_threshold(*pair) for pair in zip(truths, matches, strict=True)]
            curves[name][sequence.name] = np.mean(of_pairs, axis=0).tolist()
    check_any(scores[COLMAP], left_out)
    return ScoreTable(
        "homography",
        _matching_measures(scores),
        collect_facts(rows, _spans(ways)),
        {"max_features": max_features, "tolerance": TOLERANCE, "accuracy_by_threshold": curves},
        (*_rescored(rows), *describe_left_out(left_out)),
        across=True,
    )


def evaluate_pairs(
    folder: Path | str,
    rows: Sequence[Competitor] | None = None,
    resources: Resources | None = None,
    *,
    max_features: int = MAX_FEATURES,
) -> ScoreTable:
    """Measures matching on pairs of photos with a wide baseline, in the layout of EVD or WxBS.

    With homographies, the measures are the number of right matches, their share, and average precision. With
    correspondences, the measure is the recall of WxBS. MAGSAC++ estimates a fundamental matrix from matches with a
    ratio below 0.9. The recall is the share of true correspondences that agree with it, as the mean over thresholds of
    0 to 19 pixels. Unlike the authors, this benchmark takes mutual nearest neighbours. For networks that compare
    patches the ratio is that of odds, which is below 0.9 for nearly all matches.

    Args:
        folder: folder of the pairs, see `hardnet_sfm.evaluation.datasets.image_pairs`.
        rows: descriptors. None means RootSIFT, and HardNet with its shipped weights.
        resources: threads and device to use.
        max_features: COLMAP's limit on keypoints in a photo.

    Raises:
        HardnetSfmError: a pair is incomplete or damaged, or a descriptor cannot be made.
    """
    rows, resources = competitors(DESCRIPTORS, ()) if rows is None else rows, resources or Resources()
    (pairs, left_out), ways = read_image_pairs(Path(folder)), _ways(rows, resources)
    scores: dict[str, dict[str, MatchingScores]] = {name: {} for name in ways}
    accuracies: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    recalls: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for pair, photos, matched in _match_groups(pairs, ways, ColmapSift(max_features), left_out):
        truth = _truth(pair, photos)
        for name, (matches,) in matched:
            if truth is not None:
                scores[name][pair.name] = matching_scores(truth, matches)
                accuracies[name][pair.name] = accuracy_by_threshold(truth, matches).tolist()
            if pair.correspondences is not None:
                matrix = _fundamental_matrix(photos, matches)
                recalls[name][pair.name] = recall_of_truth(matrix, pair.correspondences).tolist()
    check_any({**scores[COLMAP], **recalls[COLMAP]}, left_out)
    measures: tuple[Measure, ...] = _matching_measures(scores) if any(scores.values()) else ()
    details: dict[str, object] = {"max_features": max_features}
    notes = _rescored(rows) + describe_left_out(left_out)
    if any(accuracies.values()):
        details["accuracy_by_threshold"] = accuracies
    if any(recalls.values()):
        means = {name: {pair: float(np.mean(curve)) for pair, curve in of.items()} for name, of in recalls.items()}
        title = f"recall of true correspondences, mean over 0 to {THRESHOLDS[-1]} px"
        measures += (Measure("recall", title, {name: append_mean(row) for name, row in means.items()}),)
        details["recall_by_threshold"] = recalls
        notes += (f"the authors' pairs for validation, {' and '.join(VALIDATION)}, take no part",)
    return ScoreTable("pairs", measures, collect_facts(rows, _spans(ways)), details, notes, across=True)


def _match_groups(
    groups: Sequence[Group], ways: Mapping[str, Way], detect: ColmapSift, left_out: LeftOut
) -> Iterator[tuple[Group, list[DetectedPhoto], Iterator[tuple[str, list[RankedMatches]]]]]:
    """Yields groups with their photos, and an iterator over the matches of the first photo with the others by each way.

    Groups with a damaged photo are left out.
    """
    with progress("compare", sum(len(group.photos) + len(ways) for group in groups)) as advance:
        for group in groups:
            try:
                photos = [DetectedPhoto(grey, detect(grey)) for grey in group.read()]
            except HardnetSfmError as error:
                left_out[group.name] = error
                advance(len(group.photos) + len(ways), group.name)
                continue
            advance(len(group.photos), group.name)
            yield group, photos, _match_by(ways, photos, partial(advance, note=group.name))


def _match_by(
    ways: Mapping[str, Way], photos: Sequence[DetectedPhoto], advance: Callable[[], None]
) -> Iterator[tuple[str, list[RankedMatches]]]:
    for name, way in ways.items():
        yield name, way(photos)
        advance()


def ranked_matches(first: PreparedDescriptors, second: PreparedDescriptors) -> RankedMatches:
    """Finds all mutual nearest neighbours, with the ratio of a query's distances to its nearest two neighbours."""
    pairs = mutual_nearest_neighbours(first, second, Acceptance(max_ratio=1)).pairs
    if not len(pairs):
        return RankedMatches(pairs, np.zeros(0, np.float32))
    query, nearest = torch.from_numpy(pairs).long().to(first.exact.device).T
    similarity = first.exact[query] @ second.exact.T
    best = similarity.gather(1, nearest[:, None]).squeeze(1)
    rival = similarity.scatter(1, nearest[:, None], -1).amax(1)
    # The squared distance of unit vectors is twice this value. The clamp gives three equal vectors the ratio 1, which
    # is the most ambiguous.
    nearer, farther = ((1 - cosine).clamp(min=1e-9) for cosine in (best, rival))
    return RankedMatches(pairs, (nearer / farther).sqrt().cpu().numpy())


def ranked_by_scores(
    candidates: NDArray[np.int64], scores: NDArray[np.float32], counts: tuple[int, int]
) -> RankedMatches:
    """Selects candidates that are the best of both their keypoints.

    Their ratio is that of the odds of a query's second best and best candidate.

    Args:
        candidates: (M, 2) row numbers in the two photos.
        scores: (M,) logarithms of odds.
        counts: numbers of keypoints in the two photos.
    """
    ahead, back = (leads(candidates, scores, side, counts[side]) for side in (0, 1))
    mutual = np.minimum(ahead, back) >= 0
    return RankedMatches(candidates[mutual].astype(np.int32), np.exp(-ahead[mutual]))


def _ways(rows: Sequence[Competitor], resources: Resources) -> dict[str, Way]:
    """Makes a matcher for COLMAP's own descriptors and for each row. Errors thus appear before the work begins."""
    others: dict[str, Way] = {}
    hardnet = make_descriptor("hardnet", None)
    base = Describing(PatchStream(hardnet, resources), hardnet)
    for row in rows:
        if row.compares:
            others[row.name] = Comparing(base, PairStream(row.load(), resources))
        else:
            descriptor = row.make()
            others[row.name] = Describing(PatchStream(descriptor, resources), descriptor)
    return {COLMAP: Describing(base.stream, None), **others}


def _spans(ways: Mapping[str, Way]) -> dict[str, Spanning]:
    return {name: way.stream for name, way in ways.items()}


def _rescored(rows: Sequence[Competitor]) -> tuple[str, ...]:
    """Names the rows whose matches are chosen among HardNet's nearest neighbours."""
    names = ", ".join(row.name for row in rows if row.compares)
    return (f"{names}: scores of the {SHORT_LIST} nearest neighbours by hardnet",) if names else ()


def _truth(pair: ImagePair, photos: Sequence[DetectedPhoto]) -> PairTruth | None:
    if pair.homography is None:
        return None
    first, second = (photo.features.xy for photo in photos)
    return pair_truth(pair.homography, first, second)


def _fundamental_matrix(photos: Sequence[DetectedPhoto], matches: RankedMatches) -> NDArray[np.float64] | None:
    """Estimates the fundamental matrix from the matches with a ratio below `MAX_RATIO`."""
    believed = matches.pairs[matches.ratios < MAX_RATIO]
    return fundamental_matrix(photos[0].features.xy[believed[:, 0]], photos[1].features.xy[believed[:, 1]])


def _matching_measures(scores: Scores) -> tuple[Measure, ...]:
    """Makes the tables of accuracy, right matches and average precision by column, each with the mean."""
    for_files = (
        ("mma", f"MMA @ {TOLERANCE:g} px", "accuracy", ".3f"),
        ("right", "right matches a pair", "right", ".0f"),
        ("map", "mAP", "average_precision", ".3f"),
    )
    full = {name: {**row, MEAN: MatchingScores.mean([*row.values()])} for name, row in scores.items()}
    return tuple(
        Measure(
            name, title, {row: {c: getattr(score, field) for c, score in of.items()} for row, of in full.items()}, form
        )
        for name, title, field, form in for_files
    )
