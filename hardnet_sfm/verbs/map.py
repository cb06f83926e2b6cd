"""The command `map` turns features.h5 and matches.h5 into database.db, sparse/ and summary.json."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.fingerprints import stale_pairs, what_changed
from hardnet_sfm.files.ledger import Ledger, say_again
from hardnet_sfm.files.ownership import claim, replacing_output
from hardnet_sfm.files.photo_checks import check_photos
from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.stores import FeatureStore, MatchStore
from hardnet_sfm.files.workspace import (
    Workspace,
    digest,
    locked,
    read_json,
    replace_folder,
    restore_folder,
    write_json,
)
from hardnet_sfm.photo_names import as_on_disk
from hardnet_sfm.progress import console as errors
from hardnet_sfm.progress import progress
from hardnet_sfm.reconstruction.camera_checks import check_cameras
from hardnet_sfm.reconstruction.database_maker import EXTENDS, DatabaseMaker
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.reconstruction.summary import explain_failure, summarize, what_was_found
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import Common, output

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does without
    from hardnet_sfm.colmap.mappers import Mapped
    from hardnet_sfm.colmap.mapping import Mapping
    from hardnet_sfm.colmap.model import Model

MADE = ("database.db", "sparse", "summary.json")
"""Outputs of the stage in the workspace."""
_GROUPS = 3  # camera groups to print; the summary lists all
_NAMED = 20  # photos outside the model to print; the summary lists all
# Convergence threshold of the mapper's bundle adjustments. A robust adjustment follows, so running all iterations would
# cost a fifth of the mapping time without a gain: lund-door and saharov32 get the same points and errors.
_CONVERGED = 1e-5


def map_photos(
    workspace: Workspace | Path | str,
    options: MapOptions | None = None,
    resources: Resources | None = None,
    *,
    images: Path | str | None = None,
) -> Model:
    """Imports photos, keypoints and matches into a COLMAP database, verifies each pair and maps.

    The stage writes `database.db`, `sparse/0` (the largest model), `sparse/1` and so on, and `summary.json`. They
    replace those of an earlier run only if there is a new model. A second run does only the remaining work: verified
    pairs stay verified, and the incremental mapper resumes from its last snapshot. A retry may have added pairs for
    photos that the models left out, see `hardnet_sfm.reconstruction.left_out`. In that case only the added pairs are
    verified, and the incremental mapper resumes from the models.

    Args:
        workspace: workspace with features.h5 and matches.h5.
        options: options of verification and mapping. None means those that the workspace remembers, or the defaults.
        resources: threads and device to use.
        images: folder of the photos, if they moved since their features were extracted.

    Returns:
        The largest model.

    Raises:
        HardnetSfmError: no model could be made (the message says what was found), an input is missing or damaged,
            photos have another size than their features, or the matches do not belong to the present features and list
            of pairs.
        UsageError: an option is invalid.
    """
    from hardnet_sfm.colmap.database import replace_database

    resources = resources or Resources()
    workspace = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    ledger = Ledger(workspace.root)
    options = options or ledger.recall("map", MapOptions) or MapOptions()
    options.check()
    claim(workspace.root, *MADE)
    with locked(workspace.root):
        restore_folder(workspace.sparse)
        with FeatureStore(workspace.features) as features, MatchStore(workspace.matches) as matches:
            _check_matched(workspace, features, matches)
            check_cameras(options, features)
            images = Path(images or features.header["images"])
            check_photos(images, features)
            maker = DatabaseMaker(workspace, images, features, matches, options, resources.threads)
            wanted = digest("model", maker.fingerprint, options.of_mapper())
            models = _finished_models(workspace, wanted)
            rounds = matches.header.get("rounds", [])
            if not models and not rounds:
                _announce(workspace, options, len(features.names()))
            if not models:
                _check_present(images, features.names())
            start = time.perf_counter()
            database = maker.make()
            found = what_was_found(features, matches)
        if models:
            if database != workspace.database:
                replace_database(database, workspace.database)
        else:
            attempt = _Attempt(workspace, database, images, options, resources)
            models = _map(attempt, found, rounds, wanted)
            photos = len(found["photos"])
            if not rounds:  # a retry takes less time than the whole
                ledger.note_seconds("map", time.perf_counter() - start, photos, photos)
        ledger.remember("map", options)
        return models[0]


def _announce(workspace: Workspace, options: MapOptions, photos: int) -> None:
    """Says that an existing model is made again, why, and how long that took the last time."""
    before = _summary_before(workspace)
    if before.get("models"):
        earlier = before.get("options", {}).get("map", {})
        why = what_changed({"options": earlier}, asdict(options))
        say_again(Ledger(workspace.root), "map", f"{photos} photos", why or "photos or matches changed")


def _summary_before(workspace: Workspace) -> dict[str, Any]:
    """Reads the summary of an earlier run; empty if there is none, or if it is damaged and therefore made again."""
    try:
        return read_json(workspace.summary) if workspace.summary.is_file() else {}
    except HardnetSfmError:
        return {}


@dataclass(frozen=True)
class _Attempt:
    """What models are made from.

    Attributes:
        workspace: workspace to put the models into.
        database: COLMAP database with verified matches, in the workspace or next to its own.
        images: folder of the photos.
        options: options of the stage.
        resources: threads and device to use.
    """

    workspace: Workspace
    database: Path
    images: Path
    options: MapOptions
    resources: Resources


def _map(attempt: _Attempt, found: dict[str, Any], rounds: Sequence[str], wanted: str) -> list[Model]:
    """Makes models and puts them into the workspace, together with their database and their summary.

    If there is no new model, an earlier one stays with its database and its summary.
    """
    from hardnet_sfm.colmap.database import read_fact

    workspace, database, options = attempt.workspace, attempt.database, attempt.options
    extended = read_fact(database, EXTENDS)
    start = _finished_models(workspace, digest("model", extended, options.of_mapper())) if rounds else []
    mapped = _go_on(attempt, start, rounds[-1]) if start else _make_models(attempt)
    summary = {"fingerprint": wanted, **summarize(database, options, found, mapped)}
    kept = not mapped.models and (workspace.sparse / "0").is_dir()
    if not kept:
        _publish(workspace, database, mapped.models, summary)
    _remove_leftovers(workspace)
    if not mapped.models:
        database = database if kept else workspace.database
        raise explain_failure(summary, database, kept=kept, left_out=_in_no_model(workspace, database))
    return mapped.models


def _in_no_model(workspace: Workspace, database: Path) -> list[str]:
    """Returns the names of the photos of a database that no model of the workspace has."""
    from hardnet_sfm.colmap.database import camera_numbers
    from hardnet_sfm.colmap.model import Model

    folders = sorted(workspace.sparse.glob("[0-9]*")) if workspace.sparse.is_dir() else []
    known: set[str] = set()
    for folder in folders:
        with suppress(HardnetSfmError):  # a damaged model has no photos
            known.update(Model.read(folder).names)
    return [name for name in camera_numbers(database) if name not in known]


def _check_present(images: Path, names: Sequence[str]) -> None:
    """Raises HardnetSfmError if photos are missing. COLMAP would leave their points black without a word."""
    if not images.is_dir():
        raise HardnetSfmError(f"the photos are no longer in {images}", "Say where they are with --images FOLDER.")
    missing = [name for name in names if not as_on_disk(images / name).is_file()]
    if missing:
        raise HardnetSfmError(
            f"{images / missing[0]}: missing ({len(missing)} of {len(names)} photos)",
            "Put the photos back, or say where they are with --images FOLDER. Or run `hardnet-sfm extract` again.",
        )


def _check_matched(workspace: Workspace, features: FeatureStore, matches: MatchStore) -> None:
    """Raises HardnetSfmError if the matches were made from other features or for another list of pairs."""
    stale = stale_pairs(features, matches)
    if stale:
        raise HardnetSfmError(
            f"{workspace.matches}: {len(stale)} of {len(matches.pairs())} pairs were matched from other features than "
            f"those in {workspace.features.name}",
            "Run `hardnet-sfm pair` and `hardnet-sfm match` first.",
        )
    if workspace.pairs.is_file() and sha256_of(workspace.pairs) != matches.header["pairs"]:
        raise HardnetSfmError(
            f"{workspace.matches}: made from another list of pairs than {workspace.pairs.name}",
            "Run `hardnet-sfm match` first.",
        )


def _mapping_of(options: MapOptions, resources: Resources) -> Mapping:
    """Translates the options of the mapper into COLMAP's terms."""
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


