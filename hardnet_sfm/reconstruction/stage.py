"""The stage `map`: features.h5 and matches.h5 to database.db, sparse/ and summary.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.fingerprints import inputs_fingerprint, matched_keypoints, stale_pairs
from hardnet_sfm.images import sha256_of
from hardnet_sfm.progress import progress
from hardnet_sfm.reconstruction.cameras import (
    GROUPS,
    GROUPS_OF,
    CameraTrials,
    find_candidates,
    read_groups,
    write_groups,
)
from hardnet_sfm.reconstruction.options import MapOptions
from hardnet_sfm.reconstruction.summary import explain_failure, summarize, what_was_found
from hardnet_sfm.resources import Resources
from hardnet_sfm.stores import FeatureStore, MatchStore, pair_key
from hardnet_sfm.workspace import Workspace, digest, locked, read_json, write_json

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does without
    from hardnet_sfm.colmap.mappers import Mapped
    from hardnet_sfm.colmap.mapping import Mapping
    from hardnet_sfm.colmap.model import Model
    from hardnet_sfm.colmap.two_view import Verification

# Of the mapper's bundle adjustments. The robust adjustment follows, so all iterations would take a fifth of the time of
# mapping for nothing: lund-door and saharov32 have the same points and errors.
_CONVERGED = 1e-5
# Photos whose descriptors guided matching keeps, 10 MB each at 20000 keypoints.
_PHOTOS_AT_HAND = 64
# Facts of a database: what its photos, cameras and first matches are of, the fingerprint of each pair's matches, and
# the fingerprint of the database that another round was added to.
_MADE_OF, _MATCHED, _EXTENDS = "made of", "matched", "extends"


def map_photos(
    workspace: Workspace | Path | str,
    options: MapOptions | None = None,
    resources: Resources | None = None,
    *,
    images: Path | str | None = None,
) -> Model:
    """Imports photos, keypoints and matches into a COLMAP database, verifies each pair and maps.

    Makes `database.db`, `sparse/0` (the largest model), `sparse/1` and so on, and `summary.json`. A second run does
    what is left: pairs that were verified stay so, and the incremental mapper goes on from its last snapshot. Where
    pairs were matched for photos that the models left out (`hardnet_sfm.retry`), these alone are verified, and the
    incremental mapper goes on from the models.

    Args:
        workspace: with features.h5 and matches.h5.
        options: how.
        resources: how much of the machine.
        images: folder of the photos, where it is no longer the one that features were made from.

    Returns:
        The largest model.

    Raises:
        HardnetSfmError: no model could be made (it says what was found), inputs are missing or damaged, or matches are
            not those of the features and the list of pairs that are there now.
        UsageError: an option makes no sense.
    """
    from hardnet_sfm.colmap.database import read_fact

    options, resources = options or MapOptions(), resources or Resources()
    options.check()
    workspace = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    with locked(workspace.root):
        with FeatureStore(workspace.features) as features, MatchStore(workspace.matches) as matches:
            _check_matched(workspace, features, matches)
            images = Path(images or features.header["images"])
            fingerprint = database_fingerprint(features, matches, options)
            _make_database(workspace, images, features, matches, options, resources, fingerprint)
            found = what_was_found(features, matches)
            rounds = matches.header.get("rounds", [])
        wanted = digest("model", fingerprint, options.of_mapper())
        models = _finished_models(workspace, wanted)
        if not models:
            extended = read_fact(workspace.database, _EXTENDS)
            start = _finished_models(workspace, digest("model", extended, options.of_mapper())) if rounds else []
            if start:
                mapped = _go_on(workspace, images, options, resources, start, rounds[-1])
            else:
                mapped = _make_models(workspace, images, options, resources)
            models = mapped.models
            summary = {"fingerprint": wanted, **summarize(workspace, options, found, mapped)}
            write_json(workspace.summary, summary)
        if not models:
            raise explain_failure(read_json(workspace.summary))
        return models[0]


def _check_matched(workspace: Workspace, features: FeatureStore, matches: MatchStore) -> None:
    """Raises HardnetSfmError where matches were made of other features, or for another list of pairs."""
    stale = stale_pairs(features, matches)
    if stale:
        raise HardnetSfmError(
            f"{workspace.matches}: {len(stale)} of {len(matches.pairs())} pairs were matched from other features than "
            f"those in {workspace.features.name}",
            "Run `hardnet-sfm pair` and `hardnet-sfm match` first.",
        )
    if workspace.pairs.is_file() and sha256_of(workspace.pairs) != matches.header["pairs"]:
        raise HardnetSfmError(
            f"{workspace.matches}: matches of another list of pairs than {workspace.pairs.name}",
            "Run `hardnet-sfm match` first.",
        )


def database_fingerprint(features: FeatureStore, matches: MatchStore, options: MapOptions) -> str:
    """What decides whether database.db is up to date."""
    return digest("database", options.of_database(), inputs_fingerprint(features, matches))


def _make_database(
    workspace: Workspace,
    images: Path,
    features: FeatureStore,
    matches: MatchStore,
    options: MapOptions,
    resources: Resources,
    fingerprint: str,
) -> None:
    """Makes database.db beside its place, or goes on with one that a killed run left there."""
    from hardnet_sfm.colmap.database import Database, Guide, read_fact, replace_database
    from hardnet_sfm.colmap.log import native_log
    from hardnet_sfm.colmap.two_view import Verification

    if read_fact(workspace.database, "fingerprint") == fingerprint:
        return
    if not images.is_dir():
        raise HardnetSfmError(f"the photos are no longer in {images}", "Say where they are with --images FOLDER.")
    beside, pairs = workspace.root / ".database.db.partial", matches.pairs()
    how = Verification(options.max_error, options.min_inliers, options.seed)
    with native_log(workspace.logs):
        if read_fact(beside, "fingerprint") != fingerprint:
            _fill_database(workspace, images, features, matches, options, how, resources.threads, beside, fingerprint)
        with Database(beside) as database:
            due = database.unverified(pairs)
            with progress("verify", len(pairs), len(pairs) - len(due)) as advance:
                pixels = {name: features.shrunk(name) for name in features.names()}
                guide = Guide(_unit_descriptors(features), features.max_ratio()) if options.guided_matching else None
                for first, second in database.verify(due, how, resources.threads, pixels, guide):
                    advance(note=f"{first} {second}")
    replace_database(beside, workspace.database)


def _fill_database(
    workspace: Workspace,
    images: Path,
    features: FeatureStore,
    matches: MatchStore,
    options: MapOptions,
    how: Verification,
    threads: int,
    beside: Path,
    fingerprint: str,
) -> None:
    """Makes a database with cameras, photos, keypoints and matches.

    Where matches were added in another round for photos that were left out, it is a copy of the finished database, with
    all that was verified; the matches of other pairs are new.
    """
    from hardnet_sfm.colmap.cameras import import_photos
    from hardnet_sfm.colmap.database import Database, copy_database, read_fact, write_fact

    names, prints = features.names(), matches.fingerprints()
    made_of = digest("database", options.of_database(), features.fingerprints(), matches.header.get("made_of"))
    extends = bool(matches.header.get("rounds")) and read_fact(workspace.database, _MADE_OF) == made_of
    with matched_keypoints(workspace.view_keypoints, features, matches) as keypoints:
        if extends:
            copy_database(workspace.database, beside)
            known = json.loads(read_fact(beside, _MATCHED))
            before = read_fact(beside, "fingerprint")
            write_fact(beside, "fingerprint", "")
        else:
            known, before = {}, ""
            shared: list[tuple[str, ...]] | None = None
            if options.camera_mode == "auto":
                where = (options.camera_setup(), how, options.fix_intrinsics, threads, workspace.trial)
                trials = CameraTrials(features, matches, keypoints, *where)
                shared = _shared_cameras(beside, images, trials, fingerprint)
            else:
                beside.unlink(missing_ok=True)
            import_photos(beside, images, names, options.camera_setup(), workspace.readable, shared)
        changed = [pair for pair in matches.pairs() if known.get(key := pair_key(*pair)) != prints[key]]
        with Database(beside) as database:
            database.write_keypoints(
                (name, keypoints.keypoints(name), features.orientation(name), features.size(name)) for name in names
            )
            database.forget(changed)
            database.write_matches((a, b, matches.matches(a, b).pairs) for a, b in changed)
    for fact, value in ((_MADE_OF, made_of), (_MATCHED, json.dumps(prints)), (_EXTENDS, before)):
        write_fact(beside, fact, value)
    write_fact(beside, "fingerprint", fingerprint)


def _unit_descriptors(features: FeatureStore) -> Callable[[str], NDArray[np.float32]]:
    """Reads descriptors of photos, of which some are kept."""

    @lru_cache(_PHOTOS_AT_HAND)
    def read(name: str) -> NDArray[np.float32]:
        rows = features.descriptors(name).astype(np.float32)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows

    return read


def _shared_cameras(beside: Path, images: Path, trials: CameraTrials, fingerprint: str) -> list[tuple[str, ...]]:
    """Decides which photos share a camera, and starts the database with the decision, which a killed run left there."""
    from hardnet_sfm.colmap.database import read_fact, write_fact

    groups = read_groups(read_fact(beside, GROUPS)) if read_fact(beside, GROUPS_OF) == fingerprint else None
    if groups is None:
        groups = trials.decide(find_candidates(trials.features, images))
    beside.unlink(missing_ok=True)
    write_fact(beside, GROUPS, write_groups(groups))
    write_fact(beside, GROUPS_OF, fingerprint)
    return [group.names for group in groups if group.shared]


def _mapping_of(options: MapOptions, resources: Resources) -> Mapping:
    """The options of the mapper in COLMAP's terms."""
    from hardnet_sfm.colmap.mapping import Mapping

    return Mapping(
        mapper="global" if options.mapper == "global" else "incremental",
        fix_intrinsics=options.fix_intrinsics,
        refine_principal_point=options.refine_principal_point,
        grow_distortion=options.grow_distortion(),
        min_model_size=options.min_model_size,
        threads=resources.threads,
        seed=options.seed,
        converged=_CONVERGED,
    )


