"""Verified pairs that a model contradicts: the mark of repeated structures, such as two facades that look alike.

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

A model can fold without contradicting any pair: if no photo leads from one facade to the other. Then nothing is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.sights import NO_POINT, Sight

Pair = tuple[str, str]
Rows = NDArray[np.int32]

# Share of the photo's longer side within which a point fits a keypoint: 10 pixels of 1000. A model may be that far off
# where photos are few, but a match of two different facades is off by far more as a rule.
_TOLERANCE = 0.01
# A pair is a suspect if less than this share of its matches fits. Pairs are far from it on either side as a rule.
_LEAST_SHARE = 0.5
# Chance alone verifies pairs of some 20 matches, which tell nothing about the scene: a suspect has more that misfit.
_LEAST_MISFITS = 30
STRONG = "more matches than most pairs of these photos that fit: the model may be wrong here"
WEAK = "fewer matches than the pairs that fit: the photos may show two things that look alike"


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
    """A verified pair that does not fit the model.

    Attributes:
        fit: how badly.
        reason: what to make of it, for people.
    """

    fit: PairFit
    reason: str


def fit_pairs(
    pairs: Iterable[tuple[Pair, Rows]], sights: Mapping[str, Sight], xyz: NDArray[np.float64]
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


def find_suspects(fits: Sequence[PairFit]) -> list[Suspect]:
    """The pairs that look alike and do not fit the model, those with the most contradicting matches first.

    Their reason says which side to doubt. If the photos have more matches with each other than with most partners
    that do fit, they probably are neighbours, and the model folded between them. Otherwise they probably show two
    things that look alike.

    Args:
        fits: of all verified pairs of the model.
    """
    found = {(fit.first, fit.second) for fit in fits if fit.misfits >= _LEAST_MISFITS and fit.share < _LEAST_SHARE}
    partners: dict[str, list[int]] = {}
    for fit in fits:
        if (fit.first, fit.second) not in found:
            for name in (fit.first, fit.second):
                partners.setdefault(name, []).append(fit.inliers)
    usual = {name: float(np.median(counts)) for name, counts in partners.items()}
    suspects = []
    for fit in fits:
        if (fit.first, fit.second) in found:
            strong = fit.inliers > max(usual.get(name, 0.0) for name in (fit.first, fit.second))
            suspects.append(Suspect(fit, STRONG if strong else WEAK))
    return sorted(suspects, key=lambda one: (-one.fit.misfits, one.fit.first, one.fit.second))


def _fit(pair: Pair, rows: Rows, sights: tuple[Sight, Sight], xyz: NDArray[np.float64]) -> PairFit:
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
