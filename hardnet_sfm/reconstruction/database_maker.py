"""Makes database.db of a workspace: cameras, photos, keypoints, matches, and the verification of each pair.

The database has a table of our own. It notes from which features each photo came, and from which matches each pair.
So a later run changes only what differs: photos that came or went, new matches, and pairs that are not verified yet. If
options of verification changed, all pairs are verified again, in a copy. If cameras change, or most photos, a new
database is made next to the old one.

Each step can be repeated, because a photo or a pair that is not noted counts as new. So a killed run loses at most
the pairs that it was verifying.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.files.fingerprints import inputs_fingerprint, matched_keypoints
from hardnet_sfm.files.stores import FeatureStore, KeypointStore, MatchStore, pair_key
from hardnet_sfm.files.workspace import Workspace, digest
from hardnet_sfm.keypoints import PhotoPair
from hardnet_sfm.progress import progress
from hardnet_sfm.reconstruction.camera_groups import (
    GROUPS,
    CameraGroup,
    CameraTrials,
    read_groups,
    write_groups,
)
from hardnet_sfm.reconstruction.map_options import MapOptions

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does not need it
    from hardnet_sfm.colmap.two_view import Verification

# Number of photos whose descriptors stay in memory for guided matching, 10 MB each at 20000 keypoints.
_PHOTOS_AT_HAND = 64
# Keys of facts in a database: a digest of options, features and listed pairs, without pairs that a retry added; the
# fingerprint of the finished database that a retry extended; and the fingerprint that the database will have.
_MADE_OF, EXTENDS, _GOAL = "made of", "extends", "goal"
# Digests of the options that cameras and verification depend on.
_CAMERA_OPTIONS, _VERIFICATION = "camera options", "verification"
# Beginnings of keys. Fingerprints of a photo's features and keypoints follow a name, one of matches a pair's key.
_PHOTO, _PAIR = "photo ", "pair "


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
        """Brings database.db up to date, or makes a new database next to it. It resumes the work of a killed run.

        Returns:
            The path of the database that is up to date. The caller moves a new one into place when there is a model.

        Raises:
            HardnetSfmError: COLMAP cannot read a photo that is new, or the disk is full.
        """
        from hardnet_sfm.colmap import database as db
        from hardnet_sfm.colmap.log import native_log

        if db.read_fact(self.workspace.database, "fingerprint") == self.fingerprint:
            return self.workspace.database
        pairs, features, guided = self.matches.pairs(), self.features, self.options.guided_matching
        with native_log(self.workspace.logs):
            path = self._update()
            with db.Database(path) as database:
                due = database.unverified(pairs)
                with progress("verify", len(pairs), len(pairs) - len(due)) as advance:
                    pixels = {name: features.shrunk(name) for pair in due for name in pair}
                    guide = db.Guide(_unit_descriptors(features), features.max_ratio()) if guided else None
                    for first, second in database.verify(due, self._verification, self.threads, pixels, guide):
                        advance(note=f"{first} {second}")
        db.write_facts(path, {"fingerprint": self.fingerprint})
        if path != self._beside:
            self._beside.unlink(missing_ok=True)
        return path

    @property
    def _beside(self) -> Path:
        """Path of a new database while it is made."""
        return self.workspace.root / ".database.db.partial"

    @property
    def _verification(self) -> Verification:
        from hardnet_sfm.colmap.two_view import Verification

        return Verification(self.options.max_error, self.options.min_inliers, self.options.seed)

    def _update(self) -> Path:
        """Gives a database the present cameras, photos, keypoints and matches, and returns its path."""
        from hardnet_sfm.colmap import database as db
        from hardnet_sfm.colmap.cameras import import_photos

        features, matches = self.features, self.matches
        with matched_keypoints(self.workspace.view_keypoints, features, matches) as keypoints:
            path, groups = self._choose_database(keypoints)
            prints, photos = self._photo_facts(keypoints), db.camera_numbers(path)
            noted = {name: value for name, value in db.read_facts(path, _PHOTO).items() if name in photos}
            stays = {name for name in photos if _same_features(noted, prints, name)}
            db.remove_photos(path, photos.keys() - stays)
            shared = None if groups is None else [group.names for group in groups if group.shared]
            where = self.options.camera_setup(), self.workspace.readable, shared
            import_photos(path, self.images, features.names(), *where)
            due = [name for name in features.names() if name not in stays or noted[name] != prints[name]]
            if db.read_fact(path, _VERIFICATION) != self._verification_options:
                db.forget_verification(path)
            matched = db.read_facts(path, _PAIR)
            changed, gone = self._compare_matches(matched, db.matched_pairs(path))
            db.forget_pairs(path, gone)
            with db.Database(path) as database:
                database.write_keypoints(
                    (name, keypoints.keypoints(name), features.orientation(name), features.size(name)) for name in due
                )
                database.write_matches((a, b, matches.matches(a, b).pairs) for a, b in changed)
        wanted = matches.fingerprints()
        facts: dict[str, str | None] = {_PAIR + key: None for key in matched.keys() - wanted.keys()}
        facts |= {_PHOTO + name: None for name in noted.keys() - prints.keys()}
        facts |= {_PAIR + key: wanted[key] for key in (pair_key(*pair) for pair in changed)}
        facts |= {_PHOTO + name: prints[name] for name in due}
        db.write_facts(path, {**facts, _VERIFICATION: self._verification_options})
        return path

    def _compare_matches(
        self, noted: Mapping[str, str], there: Sequence[PhotoPair]
    ) -> tuple[list[PhotoPair], list[PhotoPair]]:
        """Compares the matches in the database with those in the store.

        Args:
            noted: fingerprint of the matches in the database by the key of their pair.
            there: pairs that have matches in the database.

        Returns:
            Pairs whose matches are new or changed, and pairs whose matches in the database are to be removed.
        """
        prints, ends = self.matches.fingerprints(), {frozenset(pair) for pair in there}
        same = {key for key, value in prints.items() if noted.get(key) == value}
        changed = [pair for pair in self.matches.pairs() if pair_key(*pair) not in same or frozenset(pair) not in ends]
        kept = ends & {frozenset(pair) for pair in self.matches.pairs()} - {frozenset(pair) for pair in changed}
        return changed, [pair for pair in there if frozenset(pair) not in kept]

    def _choose_database(self, keypoints: KeypointStore) -> tuple[Path, list[CameraGroup] | None]:
        """Chooses the database to change, and decides which photos share a camera.

        It continues a new database that a killed run was making. Otherwise it takes the finished database if most of
        its photos stay and keep their cameras, or else it begins a new one. Before the first change it notes that the
        database is no longer up to date.

        Returns:
            Path of the database, and groups of photos; None if the options say which photos share a camera.
        """
        from hardnet_sfm.colmap import database as db

        path, beside, prints = self.workspace.database, self._beside, self._photo_facts(keypoints)
        if db.read_fact(beside, _GOAL) == self.fingerprint:
            return beside, self._decide(keypoints, read_groups(db.read_fact(beside, GROUPS)))
        noted, cameras = db.read_facts(path, _PHOTO), db.camera_numbers(path)
        kept = {name for name in cameras if _same_features(noted, prints, name)}
        known: list[CameraGroup] = []
        if db.read_fact(path, _CAMERA_OPTIONS) == self._camera_options:
            if db.read_fact(path, _VERIFICATION) == self._verification_options:  # trials depend on them
                groups_before = read_groups(db.read_fact(path, GROUPS))
                known = [replace(of, names=tuple(n for n in of.names if n in kept)) for of in groups_before]
            groups = self._decide(keypoints, known)
            fits = groups is None or _keeps_cameras({name: cameras[name] for name in kept}, groups)
            extends = 2 * len(kept) >= len(cameras) > 0 and fits
        else:
            groups, extends = self._decide(keypoints, known), False
        facts = {_GOAL: self.fingerprint, "fingerprint": "", EXTENDS: "", _MADE_OF: self._made_of}
        facts |= {_CAMERA_OPTIONS: self._camera_options, GROUPS: write_groups(groups or [])}
        if extends:
            if db.read_fact(path, _MADE_OF) == self._made_of:  # only pairs of a retry came or changed
                facts[EXTENDS] = db.read_fact(path, "fingerprint") or db.read_fact(path, EXTENDS)
            if db.read_fact(path, _VERIFICATION) != self._verification_options:
                db.copy_database(path, beside)  # the verified pairs of the last model stay until there is a new one
                path = beside
        else:
            path = beside
            path.unlink(missing_ok=True)
        db.write_facts(path, facts)
        return path, groups

    def _decide(self, keypoints: KeypointStore, known: list[CameraGroup]) -> list[CameraGroup] | None:
        """Decides which photos share a camera; None if the options say so."""
        options = self.options
        if options.camera_mode != "auto":
            return None
        where = (self._verification, options.fix_intrinsics, self.threads, self.workspace.trial)
        trials = CameraTrials(self.features, self.matches, keypoints, options.camera_setup(), *where)
        return trials.decide(self.images, known)

    def _photo_facts(self, keypoints: KeypointStore) -> dict[str, str]:
        """Returns what the database notes of each photo: fingerprints of its features and keypoints."""
        of_keypoints = keypoints.fingerprints()
        return {name: f"{features}\n{of_keypoints[name]}" for name, features in self.features.fingerprints().items()}

    @property
    def _made_of(self) -> str:
        made_of = self.matches.header.get("made_of")
        return digest("database", self.options.of_database(), self.features.fingerprints(), made_of)

    @property
    def _camera_options(self) -> str:
        return digest("cameras", self.options.of_cameras())

    @property
    def _verification_options(self) -> str:
        return digest("verification", self.options.of_verification())


def _same_features(noted: Mapping[str, str], prints: Mapping[str, str], name: str) -> bool:
    """Says whether a photo in the database comes from the present features."""
    return name in noted and name in prints and noted[name].partition("\n")[0] == prints[name].partition("\n")[0]


def _keeps_cameras(cameras: Mapping[str, int], groups: Sequence[CameraGroup]) -> bool:
    """Says whether photos can keep their cameras.

    They can if each group that shares a camera has one, and each other photo has its own.

    Args:
        cameras: numbers of the cameras by photo name.
        groups: groups of these and other photos.
    """
    used: list[int] = []
    for group in groups:
        numbers = [cameras[name] for name in group.names if name in cameras]
        used += set(numbers) if group.shared else numbers
        if group.shared and len(set(numbers)) > 1:
            return False
    return len(used) == len(set(used))


def _unit_descriptors(features: FeatureStore) -> Callable[[str], NDArray[np.float32]]:
    """Returns a function that reads descriptors of photos and keeps some of them in memory."""

    @lru_cache(_PHOTOS_AT_HAND)
    def read(name: str) -> NDArray[np.float32]:
        rows = features.descriptors(name).astype(np.float32)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows

    return read
