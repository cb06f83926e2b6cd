"""The registry of detectors, which find oriented keypoints in upright grey photos.

Another package adds a detector by an entry point in the group `hardnet_sfm.detectors`. The name of the entry point is
the value for `--detector`. Its object is a factory:

`factory(options: DetectorOptions) -> Callable[[uint8 (H, W)], Keypoints]`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.colmap.sift import ColmapDog
from hardnet_sfm.errors import UsageError
from hardnet_sfm.keypoints import Keypoints, strongest
from hardnet_sfm.registry import Registry

Detect = Callable[[NDArray[np.uint8]], Keypoints]


@dataclass(frozen=True)
class DetectorOptions:
    """The options that every detector receives.

    Attributes:
        max_keypoints: largest number of places in a photo. A place with two orientations counts once and gives two
            rows.
        peak_threshold: smallest absolute difference of Gaussians, for grey values in [0, 1].
        edge_threshold: largest ratio of principal curvatures.
        upright: whether to skip the estimation of orientations, so that every angle is 0.
        affine_shape: whether to estimate local affine frames instead of similarity frames.
    """

    max_keypoints: int
    peak_threshold: float
    edge_threshold: float
    upright: bool
    affine_shape: bool


Factory = Callable[[DetectorOptions], Detect]


def opencv_dog(options: DetectorOptions) -> Detect:
    """Makes a difference-of-Gaussians detector with OpenCV, which can detect without describing.

    Keypoints are ranked by contrast times scale. Their positions agree with COLMAP's, because the base of the pyramid
    is upsampled without OpenCV's default bias of 1/4 pixel.
    """
    if options.affine_shape:
        raise UsageError("--affine-shape has no effect with --detector opencv-dog", "Use --detector dog.")
    layers = 3
    sift = cv2.SIFT.create(
        nOctaveLayers=layers,
        # OpenCV divides its threshold by the layers of an octave. With this factor the option means the same for both
        # detectors.
        contrastThreshold=options.peak_threshold * layers,
        edgeThreshold=options.edge_threshold,
        enable_precise_upscale=True,
    )

    def detect(grey: NDArray[np.uint8]) -> Keypoints:
        found = sift.detect(grey, None)
        if not found:
            return Keypoints.empty()
        rows = np.array([(*point.pt, point.size / 2, point.angle % 360, point.response) for point in found], np.float32)
        if options.upright:
            rows[:, 3] = 0
            rows = np.unique(rows, axis=0)
        x, y, scale, angle, contrast = rows.T
        keypoints = Keypoints(np.stack([x, y], 1), scale, angle, contrast * scale)
        return strongest(keypoints, keypoints.scores, options.max_keypoints)

    return detect


def dog(options: DetectorOptions) -> Detect:
    """Makes a difference-of-Gaussians detector with COLMAP's SIFT.

    It keeps the largest keypoints, with at most two orientations each. COLMAP stops at the pyramid level where it has
    enough keypoints, so a few of the largest are missing.
    """
    return ColmapDog(**asdict(options))


DETECTORS: Registry[Factory] = Registry("detector", "detectors", {"opencv-dog": opencv_dog, "dog": dog})


def make_detector(name: str, options: DetectorOptions) -> Detect:
    """Makes a detector by its registered name.

    Raises:
        UsageError: no detector has this name, or an option has no effect with it.
    """
    return DETECTORS.find(name)(options)
