"""The observations of a COLMAP model as plain arrays, and the keypoints of a COLMAP database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32, Float64
from hardnet_sfm.colmap.database import explain_failures
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.errors import HardnetSfmError

_HINT = "Give the features.h5 or database.db of the model."
_ANGLES_AT_ONCE = 1_000_000  # number of pairs of rays, 8 MB


@dataclass(frozen=True, eq=False)
class Tracks:
    """V photos, P points and the N observations of the points, photo by photo. An observation takes about 100 bytes.

    Pixels are COLMAP's: pixels of the photo as stored in its file, with the centre of the top-left pixel at (0.5, 0.5).

    Attributes:
        names: names of the registered photos, in the order of COLMAP's numbers.
        sizes: (V, 2) int64, width and height of each photo's camera.
        corners: (V, 4, 2), x / z and y / z of the rays of each photo's corners, clockwise from the top left.
        cam_from_world: (V, 3, 4), x right, y down, z forward.
        point_ids: (P,) int64, COLMAP's number of each point, increasing.
        xyz: (P, 3), position of each point in the model's units.
        colours: (P, 3) uint8, RGB.
        photo: (N,) int32, row in `names`; does not decrease.
        point: (N,) int64, row in `xyz`.
        row: (N,) int32, row of the observation's keypoint in its photo.
        xy: (N, 2), pixels.
        ray: (N, 2), x / z and y / z of the observation's ray in the camera, with lens distortion removed.
        jacobian: (N, 2, 2), derivative of `ray` by `xy`.
        depth: (N,), z of the point in the camera.
        error: (N,), reprojection error in pixels; infinite if the point does not project into the photo.
    """

    names: list[str]
    sizes: NDArray[np.int64]
    corners: Float64
    cam_from_world: Float64
    point_ids: NDArray[np.int64]
    xyz: Float64
    colours: NDArray[np.uint8]
    photo: NDArray[np.int32]
    point: NDArray[np.int64]
    row: NDArray[np.int32]
    xy: Float64
    ray: Float64
    jacobian: Float64
    depth: Float64
    error: Float64

    def sizes_by_name(self) -> dict[str, tuple[int, int]]:
        """Returns width and height of each photo's camera by the photo's name."""
        return {name: (int(width), int(height)) for name, (width, height) in zip(self.names, self.sizes, strict=True)}

    def of_photo(self, photo: int) -> slice:
        """Returns the rows of one photo's observations."""
        first, end = np.searchsorted(self.photo, [photo, photo + 1])
        return slice(int(first), int(end))

    def lengths(self) -> NDArray[np.int64]:
        """(P,) track length of each point: its number of observations."""
        return np.bincount(self.point, minlength=len(self.xyz)).astype(np.int64)

    def centres(self) -> Float64:
        """(V, 3) camera centre of each photo, in the model's units."""
        rotation, translation = self.cam_from_world[:, :, :3], self.cam_from_world[:, :, 3]
        return np.asarray(-np.einsum("vji,vj->vi", rotation, translation), np.float64)

    def triangulation_angles(self) -> Float64:
        """(P,) degrees: the largest angle between the rays of two photos that observe a point.

        All pairs of a track's rays are compared, so time grows with the sum of squared track lengths.
        """
        away = self.centres()[self.photo] - self.xyz[self.point]
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        lengths, order = self.lengths(), np.argsort(self.point, kind="stable")
        first = np.cumsum(lengths) - lengths
        smallest = np.ones(len(lengths))
        for length in np.unique(lengths[lengths > 1]):
            points = np.flatnonzero(lengths == length)
            for some in np.array_split(points, -(-len(points) * length**2 // _ANGLES_AT_ONCE)):
                rays = away[order[first[some, None] + np.arange(length)]]
                smallest[some] = (rays @ rays.swapaxes(1, 2)).min(axis=(1, 2))
        return np.asarray(np.rad2deg(np.arccos(smallest.clip(-1, 1))), np.float64)


def read_tracks(folder: Path) -> Tracks:
    """Reads the observations of a binary or text model.

    Raises:
        HardnetSfmError: there is no model in the folder, it is damaged, or it has no tracks.
    """
    return tracks_of(Model.read(folder), folder)


def tracks_of(read: Model, folder: Path) -> Tracks:
    """Extracts the observations of a model that was read from a folder.

    Raises:
        HardnetSfmError: the model has no tracks.
    """
    model = read.colmap
    points = dict(sorted(model.points3D.items()))
    if not points:
        raise HardnetSfmError(
            f"{folder}: the model has cameras but no points", "Points with tracks are needed: triangulate them first."
        )
    point_ids, xyz = np.fromiter(points, np.int64), np.array([point.xyz for point in points.values()])
    images = [model.image(number) for number in sorted(model.reg_image_ids())]
    seen = [_observations(image, model.camera(image.camera_id), point_ids, xyz) for image in images]
    point, row, xy, ray, jacobian, depth, error = (np.concatenate(column) for column in zip(*seen, strict=True))
    if not len(point):
        raise HardnetSfmError(f"{folder}: no photo of the model sees any of its points", "Triangulate them first.")
    cameras = [model.camera(image.camera_id) for image in images]
    return Tracks(
        names=[image.name for image in images],
        sizes=np.array([(camera.width, camera.height) for camera in cameras], np.int64),
        corners=np.array([_corners(camera) for camera in cameras]),
        cam_from_world=np.array([image.cam_from_world().matrix() for image in images]),
        point_ids=point_ids,
        xyz=xyz,
        colours=np.array([point.color for point in points.values()], np.uint8),
        photo=np.repeat(np.arange(len(images), dtype=np.int32), [len(columns[0]) for columns in seen]),
        point=point,
        row=row,
        xy=xy,
        ray=ray,
        jacobian=jacobian,
        depth=depth,
        error=error,
    )


def _corners(camera: pycolmap.Camera) -> Float64:
    """Returns the (4, 2) rays of the corners.

    It ignores lens distortion if the distortion cannot be inverted so far from the middle.
    """
    corners = np.array([(0, 0), (camera.width, 0), (camera.width, camera.height), (0, camera.height)], np.float64)
    rays = np.asarray(camera.cam_from_img(corners), np.float64)
    centre, focal = (camera.principal_point_x, camera.principal_point_y), camera.mean_focal_length()
    return np.where(np.isfinite(rays).all(axis=1, keepdims=True), rays, (corners - centre) / focal)


def _observations(
    image: pycolmap.Image, camera: pycolmap.Camera, point_ids: NDArray[np.int64], xyz: Float64
) -> tuple[NDArray[np.int64], NDArray[np.int32], Float64, Float64, Float64, Float64, Float64]:
    """Returns point, row, xy, ray, jacobian, depth and error of one photo's observations, as in `Tracks`."""
    row = np.array(image.get_observation_point2D_idxs(), np.int32)
    observed = image.get_observation_points2D()
    xy = np.array([seen.xy for seen in observed], np.float64).reshape(-1, 2)
    point = np.searchsorted(point_ids, np.array([seen.point3D_id for seen in observed], np.int64)).astype(np.int64)
    pose = image.cam_from_world().matrix()
    in_camera = xyz[point] @ pose[:, :3].T + pose[:, 3]
    depth = in_camera[:, 2]
    projected = np.asarray(camera.img_from_cam(in_camera), np.float64)
    error = np.linalg.norm(projected - xy, axis=1)
    error[(depth <= 0) | ~np.isfinite(error)] = np.inf

    def rays(at: Float64) -> Float64:
        return np.asarray(camera.cam_from_img(at), np.float64)

    # Central differences over one pixel: lens distortion is far smoother than that.
    jacobian = np.stack([rays(xy + step) - rays(xy - step) for step in np.eye(2) / 2], 2, dtype=np.float64)
    return point, row, xy, rays(xy), jacobian, depth, error


class KeypointTables:
    """Keypoints of the photos in a COLMAP database, which is open.

    Raises:
        HardnetSfmError: any method raises it if the database is damaged.
    """

    def __init__(self, path: Path, database: pycolmap.Database) -> None:
        self._path, self._database = path, database
        with explain_failures(path, _HINT):
            self._numbers = {image.name: image.image_id for image in database.read_all_images()}

    def __getitem__(self, name: str) -> Float32 | None:
        """Returns the keypoint table of a photo, or None if it has none.

        The table is (N, 2), (N, 4) x, y, scale, radians or (N, 6) x, y, a11, a12, a21, a22.
        """
        with explain_failures(self._path, _HINT):
            if name not in self._numbers or not self._database.exists_keypoints(self._numbers[name]):
                return None
            return np.asarray(self._database.read_keypoints(self._numbers[name]), np.float32)


@contextmanager
def keypoint_tables(database: Path) -> Iterator[KeypointTables]:
    """Opens a COLMAP database while the block runs.

    Raises:
        HardnetSfmError: the database is missing or damaged.
    """
    if not database.is_file():  # COLMAP would make a new one
        raise HardnetSfmError(f"no such file: {database}", _HINT)
    with explain_failures(database, _HINT):
        opened = pycolmap.Database.open(database)
    try:
        yield KeypointTables(database, opened)
    finally:
        opened.close()
