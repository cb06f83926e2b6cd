"""The stage `map`: features.h5 and matches.h5 to database.db, sparse/ and summary.json."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hardnet_sfm.errors import HardnetSfmError, UsageError, check_choice
from hardnet_sfm.fingerprints import inputs_fingerprint, matched_keypoints, stale_pairs
from hardnet_sfm.images import sha256_of
from hardnet_sfm.progress import progress
from hardnet_sfm.reconstruction.cameras import CameraTrials, find_candidates, read_groups, write_groups
from hardnet_sfm.reconstruction.repeated import DIFFERENT, Overlap, Suspect, find_suspects, fit_pairs
from hardnet_sfm.reconstruction.unregistered import reasons_unregistered
from hardnet_sfm.resources import Resources
from hardnet_sfm.stores import FeatureStore, MatchStore
from hardnet_sfm.versions import versions
from hardnet_sfm.workspace import Workspace, digest, locked, read_json, write_json

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does without
    from hardnet_sfm.colmap.cameras import CameraSetup
    from hardnet_sfm.colmap.mappers import Mapped
    from hardnet_sfm.colmap.mapping import Mapping
    from hardnet_sfm.colmap.model import Model

Pair = tuple[str, str]
Mapper = Literal["auto", "incremental", "global"]
Mode = Literal["auto", "single", "per-folder", "per-image"]
_FIRST_CAMERA_MODEL = "SIMPLE_RADIAL"
# Suspects of each kind in the summary, the worst ones.
_LISTED_SUSPECTS = 25
# Facts in a database: which photos share a camera, and for which inputs that was decided.
_GROUPS, _GROUPS_OF = "camera groups", "camera groups of"


@dataclass(frozen=True)
class MapOptions:
    """Cameras, geometric verification and mapping."""

    mapper: Mapper = "auto"
    """incremental registers photo by photo: robust, but it needs two photos with parallax to start from. global places
    all photos at once: faster on many photos of known focal length. auto runs the incremental mapper, tries the global
    one too if connected photos are left out, and keeps the better model. global tries the incremental one if most
    photos are left out."""
    camera_mode: Mode = "auto"
    """Which photos share a camera. auto: photos of equal size and EXIF data, after a trial that maps a few of them.
    single: all photos. per-folder: the photos of each folder. per-image: each photo has its own."""
    camera_model: str = "auto"
    """COLMAP's name of the camera model. auto starts with SIMPLE_RADIAL and changes cameras of eight photos or more to
    RADIAL, OPENCV or OPENCV_FISHEYE at the end, if their photos ask for it. State a model to keep it."""
    camera_params: str | None = None
    """Known parameters of every camera in COLMAP's order and pixels, such as "f,cx,cy,k". Default: from EXIF."""
    fix_intrinsics: bool = False
    """Keep the cameras as given by --camera-params or EXIF."""
    refine_principal_point: bool = True
    """Refine the principal point of cameras that took eight photos or more, at the end, where the photos determine it,
    also one that --camera-params states; not with --fix-intrinsics."""
    max_error: float = 4.0
    """Largest error of an inlier of a verified pair, pixels of the photo as keypoints were found in it, shrunk if it is
    large. Higher for photos of strong distortion."""
    min_inliers: int = 15
    """Fewest inliers of a verified pair."""
    min_model_size: int = 3
    """Smaller models are dropped, but for the only one, photos."""
    retry: bool = True
    """Merge smaller models into the largest one where verified matches join them, and try photos that were left out
    again. A step that does not make the largest model larger changes nothing."""
    seed: int = 0
    """Of everything that is drawn by chance in verification and mapping."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        check_choice("mapper", self.mapper, Mapper)
        check_choice("camera-mode", self.camera_mode, Mode)
        self.camera_setup().check()
        for name, value, least in (
            ("max-error", self.max_error, 0.1),
            ("min-inliers", self.min_inliers, 8),
            ("min-model-size", self.min_model_size, 2),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise UsageError(f"--{name} must be at least {least}")

    def camera_setup(self) -> CameraSetup:
        """What is asked of the cameras, in COLMAP's terms."""
        from hardnet_sfm.colmap.cameras import CameraSetup

        try:
            params = tuple(float(part) for part in (self.camera_params or "").replace(",", " ").split())
        except ValueError as error:
            raise UsageError(
                f"--camera-params: not numbers: {self.camera_params}",
                "They are numbers with commas between them, as 1840,1840,768,512.",
            ) from error
        return CameraSetup(self.camera_mode, self.first_camera_model(), params)

    def first_camera_model(self) -> str:
        """The camera model that mapping starts with."""
        return _FIRST_CAMERA_MODEL if self.camera_model == "auto" else self.camera_model

    def grow_distortion(self) -> bool:
        """Whether the user left the camera model open."""
        return self.camera_model == "auto" and self.camera_params is None

    def of_database(self) -> dict[str, Any]:
        """The options that decide what is in the database, fit for JSON."""
        decided = {**asdict(self), "camera_model": self.first_camera_model()}
        return {name: value for name, value in decided.items() if name not in self.of_mapper()}

    def of_mapper(self) -> dict[str, Any]:
        """The options that decide what the mapper makes of a database, fit for JSON."""
        names = ("mapper", "fix_intrinsics", "refine_principal_point", "min_model_size", "retry")
        return {name: getattr(self, name) for name in names} | {"grow_distortion": self.grow_distortion()}