def _make_models(workspace: Workspace, images: Path, options: MapOptions, resources: Resources) -> Mapped:
    from hardnet_sfm.colmap.cameras import readable_folder
    from hardnet_sfm.colmap.database import Database, read_fact
    from hardnet_sfm.colmap.log import native_log
    from hardnet_sfm.colmap.mappers import Mapped, map_best
    from hardnet_sfm.colmap.recovery import recover

    with Database(workspace.database) as database:
        names = list(database.ids)
        guessed = database.guessed_cameras() if options.fix_intrinsics and not options.camera_params else 0
        if guessed:
            raise HardnetSfmError(
                f"--fix-intrinsics: nothing is known of {guessed} of {database.cameras()} cameras: no focal length in "
                "their photos' EXIF data",
                "State the camera with --camera-params, or leave out --fix-intrinsics.",
            )
        verified = database.verified()
    print_of_database = read_fact(workspace.database, "fingerprint")
    snapshot = workspace.root / f".snapshot-{digest(print_of_database, options.of_mapper())[:12]}"
    with native_log(workspace.logs), progress("map", len(names)) as advance:
        shown = 0

        def on_registered(registered: int) -> None:
            nonlocal shown
            advance(registered - shown)
            shown = registered

        mapped = Mapped([], options.mapper, {})
        if verified:
            folder, mapping = readable_folder(images, names, workspace.readable), _mapping_of(options, resources)
            mapped = map_best(workspace.database, folder, snapshot, options.mapper, mapping, verified, on_registered)
            mapped = recover(mapped, workspace.database, folder, mapping) if options.retry else mapped
    _replace_models(workspace, mapped.models)
    return mapped


