"""Matches two photos, each of which is described in several views."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.arrays import Float32
from hardnet_sfm.keypoints import Matches, within_reach
from hardnet_sfm.matching.nearest import Acceptance, PreparedDescriptors, mutual_nearest_neighbours

# A rival of a neighbour is farther from it than this, pixels (MODS).
_RIVAL_DISTANCE = 10.0
# Two correspondences that end within this many pixels in one of the photos are of the same point, or one is wrong.
_SAME_PLACE = 1.5
# Similarities that are computed together. They take 4 bytes each, and four such arrays exist at once.
_VALUES = 2**22

Candidates = tuple[NDArray[np.int32], Float32]


@dataclass(frozen=True, eq=False)
class PhotoInViews:
    """A photo's descriptions in several views. The first view is the photo itself.

    Attributes:
        views: descriptors of each view. Descriptions are numbered through all views.
        rows: (M,) row of the keypoint of each description; the first N are the photo's own keypoints, in order.
        xy: (K, 2) positions of all keypoints, pixels of the photo.
    """

    views: tuple[PreparedDescriptors, ...]
    rows: NDArray[np.int32]
    xy: Float32

    def starts(self) -> list[int]:
        """Returns the number of the first description of each view."""
        return [0, *accumulate(map(len, self.views))][:-1]

    def exact(self) -> Tensor:
        """Returns the (M, D) float32 descriptors of all views."""
        return torch.cat([view.exact for view in self.views])


def find_candidates(first: PhotoInViews, second: PhotoInViews, accept: Acceptance, done: tuple[int, int]) -> Candidates:
    """Finds the mutual nearest neighbours of each view of one photo with each view of another.

    Lower bound: the cost for one pair of photos (`mutual_nearest_neighbours`) times the areas of both photos with their
    views, `hardnet_sfm.features.synthetic_views.relative_area`. Each pair of views adds some milliseconds.

    Args:
        first, second: the two photos in their views.
        accept: rule by which a neighbour is accepted among those in one view.
        done: numbers of views of each photo whose pairs were matched before and are left out.

    Returns:
        (K, 2) int32 numbers of descriptions, and their (K,) float32 scores.
    """
    pairs, scores = [np.zeros((0, 2), np.int32)], [np.zeros(0, np.float32)]
    starts = list(product(first.starts(), second.starts()))
    for number, (one, other) in enumerate(product(first.views, second.views)):
        a, b = divmod(number, len(second.views))
        if (a < done[0] and b < done[1]) or not (len(one) and len(other)):
            continue
        found = mutual_nearest_neighbours(one, other, accept)
        pairs.append(found.pairs + np.array(starts[number], np.int32))
        scores.append(found.scores)
    return np.concatenate(pairs), np.concatenate(scores)


def merge_candidates(first: PhotoInViews, second: PhotoInViews, candidates: Candidates, accept: Acceptance) -> Matches:
    """Merges candidates into one list of keypoint matches, with each point of either photo at most once.

    A match must hold against all descriptions of the other photo, in both directions. Its distance is compared with the
    distance to the nearest description that is more than 10 pixels away from it. This is the first geometrically
    inconsistent neighbour of Mishkin, Matas and Perdoch (MODS, CVIU 2015). The second nearest description would often
    be the same point in another view. Among matches of the same point, the one with the most similar descriptions is
    kept.

    Memory: both photos' descriptors in float32, and 64 MB of similarities.

    Args:
        first, second: the two photos in their views.
        candidates: numbers of descriptions and scores, as `find_candidates` returns them.
        accept: rule by which a neighbour is accepted.

    Returns:
        Matches in the order of the first photo's keypoints.
    """
    pairs, scores = candidates
    rows = np.column_stack([first.rows[pairs[:, 0]], second.rows[pairs[:, 1]]]).astype(np.int32)
    best_first = np.lexsort((pairs[:, 1], pairs[:, 0], -scores))
    _, distinct = np.unique(rows[best_first], axis=0, return_index=True)
    chosen = best_first[np.sort(distinct)]
    pairs, scores, rows = pairs[chosen], scores[chosen], rows[chosen]
    for one, other, side in ((first, second, 0), (second, first, 1)):
        holds = _beats_rivals(one, pairs[:, side], other, rows[:, 1 - side], scores, accept)
        pairs, scores, rows = pairs[holds], scores[holds], rows[holds]
    kept = keep_one_to_one(first.xy[rows[:, 0]], second.xy[rows[:, 1]])
    kept = kept[np.argsort(rows[kept, 0])]
    return Matches(rows[kept], scores[kept])


def _beats_rivals(
    queries: PhotoInViews,
    asked: NDArray[np.int32],
    others: PhotoInViews,
    answers: NDArray[np.int32],
    scores: Float32,
    accept: Acceptance,
) -> NDArray[np.bool_]:
    """Says whether each answer is accepted against the most similar description elsewhere in its photo.

    Args:
        queries: photo of the query descriptions.
        asked: (K,) numbers of the query descriptions.
        others: the other photo.
        answers: (K,) keypoints of the other photo that match them.
        scores: (K,) scores of the matches.
        accept: rule on the similarities of the answer and its rival.
    """
    mine, theirs = queries.exact()[torch.from_numpy(asked).long()], others.exact().T
    xy = torch.from_numpy(others.xy).to(theirs.device)
    places = xy[torch.from_numpy(others.rows).long()].T
    centres = xy[torch.from_numpy(answers).long()]
    best = torch.from_numpy(scores * 2 - 1).to(theirs.device)
    holds = [torch.zeros(0, dtype=torch.bool)]
    step = max(1, _VALUES // max(1, theirs.shape[1]))
    for start in range(0, len(asked), step):
        block = slice(start, start + step)
        similarity = mine[block] @ theirs
        x, y = (places[axis] - centres[block, axis, None] for axis in (0, 1))
        similarity[x.square() + y.square() <= _RIVAL_DISTANCE**2] = -1
        holds.append(accept(best[block], similarity.amax(1)).cpu())
    return torch.cat(holds).numpy()


def keep_one_to_one(first: Float32, second: Float32) -> NDArray[np.intp]:
    """Selects correspondences of (K, 2) places, best first, that end near no better one that is kept."""
    kept = np.ones(len(first), bool)
    close: dict[int, list[int]] = {}
    for xy in (first, second):
        row, other = within_reach(xy, xy, _SAME_PLACE)
        near = (row < other) & (np.linalg.norm(xy[row] - xy[other], axis=1) <= _SAME_PLACE)
        for better, worse in zip(row[near].tolist(), other[near].tolist(), strict=True):
            close.setdefault(better, []).append(worse)
    for better in sorted(close):
        if kept[better]:
            kept[close[better]] = False
    return np.flatnonzero(kept)
