"""Models of lens distortion: how one becomes another, and which of two predicts observations better."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import pycolmap
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
# The model that cameras start with, and that may grow.
GROWING = "SIMPLE_RADIAL"
# One of so many observations is held out; at least so many stay with each point.
_EVERY, _LEAST = 8, 2
# Most points that trials of larger models are made with.
_POINTS = 3000
# Fewest held-out observations of a camera that can decide anything.
_ENOUGH = 50
# A larger model has to lower the cost of held-out observations by so many standard deviations, and by this share.
_SURE, _WORTH = 3.0, 0.01
# Squared error in pixels at which the loss of an observation ends, so that one projected to nowhere has one.
_HOPELESS = 100.0
# Distortion at the corner, as a share of the radius, from which on a fisheye lens is worth a trial.
_WIDE = -0.1


@dataclass(frozen=True)
class HeldOut:
    """Observations that were taken out of a model.

    Attributes:
        of_camera: for each camera a list of photo's number and N pairs of row of its keypoint and number of its point.
        loss_scale: of the Cauchy loss, pixels.
    """

    of_camera: dict[int, list[tuple[int, list[tuple[int, int]]]]]
    loss_scale: float

    def losses(self, model: pycolmap.Reconstruction, camera: int) -> Float64:
        """(N,) robust losses of the observations of one camera, as `adjust_robustly` has them, in a model."""
        seen = self.of_camera.get(camera, [])
        squares = np.concatenate([np.zeros(0), *(squared_errors(model, photo, pairs) for photo, pairs in seen)])
        return self.loss_scale**2 * np.log1p(squares / self.loss_scale**2)

    def prefers(self, smaller: pycolmap.Reconstruction, larger: pycolmap.Reconstruction, camera: int) -> bool:
        """Whether a model with a larger distortion model of the camera predicts its observations clearly better."""
        before = self.losses(smaller, camera)
        gains = before - self.losses(larger, camera)
        enough = len(gains) >= _ENOUGH and gains.sum() > _WORTH * before.sum()
        return bool(enough and gains.sum() > _SURE * np.sqrt((gains**2).sum()))


def squared_errors(model: pycolmap.Reconstruction, photo: int, seen: list[tuple[int, int]]) -> Float64:
    """(N,) squared reprojection errors, at most 100 square pixels, which one that projects to nowhere has, too.

    Args:
        model: with the photo.
        photo: its number.
        seen: N pairs: the row of a keypoint of the photo, and the number of the point that it is said to see.
    """
    image = model.image(photo)
    xy = np.array([image.point2D(row).xy for row, _ in seen])
    xyz = np.array([model.point3D(point).xyz for _, point in seen])
    projected = np.asarray(model.camera(image.camera_id).img_from_cam(image.cam_from_world() * xyz), np.float64)
    squares: Float64 = np.nan_to_num(((projected - xy) ** 2).sum(axis=1), nan=_HOPELESS)
    return squares.clip(max=_HOPELESS)


def hold_out(
    model: pycolmap.Reconstruction, cameras: Set[int], loss_scale: float
) -> tuple[pycolmap.Reconstruction, HeldOut]:
    """A copy of a model without an eighth of its observations, and what was taken out.

    Of a model with more than 3000 points it has those evenly: they say enough about the cameras, for a fraction of the
    time.

    Args:
        model: stays as it is.
        cameras: numbers of those whose observations are taken out.
        loss_scale: of the Cauchy loss, pixels.
    """
    reduced = pycolmap.Reconstruction(model)
    numbers = sorted(model.points3D)
    kept = set(numbers[:: -(-len(numbers) // _POINTS)]) if numbers else set()
    for number in set(numbers) - kept:
        reduced.delete_point3D(number)
    rows: dict[int, list[tuple[int, int]]] = {}
    seen = 0
    for number in sorted(kept):
        elements = model.point3D(number).track.elements
        # Counted on from point to point, so that every place in a track has its turn.
        taken = elements[-seen % _EVERY :: _EVERY][: max(len(elements) - _LEAST, 0)]
        seen += len(elements)
        for element in taken:
            if model.image(element.image_id).camera_id in cameras:
                rows.setdefault(element.image_id, []).append((element.point2D_idx, number))
    of_camera: dict[int, list[tuple[int, list[tuple[int, int]]]]] = {}
    for photo, pairs in rows.items():
        of_camera.setdefault(model.image(photo).camera_id, []).append((photo, pairs))
        for row, _ in pairs:
            reduced.delete_observation(photo, row)
    return reduced, HeldOut(of_camera, loss_scale)


def convert(camera: pycolmap.Camera, name: str) -> None:
    """Turns a SIMPLE_RADIAL camera into RADIAL or OPENCV, which project alike, or OPENCV_FISHEYE, which nearly does."""
    f, x, y, k = map(float, camera.params)
    params = {
        GROWING: [f, x, y, k],
        "RADIAL": [f, x, y, k, 0],
        "OPENCV": [f, f, x, y, k, 0, 0, 0],
    }.get(name) or _fisheye(f, x, y, k, math.hypot(camera.width, camera.height) / 2)
    camera.model = getattr(pycolmap.CameraModelId, name)
    camera.params = params


def _fisheye(f: float, x: float, y: float, k: float, corner: float) -> list[float]:
    """Parameters of OPENCV_FISHEYE by least squares over the angles that SIMPLE_RADIAL puts into the photo."""
    angles = np.linspace(0, np.pi / 2, 500, endpoint=False)[1:]
    radii = np.tan(angles) * (1 + k * np.tan(angles) ** 2)
    falls = np.flatnonzero((np.diff(radii) <= 0) | (f * radii[1:] > corner))
    angles, radii = angles[: falls[0] + 1], radii[: falls[0] + 1]
    # radius = focal (angle + k1 angle^3 + k2 angle^5): two coefficients, as more would swing outside of these angles.
    powers = angles[:, None] ** np.array([1, 3, 5])
    scale, k1, k2 = np.linalg.lstsq(powers, radii, rcond=None)[0]
    return [f * scale, f * scale, x, y, k1 / scale, k2 / scale, 0, 0]


def is_wide(camera: pycolmap.Camera) -> bool:
    """Whether a SIMPLE_RADIAL camera pulls its corners in as much as fisheye lenses do."""
    corner = np.hypot(camera.width, camera.height) / (2 * camera.focal_length)
    # By the radius in the photo, which is smaller than that without distortion, so an underestimate.
    return bool(camera.params[3] * corner**2 < _WIDE)


def rises_to_the_corners(camera: pycolmap.Camera) -> bool:
    """Whether rays at larger angles are seen farther from the principal point, up to all four corners."""
    centre = np.array([camera.principal_point_x, camera.principal_point_y])
    angles = np.linspace(0, np.pi / 2, 500, endpoint=False)
    for corner in np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * (camera.width, camera.height):
        way = corner - centre
        direction = way / (camera.focal_length_x, camera.focal_length_y)
        direction /= np.linalg.norm(direction)
        rays = np.column_stack([np.sin(angles)[:, None] * direction, np.cos(angles)])
        seen = np.linalg.norm(np.asarray(camera.img_from_cam(rays)) - centre, axis=1)
        beyond = np.flatnonzero(~(seen < np.linalg.norm(way)))
        end = beyond[0] + 1 if len(beyond) else len(seen)
        if not (np.diff(seen[:end]) > 0).all():
            return False
    return True
