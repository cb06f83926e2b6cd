"""The stage `extract`: photos to features.h5."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError, UsageError, check_choice
from hardnet_sfm.fingerprints import feature_fingerprint, what_changed
from hardnet_sfm.images import Photo, list_photos, read_photo, resize_to_fit, sha256_of
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.progress import Advance, progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.stores import FEATURES, FeatureStore, StoreWriter, check_names_apart, feature_arrays
from hardnet_sfm.workers import in_order, torch_threads
from hardnet_sfm.workspace import locked

if TYPE_CHECKING:  # torch and pycolmap take seconds to import; `--help` and `info` do without
    from hardnet_sfm.features.descriptors import Descriptor, PatchDescriber
    from hardnet_sfm.features.detectors import DetectorOptions
    from hardnet_sfm.orientation import Orientations


Orientation = Literal["auto", "upright", "estimated", "both"]


@dataclass(frozen=True)
class KeypointOptions:
    """How keypoints are found."""

    detector: str = "opencv-dog"
    """opencv-dog (fast), dog (COLMAP's own), or one that another package registers."""
    max_keypoints: int = 12000
    """Most keypoints per photo. One with two orientations counts once, as in COLMAP."""
    max_image_size: int = 3200
    """Larger photos are shrunk so that no side is longer, pixels. Keypoints stay in pixels of the photo as it is."""
    peak_threshold: float = 0.02 / 3
    """Smallest contrast of a keypoint, as a difference of Gaussians of grey values in [0, 1]. Lower: more keypoints."""
    edge_threshold: float = 10.0
    """Largest ratio of principal curvatures of a keypoint. Higher: more keypoints on edges."""
    orientation: Orientation = "auto"
    """upright: describe all keypoints along the direction of the photo's rows; best for photos that were held upright.
    estimated: describe each along its gradients, which rotated photos need. both: describe each keypoint both ways.
    auto: match small copies of some photos both ways and take the better one; upright photos that lie on their side are
    found and turned."""
    affine_shape: bool = False
    """Estimate local affine frames (--detector dog)."""
    strict: bool = False
    """Stop at a photo that cannot be read, instead of passing over it."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        check_choice("orientation", self.orientation, Orientation)
        for name, least in (("max_keypoints", 1), ("max_image_size", 32), ("peak_threshold", 0), ("edge_threshold", 1)):
            if not getattr(self, name) >= least:  # nor NaN
                raise UsageError(f"--{name.replace('_', '-')} must be at least {least}")


@dataclass(frozen=True)
class ExtractOptions(KeypointOptions):
    """How keypoints are found and described."""

    descriptor: str = "hardnet"
    """hardnet, rootsift, or, with --weights, l2net, l2net-cs, tfeat, deepdesc, deepcompare-siam-l2,
    deepcompare-siam2stream-l2; or one that another package registers."""
    weights: Path | None = None
    """Weights of the descriptor, a .safetensors file."""

    def recipe(self, weights_sha256: str) -> dict[str, Any]:
        """Everything that decides what the features are, fit for JSON."""
        kept = asdict(self)
        del kept["weights"], kept["strict"]
        return {**kept, "weights_sha256": weights_sha256}


@dataclass(frozen=True)
class ExtractReport:
    """What the stage did.

    Attributes:
        photos: number of photos with features in the store.
        keypoints: of all of them together.
        computed: number of photos done in this run; the others were up to date.
        reason: why any had to be computed, for people; empty where none.
        skipped: why a photo could not be read, by its name.
        orientation: "upright", "estimated" or "both", and why where a trial decided.
    """

    photos: int
    keypoints: int
    computed: int
    reason: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    orientation: str = ""


class _Detected(NamedTuple):
    """One photo between detection and description."""

    name: str
    sha256: str
    size: tuple[int, int]
    exif_orientation: int
    turn: int
    keypoints: Keypoints
    patches: NDArray[np.uint8]


def extract(
    images: Path | str, features: Path | str, options: ExtractOptions | None = None, resources: Resources | None = None
) -> ExtractReport:
    """Detects and describes keypoints in all photos of a folder.

    Photos stream: threads decode, detect and cut patches, others describe patches, several photos' in one batch, and
    this one writes. At any moment there are no more than `threads + 2` photos in memory, so the peak is bounded
    by (threads + 2) times one decoded photo with its pyramid plus `max_keypoints` patches of 1 KB, whatever the number
    of photos. The result does not depend on the number of threads, nor on what an earlier, killed run had finished.

    Args:
        images: folder of photos, searched recursively.
        features: the store to make or continue.
        options: how.
        resources: how much of the machine.

    Raises:
        HardnetSfmError: no photos, weights that do not fit, an unreadable photo with `strict`, no photo readable.
        UsageError: contradictory options.
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
    make_detector(options.detector, detector_options(options))  # refuses options that it does not have
    describe = PatchDescriber(descriptor, resolve_device(resources.device))
    with locked(features.parent), StoreWriter(features, FEATURES) as writer:
        found = None
        if options.orientation == "auto":
            found = _orientations(images, names, options, describe, resources.threads, writer.header)
            options = replace(options, orientation=found.orientation)
        turned = found.turned if found else {}
        cut = _Cutter(options, descriptor)
        recipe = options.recipe(descriptor.weights_sha256)
        due = _due(images, names, writer.fingerprints, recipe, turned)
        skipped: dict[str, str] = {}
        if due:
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
                for photo, descriptors in _described(stream, describe, describing):
                    arrays = feature_arrays(photo.keypoints, descriptors, photo.size)
                    facts: dict[str, str | int] = {
                        "photo_sha256": photo.sha256,
                        "exif_orientation": photo.exif_orientation,
                        "keypoints": len(photo.keypoints),
                        "turn": photo.turn,
                    }
                    writer.put(photo.name, feature_fingerprint(recipe, photo.sha256, photo.turn), arrays, facts)
                    advance(note=photo.name)
        done = [name for name in names if name not in skipped]
        if not done:
            first = next(iter(skipped.values()))
            raise HardnetSfmError(f"{images}: none of the {len(names)} photos can be read", first)
        header = {
            "images": str(images.resolve()),
            "names": done,
            "options": recipe,
            "skipped": skipped,
            "max_ratio": descriptor.max_ratio,
        }
        orientation = f"{options.orientation}: {found.reason}" if found else options.orientation
        header["orientation"] = orientation
        if found:
            header["trial"] = found.facts()
        reason = what_changed(writer.header, recipe) or f"{len(due) - len(skipped)} photos are new or changed"
        writer.commit(done, header)
    with FeatureStore(features) as store:
        keypoints = sum(store.counts().values())
    return ExtractReport(len(done), keypoints, len(due) - len(skipped), reason if due else "", skipped, orientation)


def _orientations(
    images: Path,
    names: list[str],
    options: ExtractOptions,
    describe: PatchDescriber,
    threads: int,
    header: Mapping[str, Any],
) -> Orientations:
    """What a trial finds; of an earlier run with the same descriptor and detector what it found, for its photos."""
    from hardnet_sfm.orientation import Orientations, choose_orientations

    earlier, known = None, []
    same = all(header.get("options", {}).get(name) == getattr(options, name) for name in ("descriptor", "detector"))
    if "trial" in header and same:
        earlier, known = Orientations(**header["trial"]), header["names"]
        if set(names) <= set(known):
            return earlier
    return choose_orientations(images, names, describe, options.detector, threads, earlier, known)


class PhotoDescriber:
    """Detects and describes keypoints in single photos, bit by bit as `extract` does.

    One photo says nothing of how others are turned, so orientations are estimated where `auto` would decide.

    Args:
        options: how.
        resources: how much of the machine.

    Attributes:
        recipe: everything that decides what the features are, as stores have it in their header.

    Raises:
        HardnetSfmError: weights that do not fit.
        UsageError: contradictory options.
    """

    def __init__(self, options: ExtractOptions, resources: Resources | None = None) -> None:
        from hardnet_sfm.features.descriptors import PatchDescriber, make_descriptor
        from hardnet_sfm.networks.device import resolve_device

        resources = resources or Resources()
        options.check()
        if options.orientation == "auto":
            options = replace(options, orientation="estimated")
        descriptor = make_descriptor(options.descriptor, options.weights)
        self.recipe = options.recipe(descriptor.weights_sha256)
        self._cut = _Cutter(options, descriptor)
        device = resolve_device(resources.device)
        self._describe = PatchDescriber(descriptor, device)
        self._threads = resources.threads if device == "cpu" else 1

    def __call__(self, photo: Photo, turn: int = 0) -> tuple[Keypoints, NDArray[np.float16]]:
        """N keypoints in pixels of the upright photo, and their (N, D) descriptors.

        Args:
            photo: of any size.
            turn: where orientation is "upright": what is upright in the photo, degrees.
        """
        stream = iter([self._cut("", photo, turn)])
        ((detected, descriptors),) = _described(stream, self._describe, self._threads)
        return detected.keypoints, descriptors


def _due(
    images: Path, names: list[str], finished: dict[str, str], recipe: dict[str, Any], turned: Mapping[str, int]
) -> list[str]:
    """The photos whose features are missing or out of date."""

    def current(name: str) -> bool:
        if name not in finished:
            return False
        try:
            return finished[name] == feature_fingerprint(recipe, sha256_of(images / name), turned.get(name, 0))
        except OSError:
            return False  # reading it again gives the error its proper place

    return [name for name in names if not current(name)]


def detector_options(options: KeypointOptions, most: int | None = None) -> DetectorOptions:
    """The same for a detector; for `both` it estimates orientations, and upright keypoints are added to its own.

    Args:
        options: whose orientation is decided.
        most: keypoints, where not as many as `options` have.
    """
    from hardnet_sfm.features.detectors import DetectorOptions

    return DetectorOptions(
        max_keypoints=options.max_keypoints if most is None else most,
        peak_threshold=options.peak_threshold,
        edge_threshold=options.edge_threshold,
        upright=options.orientation == "upright",
        affine_shape=options.affine_shape,
    )


class _Cutter:
    """Detects the keypoints of one photo and cuts their patches; called from several threads at once."""

    def __init__(self, options: ExtractOptions, descriptor: Descriptor) -> None:
        from hardnet_sfm.features.detectors import make_detector

        self._orientation = options.orientation
        self._detect = make_detector(options.detector, detector_options(options))
        self._max_image_size = options.max_image_size
        self._patch_size, self._measurement_size = descriptor.patch_size, descriptor.measurement_size

    def __call__(self, name: str, photo: Photo, turn: int) -> _Detected:
        from hardnet_sfm.patches import extract_patches

        grey = resize_to_fit(photo.grey, self._max_image_size)
        found = self._detect(grey)
        if self._orientation == "both":
            found = found.both_ways()
        elif turn:
            found = found.along(turn)
        patches = extract_patches(grey, found.xy, found.frames(), self._patch_size, self._measurement_size)
        keypoints = found.resized((grey.shape[1], grey.shape[0]), photo.size)
        return _Detected(name, photo.sha256, photo.size, photo.orientation, turn, keypoints, patches)


def _detected(
    names: list[str],
    cut: Callable[[str], _Detected],
    threads: int,
    skipped: dict[str, str],
    strict: bool,
    advance: Advance,
) -> Iterator[_Detected]:
    """Photos in the given order, cut by `threads` threads, with at most two finished ones waiting."""
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


def _described(
    stream: Iterator[_Detected], describe: PatchDescriber, threads: int
) -> Iterator[tuple[_Detected, NDArray[np.float16]]]:
    """Fills batches with the patches of successive photos and hands the descriptors back by photo, in order."""
    photos: deque[_Detected] = deque()
    left = np.zeros((0, describe.patch_size, describe.patch_size), np.uint8)
    done = np.zeros((0, describe.dimension), np.float16)
    with torch_threads(threads) as pool:
        for photo in chain(stream, [None]):
            if photo is not None:
                photos.append(photo)
                left = np.concatenate([left, photo.patches])
            end = len(left) if photo is None else len(left) // describe.batch * describe.batch
            batches = [left[start : start + describe.batch] for start in range(0, end, describe.batch)]
            left, done = left[end:], np.concatenate([done, *pool.map(describe, batches)])
            while photos and len(photos[0].keypoints) <= len(done):
                complete = photos.popleft()
                count = len(complete.keypoints)
                yield complete, done[:count]
                done = done[count:]
