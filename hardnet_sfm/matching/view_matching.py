"""Correspondences of two photos that are described in several views each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.keypoints import Float32, Matches, within_reach
from hardnet_sfm.matching.nearest import Acceptance, PreparedDescriptors, mutual_nearest_neighbours

# A rival of a neighbour is farther from it than so many pixels (MODS).
_RIVAL_DISTANCE = 10.0
# Two correspondences that end within so many pixels in one of the photos are of the same point, or one is wrong.
_SAME_PLACE = 1.5
# Similarities that are looked at together: 4 bytes each, four times over.
_VALUES = 2**22

Candidates = tuple[NDArray[np.int32], Float32]


@dataclass(frozen=True, eq=False)
class PhotoInViews:
    """A photo's descriptions in several views, of which the photo itself is the first.

    Attributes:
        views: descriptors of each view; descriptions are counted through all of them.
        rows: (M,) which keypoint each description is of; the first N are of the photo's own keypoints, in order.
        xy: (K, 2) positions of all keypoints, pixels of the photo.
    """

    views: tuple[PreparedDescriptors, ...]
    rows: NDArray[np.int32]
    xy: Float32

    def starts(self) -> list[int]:
        """Number of the first description of each view."""
        return [0, *accumulate(map(len, self.views))][:-1]

    def exact(self) -> Tensor:
        """(M, D) float32 of all views."""
        return torch.cat([view.exact for view in self.views])


def candidates_of_views(
    first: PhotoInViews, second: PhotoInViews, accept: Acceptance, done: tuple[int, int]
) -> Candidates:
    """Mutual nearest neighbours of each view of one photo with each of another's.

    Lower bound: as for one pair of photos (`mutual_nearest_neighbours`) times the product of the two photos' areas in
    views, `features.views.relative_area`; and some milliseconds for each pair of views.

    Args:
        first, second: photos.
        accept: when a neighbour is believed, among those in one view.
        done: pairs of the first so many views of each photo are left out.

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


def merged(first: PhotoInViews, second: PhotoInViews, candidates: Candidates, accept: Acceptance) -> Matches:
    """One list of correspondences of keypoints, each point of either photo at most once.

    A correspondence has to hold against all descriptions of the other photo: its distance is compared with that to the
    nearest description that is more than 10 pixels away from it, the first geometrically inconsistent neighbour of
    Mishkin, Matas and Perdoch (MODS, CVIU 2015), in both directions. The nearest of all would often be the same point
    in another view. Of correspondences that are of one point, the one of the most alike descriptions is kept.

    Memory: both photos' descriptors in float32, and 64 MB of similarities.

    Args:
        first, second: photos.
        candidates: numbers of descriptions and scores, as `candidates_of_views` gives them.
        accept: when a neighbour is believed.

    Returns:
        In the order of the first photo's keypoints.
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
    kept = one_to_one(first.xy[rows[:, 0]], second.xy[rows[:, 1]])
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
    """Whether each answer is accepted against the most alike description of what is elsewhere in its photo.

    Args:
        queries: photo of the asked descriptions.
        asked: (K,) numbers of descriptions.
        others: the other photo.
        answers: (K,) keypoints of the other photo.
        scores: (K,) of both.
        accept: on the similarities of the answer and its rival.
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


def one_to_one(first: Float32, second: Float32) -> NDArray[np.intp]:
    """Of (K, 2) places and their counterparts, best first, those that end where no better one that is kept does."""
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
