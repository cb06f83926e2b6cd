"""The page about a reconstruction: the model, the photos, the matches and the options of a workspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import spread
from hardnet_sfm.keypoints import Keypoints, PhotoPair
from hardnet_sfm.pages.cloud import make_cloud
from hardnet_sfm.pages.matchgraph import make_match_graph
from hardnet_sfm.pages.page import embed_picture, make_histogram, make_page, pack_array, scale_to_sides
from hardnet_sfm.pages.previews import Previews, make_previews
from hardnet_sfm.photos import PhotoSource
from hardnet_sfm.progress import progress
from hardnet_sfm.versions import versions

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does without
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


@dataclass(frozen=True)
class Run:
    """A run of `map`.

    Attributes:
        name: name of the workspace.
        summary: contents of summary.json.
        mark: digest of the summary, kept in the page.
        weights: the descriptor and its weights.
        notes: remarks for the reader.
    """

    name: str
    summary: Mapping[str, Any]
    mark: str
    weights: Mapping[str, str]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class DescribedPhoto:
    """A photo with features: the (width, height) of the upright photo, its EXIF orientation and its keypoints."""

    size: tuple[int, int]
    orientation: int
    keypoints: int


@dataclass(frozen=True, eq=False)
class MatchedPhotos:
    """The keypoints and matches that the model was made from.

    Attributes:
        keypoints: returns the keypoints of a photo. Rows of the model number these.
        inliers: returns the (M, 2) row numbers of the verified matches of a pair.
    """

    keypoints: Callable[[str], Keypoints]
    inliers: Callable[[PhotoPair], NDArray[np.integer[Any]]]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The model of a run, and what it was made from.

    Attributes:
        photos: the photos with features, by name.
        verified: number of inliers of each verified pair of these photos.
        tracks: tracks of the largest model; None if it has no points.
        matched: keypoints and matches; None if they have changed since the model was made.
        pictures: gives the photos; None if they are gone.
    """

    photos: Mapping[str, DescribedPhoto]
    verified: Mapping[PhotoPair, int]
    tracks: Tracks | None
    matched: MatchedPhotos | None
    pictures: PhotoSource | None


def make_reconstruction_page(run: Run, made: Reconstruction, threads: int) -> str:
    """Makes the HTML about a reconstruction. Most of the time goes into decoding each photo once at a small size.

    Raises:
        HardnetSfmError: the keypoints or matches are damaged.
    """
    names, summary, tracks, verified = list(made.photos), run.summary, made.tracks, made.verified
    row = {name: number for number, name in enumerate(names)}
    suspects = [one for one in summary.get("suspects", []) if {one["first"], one["second"]} <= row.keys()]
    chosen, drawn, doubted = [], [], []
    if made.matched is not None:
        chosen = _choose_pairs(verified)
        drawn = [_pack_lines(made.matched, made.photos, pair) for pair, _ in chosen]
        doubted = [_pack_lines(made.matched, made.photos, (one["first"], one["second"])) for one in suspects[:_PANELS]]
    in_panels = [*((one["first"], one["second"]) for one in suspects[: len(doubted)]), *(pair for pair, _ in chosen)]
    small, large = _make_pictures(made.pictures, names, in_panels, threads)
    data = {
        "workspace": run.name,
        "notes": _list_notes(run, names, small, made),
        "summary": {name: summary.get(name) for name in _FIGURES},
        "photos": _collect_photos(summary, made.photos, verified, tracks),
        "previews": [embed_picture(small.webp[name]) if name in small.webp else None for name in names],
        "cloud": None
        if tracks is None
        else {
            **make_cloud(tracks, [made.photos[name].orientation for name in tracks.names]),
            "photo": [row[name] for name in tracks.names],
        },
        "histograms": None if tracks is None else _make_histograms(tracks),
        "graph": make_match_graph(names, verified),
        "keypoints": None if made.matched is None else _collect_keypoints(made.matched, made.photos, tracks),
        "pairs": [
            {"first": row[a], "second": row[b], "inliers": verified[a, b], "best": best, "lines": lines}
            for ((a, b), best), lines in zip(chosen, drawn, strict=True)
        ],
        "suspects": [
            {**one, "first": row[one["first"]], "second": row[one["second"]], "lines": lines}
            for one, lines in zip_longest(suspects, doubted)
        ],
        "pair_previews": {row[name]: embed_picture(webp) for name, webp in large.items()},
        "options": summary["options"],
        "weights": run.weights,
        "versions": {"made with": summary.get("versions", {}), "page by": versions()},
    }
    return make_page(f"{run.name}: reconstruction", "reconstruction", data, run.mark)


def _make_pictures(
    photos: PhotoSource | None, names: Sequence[str], pairs: Sequence[PhotoPair], threads: int
) -> tuple[Previews, dict[str, bytes]]:
    """Makes small pictures of all photos, and larger ones of the photos in these pairs."""
    if photos is None:
        return Previews({}, {}), {}
    with progress("preview", len(names)) as advance:
        small = make_previews(photos, names, PREVIEW_BYTES, threads, on_photo=lambda name: advance(note=name))
    in_panels = list(dict.fromkeys(name for pair in pairs for name in pair if name in small.webp))
    return small, make_previews(photos, in_panels, PAIR_PREVIEW_BYTES, threads, largest=_PAIR_SIDE).webp


