"""The command `info` lists the contents of a workspace and the parts that are out of date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.fingerprints import are_features_of, inputs_fingerprint, stale_pairs
from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.photo_folders import list_photos
from hardnet_sfm.files.photo_hashes import PhotoHashes
from hardnet_sfm.files.stores import FeatureStore, MatchStore
from hardnet_sfm.files.workspace import CARD, DEFAULT, MANIFEST, PHOTOS, Workspace, read_json
from hardnet_sfm.terminal import output


@dataclass(frozen=True)
class Part:
    """One part of a workspace.

    Attributes:
        name: "features", "matches", "model", "words" (the vocabulary) or "index".
        holds: counts, as text for the user.
        options: options that the part was made with.
        stale: why the part is out of date; empty if it is up to date.
    """

    name: str
    holds: str
    options: dict[str, Any] = field(default_factory=dict)
    stale: str = ""


def info(workspace: Workspace | Path | str) -> list[Part]:
    """Describes the parts of a workspace, and compares them with the photos and with each other.

    Raises:
        HardnetSfmError: there is no workspace, or a file in it is damaged.
    """
    place = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    if not place.root.is_dir():
        raise HardnetSfmError(f"no workspace at {place.root}", "Run `hardnet-sfm reconstruct IMAGES` first.")
    if not place.features.is_file():
        return _retrieval(place, None)
    with FeatureStore(place.features) as features:
        parts = [_features(features), *_retrieval(place, features)]
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
    try:
        listed = list_photos(images)
    except HardnetSfmError as error:  # no photo is left
        return Part("features", holds, options, f"{len(counts)} photos gone: {error.message}")
    hashes = PhotoHashes(Workspace(features.path.parent).photo_hashes, images)
    there, prints = set(listed.names) - set(skipped), features.fingerprints()
    not_taken = listed.not_taken.summary()
    if not_taken:
        holds += f"; not taken: {not_taken}"
    now = {n: _current(prints[n], options, hashes, n) if n in prints else "" for n in there}
    return Part("features", holds, options, _differences(prints, now))


def _current(fingerprint: str, options: Mapping[str, Any], hashes: PhotoHashes, name: str) -> str:
    """Returns the fingerprint if it belongs to this photo, else an empty string."""
    try:
        return fingerprint if are_features_of(fingerprint, options, hashes.sha256(name)) else ""
    except OSError:
        return ""  # it cannot be read at the moment


def _differences(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Says how many photos are new, gone and changed, judged by fingerprints; empty if nothing differs."""
    changed = [name for name in now.keys() & then.keys() if now[name] != then[name]]
    differences = (("new", now.keys() - then.keys()), ("gone", then.keys() - now.keys()), ("changed", changed))
    return ", ".join(f"{len(names)} photos {what}" for what, names in differences if names)


def _retrieval(place: Workspace, features: FeatureStore | None) -> list[Part]:
    """Describes the vocabulary and the index if they exist. Without features they cannot be recognised as stale."""
    parts = []
    card, manifest = place.vocabulary / CARD, place.index / MANIFEST
    for path, describe in ((card, _vocabulary), (manifest, _index)):
        if path.is_file():
            try:
                parts.append(describe(path.parent, read_json(path), features))
            except (KeyError, TypeError, AttributeError) as error:
                hint = f"Move {path.parent} away and make it again."
                raise HardnetSfmError(f"{path}: damaged: {error!r}", hint) from error
    return parts


def _vocabulary(folder: Path, card: dict[str, Any], features: FeatureStore | None) -> Part:
    holds = f"{card['words']} words of {card['made_of']['descriptors']} descriptors, {_size(folder)}"
    made_with = {name: card[name] for name in ("descriptor", "weights_sha256")}
    return Part("words", holds, made_with, _other_descriptor(made_with, features))


def _index(folder: Path, manifest: dict[str, Any], features: FeatureStore | None) -> Part:
    marks: dict[str, str] = {}
    for segment, removed in manifest["segments"].items():
        content, gone = read_json(folder / segment / PHOTOS), set(removed)
        photos = zip(content["names"], content["fingerprints"], strict=True)
        marks |= {name: mark for number, (name, mark) in enumerate(photos) if number not in gone}
    holds = f"{len(marks)} photos of {manifest['images']}, {manifest['words']} words, {_size(folder)}"
    stale = _other_descriptor(manifest["options"], features)
    if features is not None and not stale:
        stale = _differences(marks, features.fingerprints())
    return Part("index", holds, manifest["options"], stale)


def _other_descriptor(options: Mapping[str, Any], features: FeatureStore | None) -> str:
    made_with = {} if features is None else features.header["options"]
    for name, words in (("descriptor", "descriptor"), ("weights_sha256", "weights")):
        if features is not None and options.get(name, "") != made_with.get(name, ""):
            return f"the features are of another {words}"
    return ""


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB"


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


@dataclass(frozen=True)
class InfoCommand:
    """Options of `hardnet-sfm info`.

    Examples:
        hardnet-sfm info
        hardnet-sfm info out/
    """

    workspace: Annotated[Path, Positional, arg(metavar="WORKSPACE")] = DEFAULT
    """Folder that `reconstruct` or another verb made."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        _print_parts(self.workspace, info(self.workspace))


def _print_parts(workspace: Path, parts: list[Part]) -> None:
    if not parts:
        output.print(f"{escape(str(workspace))}: nothing in it yet")
    for part in parts:
        state = f"[yellow]stale: {escape(part.stale)}[/]" if part.stale else "[green]up to date[/]"
        output.print(f"[bold]{part.name:>8}[/]  {escape(part.holds)}; {state}")
        chosen = ", ".join(f"{name} {value}" for name, value in part.options.items() if value not in ("", None))
        output.print(f"          [dim]{escape(chosen)}[/]")
