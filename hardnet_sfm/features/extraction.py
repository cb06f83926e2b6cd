"""Keypoints and descriptors of photos: the options, one photo, and a stream of photos."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import UsageError, check_choice
from hardnet_sfm.files.photo_files import Photo, resize_to_fit
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.resources import Resources
from hardnet_sfm.workers import torch_threads

if TYPE_CHECKING:  # torch and pycolmap take seconds to import; `--help` and `info` do without
    from hardnet_sfm.features.descriptors import Descriptor, PatchDescriber
    from hardnet_sfm.features.detectors import DetectorOptions


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


class DetectedPhoto(NamedTuple):
    """One photo between detection and description."""

    name: str
    sha256: str
    size: tuple[int, int]
    exif_orientation: int
    turn: int
    keypoints: Keypoints
    patches: NDArray[np.uint8]


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
        self._cut = PhotoCutter(options, descriptor)
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
        ((detected, descriptors),) = describe_stream(stream, self._describe, self._threads)
        return detected.keypoints, descriptors


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


class PhotoCutter:
    """Detects the keypoints of one photo and cuts their patches; called from several threads at once."""

    def __init__(self, options: ExtractOptions, descriptor: Descriptor) -> None:
        from hardnet_sfm.features.detectors import make_detector

        self._orientation = options.orientation
        self._detect = make_detector(options.detector, detector_options(options))
        self._max_image_size = options.max_image_size
        self._patch_size, self._measurement_size = descriptor.patch_size, descriptor.measurement_size

    def __call__(self, name: str, photo: Photo, turn: int) -> DetectedPhoto:
        from hardnet_sfm.patches import extract_patches

        grey = resize_to_fit(photo.grey, self._max_image_size)
        found = self._detect(grey)
        if self._orientation == "both":
            found = found.both_ways()
        elif turn:
            found = found.along(turn)
        patches = extract_patches(grey, found.xy, found.frames(), self._patch_size, self._measurement_size)
        keypoints = found.resized((grey.shape[1], grey.shape[0]), photo.size)
        return DetectedPhoto(name, photo.sha256, photo.size, photo.orientation, turn, keypoints, patches)


def describe_stream(
    stream: Iterator[DetectedPhoto], describe: PatchDescriber, threads: int
) -> Iterator[tuple[DetectedPhoto, NDArray[np.float16]]]:
    """Fills batches with the patches of successive photos and hands the descriptors back by photo, in order."""
    photos: deque[DetectedPhoto] = deque()
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
