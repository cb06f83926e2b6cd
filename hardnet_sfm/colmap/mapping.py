"""Incremental and global mapping of a database."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pycolmap

from hardnet_sfm.colmap.model import Model

_SECONDS_BETWEEN_SNAPSHOTS = 30.0
# Pixels up to which an observation counts with its square in the last adjustment.
_FULL_WEIGHT = 1.0
# Share of the cost that an iteration of it has to gain, or it was the last.
_CONVERGED = 1e-6
# Photos of a camera from which on its principal point is refined.
_SHARED = 8
# Largest standard deviation of a principal point that counts as determined, as a share of the photo's longer side.
_CERTAIN = 2e-3


@dataclass(frozen=True)
class Mapping:
    """How models are made.

    Attributes:
        mapper: incremental: photos are registered one by one. global: rotations, then positions, of all at once.
        fix_intrinsics: cameras stay as they are in the database.
        refine_principal_point: of cameras that many photos share, by `adjust_robustly`; the mappers leave it.
        min_model_size: smaller models are dropped, but for the only one.
        threads: to use.
        seed: of all that is drawn by chance.
    """

    mapper: Literal["incremental", "global"]
    fix_intrinsics: bool
    refine_principal_point: bool
    min_model_size: int
    threads: int
    seed: int


def map_database(
    database: Path, images: Path, snapshot: Path, mapping: Mapping, on_registered: Callable[[int], None]
) -> list[Model]:
    """Makes models, largest first.

    Args:
        database: with verified matches.
        images: folder that COLMAP reads colours from.
        snapshot: folder where the incremental mapper leaves its first model every half minute, and when it is
            interrupted; a later call goes on from there and ends with the same model. The caller removes it.
        mapping: how.
        on_registered: told the number of photos registered so far.
    """
    manager = pycolmap.ReconstructionManager()
    if mapping.mapper == "global":
        _map_globally(database, images, manager, mapping)
    else:
        _map_incrementally(database, images, manager, snapshot, mapping, on_registered)
    models = [manager.get(number) for number in range(manager.size())]
    models.sort(key=lambda model: (-model.num_reg_images(), -model.num_points3D()))
    return [Model(model) for model in models if model.num_reg_images() > 0]


def adjust_robustly(model: pycolmap.Reconstruction, mapping: Mapping) -> pycolmap.Reconstruction:
    """Adjusts all cameras and points of a model once more, so that wrong observations pull less.

    The mappers' last bundle adjustment minimises squares, in which an observation that is 3 pixels off, as matches of
    keypoints at slightly different places are, weighs as much as nine that are one off. Here squares end at a pixel:
    the loss of a squared error s is 2 (sqrt(1 + s) - 1) (SOFT_L1 of Ceres; Triggs et al., Bundle adjustment - a modern
    synthesis, 2000, section 3.3). Observations stay; none is dropped.

    The mappers leave each principal point where it was, as a rule in the middle of the photo, where few lenses have it:
    that turns and moves all cameras. From there, cameras of eight photos or more have theirs refined, if the photos
    determine it. They do where the cost falls steeply on the way: the likelihood ratio of its ends and their distance
    give a standard deviation, which may be two thousandths of the photo. Photos that were all taken in one direction
    determine none.

    Lower bound: a few iterations of an adjustment, some per cent of the time of mapping, in the mapper's memory, twice
    that where principal points are refined.

    Args:
        model: is adjusted, but for its principal points.
        mapping: how.

    Returns:
        The model, or another that is it with refined principal points.
    """
    options = pycolmap.BundleAdjustmentOptions(print_summary=False)
    if mapping.fix_intrinsics:
        options.refine_focal_length = options.refine_extra_params = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    options.ceres.loss_function_scale = _FULL_WEIGHT
    options.ceres.solver_options.function_tolerance = _CONVERGED
    options.ceres.solver_options.num_threads = mapping.threads
    _adjust(model, options, kept=set())
    if mapping.refine_principal_point and not mapping.fix_intrinsics:
        model = _with_principal_points(model, options) or model
    model.update_point_3d_errors()
    return model


def _with_principal_points(
    model: pycolmap.Reconstruction, options: pycolmap.BundleAdjustmentOptions
) -> pycolmap.Reconstruction | None:
    """The adjusted model with the principal points of shared cameras; None where there are none, or open ones."""
    photos = Counter(model.image(number).camera_id for number in model.reg_image_ids())
    few = {camera for camera, count in photos.items() if count < _SHARED}
    if len(few) == len(photos):
        return None
    refined = pycolmap.Reconstruction(model)
    options.refine_principal_point = True
    summary = _adjust(refined, options, kept=few)
    moved = max(_shift(model.camera(number), refined.camera(number)) for number in photos)
    # By the final cost, which is noise, it is twice the log likelihood ratio: the squared distance in deviations.
    gained = summary.num_residuals * (summary.initial_cost - summary.final_cost)
    if moved**2 * summary.final_cost > _CERTAIN**2 * gained:
        return None
    if few:  # which were adjusted to the others where these were wrong
        options.refine_principal_point = False
        _adjust(refined, options, kept=set())
    return refined


def _shift(before: pycolmap.Camera, after: pycolmap.Camera) -> float:
    """Of a principal point, as a share of the photo's longer side."""
    x, y = after.principal_point_x - before.principal_point_x, after.principal_point_y - before.principal_point_y
    return math.hypot(x, y) / max(before.width, before.height)


