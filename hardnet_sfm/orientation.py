"""Chooses how keypoints are oriented, by a trial on small copies of the photos, for `--orientation auto`.

Most photos are taken upright, so the direction of gravity is the same in all of them. Perdoch, Chum and Matas call this
the gravity vector assumption (Efficient representation of local geometry for large scale object retrieval, CVPR 2009).
Describing each keypoint along its own gradient discards that information and adds the errors of the estimated angles.
Photos from kites, drones and turned phones need the angles. The trial describes small copies of some photos both ways,
matches them and counts verified matches.

Verified matches of oriented keypoints also tell how far one photo is turned against another: their angles differ by
that turn. So a phone photo that lies on its side is described along its own upright direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import networkx as nx
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Ints
from hardnet_sfm.colmap.two_view import Verification, verified_rows
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.detectors import make_detector
from hardnet_sfm.features.extraction import KeypointOptions, detector_options
from hardnet_sfm.files.photo_files import read_small
from hardnet_sfm.keypoints import Keypoints, PhotoPair
from hardnet_sfm.matching.nearest import (
    Acceptance,
    PreparedDescriptors,
    Rounding,
    mutual_nearest_neighbours,
    prepare,
    rounding_for,
)
from hardnet_sfm.progress import Advance, progress
from hardnet_sfm.workers import in_order, torch_threads

if TYPE_CHECKING:
    from hardnet_sfm.features.descriptors import PatchDescriber

Way = Literal["upright", "estimated"]

# Longest side of the small copies, pixels, and keypoints in each.
_SIDE, _KEYPOINTS = 640, 800
# Photos of the sample, each of which is matched with all others of the sample. The sample consists of runs of
# neighbours, which overlap in most folders.
_SAMPLE, _RUN = 24, 4
# Photos outside the sample that are checked one by one, to find turned photos.
_MOST = 500
# The ratio is strict, so that photos without common content rarely have enough matches to verify.
_ACCEPT = Acceptance(max_ratio=0.8)
_VERIFY = Verification(max_error=3.0, min_inliers=15, seed=0)
# More matches than this give no further evidence: the pair matches in either way.
_ENOUGH = 100
# Estimated orientations win if they give the first number of times as many verified matches, or the second number if
# the sum of the gains of all pairs is this many standard deviations above 0.
_FAR_BETTER, _BETTER, _SIGNIFICANT = 1.5, 1.05, 3.0
# Angles within this many degrees agree. A turn counts if this share of a pair's matches agrees with it.
_SPREAD, _AGREEING = 20.0, 0.5


@dataclass(frozen=True)
class Orientations:
    """The result of the trial.

    Attributes:
        orientation: the way that gave more verified matches.
        turned: photos that lie on their side or upside down, with the direction that is upright in them. It is in
            degrees as in `Keypoints.oris`, a multiple of 90. Only for "upright".
        pairs: number of pairs of photos that were verified in at least one way.
        upright_matches: verified matches of these pairs described upright, at most 100 for each pair.
        estimated_matches: the same with estimated orientations.
        photos: number of photos among which the trial chose its sample; 0 if an earlier version did not note it.
    """

    orientation: Way
    turned: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    upright_matches: int = 0
    estimated_matches: int = 0
    photos: int = 0

    def facts(self) -> dict[str, Any]:
        """Returns the result as a dictionary for JSON."""
        return asdict(self)

    @property
    def reason(self) -> str:
        """The reason for the choice, for messages."""
        if not self.pairs:
            return "no photos of the trial match"
        text = f"{self.upright_matches} verified matches in a trial, {self.estimated_matches} with estimated angles"
        return text + (f"; {len(self.turned)} turned photos" if self.turned else "")


@dataclass(frozen=True, eq=False)
class Small:
    """A small copy of a photo, described in one way.

    Attributes:
        size: (width, height), pixels.
        keypoints: N keypoints, in pixels of the copy.
        prepared: descriptors of the keypoints.
    """

    size: tuple[int, int]
    keypoints: Keypoints
    prepared: PreparedDescriptors


def choose_orientations(
    images: Path,
    names: list[str],
    describe: PatchDescriber,
    detector: str,
    threads: int,
    earlier: Orientations | None = None,
    known: Collection[str] = (),
) -> Orientations:
    """Decides between upright and estimated orientations, and finds photos that are turned by quarter turns.

    A sample of 24 photos is matched with each other in both ways. If upright is as good, up to 500 of the other photos
    are matched with the sample, to find the turned ones. Photos that match none of the sample count as upright.

    Lower bound: describing a photo takes 800 descriptors, a tenth of those of its extraction. Matching it takes 24
    products of 800 x 800.

    Args:
        images: folder of the photos.
        names: names of the photos, in an order in which neighbours are likely to overlap.
        describe: the descriptor.
        detector: name of the detector.
        threads: number of threads.
        earlier: result of an earlier run. Its decision stays.
        known: photos that the earlier run checked. Their turns stay.

    Raises:
        UsageError: no detector has this name.
    """
    if earlier is not None and earlier.orientation == "estimated":
        return earlier
    with torch_threads(threads) as pool:
        trial = _Trial(images, describe, detector, pool, threads)
        old = [name for name in names if name in known]
        sample = choose_sample(old if earlier else names)
        others = [name for name in names if name not in sample and not (earlier and name in known)]
        with progress("orient", len(sample) + len(others[:_MOST])) as advance:
            estimated = dict(trial.described(sample, dict.fromkeys(sample), advance))
            if earlier is None:
                decided, upright = trial.decide(estimated)
                found = replace(decided, photos=len(names))
                if found.orientation == "estimated":
                    return found
            else:
                found, upright = earlier, trial.upright(estimated, earlier.turned)
            turned = {**found.turned, **trial.turned(others[:_MOST], estimated, upright, found.turned, advance)}
    return replace(found, turned={name: turned[name] for name in names if name in turned})


def estimated_is_better(upright: Ints, estimated: Ints) -> bool:
    """Says whether estimated orientations are clearly better than upright ones.

    People hold cameras upright, so weak evidence does not count: ten verified pairs of strangers' photos of a city
    differ by a tenth either way by chance.

    Args:
        upright: (P,) verified matches of each pair of photos described upright.
        estimated: (P,) the same with estimated orientations.
    """
    gains, before, after = estimated - upright, upright.sum(), estimated.sum()
    significant = gains.sum() > _SIGNIFICANT * np.sqrt((gains**2).sum())
    return bool(after > _FAR_BETTER * before or (after > _BETTER * before and significant))


def choose_sample(names: list[str]) -> list[str]:
    """Returns at most 24 names, in evenly spread runs of four neighbours."""
    if len(names) <= _SAMPLE:
        return list(names)
    starts = np.linspace(0, len(names) - _RUN, _SAMPLE // _RUN).astype(int)
    return [names[start + step] for start in starts for step in range(_RUN)]


class _Trial:
    """Describes and matches small copies of photos.

    Args:
        images: folder of the photos.
        describe: the descriptor.
        detector: name of the detector.
        pool: pool of threads in each of which torch uses one core.
        threads: number of threads in the pool.
    """

    def __init__(
        self, images: Path, describe: PatchDescriber, detector: str, pool: ThreadPoolExecutor, threads: int
    ) -> None:
        self._detect = make_detector(detector, detector_options(KeypointOptions(orientation="estimated"), _KEYPOINTS))
        self._images, self._describe, self._pool, self._threads = images, describe, pool, threads
        self._rounding: Rounding | None = None

    def described(
        self, names: Iterable[str], turns: Mapping[str, int | None], advance: Advance | None = None
    ) -> Iterator[tuple[str, Small]]:
        """Yields the readable photos, each described along its turn, or along estimated angles if its turn is None."""

        def small(name: str) -> tuple[tuple[int, int], Keypoints, NDArray[np.float16]] | None:
            try:
                colours = read_small(self._images / name, _SIDE)
            except HardnetSfmError:
                return None  # `extract` reports the photos that it cannot read, with the reason
            grey = np.asarray(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), np.uint8)
            found, turn = self._detect(grey), turns[name]
            keypoints = found if turn is None else found.along(turn)
            return (grey.shape[1], grey.shape[0]), keypoints, self._describe.at(grey, keypoints)

        with closing(in_order(self._pool, small, names, self._threads + 2)) as stream:
            for name, future in stream:
                result = future.result()
                if advance:
                    advance(note=name)
                if result is not None:
                    size, keypoints, rows = result
                    if self._rounding is None:
                        self._rounding = rounding_for(rows, self._describe.device)
                    yield name, Small(size, keypoints, prepare(rows, self._rounding))

    def upright(self, names: Iterable[str], turned: Mapping[str, int]) -> dict[str, Small]:
        """Describes photos along their upright direction."""
        return dict(self.described(names, {name: turned.get(name, 0) for name in names}))

    def decide(self, estimated: Mapping[str, Small]) -> tuple[Orientations, dict[str, Small]]:
        """Returns the better way and the turned photos of the sample, and the photos described upright."""
        pairs = list(combinations(estimated, 2))
        oriented = dict(zip(pairs, self._matched([(estimated[a], estimated[b]) for a, b in pairs]), strict=True))
        between = {
            (a, b): (turn, len(rows))
            for (a, b), rows in oriented.items()
            if (turn := estimate_turn(estimated[a].keypoints, estimated[b].keypoints, rows)) is not None
        }
        turned = find_quarter_turns(between)
        upright = self.upright(estimated, turned)
        straight = dict(zip(pairs, self._matched([(upright[a], upright[b]) for a, b in pairs]), strict=True))
        counts = [np.array([min(len(found[pair]), _ENOUGH) for pair in pairs], int) for found in (straight, oriented)]
        facts = int(((counts[0] + counts[1]) > 0).sum()), int(counts[0].sum()), int(counts[1].sum())
        if estimated_is_better(*counts):
            return Orientations("estimated", {}, *facts), upright
        return Orientations("upright", turned, *facts), upright

    def turned(
        self,
        names: list[str],
        estimated: Mapping[str, Small],
        upright: Mapping[str, Small],
        known: Mapping[str, int],
        advance: Advance,
    ) -> dict[str, int]:
        """Finds the turned photos outside the sample.

        Args:
            names: names of the photos to check.
            estimated, upright: photos of the sample, described along estimated angles and upright.
            known: turned photos of the sample.
            advance: the progress bar.
        """
        missed = []
        for name, small in self.described(names, dict.fromkeys(names, 0), advance):
            if not any(len(rows) for rows in self._matched([(other, small) for other in upright.values()])):
                missed.append(name)
        turned = {}
        for name, small in self.described(missed, dict.fromkeys(missed)):
            matched = zip(estimated, self._matched([(other, small) for other in estimated.values()]), strict=True)
            partner, rows = max(matched, key=lambda pair: len(pair[1]), default=("", np.zeros((0, 2), np.int32)))
            turn = estimate_turn(estimated[partner].keypoints, small.keypoints, rows) if len(rows) else None
            if turn is not None and (quarter := _round_to_quarter(known.get(partner, 0) + turn)):
                turned[name] = quarter
        return turned

    def _matched(self, pairs: list[tuple[Small, Small]]) -> list[NDArray[np.int32]]:
        """Returns the (M, 2) row numbers of the verified matches of each pair."""

        def match(pair: tuple[Small, Small]) -> NDArray[np.int32]:
            one, other = pair
            found = mutual_nearest_neighbours(one.prepared, other.prepared, _ACCEPT)
            return verified_rows(one.keypoints.xy, other.keypoints.xy, (one.size, other.size), found.pairs, _VERIFY)

        return list(self._pool.map(match, pairs))


def estimate_turn(one: Keypoints, other: Keypoints, rows: NDArray[np.int32]) -> float | None:
    """Returns the degrees, -180 to 180, by which the second photo is turned against the first.

    The turn is the mode of the differences of orientations. It is None if the matches disagree.

    Args:
        one: keypoints of a photo, with estimated orientations.
        other: keypoints of the other photo, with estimated orientations.
        rows: (M, 2) row numbers of matched keypoints.
    """
    if not len(rows):
        return None
    turns = np.deg2rad((other.oris[rows[:, 1]] - one.oris[rows[:, 0]]).astype(np.float64))
    directions, candidates = np.exp(1j * turns), np.exp(1j * np.deg2rad(np.arange(0, 360, 5.0)))
    near = np.abs(np.angle(directions[:, None] / candidates)) <= np.deg2rad(_SPREAD)
    best = near[:, near.sum(0).argmax()]
    return float(np.rad2deg(np.angle(directions[best].sum()))) if best.mean() >= _AGREEING else None


def find_quarter_turns(between: Mapping[PhotoPair, tuple[float, int]]) -> dict[str, int]:
    """Finds photos that are turned against most of the others, in multiples of 90 degrees.

    Turns are added up along the spanning tree of the pairs with most matches. In each connected part of the photos, the
    direction of most of its photos counts as upright.

    Args:
        between: degrees by which the second photo of a pair is turned against the first, and the number of matches that
            give this turn.
    """
    graph = nx.Graph()
    for (first, second), (turn, matches) in between.items():
        graph.add_edge(first, second, matches=matches, turn=turn, start=first)
    tree = nx.maximum_spanning_tree(graph, weight="matches")
    turned: dict[str, int] = {}
    for part in nx.connected_components(tree):
        root = min(part)
        turns = {root: 0.0}
        for known, name in nx.bfs_edges(tree, root):
            edge = tree[known][name]
            turns[name] = turns[known] + (edge["turn"] if edge["start"] == known else -edge["turn"])
        quarters = {name: _round_to_quarter(turn) for name, turn in turns.items()}
        (usual, _) = min(Counter(quarters.values()).items(), key=lambda item: (-item[1], item[0]))
        turned |= {name: (quarter - usual) % 360 for name, quarter in quarters.items() if quarter != usual}
    return turned


def _round_to_quarter(turn: float) -> int:
    """Returns the nearest quarter turn: 0, 90, 180 or 270."""
    return round(turn / 90) % 4 * 90