_FIGURES = (
    *("photos", "registered", "skipped", "models", "cameras", "camera_groups", "orientation", "keypoints", "pairs"),
    *("matches", "verified_pairs", "verified_matches", "suspect_pairs", "seconds", "peak_memory_mb"),
    "peak_memory_mb_by_stage",
)


def _list_notes(run: Run, names: Sequence[str], previews: Previews, made: Reconstruction) -> list[str]:
    """Lists what the page lacks, and why."""
    notes = []
    if not run.summary["models"]:
        notes.append("No model could be made. The table of photos says why for each.")
    if made.matched is None:
        notes.append(
            "Features or matches have changed since the model was made: keypoints and pairs of photos are left out. "
            "Run hardnet-sfm map, then hardnet-sfm report again."
        )
    if previews.missing:
        why = next(iter(previews.missing.values()))
        notes.append(f"{len(previews.missing)} of {len(names)} photos are not shown: {why}")
    return [*notes, *run.notes]


def _collect_photos(
    summary: Mapping[str, Any],
    photos: Mapping[str, DescribedPhoto],
    verified: Mapping[PhotoPair, int],
    tracks: Tracks | None,
) -> dict[str, list[Any]]:
    """Collects the columns of the table of photos. Unreadable photos come last."""
    skipped = summary["skipped"]
    partners, matched = dict.fromkeys(photos, 0), dict.fromkeys(photos, 0)
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
    everything = [*photos, *skipped]
    return {
        "name": everything,
        "size": [photos[name].size if name in photos else None for name in everything],
        "keypoints": [photos[name].keypoints if name in photos else 0 for name in everything],
        "pairs": [partners.get(name, 0) for name in everything],
        "matches": [matched.get(name, 0) for name in everything],
        "observations": [observations.get(name, 0) for name in everything],
        "error": [errors.get(name) for name in everything],
        "state": [_describe_state(name, registered, skipped, reasons) for name in everything],
        "reason": ["" if name in registered else reasons.get(name, "") for name in everything],
    }


def _describe_state(name: str, registered: set[str], skipped: Mapping[str, str], reasons: Mapping[str, str]) -> str:
    if name in registered:
        return "registered"
    if name in skipped:
        return "unreadable"
    return "in another model" if reasons.get(name, "").startswith("in another model") else "not registered"


def _make_histograms(tracks: Tracks) -> dict[str, Any]:
    lengths, angles = tracks.lengths(), tracks.triangulation_angles()
    longest = int(max(3, np.quantile(lengths, 0.995)))
    largest_error = float(np.quantile(tracks.error[np.isfinite(tracks.error)], 0.995))
    largest_angle = float(max(1.0, np.quantile(angles, 0.995)))
    return {
        "track": make_histogram(lengths, np.arange(2, longest + 2) - 0.5),
        "error": make_histogram(tracks.error, np.linspace(0, largest_error, 41)),
        "angle": make_histogram(angles, np.linspace(0, largest_angle, 41)),
    }


def _collect_keypoints(
    matched: MatchedPhotos, photos: Mapping[str, DescribedPhoto], tracks: Tracks | None
) -> dict[str, Any]:
    """Collects keypoints of every photo, those with the longest tracks first. Each photo may keep an equal number."""
    most = max(1, MOST_KEYPOINTS // max(1, len(photos)))
    number_of = {name: number for number, name in enumerate(tracks.names)} if tracks else {}
    lengths = tracks.lengths() if tracks else None
    places: list[NDArray[np.uint16]] = []
    kept: list[NDArray[np.uint8]] = []
    for name, photo in photos.items():
        keypoints = matched.keypoints(name)
        length = np.zeros(len(keypoints), np.int64)
        if tracks is not None and lengths is not None and name in number_of:
            seen = tracks.of_photo(number_of[name])
            length[tracks.row[seen]] = lengths[tracks.point[seen]]
        first = np.lexsort((-keypoints.scores, -length))[:most]
        places.append(scale_to_sides(keypoints.xy[first], photo.size))
        kept.append(length[first].clip(max=_LONGEST_TRACK).astype(np.uint8))
    return {
        "count": [len(some) for some in kept],
        "xy": pack_array(np.concatenate([*places, np.zeros((0, 2), np.uint16)])),
        "length": pack_array(np.concatenate([*kept, np.zeros(0, np.uint8)])),
        "most": most,
    }


def _choose_pairs(verified: Mapping[PhotoPair, int]) -> list[tuple[PhotoPair, bool]]:
    """Chooses the pairs with the most and with the fewest inliers, best first, and says which kind each is."""
    ordered = sorted(verified, key=lambda pair: (-verified[pair], pair))
    best = ordered[: min(_PANELS, -(-len(ordered) // 2))]
    weakest = ordered[len(best) :][-_PANELS:]
    return [(pair, True) for pair in best] + [(pair, False) for pair in weakest]


def _pack_lines(matched: MatchedPhotos, photos: Mapping[str, DescribedPhoto], pair: PhotoPair) -> dict[str, Any]:
    """Packs both ends of at most `_LINES` inliers of a pair, spread evenly: x, y, x, y as in `scale_to_sides`."""
    rows = matched.inliers(pair)
    rows = rows[spread(len(rows), _LINES)]
    ends = [scale_to_sides(matched.keypoints(name).xy[rows[:, i]], photos[name].size) for i, name in enumerate(pair)]
    return pack_array(np.concatenate(ends, 1))
