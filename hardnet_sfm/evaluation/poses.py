"""Measures the errors of recovered cameras relative to the true cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.colmap.align import aligned

Pose = NDArray[np.float64]
Errors = NDArray[np.float64]


@dataclass(frozen=True)
class PoseErrors:
    """Errors of recovered cameras, and the cameras that are missing.

    Attributes:
        positions: (N,) distances between estimated and true camera centres after similarity alignment, in the unit of
            the truth.
        relative: (P,) error of each pair of true cameras in degrees. It is the larger of the errors of relative
            rotation and of the direction of relative translation. It is infinite if a camera of the pair is missing.
        missing: names of the true cameras that were not recovered.
    """

    positions: Errors
    relative: Errors
    missing: tuple[str, ...]

    def auc(self, degrees: float) -> float:
        """Computes the area under the recall of `relative` up to a threshold in degrees, 0 to 1."""
        return area_under_recall(self.relative, degrees)


def pose_errors(estimated: Mapping[str, Pose], truth: Mapping[str, Pose]) -> PoseErrors:
    """Compares cameras by name.

    Args:
        estimated: (3, 4) world-to-camera poses of recovered cameras, in any similarity frame.
        truth: (3, 4) world-to-camera poses of all true cameras.

    Raises:
        HardnetSfmError: fewer than three cameras were recovered.
    """
    common = [name for name in truth if name in estimated]
    centres = aligned(np.array([centre(estimated[n]) for n in common]), np.array([centre(truth[n]) for n in common]))
    positions = np.linalg.norm(centres - [centre(truth[name]) for name in common], axis=1)
    relative = [
        relative_error((estimated[a], estimated[b]), (truth[a], truth[b])) if {a, b} <= set(estimated) else np.inf
        for a, b in combinations(truth, 2)
    ]
    return PoseErrors(positions, np.array(relative), tuple(name for name in truth if name not in estimated))


def centre(cam_from_world: Pose) -> NDArray[np.float64]:
    """Computes the (3,) camera centre of a (3, 4) world-to-camera pose."""
    return np.asarray(-cam_from_world[:, :3].T @ cam_from_world[:, 3])


def relative_error(estimated: tuple[Pose, Pose], truth: tuple[Pose, Pose]) -> float:
    """Computes the error of a relative pose in degrees: the larger of the rotation and translation direction errors."""
    found_rotation, found_translation = _relative(*estimated)
    true_rotation, true_translation = _relative(*truth)
    # The angle is computed from the skew part and the trace of the rotation. It stays exact near 0, while arccos of the
    # trace alone would lose half the digits.
    difference = found_rotation @ true_rotation.T
    twice_sine = np.linalg.norm((difference - difference.T)[[2, 0, 1], [1, 2, 0]])
    rotation = np.arctan2(twice_sine, np.trace(difference) - 1)
    cross = np.linalg.norm(np.cross(found_translation, true_translation))
    # Two cameras at the same estimated position have no direction. That counts as the largest possible error.
    found_none = not found_translation.any() and true_translation.any()
    direction = np.pi if found_none else np.arctan2(cross, found_translation @ true_translation)
    return float(np.degrees(max(rotation, direction)))


def area_under_recall(errors: Errors | Sequence[float], threshold: float) -> float:
    """Computes the mean recall over all thresholds from 0 to the given one: the exact area under the step function.

    The result is in 0 to 1. An error e below the threshold t counts 1 - e / t, a larger error counts 0. (Some programs
    join the steps by straight lines, which gives slightly more if there are few errors.)
    """
    values = np.asarray(errors, np.float64)
    return float(np.mean(np.clip(1 - values / threshold, 0, None))) if len(values) else 0.0


def _relative(first: Pose, second: Pose) -> tuple[Pose, Pose]:
    """Computes the rotation and translation from the first camera's frame to the second camera's frame."""
    rotation = second[:, :3] @ first[:, :3].T
    return rotation, second[:, 3] - rotation @ first[:, 3]
