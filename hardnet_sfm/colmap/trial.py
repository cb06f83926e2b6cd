"""Maps a few photos with one shared camera and with one camera each, to find out whether they share a camera."""

from __future__ import annotations

import copy
from collections.abc import Mapping as ByKey
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.colmap.calibration import adjust_robustly
from hardnet_sfm.colmap.database import Database, open_database
from hardnet_sfm.colmap.mapping import Mapping
from hardnet_sfm.colmap.two_view import Verification

Pair = tuple[str, str]
# COLMAP's guess of an unknown focal length, as a multiple of the photo's longer side.
_GUESSED_FOCAL_LENGTH = 1.2
# A model with fewer photos gives no evidence on cameras: two photos agree on almost any focal length.
_FEWEST_PHOTOS = 3
# A model with a cost below this, squared pixels, is exact. Synthetic models may be.
_NO_COST = 1e-9


@dataclass(frozen=True)
class Trial:
    """Photos of one size, for trial mapping.

    Attributes:
        keypoints: (N, 4) or (N, 6) float32 by the name of each photo, as `colmap_keypoints` returns them.
        matches: (M, 2) int32 row numbers of keypoints by the names of two photos.
        size: (width, height) of the photos as stored, pixels.
        camera_model: COLMAP's name of the camera model.
        focal_length: initial focal length for refinement, pixels; None if it is unknown.
        pixels: number of pixels of the photos to which one pixel of the verification's `max_error` corresponds.
    """

    keypoints: ByKey[str, Float32]
    matches: ByKey[Pair, NDArray[np.int32]]
    size: tuple[int, int]
    camera_model: str
    focal_length: float | None = None
    pixels: float = 1.0


@dataclass(frozen=True)
class Mapped:
    """The part of a trial that a model explains.

    Attributes:
        photos: number of photos registered in the largest model.
        observations: number of observations of its points.
    """

    photos: int
    observations: int


@dataclass(frozen=True)
class Released:
    """The change of a model when each photo gets its own camera instead of a shared one.

    Attributes:
        gain: share by which the cost of adjustment falls, 0 to 1.
        spread: standard deviation of the photos' focal lengths divided by their mean, weighted by observations.
    """

    gain: float
    spread: float


@dataclass(frozen=True)
class Evidence:
    """The result of a trial.

    Attributes:
        photos: number of photos in the trial.
        together: the model with one camera.
        apart: the model with a camera for each photo; None if the first model has every photo, so that no second one is
            needed.
        released: change with a camera for each photo; None if the model with one camera is too small.
    """

    photos: int
    together: Mapped
    apart: Mapped | None
    released: Released | None


def run_trial(trial: Trial, how: Verification, threads: int, seed: int, scratch: Path) -> Evidence:
    """Maps photos with one camera, and with a camera each if one camera fails to register all photos.

    The model with one camera is adjusted, then adjusted again from there with a camera for each photo. If one camera
    took all photos, the second adjustment gains little and the focal lengths stay together. If not, the geometry of the
    photos pulls them apart. A model that was built with one camera for each photo determines focal lengths far less.

    Mapping uses one thread, so that the result does not depend on the machine.

    Args:
        trial: the photos.
        how: options for verifying pairs.
        threads: number of threads for the verification.
        seed: seed of mapping.
        scratch: an empty folder.
    """
    together_path, apart_path = scratch / "together.db", scratch / "apart.db"
    _write_photos(together_path, trial, shared=True)
    with Database(together_path) as database:
        database.write_matches((*pair, rows) for pair, rows in trial.matches.items())
        list(database.verify(list(trial.matches), how, threads, dict.fromkeys(trial.keypoints, trial.pixels)))
    model = _map(together_path, seed)
    together, apart = _extent(model), None
    if together.photos < len(trial.keypoints):
        _write_photos(apart_path, trial, shared=False)
        _copy_geometries(together_path, apart_path)
        apart = _extent(_map(apart_path, seed))
    released = None
    if model is not None and together.photos >= _FEWEST_PHOTOS:
        released = _release(model, Mapping("incremental", False, False, False, _FEWEST_PHOTOS, 1, seed))
    return Evidence(len(trial.keypoints), together, apart, released)