def _make_models(attempt: _Attempt) -> Mapped:
    from hardnet_sfm.colmap.cameras import readable_folder
    from hardnet_sfm.colmap.database import Database, read_fact
    from hardnet_sfm.colmap.log import native_log
    from hardnet_sfm.colmap.mappers import Mapped, map_best
    from hardnet_sfm.colmap.recovery import recover

    workspace, path, options = attempt.workspace, attempt.database, attempt.options
    with Database(path) as database:
        names = list(database.ids)
        guessed = database.guessed_cameras() if options.fix_intrinsics and not options.camera_params else 0
        if guessed:
            raise HardnetSfmError(
                f"--fix-intrinsics: {guessed} of {database.cameras()} cameras have no focal length in the EXIF data of "
                "their photos",
                "State the camera with --camera-params, or leave out --fix-intrinsics.",
            )
        verified = database.verified()
        database.check_inliers()
    print_of_database = read_fact(path, "fingerprint")
    snapshot = workspace.root / f".snapshot-{digest(print_of_database, options.of_mapper())[:12]}"
    with native_log(workspace.logs), progress("map", len(names)) as advance:
        shown = 0

        def on_registered(registered: int) -> None:
            nonlocal shown
            advance(registered - shown)
            shown = registered

        mapped = Mapped([], options.mapper, {})
        if verified:
            folder = readable_folder(attempt.images, names, workspace.readable)
            mapping = _mapping_of(options, attempt.resources)
            mapped = map_best(path, folder, snapshot, options.mapper, mapping, verified, on_registered)
            mapped = recover(mapped, path, folder, mapping) if options.retry else mapped
    return mapped


