"""Lens distortion models: converts between them, and tests which of two predicts observations better."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import pycolmap

from hardnet_sfm.arrays import Float64

# The model that cameras start with, and which may grow.
GROWING = "SIMPLE_RADIAL"
# One in this many observations is held out. At least this many stay with each point.
_EVERY, _LEAST = 8, 2
# Largest number of points in trials of larger models.
_POINTS = 3000
# A camera needs at least this many held-out observations for a decision.
_ENOUGH = 50
# A larger model must lower the cost of held-out observations by this many standard deviations, and by this share.
_SURE, _WORTH = 3.0, 0.01
# Upper limit of squared errors, square pixels, so that an observation that projects to nowhere has a finite loss.
_HOPELESS = 100.0
# Distortion at the corner, as a share of the radius, at which a fisheye lens is worth a trial.
_WIDE = -0.1


@dataclass(frozen=True)
class HeldOut:
    """Observations that were removed from a model for testing.

    Attributes:
        of_camera: a list for each camera. An item has the photo's number and N pairs of a keypoint's row and a point's
            number.
        loss_scale: scale of the Cauchy loss, pixels.
    """

    of_camera: dict[int, list[tuple[int, list[tuple[int, int]]]]]
    loss_scale: float

    def losses(self, model: pycolmap.Reconstruction, camera: int) -> Float64:
        """Returns the (N,) robust losses of one camera's observations in a model, as in `adjust_robustly`."""
        seen = self.of_camera.get(camera, [])
        squares = np.concatenate([np.zeros(0), *(squared_errors(model, photo, pairs) for photo, pairs in seen)])
        return self.loss_scale**2 * np.log1p(squares / self.loss_scale**2)

    def prefers(self, smaller: pycolmap.Reconstruction, larger: pycolmap.Reconstruction, camera: int) -> bool:
        """Says whether a larger distortion model of the camera predicts the camera's observations clearly better."""
        before = self.losses(smaller, camera)
        gains = before - self.losses(larger, camera)
        enough = len(gains) >= _ENOUGH and gains.sum() > _WORTH * before.sum()
        return bool(enough and gains.sum() > _SURE * np.sqrt((gains**2).sum()))


def squared_errors(model: pycolmap.Reconstruction, photo: int, seen: list[tuple[int, int]]) -> Float64:
    """Returns (N,) squared reprojection errors, limited to 100 square pixels.

    Observations that project to nowhere get the limit, too.

    Args:
        model: model that contains the photo.
        photo: number of the photo.
        seen: N pairs: the row of a keypoint of the photo, and the number of the point that it observes.
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
    """Returns a copy of a model without an eighth of its observations, and the observations that were removed.

    If the model has more than 3000 points, the copy has an even selection of them. These determine the cameras well
    enough, in a fraction of the time.

    Args:
        model: model to copy; it stays unchanged.
        cameras: numbers of the cameras whose observations are removed.
        loss_scale: scale of the Cauchy loss, pixels.
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
        # The count continues from point to point, so that every position in a track has its turn.
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
    """Converts a SIMPLE_RADIAL camera to RADIAL, OPENCV or OPENCV_FISHEYE.

    RADIAL and OPENCV project exactly like it. OPENCV_FISHEYE nearly does.
    """
    f, x, y, k = map(float, camera.params)
    params = {
        GROWING: [f, x, y, k],
        "RADIAL": [f, x, y, k, 0],
        "OPENCV": [f, f, x, y, k, 0, 0, 0],
    }.get(name) or _fisheye(f, x, y, k, math.hypot(camera.width, camera.height) / 2)
    camera.model = getattr(pycolmap.CameraModelId, name)
    camera.params = params


def _fisheye(f: float, x: float, y: float, k: float, corner: float) -> list[float]:
    """Fits the parameters of OPENCV_FISHEYE by least squares over the angles that SIMPLE_RADIAL maps into the photo."""
    angles = np.linspace(0, np.pi / 2, 500, endpoint=False)[1:]
    radii = np.tan(angles) * (1 + k * np.tan(angles) ** 2)
    falls = np.flatnonzero((np.diff(radii) <= 0) | (f * radii[1:] > corner))
    angles, radii = angles[: falls[0] + 1], radii[: falls[0] + 1]
    # radius = focal (angle + k1 angle^3 + k2 angle^5). There are two coefficients, as more would oscillate outside of
    # these angles.
    powers = angles[:, None] ** np.array([1, 3, 5])
    scale, k1, k2 = np.linalg.lstsq(powers, radii, rcond=None)[0]
    return [f * scale, f * scale, x, y, k1 / scale, k2 / scale, 0, 0]


def is_wide(camera: pycolmap.Camera) -> bool:
    """Says whether a SIMPLE_RADIAL camera pulls its corners in as much as fisheye lenses do."""
    corner = np.hypot(camera.width, camera.height) / (2 * camera.focal_length)
    # This uses the radius in the photo. It is smaller than the radius without distortion, so this is an underestimate.
    return bool(camera.params[3] * corner**2 < _WIDE)


def rises_to_the_corners(camera: pycolmap.Camera) -> bool:
    """Says whether rays at larger angles project farther from the principal point, up to all four corners."""
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
