"""The page about a reconstruction: the model, the photos, the matches and the options of a workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.fingerprints import inputs_fingerprint, matched_keypoints
from hardnet_sfm.files.stores import FeatureStore, KeypointStore, MatchStore
from hardnet_sfm.files.workspace import Workspace, digest, read_json
from hardnet_sfm.pages.matchgraph import match_graph
from hardnet_sfm.pages.page import along_sides, histogram, packed, picture, write_page
from hardnet_sfm.pages.previews import Previews, make_previews
from hardnet_sfm.pages.provenance_notes import weights_facts
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.versions import versions

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does without
    from hardnet_sfm.colmap.database import Database
    from hardnet_sfm.colmap.tracks import Tracks

# Bytes of the previews before base64, which adds a third. With the points and the tables, a page stays below
# `MOST_BYTES` up to about 5000 photos.
PREVIEW_BYTES = 5_000_000
PAIR_PREVIEW_BYTES = 800_000
MOST_KEYPOINTS = 400_000  # 5 bytes each
_PANELS = 4  # pairs to show of either kind
_LINES = 150  # most lines in a pair
_PAIR_SIDE = 640
_LONGEST_TRACK = 255


def reconstruction_page(
    place: Workspace, target: Path, images: Path | None = None, resources: Resources | None = None
) -> None:
    """Writes the page about a workspace. Most of the time goes into decoding each photo once at a small size.

    Args:
        place: workspace with the summary.json that `map` writes.
        target: the .html file to write.
        images: folder of the photos, if they moved since their features were extracted.
        resources: threads and device to use.

    Raises:
        HardnetSfmError: the workspace has no reconstruction yet, a file is damaged, or the page cannot be written.
    """
    if not place.summary.is_file():
        raise HardnetSfmError(f"no reconstruction in {place.root}", "Run `hardnet-sfm reconstruct IMAGES` first.")
    summary = read_json(place.summary)
    with FeatureStore(place.features) as features, MatchStore(place.matches) as matches:
        folder = images or Path(features.header["images"])
        fresh = summary.get("inputs") == inputs_fingerprint(features, matches)
        # Rows of the model number the matched keypoints, which may include keypoints of synthetic views.
        opened = matched_keypoints(place.view_keypoints, features, matches) if fresh else nullcontext(features)
        with opened as matched:
            data = _collect(place, summary, features, matched, folder, fresh, (resources or Resources()).threads)
    title = f"{place.root.resolve().name}: reconstruction"
    write_page(target, title, "reconstruction", data, digest(summary))


def _collect(
    place: Workspace,
    summary: Mapping[str, Any],
    features: FeatureStore,
    matched: KeypointStore,
    images: Path,
    fresh: bool,
    threads: int,
) -> dict[str, Any]:
    from hardnet_sfm.colmap.database import Database
    from hardnet_sfm.colmap.tracks import read_tracks
    from hardnet_sfm.pages.cloud import cloud

    tracks = read_tracks(place.sparse / "0") if summary["models"] and summary["models"][0]["points"] else None
    names = features.names()
    with Database(place.database) as database:
        verified = {pair: n for pair, n in database.verified().items() if set(pair) <= set(names)}
        chosen = _panel_pairs(verified) if fresh else []
        lines = [_lines(database, features, matched, pair) for pair, _ in chosen]
        suspects = [one for one in summary.get("suspects", []) if {one["first"], one["second"]} <= set(names)]
        doubted = [(one["first"], one["second"]) for one in suspects[: _PANELS if fresh else 0]]
        doubted_lines = [_lines(database, features, matched, pair) for pair in doubted]
    with progress("preview", len(names)) as advance:
        previews = make_previews(images, names, PREVIEW_BYTES, threads, on_photo=lambda name: advance(note=name))
    shown = [*doubted, *(pair for pair, _ in chosen)]
    in_panels = list(dict.fromkeys(name for pair in shown for name in pair if name in previews.webp))
    large = make_previews(images, in_panels, PAIR_PREVIEW_BYTES, threads, largest=_PAIR_SIDE)
    row = {name: number for number, name in enumerate(names)}
    return {
        "workspace": place.root.resolve().name,
        "notes": _notes(summary, images, names, previews, fresh),
        "summary": {name: summary.get(name) for name in _FIGURES},
        "photos": _photos(summary, features, verified, tracks),
        "previews": [picture(previews.webp[name]) if name in previews.webp else None for name in names],
        "preview_bytes": previews.share,
        "cloud": None
        if tracks is None
        else {
            **cloud(tracks, [features.orientation(name) for name in tracks.names]),
            "photo": [row[name] for name in tracks.names],
        },
        "histograms": None if tracks is None else _histograms(tracks),
        "graph": match_graph(names, verified),
        "keypoints": _keypoints(features, matched, tracks) if fresh else None,
        "pairs": [
            {"first": row[a], "second": row[b], "inliers": verified[a, b], "best": best, "lines": drawn}
            for ((a, b), best), drawn in zip(chosen, lines, strict=True)
        ],
        "suspects": [
            {**one, "first": row[one["first"]], "second": row[one["second"]], "lines": drawn}
            for one, drawn in zip_longest(suspects, doubted_lines)
        ],
        "pair_previews": {row[name]: picture(webp) for name, webp in large.webp.items()},
        "options": summary["options"],
        "weights": weights_facts(summary["options"]["extract"]),
        "versions": {"made with": summary.get("versions", {}), "page by": versions()},
    }


_FIGURES = (
    *("photos", "registered", "skipped", "models", "cameras", "camera_groups", "orientation", "keypoints", "pairs"),
    *("matches", "verified_pairs", "verified_matches", "suspect_pairs", "seconds", "peak_memory_mb"),
    "peak_memory_mb_by_stage",
)


def _notes(
    summary: Mapping[str, Any], images: Path, names: Sequence[str], previews: Previews, fresh: bool
) -> list[str]:
    """Lists what the page lacks, and why."""
    notes = []
    if not summary["models"]:
        notes.append("No model could be made. The table of photos says why for each.")
    if not fresh:
        notes.append(
            "Features or matches have changed since the model was made: keypoints and pairs of photos are left out. "
            "Run hardnet-sfm map, then hardnet-sfm report again."
        )
    if not images.is_dir():
        notes.append(f"The photos are no longer in {images}: say where they are with --images FOLDER.")
    elif previews.missing:
        why = next(iter(previews.missing.values()))
        notes.append(f"{len(previews.missing)} of {len(names)} photos are not shown: {why}")
    return notes


def _photos(
    summary: Mapping[str, Any],
    features: FeatureStore,
    verified: Mapping[tuple[str, str], int],
    tracks: Tracks | None,
) -> dict[str, list[Any]]:
    """Collects the columns of the table of photos. Unreadable photos come last."""
    names, skipped = features.names(), summary["skipped"]
    partners, matched = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for pair, inliers in verified.items():
        for name in pair:
            partners[name] += 1
            matched[name] += inliers
    observations: dict[str, int] = {}
    errors: dict[str, float] = {}
    for number, name in enumerate(tracks.names if tracks else ()):
        assert tracks is not None
        seen = tracks.error[tracks.of_photo(number)]
        observations[name], finite = len(seen), seen[np.isfinite(seen)]
        if len(finite):
            errors[name] = round(float(finite.mean()), 3)
    registered = set(tracks.names) if tracks else set()
    reasons = {**summary["unregistered"], **skipped}
    counts, everything = features.counts(), [*names, *skipped]
    sizes = {name: features.size(name) for name in names}
    return {
        "name": everything,
        "size": [sizes.get(name) for name in everything],
        "keypoints": [counts.get(name, 0) for name in everything],
        "pairs": [partners.get(name, 0) for name in everything],
        "matches": [matched.get(name, 0) for name in everything],
        "observations": [observations.get(name, 0) for name in everything],
        "error": [errors.get(name) for name in everything],
        "state": [_state(name, registered, skipped, reasons) for name in everything],
        "reason": ["" if name in registered else reasons.get(name, "") for name in everything],
    }


def _state(name: str, registered: set[str], skipped: Mapping[str, str], reasons: Mapping[str, str]) -> str:
    if name in registered:
        return "registered"
    if name in skipped:
        return "unreadable"
    return "in another model" if reasons.get(name, "").startswith("in another model") else "not registered"


def _histograms(tracks: Tracks) -> dict[str, Any]:
    lengths, angles = tracks.lengths(), tracks.triangulation_angles()
    longest = int(max(3, np.quantile(lengths, 0.995)))
    largest_error = float(np.quantile(tracks.error[np.isfinite(tracks.error)], 0.995))
    largest_angle = float(max(1.0, np.quantile(angles, 0.995)))
    return {
        "track": histogram(lengths, np.arange(2, longest + 2) - 0.5),
        "error": histogram(tracks.error, np.linspace(0, largest_error, 41)),
        "angle": histogram(angles, np.linspace(0, largest_angle, 41)),
    }


def _keypoints(features: FeatureStore, matched: KeypointStore, tracks: Tracks | None) -> dict[str, Any]:
    """Collects keypoints of every photo, those with the longest tracks first. Each photo may keep an equal number."""
    names = features.names()
    most = max(1, MOST_KEYPOINTS // max(1, len(names)))
    number_of = {name: number for number, name in enumerate(tracks.names)} if tracks else {}
    lengths = tracks.lengths() if tracks else None
    places: list[NDArray[np.uint16]] = []
    kept: list[NDArray[np.uint8]] = []
    for name in names:
        keypoints = matched.keypoints(name)
        length = np.zeros(len(keypoints), np.int64)
        if tracks is not None and lengths is not None and name in number_of:
            seen = tracks.of_photo(number_of[name])
            length[tracks.row[seen]] = lengths[tracks.point[seen]]
        first = np.lexsort((-keypoints.scores, -length))[:most]
        places.append(along_sides(keypoints.xy[first], features.size(name)))
        kept.append(length[first].clip(max=_LONGEST_TRACK).astype(np.uint8))
    return {
        "count": [len(some) for some in kept],
        "xy": packed(np.concatenate([*places, np.zeros((0, 2), np.uint16)])),
        "length": packed(np.concatenate([*kept, np.zeros(0, np.uint8)])),
        "most": most,
    }


def _panel_pairs(verified: Mapping[tuple[str, str], int]) -> list[tuple[tuple[str, str], bool]]:
    """Chooses the pairs with the most and with the fewest inliers, best first, and says which kind each is."""
    ordered = sorted(verified, key=lambda pair: (-verified[pair], pair))
    best = ordered[: min(_PANELS, -(-len(ordered) // 2))]
    weakest = ordered[len(best) :][-_PANELS:]
    return [(pair, True) for pair in best] + [(pair, False) for pair in weakest]


def _lines(database: Database, features: FeatureStore, matched: KeypointStore, pair: tuple[str, str]) -> dict[str, Any]:
    """Packs both ends of at most `_LINES` inliers of a pair, spread evenly: x, y, x, y as in `along_sides`."""
    rows = database.inliers(pair)
    if len(rows) > _LINES:
        rows = rows[np.linspace(0, len(rows) - 1, _LINES).round().astype(int)]
    ends = [along_sides(matched.keypoints(name).xy[rows[:, i]], features.size(name)) for i, name in enumerate(pair)]
    return packed(np.concatenate(ends, 1))
