"""The command `extract` detects and describes keypoints in photos and writes features.h5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.extraction import (
    DetectedPhoto,
    ExtractOptions,
    PhotoCutter,
    describe_stream,
    detector_options,
)
from hardnet_sfm.files.file_hashes import FileHashes
from hardnet_sfm.files.fingerprints import feature_fingerprint, what_changed
from hardnet_sfm.files.photo_files import list_photos, read_photo
from hardnet_sfm.files.stores import FEATURES, StoreWriter, check_names_apart, feature_arrays
from hardnet_sfm.files.workspace import locked
from hardnet_sfm.progress import Advance, progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import Common, Images, print_result
from hardnet_sfm.workers import in_order

if TYPE_CHECKING:  # torch and pycolmap take seconds to import; `--help` and `info` do without
    from hardnet_sfm.features.descriptors import PatchDescriber
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
        orientation: "upright", "estimated" or "both"; if a trial decided, the reason follows.
    """

    photos: int
    keypoints: int
    computed: int
    reason: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    orientation: str = ""

    def summary(self) -> str:
        """One line about the contents of the store and the work of this run."""
        made = f"computed {self.computed} ({self.reason})" if self.computed else "up to date"
        return f"{self.keypoints} keypoints in {self.photos} photos, {self.orientation}; {made}"


def extract(
    images: Path | str, features: Path | str, options: ExtractOptions | None = None, resources: Resources | None = None
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
        options: options of detection and description.
        resources: threads and device to use.

    Raises:
        HardnetSfmError: the folder has no photos, the weights do not fit the descriptor, a photo is unreadable and
            `strict` is set, or no photo can be read.
        UsageError: the options contradict each other.
    """
    from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
    from hardnet_sfm.features.detectors import make_detector
    from hardnet_sfm.networks.device import resolve_device

    options, resources = options or ExtractOptions(), resources or Resources()
    options.check()
    images, features = Path(images), Path(features)
    names = list_photos(images)
    check_names_apart(names)
    descriptor = make_descriptor(options.descriptor, options.weights)
    make_detector(options.detector, detector_options(options))  # refuses options that the detector does not have
    # Created only when the first photo has to be described: a run that is up to date does not need it.
    describer = cache(lambda: PatchDescriber(descriptor, resolve_device(resources.device)))
    with locked(features.parent), StoreWriter(features, FEATURES) as writer:
        found = None
        if options.orientation == "auto":
            found = _orientations(images, names, options, describer, resources.threads, writer.header)
            options = replace(options, orientation=found.orientation)
        turned = found.turned if found else {}
        cut = PhotoCutter(options, descriptor)
        recipe = options.recipe(descriptor.weights_sha256)
        hashes = FileHashes(features.with_name(f".{features.name}.hashes"))
        due = _due(images, names, writer.fingerprints, hashes, recipe, turned)
        skipped: dict[str, str] = {}
        if due:
            describe = describer()
            describing = resources.threads if describe.device == "cpu" else 1
            with progress("extract", len(names), len(names) - len(due)) as advance:
                stream = _detected(
                    due,
                    lambda name: cut(name, read_photo(images / name), turned.get(name, 0)),
                    resources.threads,
                    skipped,
                    options.strict,
                    advance,
                )
                for photo, descriptors in describe_stream(stream, describe, describing):
                    arrays = feature_arrays(photo.keypoints, descriptors, photo.size)
                    print_of = feature_fingerprint(recipe, photo.sha256, photo.turn)
                    writer.put(photo.name, print_of, arrays, _facts_of(photo))
                    hashes.note(images / photo.name, photo.sha256)
                    advance(note=photo.name)
            hashes.save()
        done = [name for name in names if name not in skipped]
        if not done:
            first = next(iter(skipped.values()))
            raise HardnetSfmError(f"{images}: none of the {len(names)} photos can be read", first)
        orientation = f"{options.orientation}: {found.reason}" if found else options.orientation
        header = {
            "images": str(images.resolve()),
            "names": done,
            "options": recipe,
            "skipped": skipped,
            "max_ratio": descriptor.max_ratio,
            "orientation": orientation,
            **({"trial": found.facts()} if found else {}),
        }
        reason = what_changed(writer.header, recipe) or f"{len(due) - len(skipped)} photos are new or changed"
        writer.commit(done, header)
        keypoints = sum(int(writer.facts[name]["keypoints"]) for name in done)
    return ExtractResult(len(done), keypoints, len(due) - len(skipped), reason if due else "", skipped, orientation)


def _facts_of(photo: DetectedPhoto) -> dict[str, str | int]:
    """Returns what the store says about one photo."""
    return {
        "photo_sha256": photo.sha256,
        "exif_orientation": photo.exif_orientation,
        "keypoints": len(photo.keypoints),
        "turn": photo.turn,
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

    An earlier trial with the same descriptor and detector is reused for the photos that it covers.
    """
    from hardnet_sfm.orientation import Orientations, choose_orientations

    earlier, known = None, []
    same = all(header.get("options", {}).get(name) == getattr(options, name) for name in ("descriptor", "detector"))
    if "trial" in header and same:
        earlier, known = Orientations(**header["trial"]), header["names"]
        if set(names) <= set(known):
            return earlier
    return choose_orientations(images, names, describer(), options.detector, threads, earlier, known)


def _due(
    images: Path,
    names: list[str],
    finished: dict[str, str],
    hashes: FileHashes,
    recipe: dict[str, Any],
    turned: Mapping[str, int],
) -> list[str]:
    """Lists the photos whose features are missing or out of date."""

    def current(name: str) -> bool:
        if name not in finished:
            return False
        try:
            return finished[name] == feature_fingerprint(recipe, hashes.sha256(images / name), turned.get(name, 0))
        except OSError:
            return False  # the later attempt to read the photo reports the error

    return [name for name in names if not current(name)]


def _detected(
    names: list[str],
    cut: Callable[[str], DetectedPhoto],
    threads: int,
    skipped: dict[str, str],
    strict: bool,
    advance: Advance,
) -> Iterator[DetectedPhoto]:
    """Yields photos with their cut patches in the given order; `threads` threads work, at most two results wait."""
    with ThreadPoolExecutor(threads, "detect") as pool, closing(in_order(pool, cut, names, threads + 2)) as stream:
        for name, future in stream:
            try:
                detected = future.result()
            except HardnetSfmError as error:
                if strict:
                    raise
                skipped[name] = error.message
                advance(note=name)
            else:
                yield detected


@dataclass(frozen=True)
class ExtractCommand:
    """Detect and describe keypoints, into features.h5."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm extract images/",
        "hardnet-sfm extract images/ --max-keypoints 4000 --detector dog",
    )

    images: Images
    """Folder of photos, searched recursively, never written to."""
    common: Common = field(default_factory=Common)
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        place = self.common.place
        place.check_apart(self.images)
        print_result("extract", extract(self.images, place.features, self.extract, self.resources))
