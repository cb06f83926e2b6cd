"""Summarizes the results of `map`, for summary.json and for messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardnet_sfm.errors import NoModel, list_some
from hardnet_sfm.files.fingerprints import inputs_fingerprint
from hardnet_sfm.files.stores import FeatureStore, MatchStore
from hardnet_sfm.keypoints import PhotoPair
from hardnet_sfm.reconstruction.camera_groups import GROUPS, merge_groups, read_groups
from hardnet_sfm.reconstruction.map_options import FIRST_CAMERA_MODEL, MapOptions
from hardnet_sfm.reconstruction.repeated import DIFFERENT, Overlap, Suspect, find_suspects, fit_pairs
from hardnet_sfm.versions import versions

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does not need it
    from hardnet_sfm.colmap.mappers import Mapped
    from hardnet_sfm.colmap.model import Model

# Number of suspects of each kind in the summary, the worst ones.
_LISTED_SUSPECTS = 25


def what_was_found(features: FeatureStore, matches: MatchStore) -> dict[str, Any]:
    """Returns the results of the earlier stages, for the summary."""
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


def summarize(database: Path, options: MapOptions, found: dict[str, Any], mapped: Mapped) -> dict[str, Any]:
    """Returns the content of summary.json.

    Args:
        database: the COLMAP database that was mapped.
        options: options of the stage `map`.
        found: see `what_was_found`.
        mapped: the models.
    """
    from hardnet_sfm.colmap.database import Database

    models = mapped.models
    with Database(database) as opened:
        verified, cameras = opened.verified(), opened.cameras()
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
        "camera_groups": _camera_groups(database, options, len(found["photos"])),
        "orientation": found["orientation"],
        "keypoints": sum(found["keypoints"].values()),
        "pairs": found["pairs"],
        "matches": found["matches"],
        "verified_pairs": len(verified),
        "verified_matches": sum(verified.values()),
        **_suspects(database, models),
        "inputs": found["inputs"],
        "options": {**found["options"], "map": asdict(options)},
        "versions": versions(),
    }


def _grown_cameras(models: list[Model], options: MapOptions) -> dict[str, int]:
    """Counts the cameras of the largest model that grew, by their new camera model."""
    counts = models[0].camera_models() if models and options.grow_distortion() else {}
    return {name: count for name, count in counts.items() if name != FIRST_CAMERA_MODEL}


def _suspects(path: Path, models: list[Model]) -> dict[str, Any]:
    """Finds verified pairs that disagree with the model of their photos.

    Returns their number and the worst of them, for JSON.
    """
    from hardnet_sfm.colmap.database import Database

    found: list[Suspect] = []
    with Database(path) as database:
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


def _camera_groups(database: Path, options: MapOptions, photos: int) -> list[dict[str, Any]]:
    """Says which photos share a camera and why, for the summary."""
    from hardnet_sfm.colmap.database import read_fact

    if options.camera_mode != "auto":
        reason = f"--camera-mode {options.camera_mode}"
        return [{"photos": photos, "shared": options.camera_mode != "per-image", "reason": reason}]
    return [group.facts() for group in merge_groups(read_groups(read_fact(database, GROUPS)))]


def _given_camera(options: dict[str, Any]) -> str:
    """Returns the options by which the user stated the camera, as text; empty if there are none."""
    model, params = options.get("camera_model", "auto"), options.get("camera_params")
    stated = [f"--camera-model {model}"] if model not in ("auto", FIRST_CAMERA_MODEL) else []
    return " and ".join([*stated, *([f"--camera-params {params}"] if params else [])])


def explain_failure(summary: dict[str, Any], database: Path, *, kept: bool, left_out: Sequence[str] = ()) -> NoModel:
    """Explains why there is no model.

    Args:
        summary: results of the attempt, see `summarize`.
        database: the COLMAP database that was mapped.
        kept: whether an earlier model stays.
        left_out: names of the photos of the database that no model has.
    """
    counts = (
        f"{summary['photos']} photos, {summary['keypoints']} keypoints, {summary['matches']} matches in "
        f"{summary['pairs']} pairs, {summary['verified_pairs']} of them verified"
    )
    why = Counter(summary["unregistered"].values()).most_common(1)[0][0]
    if summary["keypoints"] == 0:
        hint = "The photos have too little texture. A lower --peak-threshold finds weaker keypoints."
    elif given := _given_camera(summary["options"]["map"]):
        hint = (
            f"The camera was given with {given}, and no model fits it. Run without these options to see whether the "
            "camera is the reason. A fisheye lens needs its own parameters: calibrate it, and give --camera-params."
        )
    elif summary["verified_pairs"] == 0:
        hint = (
            "No two photos show the same thing well enough. Take photos that overlap by two thirds. A lower "
            "--peak-threshold, a higher --max-ratio or --affine-shape (--detector dog) may help with these."
        )
    elif len(summary["tried"]) == 1:
        hint = (
            f"Only the {summary['mapper']} mapper was tried, and it found no pair to start from. "
            "Run again with --mapper auto, which tries the global one too."
        )
    else:
        hint = (
            "Pairs were verified, but neither mapper found cameras that agree with them. Photos that were all taken "
            "from one place have no parallax: take some from other places. If one camera with one zoom took all "
            "photos, say so with --camera-mode single, or state it with --camera-params."
        )
    if kept:
        hint += " The earlier model and its summary stay as they were."
    if left_out:
        count = f"{len(left_out)} photo{'s' * (len(left_out) != 1)}"
        hint += f" {database.name} has {count} that no model has: {list_some(left_out)}."
    return NoModel(f"no model could be made ({counts}; most photos: {why})", hint, summary, database)


def reasons_unregistered(
    keypoints: Mapping[str, int], verified: Mapping[PhotoPair, int], models: Sequence[Sequence[str]]
) -> dict[str, str]:
    """Gives for every photo that is not in the largest model the reason.

    Args:
        keypoints: number of keypoints of every photo.
        verified: number of inliers of every verified pair.
        models: names of the photos in each model, the largest first.
    """
    import networkx

    largest = set(models[0]) if models else set()
    graph = networkx.Graph(verified.keys())
    graph.add_nodes_from(keypoints)
    within_reach = {name for group in networkx.connected_components(graph) if group & largest for name in group}
    reasons: dict[str, str] = {}
    for name, count in keypoints.items():
        elsewhere = [number for number, names in enumerate(models) if number and name in names]
        if name in largest:
            continue
        if elsewhere:
            reasons[name] = f"in another model, sparse/{elsewhere[0]}"
        elif count == 0:
            reasons[name] = "no features"
        elif not graph[name]:
            reasons[name] = "no verified pairs"
        elif not models:
            reasons[name] = "no pair of photos to start a model from"
        elif name not in within_reach:
            reasons[name] = "not connected to the model"
        else:
            reasons[name] = "connected, but too few points in common with the model"
    return reasons
