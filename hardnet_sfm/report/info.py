"""The command `info`: what is in a workspace, and what is out of date."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.images import list_photos, sha256_of
from hardnet_sfm.stores import FeatureStore, MatchStore, feature_fingerprint, inputs_fingerprint, stale_pairs
from hardnet_sfm.workspace import Workspace, read_json


@dataclass(frozen=True)
class Part:
    """One part of a workspace.

    Attributes:
        name: features, matches, model.
        holds: counts, for people.
        options: that it was made with.
        stale: why it is out of date; empty where it is not.
    """

    name: str
    holds: str
    options: dict[str, Any] = field(default_factory=dict)
    stale: str = ""


def info(workspace: Workspace | Path | str) -> list[Part]:
    """Describes what is in a workspace, and compares it with the photos and with each other.

    Raises:
        HardnetSfmError: there is no workspace, or a file in it is damaged.
    """
    place = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    if not place.root.is_dir():
        raise HardnetSfmError(f"no workspace at {place.root}", "Run `hardnet-sfm reconstruct IMAGES` first.")
    if not place.features.is_file():
        return []
    with FeatureStore(place.features) as features:
        parts = [_features(features)]
        if place.matches.is_file():
            with MatchStore(place.matches) as matches:
                parts.append(_matches(features, matches, place.pairs))
                if place.summary.is_file():
                    parts.append(_model(place, inputs_fingerprint(features, matches)))
    return parts


def _features(features: FeatureStore) -> Part:
    counts = features.counts()
    images, skipped = Path(features.header["images"]), features.header["skipped"]
    holds = f"{len(counts)} photos of {images}, {sum(counts.values())} keypoints"
    if skipped:
        holds += f"; {len(skipped)} unreadable: {', '.join(skipped)}"
    options = features.header["options"]
    if not images.is_dir():
        return Part("features", holds, options, f"the photos are no longer in {images}")
    there, prints = set(list_photos(images)) - set(skipped), features.fingerprints()
    changed = [n for n in there & set(prints) if feature_fingerprint(options, sha256_of(images / n)) != prints[n]]
    differences = (("new", there - set(prints)), ("gone", set(prints) - there), ("changed", changed))
    stale = ", ".join(f"{len(names)} photos {what}" for what, names in differences if names)
    return Part("features", holds, options, stale)


def _matches(features: FeatureStore, matches: MatchStore, pairs: Path) -> Part:
    other = len(stale_pairs(features, matches))
    stale = f"{other} pairs were made from other features" if other else ""
    if not stale and pairs.is_file() and sha256_of(pairs) != matches.header["pairs"]:
        stale = f"{pairs.name} lists other pairs"
    return Part("matches", f"{matches.total()} in {len(matches.pairs())} pairs", matches.header["options"], stale)


def _model(place: Workspace, inputs: str) -> Part:
    summary = read_json(place.summary)
    models = summary.get("models", [])
    holds = f"{len(models)} models, {summary.get('registered', 0)} of {summary.get('photos', 0)} photos in the largest"
    if models:
        holds += f", {models[0]['points']} points, mean track length {models[0]['mean_track_length']:.2f}"
    stale = "" if summary.get("inputs") == inputs else "features or matches have changed since it was made"
    if not stale and not all((place.sparse / str(number)).is_dir() for number in range(len(models))):
        stale = f"{place.sparse} is gone"
    return Part("model", holds, summary.get("options", {}).get("map", {}), stale)