def _go_on(attempt: _Attempt, start: list[Model], new: str) -> Mapped:
    """Extends existing models after a retry added matches to the database for photos that the models left out."""
    from hardnet_sfm.colmap.cameras import readable_folder
    from hardnet_sfm.colmap.database import Database
    from hardnet_sfm.colmap.log import native_log
    from hardnet_sfm.colmap.mappers import Mapped, Step
    from hardnet_sfm.colmap.recovery import recover, with_keypoints_of

    workspace, path = attempt.workspace, attempt.database
    summary = read_json(workspace.summary)
    steps = tuple(Step(**step) for step in summary["recovered"])
    with native_log(workspace.logs):
        with Database(path) as database:
            folder = readable_folder(attempt.images, list(database.ids), workspace.readable)
        models = [with_keypoints_of(model, path) for model in start]
        mapped = Mapped(models, summary["mapper"], summary["tried"], steps)
        return recover(mapped, path, folder, _mapping_of(attempt.options, attempt.resources), new)


def _publish(workspace: Workspace, database: Path, models: list[Model], summary: dict[str, Any]) -> None:
    """Replaces the database, the models and the summary of the workspace."""
    from hardnet_sfm.colmap.database import replace_database

    beside = workspace.root / ".sparse.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    for number, model in enumerate(models):
        model.write(beside / str(number))
    if database != workspace.database:
        replace_database(database, workspace.database)
    # If the run is killed in between, no summary may declare the models up to date. Without a fingerprint, it does not.
    if before := _summary_before(workspace):
        write_json(workspace.summary, {**before, "fingerprint": ""})
    if models:
        with replacing_output(Ledger(workspace.root), workspace.sparse.name) as target:
            replace_folder(beside, target)
    write_json(workspace.summary, summary)


def _remove_leftovers(workspace: Workspace) -> None:
    """Removes working files of the mapper."""
    left = (path for pattern in (".snapshot-*", ".global-*", ".recovery-*") for path in workspace.root.glob(pattern))
    for old in (workspace.readable, *left):
        shutil.rmtree(old, ignore_errors=True)