def _go_on(
    workspace: Workspace, images: Path, options: MapOptions, resources: Resources, start: list[Model], new: str
) -> Mapped:
    """Goes on from models whose database has got matches from a round for photos that they left out."""
    from hardnet_sfm.colmap.cameras import readable_folder
    from hardnet_sfm.colmap.database import Database
    from hardnet_sfm.colmap.log import native_log
    from hardnet_sfm.colmap.mappers import Mapped, Step
    from hardnet_sfm.colmap.recovery import recover, with_keypoints_of

    summary = read_json(workspace.summary)
    steps = tuple(Step(**step) for step in summary["recovered"])
    with native_log(workspace.logs):
        with Database(workspace.database) as database:
            folder = readable_folder(images, list(database.ids), workspace.readable)
        models = [with_keypoints_of(model, workspace.database) for model in start]
        mapped = Mapped(models, summary["mapper"], summary["tried"], steps)
        mapped = recover(mapped, workspace.database, folder, _mapping_of(options, resources), new)
    _replace_models(workspace, mapped.models)
    return mapped


def _replace_models(workspace: Workspace, models: list[Model]) -> None:
    """Puts models in the place of those of the workspace, and removes its summary, which is of those."""
    beside = workspace.root / ".sparse.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    for number, model in enumerate(models):
        model.write(beside / str(number))
    # From here until the new summary is there, a killed run leaves none that vouches for another run's models.
    workspace.summary.unlink(missing_ok=True)
    left = (path for pattern in (".snapshot-*", ".global-*", ".recovery-*") for path in workspace.root.glob(pattern))
    for old in (workspace.sparse, workspace.readable, *left):
        shutil.rmtree(old, ignore_errors=True)
    if models:
        beside.rename(workspace.sparse)


def _finished_models(workspace: Workspace, fingerprint: str) -> list[Model]:
    """The models of an earlier run, where they are up to date."""
    from hardnet_sfm.colmap.model import Model

    try:
        summary = read_json(workspace.summary) if workspace.summary.is_file() else {}
        if summary.get("fingerprint") != fingerprint:
            return []
        return [Model.read(workspace.sparse / str(number)) for number in range(len(summary["models"]))]
    except HardnetSfmError:
        return []  # damaged, so they are made again
