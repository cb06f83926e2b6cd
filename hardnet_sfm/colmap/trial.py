"""Mapping a few photos with one camera and with a camera each, to see whether they share one."""

from __future__ import annotations

import copy
from collections.abc import Mapping as ByKey
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.colmap.calibration import adjust_robustly
from hardnet_sfm.colmap.database import Database
from hardnet_sfm.colmap.mapping import Mapping
from hardnet_sfm.colmap.two_view import Verification
from hardnet_sfm.keypoints import Float32

Pair = tuple[str, str]
# COLMAP's guess of an unknown focal length, as a multiple of the photo's longer side.
_GUESSED_FOCAL_LENGTH = 1.2
# A model with fewer photos says nothing about their cameras: two photos agree on almost any focal length.
_FEWEST_PHOTOS = 3
# Squared pixels below which a model is exact, as made ones may be.
_NO_COST = 1e-9


@dataclass(frozen=True)
class Trial:
    """Some photos of one size, to be mapped.

    Attributes:
        keypoints: (N, 4) or (N, 6) float32 by the name of each photo, as `colmap_keypoints` gives them.
        matches: (M, 2) int32 row numbers of keypoints by the names of two photos.
        size: (width, height) of the photos as stored, pixels.
        camera_model: COLMAP's name.
        focal_length: where refinement starts, pixels; None if nothing is known.
        pixels: how many pixels of the photos one of the verification's `max_error` is.
    """

    keypoints: ByKey[str, Float32]
    matches: ByKey[Pair, NDArray[np.int32]]
    size: tuple[int, int]
    camera_model: str
    focal_length: float | None = None
    pixels: float = 1.0


@dataclass(frozen=True)
class Mapped:
    """How much of a trial a model explains.

    Attributes:
        photos: registered in the largest model.
        observations: of its points.
    """

    photos: int
    observations: int


@dataclass(frozen=True)
class Released:
    """What changes when each photo of a model with one camera gets a camera of its own.

    Attributes:
        gain: share of the cost of adjustment that goes away, 0 to 1.
        spread: standard deviation of the photos' focal lengths divided by their mean, weighted by observations.
    """

    gain: float
    spread: float


@dataclass(frozen=True)
class Evidence:
    """What a trial found.

    Attributes:
        photos: number of photos in the trial.
        together: the model with one camera.
        apart: the model with a camera for each photo; None if the first model has every photo, so that no second one
            was needed.
        released: None if the model with one camera is too small for it.
    """

    photos: int
    together: Mapped
    apart: Mapped | None
    released: Released | None


def run_trial(trial: Trial, how: Verification, threads: int, seed: int, scratch: Path) -> Evidence:
    """Maps photos with one camera, and with a camera each if one camera fails to register all.

    The model with one camera is adjusted, then adjusted again from there with a camera for each photo. If one camera
    took all photos, the second adjustment gains little and the focal lengths stay together. If not, the geometry of the
    photos pulls them apart. A model that was built with a camera each determines focal lengths far less.

    Mapping takes one thread, so that what it finds does not depend on the machine.

    Args:
        trial: the photos.
        how: the verification of pairs.
        threads: to use for the verification.
        seed: of mapping.
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
    with pycolmap.Database.open(path) as database, pycolmap.DatabaseTransaction(database):
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
    """Writes a camera and its rig; the numbers of both."""
    camera_id = database.write_camera(camera)
    rig = pycolmap.Rig()
    rig.add_ref_sensor(_sensor(camera_id))
    return camera_id, database.write_rig(rig)


def _sensor(camera_id: int) -> pycolmap.sensor_t:
    return pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera_id)


def _copy_geometries(source: Path, target: Path) -> None:
    """Copies verified pairs: they do not depend on how many cameras there are. The photos have the same numbers."""
    with pycolmap.Database.open(source) as old, pycolmap.Database.open(target) as new:
        for pair, geometry in zip(*old.read_two_view_geometries(), strict=True):
            new.write_two_view_geometry(*pycolmap.pair_id_to_image_pair(pair), geometry)


def _map(path: Path, seed: int) -> pycolmap.Reconstruction | None:
    """The largest model of a database, without colours; None if there is none."""
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed = 1, seed
    options.min_model_size, options.extract_colors = _FEWEST_PHOTOS, False
    manager = pycolmap.ReconstructionManager()
    with pycolmap.Database.open(path) as opened:
        pipeline = pycolmap.IncrementalPipeline(options, opened, manager)
        # Python looks for Ctrl-C whenever it gets a turn.
        pipeline.add_callback(pycolmap.IncrementalPipelineCallback.NEXT_IMAGE_REG_CALLBACK.value, lambda: None)
        pipeline.run()
    models = [manager.get(number) for number in range(manager.size())]
    return max(models, key=lambda model: (model.num_reg_images(), model.num_points3D()), default=None)


def _extent(model: pycolmap.Reconstruction | None) -> Mapped:
    if model is None:
        return Mapped(0, 0)
    return Mapped(int(model.num_reg_images()), int(model.compute_num_observations()))


def _release(model: pycolmap.Reconstruction, mapping: Mapping) -> Released:
    """Adjusts a model with one camera, and then with a camera for each photo."""
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
    """A copy of the registered photos and points of a model, with as many cameras as photos."""
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
    """A robust cost of all observations, squared pixels: SOFT_L1 of Ceres with a scale of 1, for either model."""
    squares = []
    for number in model.reg_image_ids():
        image = model.image(number)
        for row in image.get_observation_point2D_idxs():
            point = image.point2D(row)
            projected = image.project_point(model.point3D(point.point3D_id).xyz)
            if projected is not None:
                squares.append(float(np.sum((projected - point.xy) ** 2)))
    return float(np.sum(2 * (np.sqrt(1 + np.array(squares)) - 1)))