def _finished_models(workspace: Workspace, fingerprint: str) -> list[Model]:
    """Reads the models of an earlier run if they are up to date."""
    from hardnet_sfm.colmap.model import Model

    summary = _summary_before(workspace)
    if summary.get("fingerprint") != fingerprint:
        return []
    try:
        return [Model.read(workspace.sparse / str(number)) for number in range(len(summary["models"]))]
    except HardnetSfmError:
        return []  # damaged models are made again


def _describe_growth(summary: dict[str, Any]) -> str:
    """Names the camera models that the cameras of sparse/0 grew to: " (OPENCV, grown from SIMPLE_RADIAL)"."""
    alone = summary["cameras"] == 1
    grown = ", ".join(name if alone else f"{count} {name}" for name, count in summary["grown_cameras"].items())
    return f" ({grown}, grown from SIMPLE_RADIAL)" if grown else ""


def _describe_cameras(count: int, groups: Sequence[dict[str, Any]]) -> str:
    """Says how many cameras there are, which photos share one, and why."""
    lines = []
    for group in groups[:_GROUPS]:
        verb = "share one" if group["shared"] else "have one each" if group["photos"] > 1 else "has its own"
        lines.append(f"{group['photos']} photo{'s' * (group['photos'] != 1)} {verb}: {group['reason']}")
    if len(groups) > _GROUPS:
        lines.append(f"{len(groups) - _GROUPS} more groups in summary.json")
    return f"{count} ({'; '.join(lines)})" if lines else str(count)


def print_summary(place: Workspace) -> None:
    """Prints the summary of `map` on the terminal."""
    summary = read_json(place.summary)

    def row(name: str, text: str) -> None:
        output.print(f"[bold]{name:<8}[/]  {text}")

    for number, model in enumerate(summary["models"]):
        row(f"sparse/{number}", f"{model['photos']} of {summary['photos']} photos registered")
        row("", f"{model['points']} points, mean track length {model['mean_track_length']:.2f}")
        row("", f"mean reprojection error {model['mean_reprojection_error']:.2f} px")
    row("matches", f"{summary['verified_matches']} verified in {summary['verified_pairs']} of {summary['pairs']} pairs")
    row("cameras", _describe_cameras(summary["cameras"], summary["camera_groups"]) + _describe_growth(summary))
    if len(summary.get("tried", {})) > 1:
        photos = ", ".join(f"{mapper} {count}" for mapper, count in summary["tried"].items())
        row("mapper", f"{summary['mapper']}; photos in the largest model of each: {photos}")
    for step in summary.get("recovered", ()):
        row("retry", f"{step['step']}: {step['registered']} of {step['tried']} photos that were left out")
    if "seconds" in summary:
        seconds = summary["seconds"]
        times = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        row("last run", f"{sum(seconds.values()):.1f} s ({times}); peak memory {summary['peak_memory_mb']} MB")
    row("files", escape(str(place.root)))
    if place.report.is_file():
        row("look at", escape(str(place.report)))
    suspects = summary.get("suspect_pairs", 0)
    if suspects:
        what = "1 pair looks alike but disagrees" if suspects == 1 else f"{suspects} pairs look alike but disagree"
        where = "report.html" if place.report.is_file() else "summary.json"
        errors.print(f"[yellow]suspects:[/] {what} with the model: repeated structures? See {where}.")
    unregistered = list(summary["unregistered"].items())
    for name, why in unregistered[:_NAMED]:
        errors.print(f"[yellow]not in sparse/0:[/] {escape(name)}: {escape(why)}")
    if len(unregistered) > _NAMED:
        errors.print(f"and {len(unregistered) - _NAMED} more: all are in {escape(str(place.summary))}")


@dataclass(frozen=True)
class MapCommand:
    """Options of `hardnet-sfm map`.

    Examples:
        hardnet-sfm map
        hardnet-sfm map --camera-params 1840,768,512,0 --fix-intrinsics
    """

    common: Common = field(default_factory=Common)
    images: Path | None = None
    """Folder of the photos, if they moved after `extract`."""
    map: MapOptions = field(default_factory=MapOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        map_photos(self.common.place, self.map, self.resources, images=self.images)
        print_summary(self.common.place)
