"""Makes database.db of a workspace: cameras, photos, keypoints, matches, and the verification of each pair."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.fingerprints import inputs_fingerprint, matched_keypoints
from hardnet_sfm.files.stores import FeatureStore, KeypointStore, MatchStore, pair_key
from hardnet_sfm.files.workspace import Workspace, digest
from hardnet_sfm.progress import progress
from hardnet_sfm.reconstruction.camera_groups import (
    GROUPS,
    GROUPS_OF,
    CameraTrials,
    find_candidates,
    read_groups,
    write_groups,
)
from hardnet_sfm.reconstruction.map_options import MapOptions

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does not need it
    from hardnet_sfm.colmap.two_view import Verification

# Number of photos whose descriptors stay in memory for guided matching, 10 MB each at 20000 keypoints.
_PHOTOS_AT_HAND = 64
# Keys of facts in a database: the fingerprint of the inputs of its photos, cameras and first matches; the fingerprint
# of each pair's matches; and the fingerprint of the database that another round extended.
_MADE_OF, _MATCHED, EXTENDS = "made of", "matched", "extends"


@dataclass(frozen=True)
class DatabaseMaker:
    """Makes the database of a workspace.

    Attributes:
        workspace: workspace of the database.
        images: folder of the photos.
        features, matches: the open stores.
        options: options of the stage `map`.
        threads: number of threads for verification.
    """

    workspace: Workspace
    images: Path
    features: FeatureStore
    matches: MatchStore
    options: MapOptions
    threads: int

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of everything that the database depends on."""
        return digest("database", self.options.of_database(), inputs_fingerprint(self.features, self.matches))

    def make(self) -> Path:
        """Makes a database next to database.db if that is not up to date, and resumes the file of a killed run.

        Returns:
            The path of the database that is up to date. The caller moves it into place when there is a model.

        Raises:
            HardnetSfmError: the folder of photos does not exist.
        """
        from hardnet_sfm.colmap.database import Database, Guide, read_fact
        from hardnet_sfm.colmap.log import native_log

        if read_fact(self.workspace.database, "fingerprint") == self.fingerprint:
            return self.workspace.database
        if not self.images.is_dir():
            raise HardnetSfmError(
                f"the photos are no longer in {self.images}", "Say where they are with --images FOLDER."
            )
        beside, pairs = self.workspace.root / ".database.db.partial", self.matches.pairs()
        features = self.features
        with native_log(self.workspace.logs):
            if read_fact(beside, "fingerprint") != self.fingerprint:
                self._fill(beside)
            with Database(beside) as database:
                due = database.unverified(pairs)
                with progress("verify", len(pairs), len(pairs) - len(due)) as advance:
                    pixels = {name: features.shrunk(name) for name in features.names()}
                    guided = self.options.guided_matching
                    guide = Guide(_unit_descriptors(features), features.max_ratio()) if guided else None
                    for first, second in database.verify(due, self._verification, self.threads, pixels, guide):
                        advance(note=f"{first} {second}")
        return beside

    @property
    def _verification(self) -> Verification:
        from hardnet_sfm.colmap.two_view import Verification

        return Verification(self.options.max_error, self.options.min_inliers, self.options.seed)

    def _fill(self, beside: Path) -> None:
        """Makes a database with cameras, photos, keypoints and matches.

        Another round may have added matches for photos that were left out. Then it is a copy of the finished database
        with all verified pairs, and only new or changed matches are written.
        """
        from hardnet_sfm.colmap.database import Database, copy_database, read_fact, write_fact

        workspace, features, matches = self.workspace, self.features, self.matches
        prints = matches.fingerprints()
        made_of = digest("database", self.options.of_database(), features.fingerprints(), matches.header.get("made_of"))
        extends = bool(matches.header.get("rounds")) and read_fact(workspace.database, _MADE_OF) == made_of
        with matched_keypoints(workspace.view_keypoints, features, matches) as keypoints:
            if extends:
                copy_database(workspace.database, beside)
                known = json.loads(read_fact(beside, _MATCHED))
                before = read_fact(beside, "fingerprint")
                write_fact(beside, "fingerprint", "")
            else:
                known, before = {}, ""
                self._start(beside, keypoints)
            changed = [pair for pair in matches.pairs() if known.get(key := pair_key(*pair)) != prints[key]]
            with Database(beside) as database:
                database.write_keypoints(
                    (name, keypoints.keypoints(name), features.orientation(name), features.size(name))
                    for name in features.names()
                )
                database.forget(changed)
                database.write_matches((a, b, matches.matches(a, b).pairs) for a, b in changed)
        for fact, value in ((_MADE_OF, made_of), (_MATCHED, json.dumps(prints)), (EXTENDS, before)):
            write_fact(beside, fact, value)
        write_fact(beside, "fingerprint", self.fingerprint)

    def _start(self, beside: Path, keypoints: KeypointStore) -> None:
        """Makes a database with cameras and photos."""
        from hardnet_sfm.colmap.cameras import import_photos

        options = self.options
        shared: list[tuple[str, ...]] | None = None
        if options.camera_mode == "auto":
            where = (self._verification, options.fix_intrinsics, self.threads, self.workspace.trial)
            trials = CameraTrials(self.features, self.matches, keypoints, options.camera_setup(), *where)
            shared = _shared_cameras(beside, self.images, trials, self.fingerprint)
        else:
            beside.unlink(missing_ok=True)
        names = self.features.names()
        import_photos(beside, self.images, names, options.camera_setup(), self.workspace.readable, shared)


def _unit_descriptors(features: FeatureStore) -> Callable[[str], NDArray[np.float32]]:
    """Returns a function that reads descriptors of photos and keeps some of them in memory."""

    @lru_cache(_PHOTOS_AT_HAND)
    def read(name: str) -> NDArray[np.float32]:
        rows = features.descriptors(name).astype(np.float32)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows

    return read


def _shared_cameras(beside: Path, images: Path, trials: CameraTrials, fingerprint: str) -> list[tuple[str, ...]]:
    """Decides which photos share a camera, and starts the database with the decision.

    It reuses the decision that a killed run left there.
    """
    from hardnet_sfm.colmap.database import read_fact, write_fact

    groups = read_groups(read_fact(beside, GROUPS)) if read_fact(beside, GROUPS_OF) == fingerprint else None
    if groups is None:
        groups = trials.decide(find_candidates(trials.features, images))
    beside.unlink(missing_ok=True)
    write_fact(beside, GROUPS, write_groups(groups))
    write_fact(beside, GROUPS_OF, fingerprint)
    return [group.names for group in groups if group.shared]
