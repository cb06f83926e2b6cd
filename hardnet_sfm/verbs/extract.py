"""The command `extract` detects and describes keypoints in photos and writes features.h5."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.extraction import (
    DetectedPhoto,
    ExtractOptions,
    PhotoCutter,
    describe_stream,
    detector_options,
)
from hardnet_sfm.files.fingerprints import feature_fingerprint, what_changed
from hardnet_sfm.files.ledger import Ledger, say_again
from hardnet_sfm.files.ownership import claim
from hardnet_sfm.files.photo_checks import check_losses
from hardnet_sfm.files.photo_folders import NotTaken, PhotoList, list_photos
from hardnet_sfm.files.photo_hashes import PhotoHashes
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FEATURES, check_names_apart, feature_arrays
from hardnet_sfm.files.truncated_photos import is_truncated
from hardnet_sfm.files.workspace import Workspace, locked
from hardnet_sfm.progress import Advance, progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import Common, Images, Prune, print_result
from hardnet_sfm.workers import threaded

if TYPE_CHECKING:  # torch and pycolmap take seconds to import; `--help` and `info` do without
    from hardnet_sfm.features.descriptors import Descriptor, PatchDescriber
    from hardnet_sfm.orientation import Orientations


@dataclass(frozen=True)
class ExtractResult:
    """Result of the stage.

    Attributes:
        photos: number of photos with features in the store.
        keypoints: number of keypoints in all photos together.
        computed: number of photos processed in this run; the others were up to date.
        reason: why photos had to be computed, as text for the user; empty if none had to be.
        skipped: maps the name of each unreadable photo to the reason.
        truncated: names of the photos whose end is missing. Their features come from what is there.
        not_taken: what else is in the folder, such as photos in formats that are not read.
        orientation: "upright", "estimated" or "both"; if a trial decided, the reason follows.
        removed: number of photos that were gone, so that their features were dropped.
    """

    photos: int
    keypoints: int
    computed: int
    reason: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    orientation: str = ""
    truncated: tuple[str, ...] = ()
    not_taken: NotTaken = field(default_factory=NotTaken)
    removed: int = 0

    def summary(self) -> str:
        """One line about the contents of the store and the work of this run."""
        made = [f"computed {self.computed} ({self.reason})"] if self.computed else []
        made += [f"removed {self.removed}"] if self.removed else []
        state = ", ".join(made) or "up to date"
        return f"{self.keypoints} keypoints in {self.photos} photos, {self.orientation}; {state}"


def extract(
    images: Path | str,
    features: Path | str,
    options: ExtractOptions | None = None,
    resources: Resources | None = None,
    *,
    listed: PhotoList | None = None,
    prune: bool = False,
) -> ExtractResult:
    """Detects and describes keypoints in all photos of a folder.

    Photos are processed as a stream. Some threads decode photos, detect keypoints and cut patches. Others describe
    the patches of several photos in one batch. The calling thread writes the store. At most `threads + 2` photos are
    in memory at any time. The peak is therefore at most (threads + 2) times one decoded photo with its pyramid and
    `max_keypoints` patches of 1 KB, independent of the number of photos. The result depends neither on the number of
    threads nor on which photos an earlier, killed run had finished.

    Args:
        images: folder of photos, searched recursively.
        features: store to create or to continue.
        options: options of detection and description. None means those that the workspace remembers, or the defaults.
        resources: threads and device to use.
        listed: the photos of the folder, if the caller has listed them.
        prune: drop the features of photos that are gone, even if these are a tenth of the photos or more.

    Raises:
        HardnetSfmError: the folder has no photos, many photos are gone and `prune` is not set, the weights do not fit
            the descriptor, a photo is unreadable and `strict` is set, or no photo can be read.
        UsageError: the options contradict each other.
    """
    from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
    from hardnet_sfm.features.detectors import make_detector
    from hardnet_sfm.networks.device import resolve_device

    images, features, resources = Path(images), Path(features), resources or Resources()
    ledger = Ledger(features.parent)
    asked = options = options or ledger.recall("extract", ExtractOptions) or ExtractOptions()
    options.check()
    listed = list_photos(images) if listed is None else listed
    names = listed.names
    check_names_apart(names)
    descriptor = make_descriptor(options.descriptor, options.weights)
    make_detector(options.detector, detector_options(options))  # refuses options that the detector does not have
    # Created only when the first photo has to be described: a run that is up to date does not need it.
    describer = cache(lambda: PatchDescriber(descriptor, resolve_device(resources.device)))
    with locked(features.parent), StoreWriter(features, FEATURES) as writer:
        hashes = PhotoHashes(Workspace(features.parent).photo_hashes, images)
        removed = check_losses(features, writer.header, writer.facts, hashes, names, prune=prune)
        found = None
        if options.orientation == "auto":
            found = _orientations(images, names, options, describer, resources.threads, writer.header)
            options = replace(options, orientation=found.orientation)
        plan = _Plan(images, hashes, options, options.recipe(descriptor.weights_sha256), found, descriptor)
        due = plan.due(names, writer.fingerprints)
        skipped: dict[str, str] = {}
        start = time.perf_counter()
        changed = what_changed(writer.header, plan.recipe)
        if due and changed and writer.facts:
            say_again(ledger, "extract", f"{len(due)} photos", changed, items=len(due))
        if due:
            with progress("extract", len(names), len(names) - len(due)) as advance:
                skipped = _extract_due(due, plan, describer(), writer, resources.threads, advance)
        hashes.save(names)
        done = [name for name in names if name not in skipped]
        if not done:
            first = next(iter(skipped.values()))
            raise HardnetSfmError(f"{images}: none of the {len(names)} photos can be read", first)
        writer.commit(done, plan.header(done, skipped))
        ledger.note_seconds("extract", time.perf_counter() - start, len(due), len(names))
        ledger.remember("extract", asked)
        keypoints = sum(int(writer.facts[name]["keypoints"]) for name in done)
        truncated = tuple(name for name in done if "truncated" in writer.facts[name])
    computed = len(due) - len(skipped)
    reason = (changed or f"{computed} photos are new or changed") if due else ""
    facts = skipped, plan.orientation, truncated, listed.not_taken, removed
    return ExtractResult(len(done), keypoints, computed, reason, *facts)


@dataclass(frozen=True)
class _Plan:
    """What decides the features of the photos of a folder.

    Attributes:
        images: the folder of the photos.
        hashes: sha256 of the photos.
        options: options of detection and description, with the orientation that was decided.
        recipe: everything that the features of all photos depend on.
        found: result of the trial that decided the orientation, or None without a trial.
        descriptor: descriptor of the keypoints.
    """

    images: Path
    hashes: PhotoHashes
    options: ExtractOptions
    recipe: dict[str, Any]
    found: Orientations | None
    descriptor: Descriptor

    @property
    def orientation(self) -> str:
        """Orientation of the keypoints and the reason for it, as text for the user."""
        return f"{self.options.orientation}: {self.found.reason}" if self.found else self.options.orientation

    def turn(self, name: str) -> int:
        """Direction that is upright in a photo, degrees as in `Keypoints.oris`."""
        return self.found.turned.get(name, 0) if self.found else 0

    def due(self, names: list[str], finished: Mapping[str, str]) -> list[str]:
        """Lists the photos whose features are missing or out of date, given the fingerprints in the store."""
        return [name for name in names if name not in finished or not self._is_current(name, finished[name])]

    def _is_current(self, name: str, fingerprint: str) -> bool:
        try:
            sha256 = self.hashes.sha256(name)
        except OSError:
            return False  # the later attempt to read the photo reports the error
        return fingerprint == feature_fingerprint(self.recipe, sha256, self.turn(name))

    def header(self, done: list[str], skipped: dict[str, str]) -> dict[str, Any]:
        """Returns what the store says about all of its photos."""
        return {
            "images": str(self.images.resolve()),
            "names": done,
            "options": self.recipe,
            "skipped": skipped,
            "max_ratio": self.descriptor.max_ratio,
            "orientation": self.orientation,
            **({"trial": self.found.facts()} if self.found else {}),
        }


def _extract_due(
    due: list[str], plan: _Plan, describe: PatchDescriber, writer: StoreWriter, threads: int, advance: Advance
) -> dict[str, str]:
    """Puts the features of photos into the store. Returns why some photos were skipped, by name."""
    skipped: dict[str, str] = {}
    cut = PhotoCutter(plan.options, plan.descriptor)

    def readable(stream: Iterable[tuple[str, Future[DetectedPhoto]]]) -> Iterator[DetectedPhoto]:
        for name, future in stream:
            try:
                detected = future.result()
            except HardnetSfmError as error:
                if plan.options.strict:
                    raise
                skipped[name] = error.message
                advance(note=name)
            else:
                yield detected

    with threaded(lambda name: cut(name, plan.hashes.photo(name), plan.turn(name)), due, threads) as stream:
        torch_threads = threads if describe.device == "cpu" else 1
        for photo, descriptors in describe_stream(readable(stream), describe, torch_threads):
            fingerprint = feature_fingerprint(plan.recipe, photo.sha256, photo.turn)
            arrays = feature_arrays(photo.keypoints, descriptors, photo.size)
            writer.put(photo.name, fingerprint, arrays, _facts_of(photo, plan.images))
            advance(note=photo.name)
    return skipped


def _facts_of(photo: DetectedPhoto, images: Path) -> dict[str, str | int]:
    """Returns what the store says about one photo."""
    truncated = {"truncated": 1} if is_truncated(images / photo.name) else {}
    return {
        "photo_sha256": photo.sha256,
        "exif_orientation": photo.exif_orientation,
        "keypoints": len(photo.keypoints),
        "turn": photo.turn,
        **truncated,
    }


def _orientations(
    images: Path,
    names: list[str],
    options: ExtractOptions,
    describer: Callable[[], PatchDescriber],
    threads: int,
    header: Mapping[str, Any],
) -> Orientations:
    """Decides the orientation mode and the turn of each photo by a trial.

    An earlier trial with the same descriptor and detector is reused for the photos that it covers. Its decision stands
    until there are twice as many photos.
    """
    from hardnet_sfm.orientation import Orientations, choose_orientations

    earlier, known = None, []
    same = all(header.get("options", {}).get(name) == getattr(options, name) for name in ("descriptor", "detector"))
    if "trial" in header and same:
        earlier, known = Orientations(**header["trial"]), header["names"]
        if set(names) <= set(known):
            return earlier
        if len(names) >= 2 * (earlier.photos or len(known)):
            earlier, known = None, []
    return choose_orientations(images, names, describer(), options.detector, threads, earlier, known)


def extract_photos(
    images: Path,
    place: Workspace,
    options: ExtractOptions | None = None,
    resources: Resources | None = None,
    *,
    later: Sequence[str] = (),
    prune: bool = False,
) -> ExtractResult:
    """Extracts the features of a workspace.

    Args:
        images, options, resources, prune: see `extract`.
        place: the workspace.
        later: names of the outputs that the caller makes afterwards. Foreign ones are refused before the work begins.

    Raises:
        HardnetSfmError: see `extract`; also if the workspace belongs to someone else.
        UsageError: see `extract`; also if the workspace is the folder of the photos.
    """
    place.check_apart(images)
    if options is not None:
        options.check()
    listed = list_photos(images)
    claim(place.root, place.features.name, *later)
    return extract(images, place.features, options, resources, listed=listed, prune=prune)


@dataclass(frozen=True)
class ExtractCommand:
    """Options of `hardnet-sfm extract`.

    Examples:
        hardnet-sfm extract images/
        hardnet-sfm extract images/ --max-keypoints 4000 --detector dog
    """

    images: Images
    """Folder of photos, searched recursively, never written to."""
    common: Common = field(default_factory=Common)
    prune: Prune = False
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        result = extract_photos(self.images, self.common.place, self.extract, self.resources, prune=self.prune)
        print_result("extract", result)
