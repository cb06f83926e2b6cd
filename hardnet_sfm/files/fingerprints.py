"""Fingerprints that tell whether entries of stores, and results made from them, are up to date and fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.stores import VERSION, FeatureStore, KeypointStore, MatchStore, pair_key
from hardnet_sfm.files.workspace import digest, digest_after
from hardnet_sfm.photos import Photo


def feature_fingerprint(recipe: Mapping[str, Any], photo_sha256: str, turn: int = 0) -> str:
    """Returns the fingerprint of a photo's features: of their recipe, the photo's bytes and its turn."""
    return digest("features", VERSION, recipe, photo_sha256, turn)


def are_features_of(fingerprint: str, recipe: Mapping[str, Any], photo_sha256: str) -> bool:
    """Says whether features with this fingerprint come from this recipe and these photo bytes, at any turn."""
    return any(fingerprint == feature_fingerprint(recipe, photo_sha256, turn) for turn in (0, 90, 180, 270))


def read_described(features: FeatureStore, images: Path, name: str) -> Photo:
    """Reads the photo that features were extracted from.

    Raises:
        HardnetSfmError: the folder is missing, or the photo is unreadable or another one.
    """
    if not images.is_dir():
        raise HardnetSfmError(f"no folder of photos at {images}", "Say where they are now with --images.")
    photo = read_photo(images / name)
    if photo.sha256 != features.index[name]["photo_sha256"]:
        raise HardnetSfmError(
            f"{images / name}: not the photo that features were extracted from", "Run `hardnet-sfm extract` again."
        )
    return photo


def match_fingerprints(recipe: Mapping[str, Any]) -> Callable[[str, str], str]:
    """Returns a function that gives the fingerprint of a pair's matches from those of both photos' features.

    The fingerprint depends on the recipe, too, which is read once for all pairs.
    """
    return digest_after("matches", VERSION, recipe)


def view_fingerprints(views: Mapping[str, Any], features: str) -> list[str]:
    """Returns the fingerprints of a photo's keypoints with its first 0, 1, 2 ... steps of synthetic views.

    Args:
        views: options with `view_tilts`, one tilt for each step, and `view_rotation`.
        features: fingerprint of the photo's features.
    """
    tilts, rotation = list(views["view_tilts"]), views["view_rotation"]
    return [digest("views", VERSION, tilts[:steps], rotation, features) for steps in range(len(tilts) + 1)]


@contextmanager
def matched_keypoints(path: Path, features: FeatureStore, matches: MatchStore) -> Iterator[KeypointStore]:
    """Opens the keypoints whose rows a match store refers to.

    These are the features' keypoints or, with synthetic views, the keypoints at `path`.

    Raises:
        HardnetSfmError: the keypoints are missing or damaged, or belong to other features or views than the matches.
    """
    options = matches.header["options"]
    if "view_tilts" not in options:
        yield features
        return
    with KeypointStore(path) as store:
        prints, needed = store.fingerprints(), dict.fromkeys(features.names(), 0)
        for facts in matches.index.values():
            for name in (str(facts["name0"]), str(facts["name1"])):
                needed[name] = max(needed.get(name, 0), int(facts.get("view_steps", 0)))
        for name, made_from in features.fingerprints().items():
            if prints.get(name) not in view_fingerprints(options, made_from)[needed[name] :]:
                raise HardnetSfmError(
                    f"{path}: not the keypoints of {name} that {matches.path.name} refers to",
                    "Run `hardnet-sfm match --view-synthesis` again.",
                )
        yield store


def stale_pairs(features: FeatureStore, matches: MatchStore) -> list[tuple[str, str]]:
    """Finds pairs whose matches were made from other features than these, or whose photos no longer exist."""
    made_from, options = features.fingerprints(), matches.header["options"]
    prints = matches.fingerprints()
    plain = {name: value for name, value in options.items() if not name.startswith("view_")}

    with_views, without = match_fingerprints(options), match_fingerprints(plain)

    def is_stale(pair: tuple[str, str]) -> bool:
        if not (pair[0] in made_from and pair[1] in made_from):
            return True
        key = pair_key(*pair)
        wanted = with_views if "view_steps" in matches.index[key] else without
        return prints[key] != wanted(made_from[pair[0]], made_from[pair[1]])

    return [pair for pair in matches.pairs() if is_stale(pair)]


def inputs_fingerprint(features: FeatureStore, matches: MatchStore) -> str:
    """Returns the fingerprint of both stores, which tells whether a model is up to date with them."""
    return digest("inputs", features.fingerprints(), matches.fingerprints())


def what_changed(header: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Describes the options that differ from those of a store, for messages; empty if none differs."""
    old = header.get("options", recipe)
    changed = sorted(name for name in {*old, *recipe} if old.get(name) != recipe.get(name))
    return ", ".join(f"{name} {_short(old.get(name))} -> {_short(recipe.get(name))}" for name in changed)


def _short(value: object) -> str:
    text = str(value)
    return "none" if text in ("", "None") else text if len(text) < 24 else f"{text[:8]}..."
