"""Finds verified pairs that disagree with the model: a sign of repeated structures, such as two similar facades.

Two photos of different but similar facades are verified as well as two photos of the same facade: their matches agree
with one epipolar geometry. A single pair cannot reveal that. The model can. Either it puts the facades into different
places, or it puts both into one place and then contradicts the pairs that lead around the corner. In both cases some
verified pairs do not fit, and the user should check their photos.

A pair is judged by its matches. A match fits if the point that one of its keypoints observes projects onto the other
keypoint. Matches whose keypoints observe no point give no evidence. This is the consistency of Zach, Klopschitz and
Pollefeys (Disambiguating visual relations using loop constraints, CVPR 2010), with the model instead of the loops.
Every point was triangulated from other pairs, so it combines the evidence of all loops through them. Zach, Irschara and
Bischof use missing correspondences (What can missing correspondences tell us about 3D structure and motion?, CVPR
2008). That needs a model of how often a detector finds a point again, and this method does not.

Within a fold the false pairs fit. The photos share the facade, and each photo has points on the same surface that the
other does not have: a sign, or the ground. In a correct model, the points that one photo misses are mixed with those
that both observe, because a detector misses points at random. So pairs are also judged by the parts of a photo in which
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

# Largest distance of a point from a keypoint that it fits, as a share of the photo's longer side: 10 pixels of 1000. A
# model may be this inaccurate if there are few photos. A match of two different facades usually has a far larger
# distance.
_TOLERANCE = 0.01
# A pair is a suspect if less than this share of its matches fits. The shares of most pairs are far from this limit.
_LEAST_SHARE = 0.5
# Chance alone verifies pairs of about 20 matches, which tell nothing about the scene. So a suspect needs more matches
# that do not fit.
_LEAST_MISFITS = 30
# A grid over a photo has at most this many cells on its longer side, which are 40 pixels of 1000 wide. It has fewer
# cells if fewer points can be compared: on average a cell of a square grid has this many points.
_MOST_CELLS = 24
_POINTS_A_CELL = 4
# Only points that at least this many photos observe are compared. Other points may be chance.
_LEAST_TRACK = 3
# Two photos are compared at points that they see from directions and distances that differ by at most this. At other
# scales a detector finds other points, and from other directions points are occluded.
_LARGEST_ANGLE = np.deg2rad(20)
_LARGEST_ZOOM = 1.6
# A cell is in conflict if each photo has at least this many points in it that the other lacks. The shared points may be
# at most this share of them.
_LEAST_IN_CELL = 2
_MOST_SHARED = 0.1
# Conflicting points that make a suspect: their number, and their share of all compared points.
_LEAST_CONFLICTS = 15
_LEAST_CONFLICT_SHARE = 0.03
STRONG = "more matches than most pairs of these photos that fit: the model may be wrong here"
WEAK = "fewer matches than the pairs that fit: the photos may show two things that look alike"
DIFFERENT = "the model puts both on one place, but each photo has points there that the other lacks"


@dataclass(frozen=True)
class PairFit:
    """The agreement of a model with a verified pair of two of its photos.

    Attributes:
        first, second: names of the photos.
        inliers: number of matches that agree with the pair's two-view geometry.
        judged: number of matches of which at least one keypoint observes a point.
        explained: number of judged matches that fit the model.
    """

    first: str
    second: str
    inliers: int
    judged: int
    explained: int

    @property
    def share(self) -> float:
        """Share of the judged matches that the model explains; 1 if there are none."""
        return self.explained / self.judged if self.judged else 1.0

    @property
    def misfits(self) -> int:
        """Number of judged matches that contradict the model."""
        return self.judged - self.explained


@dataclass(frozen=True)
class Suspect:
    """A verified pair that disagrees with the model.

    Attributes:
        fit: agreement of the model with the pair.
        reason: interpretation, for messages.
    """

    fit: PairFit
    reason: str


def fit_pairs(
    pairs: Iterable[tuple[PhotoPair, Rows]], sights: Mapping[str, Sight], xyz: NDArray[np.float64]
) -> list[PairFit]:
    """Judges verified pairs by a model, and skips pairs with a photo that the model does not have.

    Time is linear in the number of matches.

    Args:
        pairs: names of two photos and (M, 2) int32 row numbers of the keypoints of their verified matches.
        sights: sights of the registered photos, by their names.
        xyz: (P, 3) points of the model, in its units.
    """
    return [
        _fit(pair, rows, (sights[pair[0]], sights[pair[1]]), xyz)
        for pair, rows in pairs
        if pair[0] in sights and pair[1] in sights
    ]


def find_suspects(fits: Sequence[PairFit], overlap: Overlap) -> list[Suspect]:
    """Finds pairs whose photos look alike and disagree with the model.

    Pairs that do not fit come first, those with the most contradicting matches before others. Their reason says which
    side to doubt. If the photos have more matches with each other than with most partners that fit, they probably are
    neighbours, and the model folded between them. Otherwise they probably show two things that look alike.

    Pairs that fit but have conflicting points come next, those with the largest share of them before others.

    Args:
        fits: agreement of all verified pairs of the model.
        overlap: comparison of the same model's photos.
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
    """Compares the observations of two photos in the part of a model that both see.

    Args:
        sights: sights of the registered photos, by their names.
        xyz: (P, 3) points of the model, in its units.
    """

    def __init__(self, sights: Mapping[str, Sight], xyz: NDArray[np.float64]) -> None:
        observed = {name: np.unique(sight.points[sight.points != NO_POINT]) for name, sight in sights.items()}
        lengths = np.bincount(np.concatenate([*observed.values(), np.zeros(0, np.int64)]), minlength=len(xyz))
        self._sights, self._xyz = sights, xyz
        self._observed = {name: rows[lengths[rows] >= _LEAST_TRACK] for name, rows in observed.items()}
        self._side = np.zeros(len(xyz), np.uint8)  # the photos of a pair that observe a point: 1, 2, or 3 for both

    def conflict(self, first: str, second: str) -> tuple[int, float]:
        """Returns the number of conflicting points and their share of the compared points.

        Each photo gives a result by its own grid, and the smaller one is returned. Time is linear in the number of
        points that the photos observe.
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
    """Returns (M,) whether two photos see a place from similar directions and distances."""
    away = [places - sight.centre for sight in (one, other)]
    distance = [np.linalg.norm(vector, axis=1) for vector in away]
    cosine = np.einsum("ij,ij->i", *away) / (distance[0] * distance[1])
    # Zoomed photos show more detail, so the size of a metre in the photo is compared.
    zoom = np.abs(np.log(distance[0] * one.extent / (distance[1] * other.extent)))
    return np.asarray((cosine > np.cos(_LARGEST_ANGLE)) & (zoom < np.log(_LARGEST_ZOOM)))


def _conflict_in(rays: NDArray[np.float64], side: NDArray[np.uint8], sight: Sight) -> tuple[int, float]:
    """Returns the number and the share of conflicting points, by the grid of one of the photos."""
    cells = min(_MOST_CELLS, np.sqrt(len(rays) / _POINTS_A_CELL))
    column, row = np.floor((rays - np.nanmin(sight.rays, axis=0)) / (sight.extent / cells)).astype(np.int64).T
    _, cell = np.unique(row * (int(column.max()) + 1) + column, return_inverse=True)
    only_first, only_second, both = (np.bincount(cell[side == kind], minlength=cell.max() + 1) for kind in (1, 2, 3))
    different = np.minimum(only_first, only_second)
    conflicting = (different >= _LEAST_IN_CELL) & (both <= _MOST_SHARED * different)
    count = int(different[conflicting].sum())
    return count, count / int((both + different).sum())
