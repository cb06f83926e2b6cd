"""The stage `extract`: photos to features.h5."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError, UsageError
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


@dataclass(frozen=True)
class KeypointOptions:
    """How keypoints are found."""

    detector: str = "opencv-dog"
    """opencv-dog (fast), dog (COLMAP's own), or one that another package registers."""
    max_keypoints: int = 8192
    """At most so many keypoints a photo; each orientation of a keypoint counts."""
    max_image_size: int = 3200
    """Larger photos are shrunk so that no side is longer, pixels. Keypoints stay in pixels of the photo as it is."""
    peak_threshold: float = 0.02 / 3
    """Smallest contrast of a keypoint, as a difference of Gaussians of grey values in [0, 1]. Lower: more keypoints."""
    edge_threshold: float = 10.0
    """Largest ratio of principal curvatures of a keypoint. Higher: more keypoints on edges."""
    upright: bool = False
    """Estimate no orientation: better where all photos were held upright, useless where not."""
    affine_shape: bool = False
    """Estimate local affine frames (--detector dog)."""
    strict: bool = False
    """Stop at a photo that cannot be read, instead of passing over it."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
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
    """

    photos: int
    keypoints: int
    computed: int
    reason: str = ""
    skipped: dict[str, str] = field(default_factory=dict)


class _Detected(NamedTuple):
    """One photo between detection and description."""

    name: str
    sha256: str
    size: tuple[int, int]
    orientation: int
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
    from hardnet_sfm.networks.device import resolve_device

    options, resources = options or ExtractOptions(), resources or Resources()
    options.check()
    images, features = Path(images), Path(features)
    names = list_photos(images)
    check_names_apart(names)
    descriptor = make_descriptor(options.descriptor, options.weights)
    cut = _Cutter(options, descriptor)
    recipe = options.recipe(descriptor.weights_sha256)
    with locked(features.parent), StoreWriter(features, FEATURES) as writer:
        due = _due(images, names, writer.fingerprints, recipe)
        skipped: dict[str, str] = {}
        if due:
            device = resolve_device(resources.device)
            describe = PatchDescriber(descriptor, device)
            describing = resources.threads if device == "cpu" else 1
            with progress("extract", len(names), len(names) - len(due)) as advance:
                stream = _detected(
                    due,
                    lambda name: cut(name, read_photo(images / name)),
                    resources.threads,
                    skipped,
                    options.strict,
                    advance,
                )
                for photo, descriptors in _described(stream, describe, describing):
                    arrays = feature_arrays(photo.keypoints, descriptors, photo.size)
                    facts: dict[str, str | int] = {
                        "photo_sha256": photo.sha256,
                        "exif_orientation": photo.orientation,
                        "keypoints": len(photo.keypoints),
                    }
                    writer.put(photo.name, feature_fingerprint(recipe, photo.sha256), arrays, facts)
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
        reason = what_changed(writer.header, recipe) or f"{len(due) - len(skipped)} photos are new or changed"
        writer.commit(done, header)
    with FeatureStore(features) as store:
        keypoints = sum(store.counts().values())
    return ExtractReport(len(done), keypoints, len(due) - len(skipped), reason if due else "", skipped)


class PhotoDescriber:
    """Detects and describes keypoints in single photos, bit by bit as `extract` does.

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
        descriptor = make_descriptor(options.descriptor, options.weights)
        self.recipe = options.recipe(descriptor.weights_sha256)
        self._cut = _Cutter(options, descriptor)
        device = resolve_device(resources.device)
        self._describe = PatchDescriber(descriptor, device)
        self._threads = resources.threads if device == "cpu" else 1

    def __call__(self, photo: Photo) -> tuple[Keypoints, NDArray[np.float16]]:
        """N keypoints in pixels of the upright photo, and their (N, D) descriptors."""
        stream = iter([self._cut("", photo)])
        ((detected, descriptors),) = _described(stream, self._describe, self._threads)
        return detected.keypoints, descriptors


def _due(images: Path, names: list[str], finished: dict[str, str], recipe: dict[str, Any]) -> list[str]:
    """The photos whose features are missing or out of date."""

    def current(name: str) -> bool:
        if name not in finished:
            return False
        try:
            return finished[name] == feature_fingerprint(recipe, sha256_of(images / name))
        except OSError:
            return False  # reading it again gives the error its proper place

    return [name for name in names if not current(name)]


class _Cutter:
    """Detects the keypoints of one photo and cuts their patches; called from several threads at once."""

    def __init__(self, options: ExtractOptions, descriptor: Descriptor) -> None:
        from hardnet_sfm.features.detectors import DetectorOptions, make_detector

        shared = ("max_keypoints", "peak_threshold", "edge_threshold", "upright", "affine_shape")
        chosen = DetectorOptions(**{name: getattr(options, name) for name in shared})
        self._detect, self._max_image_size = make_detector(options.detector, chosen), options.max_image_size
        self._patch_size, self._measurement_size = descriptor.patch_size, descriptor.measurement_size

    def __call__(self, name: str, photo: Photo) -> _Detected:
        from hardnet_sfm.patches import extract_patches

        grey = resize_to_fit(photo.grey, self._max_image_size)
        found = self._detect(grey)
        patches = extract_patches(grey, found.xy, found.frames(), self._patch_size, self._measurement_size)
        keypoints = found.resized((grey.shape[1], grey.shape[0]), photo.size)
        return _Detected(name, photo.sha256, photo.size, photo.orientation, keypoints, patches)


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
