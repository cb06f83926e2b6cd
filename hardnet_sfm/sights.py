"""The view of a registered photo on a model: the rays of its keypoints, and the points that they observe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_POINT = -1


@dataclass(frozen=True, eq=False)
class Sight:
    """One registered photo with N keypoints, in a model of P points.

    Attributes:
        cam_from_world: (3, 4) pose: world to camera, x right, y down, z forward.
        rays: (N, 2) float32, x / z and y / z of each keypoint's ray in the camera, with lens distortion removed.
        points: (N,) int64, row of the point that a keypoint observes, or `NO_POINT` if it observes none.
        extent: the photo's longer side in the unit of the rays: its length in pixels divided by the focal length.
    """

    cam_from_world: NDArray[np.float64]
    rays: NDArray[np.float32]
    points: NDArray[np.int64]
    extent: float

    @property
    def centre(self) -> NDArray[np.float64]:
        """(3,) position of the camera centre, in the model's units."""
        return np.asarray(-self.cam_from_world[:, :3].T @ self.cam_from_world[:, 3])

    def project(self, xyz: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Projects (M, 3) places to (M, 2) rays and (M,) depths. The ray of a place behind the camera is infinite."""
        in_camera = xyz @ self.cam_from_world[:, :3].T + self.cam_from_world[:, 3]
        depth = in_camera[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            rays = in_camera[:, :2] / depth[:, None]
        rays[depth <= 0] = np.inf
        return rays, depth
