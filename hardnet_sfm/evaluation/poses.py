"""How far recovered cameras are from the true ones."""

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
    """Errors of the cameras that two reconstructions have in common, and what is missing.

    Attributes:
        positions: (N,) distances of the camera centres after similarity alignment, in the unit of the truth.
        relative: (P,) degrees, for each pair of true cameras the larger of the errors of relative rotation and of the
            direction of relative translation; infinite where one of the two was not recovered.
        missing: names of the true cameras that were not recovered.
    """

    positions: Errors
    relative: Errors
    missing: tuple[str, ...]

    def auc(self, degrees: float) -> float:
        """Area under the recall of `relative` up to a threshold, 0 to 1."""
        return area_under_recall(self.relative, degrees)


def pose_errors(estimated: Mapping[str, Pose], truth: Mapping[str, Pose]) -> PoseErrors:
    """Compares cameras by name.

    Args:
        estimated: (3, 4) world-to-camera poses of recovered cameras, in any similarity frame.
        truth: those of all cameras.

    Raises:
        HardnetSfmError: fewer than three cameras in common.
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
    """(3,) centre of a (3, 4) world-to-camera pose."""
    return np.asarray(-cam_from_world[:, :3].T @ cam_from_world[:, 3])


def relative_error(estimated: tuple[Pose, Pose], truth: tuple[Pose, Pose]) -> float:
    """The larger of the errors in rotation and in the direction of translation from one camera to another, degrees."""
    found_rotation, found_translation = _relative(*estimated)
    true_rotation, true_translation = _relative(*truth)
    # The angle of a rotation from its skew part and trace together stays exact near 0, where arccos of the trace alone
    # loses half the digits.
    difference = found_rotation @ true_rotation.T
    twice_sine = np.linalg.norm((difference - difference.T)[[2, 0, 1], [1, 2, 0]])
    rotation = np.arctan2(twice_sine, np.trace(difference) - 1)
    cross = np.linalg.norm(np.cross(found_translation, true_translation))
    # Two cameras found at one place have no direction, which is as wrong as a direction can be.
    found_none = not found_translation.any() and true_translation.any()
    direction = np.pi if found_none else np.arctan2(cross, found_translation @ true_translation)
    return float(np.degrees(max(rotation, direction)))


def area_under_recall(errors: Errors | Sequence[float], threshold: float) -> float:
    """Mean recall over all thresholds from 0 to the given one: the exact area under the step function, 0 to 1.

    An error e below the threshold t counts for 1 - e / t, one above for nothing. (Some programs join the steps by
    straight lines, which for few errors gives slightly more.)
    """
    values = np.asarray(errors, np.float64)
    return float(np.mean(np.clip(1 - values / threshold, 0, None))) if len(values) else 0.0


def _relative(first: Pose, second: Pose) -> tuple[Pose, Pose]:
    """Rotation and translation that take the first camera's frame to the second's."""
    rotation = second[:, :3] @ first[:, :3].T
    return rotation, second[:, 3] - rotation @ first[:, 3]