def _adjust(model: pycolmap.Reconstruction, options: pycolmap.BundleAdjustmentOptions, kept: set[int]) -> Any:
    """Adjusts all poses, points and cameras, but for those cameras that are kept; the summary is Ceres'."""
    adjusted = pycolmap.BundleAdjustmentConfig()
    for image in model.reg_image_ids():
        adjusted.add_image(image)
    for camera in kept:
        adjusted.set_constant_cam_intrinsics(camera)
    adjusted.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    # Not `pycolmap.bundle_adjustment`, which writes to the terminal whatever the log is set to.
    summary: Any = pycolmap.create_default_ceres_bundle_adjuster(options, adjusted, model).solve()
    return summary.ceres_summary


def incremental_options(images: Path, mapping: Mapping) -> pycolmap.IncrementalPipelineOptions:
    """Options of COLMAP's incremental mapper.

    Args:
        images: folder that COLMAP reads colours from.
        mapping: how.
    """
    options = pycolmap.IncrementalPipelineOptions()
    options.image_path, options.num_threads, options.random_seed = images, mapping.threads, mapping.seed
    options.min_model_size = mapping.min_model_size
    if mapping.fix_intrinsics:
        options.ba_refine_focal_length = options.ba_refine_extra_params = options.ba_refine_principal_point = False
        options.mapper.abs_pose_refine_focal_length = options.mapper.abs_pose_refine_extra_params = False
    return options


def _map_incrementally(
    database: Path,
    images: Path,
    manager: pycolmap.ReconstructionManager,
    snapshot: Path,
    mapping: Mapping,
    on_registered: Callable[[int], None],
) -> None:
    options = incremental_options(images, mapping)
    if (snapshot / "images.bin").is_file():
        manager.read(snapshot)
    written = time.monotonic()

    def registered() -> None:
        nonlocal written
        on_registered(sum(manager.get(number).num_reg_images() for number in range(manager.size())))
        # The pipeline can go on from one model only, so there is nothing to gain from later ones.
        if manager.size() == 1 and time.monotonic() - written > _SECONDS_BETWEEN_SNAPSHOTS:
            _write_snapshot(manager.get(0), snapshot)
            written = time.monotonic()

    callbacks = pycolmap.IncrementalPipelineCallback
    with pycolmap.Database.open(database) as opened:
        pipeline = pycolmap.IncrementalPipeline(options, opened, manager)
        for moment in (callbacks.INITIAL_IMAGE_PAIR_REG_CALLBACK, callbacks.NEXT_IMAGE_REG_CALLBACK):
            pipeline.add_callback(moment.value, registered)
        try:
            pipeline.run()
        except KeyboardInterrupt:
            # Raised out of the callback, between two registrations.
            if manager.size() == 1 and manager.get(0).num_reg_images() > 2:
                _write_snapshot(manager.get(0), snapshot)
            raise


def _write_snapshot(model: pycolmap.Reconstruction, snapshot: Path) -> None:
    beside = snapshot.with_name(f"{snapshot.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    model.write(beside)
    shutil.rmtree(snapshot, ignore_errors=True)
    beside.rename(snapshot)


def _map_globally(database: Path, images: Path, manager: pycolmap.ReconstructionManager, mapping: Mapping) -> None:
    options = pycolmap.GlobalPipelineOptions()
    options.image_path, options.num_threads, options.random_seed = images, mapping.threads, mapping.seed
    options.min_model_size = mapping.min_model_size
    adjustment = options.mapper.bundle_adjustment
    if mapping.fix_intrinsics:
        adjustment.refine_focal_length = adjustment.refine_extra_params = adjustment.refine_principal_point = False
    # The wheel has no CUDA, and says so at every adjustment if it is asked for.
    adjustment.ceres.use_gpu = options.mapper.global_positioning.use_gpu = False
    with tempfile.TemporaryDirectory(prefix=".global-", dir=database.parent) as folder:
        if not mapping.fix_intrinsics:
            # Rotations are averaged before any focal length is refined, so they need one that is nearly right. What
            # fundamental matrices tell of it is written into the database: into a copy, as the original is the user's.
            database = Path(shutil.copy(database, Path(folder) / "calibrated.db"))
            pycolmap.calibrate_view_graph(database, pycolmap.ViewGraphCalibrationOptions(random_seed=mapping.seed))
        with pycolmap.Database.open(database) as opened:
            pipeline = pycolmap.GlobalPipeline(options, opened, manager)
            # Python looks for Ctrl-C whenever it gets a turn.
            pipeline.add_callback(pycolmap.GlobalPipelineCallback.MODEL_UPDATE_CALLBACK.value, lambda: None)
            pipeline.run()
