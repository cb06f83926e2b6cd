"""Decides which photos share a camera: candidates by EXIF data, folder and size, and a trial for each group."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.files.photo_files import FILM_DIAGONAL, read_lens
from hardnet_sfm.files.stores import FeatureStore, KeypointStore, MatchStore
from hardnet_sfm.files.workspace import digest
from hardnet_sfm.keypoints import PhotoPair
from hardnet_sfm.photos import Lens
from hardnet_sfm.progress import progress

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does not need it
    from hardnet_sfm.colmap.cameras import CameraSetup
    from hardnet_sfm.colmap.trial import Evidence, Mapped, Trial
    from hardnet_sfm.colmap.two_view import Verification

# Fact in a database: which photos share a camera.
GROUPS = "camera groups"
# Number of photos of a trial. More take longer and give little more evidence.
_PHOTOS = 12
# From this many photos without EXIF data, a second trial with other photos must agree.
_MANY_PHOTOS = 3 * _PHOTOS
# Fewer photos leave too little to tell cameras apart.
_FEWEST_PHOTOS = 3
# Keypoints of each photo in a trial, those with most matches. A second trial uses more if the first is inconclusive.
_KEYPOINTS = (512, 2048)
# Fewest matches of a pair of photos in a trial.
_FEWEST_MATCHES = 15
# If a photo has this many pairs, a quarter of them is assumed to have nothing in common.
_MANY_PAIRS = 24
# Further matches above this number do not make a pair better connected.
_ENOUGH_MATCHES = 150
# Photos do not share a camera if one camera for each photo reduces the cost by more than this share ...
_GAIN = 0.1
# ... and if their focal lengths then differ by more than this share,
_SPREAD = 0.03
# or if one camera registers less than this share of the photos or observations that a camera for each photo registers.
_LOST = 0.85
# Share of the photos of a trial that a model must have to count as evidence.
_EXPLAINED = 0.5


@dataclass(frozen=True)
class CameraGroup:
    """Photos that share a camera, or that each have their own.

    Attributes:
        names: names of the photos.
        shared: whether they share a camera.
        reason: reason for the decision, for messages.
        key: digest of the size and EXIF data that the photos have in common; empty for merged groups.
        decided: number of photos that the group had when it was decided.
    """

    names: tuple[str, ...]
    shared: bool
    reason: str
    key: str = ""
    decided: int = 0

    def facts(self) -> dict[str, Any]:
        """Returns the group for the summary, for JSON."""
        return {"photos": len(self.names), "shared": self.shared, "reason": self.reason}


@dataclass(frozen=True)
class Candidates:
    """Photos that may share a camera, as their sizes and EXIF data are equal.

    Attributes:
        names: names of the photos.
        size: (width, height) of each photo as stored, pixels.
        lens: camera data from EXIF.
        key: digest of what the photos have in common.
    """

    names: tuple[str, ...]
    size: tuple[int, int]
    lens: Lens
    key: str


def find_candidates(features: FeatureStore, images: Path, known: Sequence[CameraGroup] = ()) -> list[Candidates]:
    """Groups photos by size and EXIF data, and by folder unless EXIF states camera and focal length.

    Args:
        features: features of the photos.
        images: folder of the photos.
        known: groups of an earlier decision. Their photos are not read again.

    Returns:
        The groups that have a photo which is in no known group.
    """
    key_of = {name: group.key for group in known for name in group.names}
    common: dict[str, tuple[tuple[int, int], Lens]] = {}
    for name in features.names():
        if name not in key_of:
            size, lens = features.stored_size(name), read_lens(images / name)
            named = bool(lens.make and lens.model and lens.knows_focal_length)
            key_of[name] = digest(size, asdict(lens), "" if named else str(PurePosixPath(name).parent))
            common[key_of[name]] = size, lens
    members: dict[str, list[str]] = defaultdict(list)
    for name in features.names():
        members[key_of[name]].append(name)
    return [Candidates(tuple(members[key]), *size_and_lens, key) for key, size_and_lens in common.items()]


def choose_connected(names: Sequence[str], counts: Mapping[PhotoPair, int], most: int = _PHOTOS) -> tuple[str, ...]:
    """Chooses photos that have many matches with each other.

    It starts with the photo with most matches. It then repeatedly adds the photo with most matches to those chosen so
    far. A pair counts with at most 150 matches, so that photos of one place do not crowd out all others. Photos without
    common content have matches, too. So if a photo has many pairs, only matches in excess of the lower quartile of its
    pairs count.

    Args:
        names: names of the photos to choose from.
        counts: number of matches of each pair. Pairs of other photos are ignored.
        most: number of photos to choose.

    Returns:
        The names in their order in `names`; fewer than `most` if no others have matches with them.
    """
    partners: dict[str, dict[str, int]] = {name: {} for name in names}
    by_chance = _matches_by_chance(names, counts)
    for (first, second), count in counts.items():
        if count >= _FEWEST_MATCHES and first in partners and second in partners:
            more = count - max(by_chance[first], by_chance[second])
            partners[first][second] = partners[second][first] = max(0, min(more, _ENOUGH_MATCHES))
    reach = {name: sum(partners[name].values()) for name in names}
    chosen: set[str] = set()
    while reach and len(chosen) < most:
        # max takes the first of equals, so that the choice depends on the order of names alone.
        best = max(reach, key=reach.__getitem__)
        if reach[best] == 0:
            break
        if not chosen:
            reach = dict.fromkeys(names, 0)
        chosen.add(best)
        del reach[best]
        for other, count in partners[best].items():
            if other in reach:
                reach[other] += count
    return tuple(name for name in names if name in chosen)


def _matches_by_chance(names: Sequence[str], counts: Mapping[PhotoPair, int]) -> dict[str, int]:
    """Returns the lower quartile of the numbers of matches of each photo's pairs.

    It is 0 for photos with few pairs, which may all have common content.
    """
    of_photo: dict[str, list[int]] = {name: [] for name in names}
    for pair, count in counts.items():
        for name in pair:
            if name in of_photo:
                of_photo[name].append(count)
    return {name: int(np.quantile(found, 0.25)) if len(found) >= _MANY_PAIRS else 0 for name, found in of_photo.items()}


@dataclass(frozen=True)
class Verdict:
    """The verdict of a trial.

    Attributes:
        shared: whether the photos share a camera; None if the trial is inconclusive.
        reason: reason for the verdict, for messages.
    """

    shared: bool | None
    reason: str


@dataclass(frozen=True)
class CameraTrials:
    """The data and options that trials of candidates need.

    Attributes:
        features, matches: the open stores.
        keypoints: keypoints that the matches refer to.
        setup: camera setup from the user.
        how: options for verifying pairs.
        fixed: whether cameras stay as EXIF data or the user state them.
        threads: number of threads.
        scratch: folder for temporary files, which is made and removed here.
    """

    features: FeatureStore
    matches: MatchStore
    keypoints: KeypointStore
    setup: CameraSetup
    how: Verification
    fixed: bool
    threads: int
    scratch: Path

    def decide(self, images: Path, known: Sequence[CameraGroup] = ()) -> list[CameraGroup]:
        """Decides for each group of candidates whether its photos share a camera.

        A decision stands when photos join its group, until the group has doubled. Then its evidence is a small part of
        the photos, and the group is decided again.

        Args:
            images: folder of the photos.
            known: groups of an earlier decision, without photos that are gone or have changed.

        Returns:
            Groups of all photos, in the order of their first photos.
        """
        counts = {(str(f["name0"]), str(f["name1"])): int(f["matches"]) for f in self.matches.index.values()}
        groups = {group.key: group for group in known if group.names}
        candidates = find_candidates(self.features, images, known)
        with progress("cameras", len(candidates)) as advance:
            for some in candidates:
                group = groups.get(some.key)
                if group is None or len(some.names) >= 2 * group.decided:
                    shared, reason = self._decide_one(some, counts)
                    group = CameraGroup(some.names, shared, reason, some.key, len(some.names))
                groups[some.key] = replace(group, names=some.names)
                advance(note=f"{len(some.names)} photos")
        place = {name: number for number, name in enumerate(self.features.names())}
        return sorted(groups.values(), key=lambda group: place[group.names[0]])

    def _decide_one(self, some: Candidates, counts: Mapping[PhotoPair, int]) -> tuple[bool, str]:
        known = some.lens.knows_focal_length
        if len(some.names) == 1:
            return False, "no other photo has this size and EXIF data"
        if self.setup.params:
            return True, "--camera-params states the camera"
        if self.fixed or not self.setup.has_focal_length():
            return known, "equal EXIF data" if known else "no focal length in the EXIF data"
        chosen = choose_connected(some.names, counts)
        if len(chosen) < _FEWEST_PHOTOS:
            return known, "equal EXIF data" if known else "too few photos with matches to compare"
        verdict = self._try(some, chosen, counts)
        if verdict.shared and not known and len(some.names) >= _MANY_PHOTOS:
            # The best connected photos of a collection may be those of one visitor.
            others = [name for name in some.names if name not in chosen]
            second = self._try(some, choose_connected(others, counts), counts)
            verdict = verdict if second.shared is None else second
        if verdict.shared is None:
            return known, f"equal EXIF data; {verdict.reason}" if known else verdict.reason
        return verdict.shared, verdict.reason

    def _try(self, some: Candidates, chosen: Collection[str], counts: Mapping[PhotoPair, int]) -> Verdict:
        """Maps some photos with few keypoints, and with more if the result is inconclusive."""
        from hardnet_sfm.colmap.trial import run_trial

        verdict = Verdict(None, "")
        for most in _KEYPOINTS:
            shutil.rmtree(self.scratch, ignore_errors=True)  # leftover of a killed run
            self.scratch.mkdir(parents=True)
            try:
                trial = self._prepare(some, chosen, counts, most)
                verdict = judge(run_trial(trial, self.how, self.threads, self.how.seed, self.scratch))
            finally:
                shutil.rmtree(self.scratch, ignore_errors=True)
            if verdict.shared is not None:
                break
        return verdict

    def _prepare(self, some: Candidates, chosen: Collection[str], counts: Mapping[PhotoPair, int], most: int) -> Trial:
        """Selects the keypoints of some photos that have most matches, and the matches between them."""
        from hardnet_sfm.colmap.database import colmap_keypoints
        from hardnet_sfm.colmap.trial import Trial

        found = {name: self.keypoints.keypoints(name) for name in chosen}
        between = {
            pair: self.matches.matches(*pair).pairs
            for pair, count in counts.items()
            if count >= _FEWEST_MATCHES and pair[0] in found and pair[1] in found
        }
        uses = {name: np.zeros(len(keypoints), np.int64) for name, keypoints in found.items()}
        for pair, pairs in between.items():
            for end, name in enumerate(pair):
                uses[name][pairs[:, end]] += 1
        rows = {name: best_rows(uses[name], found[name].scores, most) for name in chosen}
        among = {pair: _among(pairs, rows[pair[0]], rows[pair[1]]) for pair, pairs in between.items()}
        points = {
            name: colmap_keypoints(
                found[name].select(rows[name]), self.features.orientation(name), self.features.size(name)
            )
            for name in chosen
        }
        focal_length = some.lens.focal_length_35mm / FILM_DIAGONAL * float(np.hypot(*some.size)) or None
        matches = {pair: pairs for pair, pairs in among.items() if len(pairs) >= _FEWEST_MATCHES}
        pixels = self.features.shrunk(some.names[0])
        return Trial(points, matches, some.size, self.setup.model, focal_length, pixels)


def best_rows(uses: NDArray[np.int64], scores: Float32, most: int) -> NDArray[np.intp]:
    """Returns the rising row numbers of the keypoints with most matches. Higher scores decide ties.

    The keypoints with the highest scores alone may lie on leaves, where no match is correct.
    """
    return np.sort(np.lexsort((-scores, -uses))[:most])


def _among(pairs: NDArray[np.int32], first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.int32]:
    """Returns (M, 2) matches between selected rows of two photos, renumbered within the selection."""
    kept = np.isin(pairs[:, 0], first) & np.isin(pairs[:, 1], second)
    ends = np.searchsorted(first, pairs[kept, 0]), np.searchsorted(second, pairs[kept, 1])
    return np.column_stack(ends).astype(np.int32)


def judge(evidence: Evidence) -> Verdict:
    """Derives the verdict of a trial.

    If photos share a camera, one camera explains them, and their focal lengths stay equal when each photo gets its own.
    """
    together, apart, released = evidence.together, evidence.apart, evidence.released
    fewest = max(_FEWEST_PHOTOS, _EXPLAINED * evidence.photos)
    if apart and apart.photos >= fewest and _loses(together, apart):
        counts = f"{together.photos} of {evidence.photos} photos with {together.observations} observations"
        each = f"a camera each registers {apart.photos} with {apart.observations}"
        return Verdict(False, f"one camera registers {counts}, {each}")
    if released and together.photos >= fewest:
        difference = f"{max(0.1, 100 * released.spread):.1f} %"
        if released.gain > _GAIN and released.spread > _SPREAD:
            return Verdict(False, f"the focal lengths of {together.photos} photos differ by {difference}")
        if released.spread > _SPREAD:  # weak geometry, which needs a shared camera most
            return Verdict(True, f"one camera explains {together.photos} photos nearly as well as a camera each")
        return Verdict(True, f"the focal lengths of {together.photos} photos agree within {difference}")
    return Verdict(None, "too few photos could be registered to compare their focal lengths")


def _loses(together: Mapped, apart: Mapped) -> bool:
    """Says whether one camera explains clearly less than a camera for each photo."""
    return together.photos < apart.photos * _LOST or together.observations < apart.observations * _LOST


def merge_groups(groups: Sequence[CameraGroup]) -> list[CameraGroup]:
    """Puts groups that share a camera first, and merges photos with a camera each into one group for each reason."""
    apart: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        if not group.shared:
            apart[group.reason] += group.names
    merged = [CameraGroup(tuple(names), False, reason) for reason, names in apart.items()]
    return [*(group for group in groups if group.shared), *merged]


def write_groups(groups: Sequence[CameraGroup]) -> str:
    """Writes groups as JSON, for `read_groups`."""
    return json.dumps([asdict(group) for group in groups])


def read_groups(text: str) -> list[CameraGroup]:
    """Reads groups that `write_groups` wrote; none from an empty text."""
    return [CameraGroup(**{**group, "names": tuple(group["names"])}) for group in json.loads(text or "[]")]
