"""Verified pairs that disagree with the model: the mark of repeated structures, such as two facades that look alike.

Two photos of different facades that look alike are verified as well as two photos of the same one: their matches obey
one epipolar geometry. No pair alone gives that away. The model does: it puts the facades into different places, or it
puts both into one place and then contradicts the pairs that lead around the corner. Either way some verified pairs do
not fit, and their photos are worth a look.

A pair is judged by its matches. A match fits if the point that one of its keypoints observes projects onto the other
keypoint. Matches whose keypoints observe no point say nothing. This is the consistency of Zach, Klopschitz and
Pollefeys (Disambiguating visual relations using loop constraints, CVPR 2010) with the model in the place of the loops:
every point was triangulated from other pairs, so it carries what all loops through them agree on. Unlike the missing
correspondences of Zach, Irschara and Bischof (What can missing correspondences tell us about 3D structure and motion?,
CVPR 2008), it needs no model of how often a detector finds a point again.

Within a fold the false pairs fit. They share the facade, and each photo has points on the same surface that the other
does not have: a sign, or the ground. In a sound model the points that one photo misses lie mixed with those that both
observe, because a detector misses points at random. Pairs are therefore also judged by the parts of a photo in which
both have points and share none. Such conflicting observations are those of Heinly, Dunn and Frahm (Correcting for
duplicate scene structure in sparse 3D reconstruction, ECCV 2014), here counted in a grid instead of superpixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.keypoints import PhotoPair
from hardnet_sfm.sights import NO_POINT, Sight

Rows = NDArray[np.int32]

# Share of the photo's longer side within which a point fits a keypoint: 10 pixels of 1000. A model may be that far off
# where photos are few, but a match of two different facades is off by far more as a rule.
_TOLERANCE = 0.01
# A pair is a suspect if less than this share of its matches fits. Pairs are far from it on either side as a rule.
_LEAST_SHARE = 0.5
# Chance alone verifies pairs of some 20 matches, which tell nothing about the scene: a suspect has more that misfit.
_LEAST_MISFITS = 30
# A grid over a photo has at most this many cells on its longer side, which are 40 pixels of 1000 wide. It has fewer
# where fewer points can be compared: a square of so many cells has this many points a cell.
_MOST_CELLS = 24
_POINTS_A_CELL = 4
# Only points that at least this many photos observe are compared: others may be chance.
_LEAST_TRACK = 3
# Two photos are compared where they see a point from directions and distances that differ no more than this: a detector
# finds other points at another scale, and occlusion hides others from elsewhere.
_LARGEST_ANGLE = np.deg2rad(20)
_LARGEST_ZOOM = 1.6
# Cells in conflict have this many points of either photo or more, and one shared point in ten of them at most.
_LEAST_IN_CELL = 2
_MOST_SHARED = 0.1
# Conflicting points that make a suspect: their number, and their share of all that could be compared.
_LEAST_CONFLICTS = 15
_LEAST_CONFLICT_SHARE = 0.03
STRONG = "more matches than most pairs of these photos that fit: the model may be wrong here"
WEAK = "fewer matches than the pairs that fit: the photos may show two things that look alike"
DIFFERENT = "the model puts both on one place, but each photo has points there that the other lacks"


@dataclass(frozen=True)
class PairFit:
    """How well a model explains a verified pair of two of its photos.

    Attributes:
        first, second: names of the photos.
        inliers: matches that agree with the pair's two-view geometry.
        judged: matches of which at least one keypoint observes a point.
        explained: judged matches that fit the model.
    """

    first: str
    second: str
    inliers: int
    judged: int
    explained: int

    @property
    def share(self) -> float:
        """Share of the judged matches that the model explains, 1 if there are none."""
        return self.explained / self.judged if self.judged else 1.0

    @property
    def misfits(self) -> int:
        """Number of judged matches that contradict the model."""
        return self.judged - self.explained


@dataclass(frozen=True)
class Suspect:
    """A verified pair that disagrees with the model.

    Attributes:
        fit: how well the model explains it.
        reason: what to make of it, for people.
    """

    fit: PairFit
    reason: str


def fit_pairs(
    pairs: Iterable[tuple[PhotoPair, Rows]], sights: Mapping[str, Sight], xyz: NDArray[np.float64]
) -> list[PairFit]:
    """Judges verified pairs by a model; pairs with a photo that it does not have are passed over.

    Time is linear in the number of matches.

    Args:
        pairs: names of two photos and (M, 2) int32 row numbers of the keypoints of their verified matches.
        sights: of the registered photos, by their names.
        xyz: (P, 3) points of the model, in its units.
    """
    return [
        _fit(pair, rows, (sights[pair[0]], sights[pair[1]]), xyz)
        for pair, rows in pairs
        if pair[0] in sights and pair[1] in sights
    ]


def find_suspects(fits: Sequence[PairFit], overlap: Overlap) -> list[Suspect]:
    """The pairs whose photos look alike and disagree with the model.

    First come those that do not fit, the pairs with the most contradicting matches first. Their reason says which side
    to doubt. If the photos have more matches with each other than with most partners that do fit, they probably are
    neighbours, and the model folded between them. Otherwise they probably show two things that look alike.

    Then come those that fit and whose photos have conflicting points, the largest share of them first.

    Args:
        fits: of all verified pairs of the model.
        overlap: of the same model.
    """
    misfits = [fit for fit in fits if fit.misfits >= _LEAST_MISFITS and fit.share < _LEAST_SHARE]
    misfits.sort(key=lambda fit: (-fit.misfits, fit.first, fit.second))
    apart = {(fit.first, fit.second) for fit in misfits}
    fitting = [fit for fit in fits if (fit.first, fit.second) not in apart]
    partners: dict[str, list[int]] = {}
    for fit in fitting:
        for name in (fit.first, fit.second):
            partners.setdefault(name, []).append(fit.inliers)
    usual = {name: float(np.median(counts)) for name, counts in partners.items()}
    doubted = [
        Suspect(fit, STRONG if fit.inliers > max(usual.get(fit.first, 0.0), usual.get(fit.second, 0.0)) else WEAK)
        for fit in misfits
    ]
    conflicts = [(*overlap.conflict(fit.first, fit.second), fit) for fit in fitting]
    folded = [
        (share, fit) for count, share, fit in conflicts if count >= _LEAST_CONFLICTS and share >= _LEAST_CONFLICT_SHARE
    ]
    folded.sort(key=lambda one: (-one[0], one[1].first, one[1].second))
    return doubted + [Suspect(fit, DIFFERENT) for _, fit in folded]


def _fit(pair: PhotoPair, rows: Rows, sights: tuple[Sight, Sight], xyz: NDArray[np.float64]) -> PairFit:
    points = [sight.points[rows[:, side]] for side, sight in enumerate(sights)]
    seen = [some != NO_POINT for some in points]
    fits = seen[0] & (points[0] == points[1])
    for side, other in ((0, 1), (1, 0)):
        asked = np.flatnonzero(seen[side] & ~fits)
        projected, _ = sights[other].project(xyz[points[side][asked]])
        keypoints = sights[other].rays[rows[asked, other]]
        off = np.linalg.norm(projected - keypoints, axis=1)
        fits[asked[off <= _TOLERANCE * sights[other].extent]] = True
    return PairFit(*pair, len(rows), int((seen[0] | seen[1]).sum()), int(fits.sum()))


class Overlap:
    """Compares what pairs of photos observe where they see the same part of a model.

    Args:
        sights: of the registered photos, by their names.
        xyz: (P, 3) points of the model, in its units.
    """

    def __init__(self, sights: Mapping[str, Sight], xyz: NDArray[np.float64]) -> None:
        observed = {name: np.unique(sight.points[sight.points != NO_POINT]) for name, sight in sights.items()}
        lengths = np.bincount(np.concatenate([*observed.values(), np.zeros(0, np.int64)]), minlength=len(xyz))
        self._sights, self._xyz = sights, xyz
        self._observed = {name: rows[lengths[rows] >= _LEAST_TRACK] for name, rows in observed.items()}
        self._side = np.zeros(len(xyz), np.uint8)  # which of two photos observes a point: 1, 2 or both, 3

    def conflict(self, first: str, second: str) -> tuple[int, float]:
        """How many points conflict, the smaller number of the two photos, and their share of the points compared.

        Time is linear in the number of points that the photos observe.
        """
        a, b = self._observed[first], self._observed[second]
        self._side[a] = 1
        self._side[b] += 2
        rows = np.concatenate([a, b[self._side[b] == 2]])
        side = self._side[rows]
        self._side[rows] = 0
        one, other = self._sights[first], self._sights[second]
        places = self._xyz[rows]
        fair = _seen_alike(places, one, other)
        rays = [sight.project(places)[0] for sight in (one, other)]
        for sight, projected in zip((one, other), rays, strict=True):
            low, high = np.nanmin(sight.rays, axis=0), np.nanmax(sight.rays, axis=0)
            fair &= ((projected > low) & (projected < high)).all(axis=1)
        if np.count_nonzero(side[fair] == 3) < _LEAST_CONFLICTS:
            return 0, 0.0
        return min(
            _conflict_in(projected[fair], side[fair], sight)
            for sight, projected in zip((one, other), rays, strict=True)
        )


def _seen_alike(places: NDArray[np.float64], one: Sight, other: Sight) -> NDArray[np.bool_]:
    """(M,) whether two photos see a place from similar directions and distances."""
    away = [places - sight.centre for sight in (one, other)]
    distance = [np.linalg.norm(vector, axis=1) for vector in away]
    cosine = np.einsum("ij,ij->i", *away) / (distance[0] * distance[1])
    # Zoomed photos show more detail: what counts is the size of a metre in the photo.
    zoom = np.abs(np.log(distance[0] * one.extent / (distance[1] * other.extent)))
    return np.asarray((cosine > np.cos(_LARGEST_ANGLE)) & (zoom < np.log(_LARGEST_ZOOM)))


def _conflict_in(rays: NDArray[np.float64], side: NDArray[np.uint8], sight: Sight) -> tuple[int, float]:
    """Number and share of conflicting points, by the grid of one of the photos."""
    cells = min(_MOST_CELLS, np.sqrt(len(rays) / _POINTS_A_CELL))
    column, row = np.floor((rays - np.nanmin(sight.rays, axis=0)) / (sight.extent / cells)).astype(np.int64).T
    _, cell = np.unique(row * (int(column.max()) + 1) + column, return_inverse=True)
    only_first, only_second, both = (np.bincount(cell[side == kind], minlength=cell.max() + 1) for kind in (1, 2, 3))
    different = np.minimum(only_first, only_second)
    conflicting = (different >= _LEAST_IN_CELL) & (both <= _MOST_SHARED * different)
    count = int(different[conflicting].sum())
    return count, count / int((both + different).sum())