def _write_photos(path: Path, trial: Trial, *, shared: bool) -> None:
    """Writes photos, their cameras and keypoints into a new database, without reading the photos."""
    width, height = trial.size
    focal_length = trial.focal_length or _GUESSED_FOCAL_LENGTH * max(width, height)
    camera = pycolmap.Camera.create_from_model_name(0, trial.camera_model, focal_length, width, height)
    rigs: list[tuple[int, int]] = []
    with open_database(path) as database, pycolmap.DatabaseTransaction(database):
        for name, keypoints in trial.keypoints.items():
            if not rigs or not shared:
                rigs.append(_write_camera(database, camera))
            camera_id, rig_id = rigs[-1]
            number = database.write_image(pycolmap.Image(name=name, camera_id=camera_id))
            frame = pycolmap.Frame(rig_id=rig_id)
            frame.add_data_id(pycolmap.data_t(_sensor(camera_id), number))
            database.write_frame(frame)
            database.write_keypoints(number, keypoints)


def _write_camera(database: pycolmap.Database, camera: pycolmap.Camera) -> tuple[int, int]:
    """Writes a camera and its rig, and returns the numbers of both."""
    camera_id = database.write_camera(camera)
    rig = pycolmap.Rig()
    rig.add_ref_sensor(_sensor(camera_id))
    return camera_id, database.write_rig(rig)


def _sensor(camera_id: int) -> pycolmap.sensor_t:
    return pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera_id)


def _copy_geometries(source: Path, target: Path) -> None:
    """Copies verified pairs, which do not depend on the number of cameras. The photos have the same numbers."""
    with open_database(source) as old, open_database(target) as new:
        for pair, geometry in zip(*old.read_two_view_geometries(), strict=True):
            new.write_two_view_geometry(*pycolmap.pair_id_to_image_pair(pair), geometry)


def _map(path: Path, seed: int) -> pycolmap.Reconstruction | None:
    """Makes the largest model of a database, without colours; None if there is none."""
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed = 1, seed
    options.min_model_size, options.extract_colors = _FEWEST_PHOTOS, False
    manager = pycolmap.ReconstructionManager()
    with open_database(path) as opened:
        pipeline = pycolmap.IncrementalPipeline(options, opened, manager)
        # A Python callback lets Python handle Ctrl-C.
        pipeline.add_callback(pycolmap.IncrementalPipelineCallback.NEXT_IMAGE_REG_CALLBACK.value, lambda: None)
        pipeline.run()
    models = [manager.get(number) for number in range(manager.size())]
    return max(models, key=lambda model: (model.num_reg_images(), model.num_points3D()), default=None)


def _extent(model: pycolmap.Reconstruction | None) -> Mapped:
    if model is None:
        return Mapped(0, 0)
    return Mapped(int(model.num_reg_images()), int(model.compute_num_observations()))


def _release(model: pycolmap.Reconstruction, mapping: Mapping) -> Released:
    """Adjusts a model with one camera, then with a camera for each photo, and returns the change."""
    shared = adjust_robustly(model, mapping)
    apart = adjust_robustly(_with_a_camera_each(shared), mapping)
    gain = 1 - _cost(apart) / max(_cost(shared), _NO_COST)
    images = [apart.image(number) for number in apart.reg_image_ids()]
    focal_lengths = np.array([apart.camera(image.camera_id).mean_focal_length() for image in images])
    weights = np.array([image.num_points3D for image in images], np.float64)
    mean = float(np.average(focal_lengths, weights=weights))
    deviation = float(np.sqrt(np.average((focal_lengths - mean) ** 2, weights=weights)))
    return Released(max(0.0, gain), deviation / mean)


def _with_a_camera_each(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """Copies the registered photos and points of a model, and gives each photo its own camera."""
    apart = pycolmap.Reconstruction()
    for number in model.reg_image_ids():
        image = model.image(number)
        camera = copy.deepcopy(model.camera(image.camera_id))
        camera.camera_id = number
        apart.add_camera_with_trivial_rig(camera)
        points = pycolmap.Point2DList([pycolmap.Point2D(point.xy) for point in image.points2D])
        twin = pycolmap.Image(name=image.name, camera_id=number, image_id=number, points2D=points)
        apart.add_image_with_trivial_frame(twin, image.cam_from_world())
    for point in model.points3D.values():
        elements = [pycolmap.TrackElement(element.image_id, element.point2D_idx) for element in point.track.elements]
        apart.add_point3D(point.xyz, pycolmap.Track(elements), point.color)
    return apart


def _cost(model: pycolmap.Reconstruction) -> float:
    """Returns the robust cost of all observations, squared pixels.

    It is Ceres' SOFT_L1 with a scale of 1 for both models, so that their costs are comparable.
    """
    squares = []
    for number in model.reg_image_ids():
        image = model.image(number)
        for row in image.get_observation_point2D_idxs():
            point = image.point2D(row)
            projected = image.project_point(model.point3D(point.point3D_id).xyz)
            if projected is not None:
                squares.append(float(np.sum((projected - point.xy) ** 2)))
    return float(np.sum(2 * (np.sqrt(1 + np.array(squares)) - 1)))
