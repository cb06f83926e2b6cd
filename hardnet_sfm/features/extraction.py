"""Keypoints and descriptors of photos: the options, the description of one photo, and of a stream of photos."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import check_choice, check_least
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.photos import Photo, resize_to_fit
from hardnet_sfm.resources import Resources
from hardnet_sfm.workers import torch_threads

if TYPE_CHECKING:  # torch and pycolmap take seconds to import; `--help` and `info` do not need them
    from hardnet_sfm.features.descriptors import Descriptor, PatchDescriber
    from hardnet_sfm.features.detectors import DetectorOptions


Orientation = Literal["auto", "upright", "estimated", "both"]


@dataclass(frozen=True)
class KeypointOptions:
    """How keypoints are found."""

    detector: str = "opencv-dog"
    """Keypoint detector. opencv-dog is fast; dog is COLMAP's own and is needed for --affine-shape. Other packages can
    register more."""
    max_keypoints: int = 12000
    """Most keypoints per photo. One with two orientations counts once, as in COLMAP."""
    max_image_size: int = 3200
    """Shrink larger photos until no side is longer than this, in pixels. Keypoints are stored in pixels of the original
    photo. Lower it to save time and memory."""
    peak_threshold: float = 0.02 / 3
    """Smallest contrast of a keypoint, as a difference of Gaussians of grey values in [0, 1]. Lower it to find more
    keypoints."""
    edge_threshold: float = 10.0
    """Largest ratio of the principal curvatures of a keypoint. Raise it to keep more keypoints on edges."""
    orientation: Orientation = "auto"
    """Direction that keypoints are described along. upright: the rows of the photo; best for photos that were held
    upright. estimated: the gradients around the keypoint; needed for rotated photos. both: describe each keypoint both
    ways. auto: match small copies of some photos both ways and use the better one. auto also finds and turns upright
    photos that lie on their side."""
    affine_shape: bool = False
    """Estimate local affine frames, which follow slanted surfaces. Needs --detector dog."""
    strict: bool = False
    """Stop at the first photo that cannot be read. By default such photos are skipped."""

    def check(self) -> None:
        """Raises UsageError if a value makes no sense."""
        check_choice("orientation", self.orientation, Orientation)
        check_least(self, max_keypoints=1, max_image_size=32, peak_threshold=0, edge_threshold=1)


@dataclass(frozen=True)
class ExtractOptions(KeypointOptions):
    """How keypoints are found and described."""

    descriptor: str = "hardnet"
    """Descriptor of the keypoints: hardnet, hardnet-fast or rootsift; with --weights also l2net, l2net-cs, tfeat,
    deepdesc, deepcompare-siam-l2 or deepcompare-siam2stream-l2. Other packages can register more."""
    weights: Path | None = None
    """Weights of the descriptor, a .safetensors file. Give it to use weights of your own."""

    def recipe(self, weights_sha256: str) -> dict[str, Any]:
        """Returns everything that the features depend on, for JSON."""
        kept = asdict(self)
        del kept["weights"], kept["strict"]
        return {**kept, "weights_sha256": weights_sha256}

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any], weights: Path | None) -> Self:
        """Returns the options of a recipe, with a weights file.

        The file may differ from the weights of the recipe. So the caller must compare the recipe of the new options
        with it.
        """
        known = {of.name for of in fields(cls)}
        return cls(**{name: value for name, value in recipe.items() if name in known}, weights=weights)


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
    """Detects and describes keypoints in single photos, bit for bit like `extract`.

    One photo does not show how other photos are turned. So orientations are estimated if the option is `auto`.

    Args:
        options: how to detect and describe.
        resources: how much of the machine to use.

    Attributes:
        recipe: everything that the features depend on, as in the header of a store.

    Raises:
        HardnetSfmError: the weights do not fit.
        UsageError: the options contradict each other.
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
        """Returns N keypoints in pixels of the upright photo, and their (N, D) descriptors.

        Args:
            photo: a photo of any size.
            turn: direction that is upright in the photo, degrees; used if orientation is "upright".
        """
        stream = iter([self._cut("", photo, turn)])
        ((detected, descriptors),) = describe_stream(stream, self._describe, self._threads)
        return detected.keypoints, descriptors


def detector_options(options: KeypointOptions, most: int | None = None) -> DetectorOptions:
    """Converts the options for a detector.

    For `both` the detector estimates orientations, and the upright keypoints are added afterwards.

    Args:
        options: keypoint options whose orientation is decided, so it is not "auto".
        most: largest number of keypoints; None for that of `options`.
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
    """Detects the keypoints of one photo and cuts their patches. Several threads may call it at once."""

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
    """Fills batches with the patches of successive photos, and yields the descriptors photo by photo, in order."""
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