def map_photos(
    workspace: Workspace | Path | str,
    options: MapOptions | None = None,
    resources: Resources | None = None,
    *,
    images: Path | str | None = None,
) -> Model:
    """Imports photos, keypoints and matches into a COLMAP database, verifies each pair and maps.

    Makes `database.db`, `sparse/0` (the largest model), `sparse/1` and so on, and `summary.json`. A second run does
    what is left: pairs that were verified stay so, and the incremental mapper goes on from its last snapshot.

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
    options, resources = options or MapOptions(), resources or Resources()
    options.check()
    workspace = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    with locked(workspace.root):
        with FeatureStore(workspace.features) as features, MatchStore(workspace.matches) as matches:
            _check_matched(workspace, features, matches)
            images = Path(images or features.header["images"])
            fingerprint = database_fingerprint(features, matches, options)
            _make_database(workspace, images, features, matches, options, resources, fingerprint)
            found = _what_was_found(features, matches)
        wanted = digest("model", fingerprint, options.of_mapper())
        models = _finished_models(workspace, wanted)
        if not models:
            mapped = _make_models(workspace, images, options, resources)
            models = mapped.models
            summary = {"fingerprint": wanted, **_summary(workspace, options, found, mapped)}
            write_json(workspace.summary, summary)
        if not models:
            raise _nothing_made(read_json(workspace.summary))
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
    from hardnet_sfm.colmap.cameras import import_photos
    from hardnet_sfm.colmap.database import Database, read_fact, replace_database, write_fact
    from hardnet_sfm.colmap.log import native_log
    from hardnet_sfm.colmap.two_view import Verification

    if read_fact(workspace.database, "fingerprint") == fingerprint:
        return
    if not images.is_dir():
        raise HardnetSfmError(f"the photos are no longer in {images}", "Say where they are with --images FOLDER.")
    beside = workspace.root / ".database.db.partial"
    names, pairs = features.names(), matches.pairs()
    how = Verification(options.max_error, options.min_inliers, options.seed)
    with native_log(workspace.logs):
        if read_fact(beside, "fingerprint") != fingerprint:
            with matched_keypoints(workspace.view_keypoints, features, matches) as keypoints:
                shared: list[tuple[str, ...]] | None = None
                if options.camera_mode == "auto":
                    where = (options.camera_setup(), how, options.fix_intrinsics, resources.threads, workspace.trial)
                    trials = CameraTrials(features, matches, keypoints, *where)
                    shared = _shared_cameras(beside, images, trials, fingerprint)
                else:
                    beside.unlink(missing_ok=True)
                import_photos(beside, images, names, options.camera_setup(), workspace.readable, shared)
                with Database(beside) as database:
                    database.write_keypoints(
                        (name, keypoints.keypoints(name), features.orientation(name), features.size(name))
                        for name in names
                    )
                    database.write_matches((a, b, matches.matches(a, b).pairs) for a, b in pairs)
            write_fact(beside, "fingerprint", fingerprint)
        with Database(beside) as database:
            due = database.unverified(pairs)
            with progress("verify", len(pairs), len(pairs) - len(due)) as advance:
                pixels = {name: features.shrunk(name) for name in names}
                for first, second in database.verify(due, how, resources.threads, pixels):
                    advance(note=f"{first} {second}")
    replace_database(beside, workspace.database)


def _shared_cameras(beside: Path, images: Path, trials: CameraTrials, fingerprint: str) -> list[tuple[str, ...]]:
    """Decides which photos share a camera, and starts the database with the decision, which a killed run left there."""
    from hardnet_sfm.colmap.database import read_fact, write_fact

    groups = read_groups(read_fact(beside, _GROUPS)) if read_fact(beside, _GROUPS_OF) == fingerprint else None
    if groups is None:
        groups = trials.decide(find_candidates(trials.features, images))
    beside.unlink(missing_ok=True)
    write_fact(beside, _GROUPS, write_groups(groups))
    write_fact(beside, _GROUPS_OF, fingerprint)
    return [group.names for group in groups if group.shared]


def mapping_of(options: MapOptions, resources: Resources) -> Mapping:
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
            folder, mapping = readable_folder(images, names, workspace.readable), mapping_of(options, resources)
            mapped = map_best(workspace.database, folder, snapshot, options.mapper, mapping, verified, on_registered)
            mapped = recover(mapped, workspace.database, folder, mapping) if options.retry else mapped
    replace_models(workspace, mapped.models)
    return mapped


def replace_models(workspace: Workspace, models: list[Model]) -> None:
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


def _what_was_found(features: FeatureStore, matches: MatchStore) -> dict[str, Any]:
    """What the stages before this one made, fit for the summary."""
    return {
        "photos": features.names(),
        "skipped": features.header["skipped"],
        "orientation": features.header.get("orientation", ""),
        "keypoints": features.counts(),
        "pairs": len(matches.pairs()),
        "matches": matches.total(),
        "inputs": inputs_fingerprint(features, matches),
        "options": {"extract": features.header["options"], "match": matches.header["options"]},
    }


def _summary(workspace: Workspace, options: MapOptions, found: dict[str, Any], mapped: Mapped) -> dict[str, Any]:
    from hardnet_sfm.colmap.database import Database

    models = mapped.models
    with Database(workspace.database) as database:
        verified, cameras = database.verified(), database.cameras()
    unregistered = reasons_unregistered(found["keypoints"], verified, [model.names for model in models])
    return {
        "photos": len(found["photos"]),
        "skipped": found["skipped"],
        "registered": models[0].facts()["photos"] if models else 0,
        "unregistered": unregistered,
        "models": [model.facts() for model in models],
        "mapper": mapped.mapper,
        "tried": mapped.tried,
        "recovered": [asdict(step) for step in mapped.recovered],
        "cameras": cameras,
        "grown_cameras": _grown_cameras(models, options),
        "camera_groups": _camera_groups(workspace, options, len(found["photos"])),
        "orientation": found["orientation"],
        "keypoints": sum(found["keypoints"].values()),
        "pairs": found["pairs"],
        "matches": found["matches"],
        "verified_pairs": len(verified),
        "verified_matches": sum(verified.values()),
        **_suspects(workspace, models),
        "inputs": found["inputs"],
        "options": {**found["options"], "map": asdict(options)},
        "versions": versions(),
    }


def _grown_cameras(models: list[Model], options: MapOptions) -> dict[str, int]:
    """Number of cameras of the largest model by the camera model that each grew to; those that did not are left out."""
    counts = models[0].camera_models() if models and options.grow_distortion() else {}
    return {name: count for name, count in counts.items() if name != _FIRST_CAMERA_MODEL}


def _suspects(workspace: Workspace, models: list[Model]) -> dict[str, Any]:
    """Verified pairs that disagree with the model of their photos: how many, and the worst of them, fit for JSON."""
    from hardnet_sfm.colmap.database import Database

    found: list[Suspect] = []
    with Database(workspace.database) as database:
        pairs = list(database.verified())
        for model in models:
            sights, xyz = model.sights()
            within = [pair for pair in pairs if set(pair) <= set(sights)]
            fits = fit_pairs(((pair, database.inliers(pair)) for pair in within), sights, xyz)
            found += find_suspects(fits, Overlap(sights, xyz))
    by_kind = [[one for one in found if (one.reason == DIFFERENT) == kind] for kind in (False, True)]
    return {
        "suspect_pairs": len(found),
        "suspects": [
            {
                "first": one.fit.first,
                "second": one.fit.second,
                "inliers": one.fit.inliers,
                "explained": round(one.fit.share, 3),
                "reason": one.reason,
            }
            for kind in by_kind
            for one in kind[:_LISTED_SUSPECTS]
        ],
    }


def _camera_groups(workspace: Workspace, options: MapOptions, photos: int) -> list[dict[str, Any]]:
    """Which photos share a camera and why, fit for the summary."""
    from hardnet_sfm.colmap.database import read_fact

    if options.camera_mode != "auto":
        reason = f"--camera-mode {options.camera_mode}"
        return [{"photos": photos, "shared": options.camera_mode != "per-image", "reason": reason}]
    return [group.facts() for group in read_groups(read_fact(workspace.database, _GROUPS))]


def _nothing_made(summary: dict[str, Any]) -> HardnetSfmError:
    counts = (
        f"{summary['photos']} photos, {summary['keypoints']} keypoints, {summary['matches']} matches in "
        f"{summary['pairs']} pairs, {summary['verified_pairs']} of them verified"
    )
    why = Counter(summary["unregistered"].values()).most_common(1)[0][0]
    if summary["keypoints"] == 0:
        hint = "The photos have no texture that a detector could hold on to; a lower --peak-threshold finds weaker one."
    elif summary["verified_pairs"] == 0:
        hint = (
            "No two photos show the same thing well enough. Take photos that overlap by two thirds; a lower "
            "--peak-threshold, a higher --max-ratio or --affine-shape (--detector dog) may help with these."
        )
    elif len(summary["tried"]) == 1:
        hint = (
            f"Only the {summary['mapper']} mapper was tried, and it found no start in the verified pairs. "
            "Run again with --mapper auto, which tries the global one too."
        )
    else:
        hint = (
            "Pairs were verified, but neither mapper found cameras that agree with them. Photos that were all taken "
            "from one place have no parallax: take some from other places. If one camera with one zoom took all "
            "photos, say so with --camera-mode single, or state it with --camera-params."
        )
    return HardnetSfmError(f"no model could be made ({counts}; most photos: {why})", hint)
