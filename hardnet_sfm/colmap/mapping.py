"""Incremental and global mapping of a database."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pycolmap

from hardnet_sfm.colmap.database import copy_database, explain_failures, open_database
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.errors import HardnetSfmError

_SECONDS_BETWEEN_SNAPSHOTS = 30.0


@dataclass(frozen=True)
class Mapping:
    """Options of making models.

    Attributes:
        mapper: incremental: registers photos one by one. global: estimates all rotations, then all positions at once.
        fix_intrinsics: whether cameras stay as they are in the database.
        refine_principal_point: whether `adjust_robustly` refines principal points of cameras that many photos share.
            The mappers never refine them.
        grow_distortion: whether `adjust_robustly` grows the distortion models of such cameras, if they are
            SIMPLE_RADIAL.
        min_model_size: models with fewer photos are dropped, unless it is the only model.
        threads: number of threads. COLMAP's model may depend on it, and is the same in each run only with one thread.
            Bundle adjustments of up to 50,000 residuals, two for each observation, take one thread.
        seed: seed of all random choices.
        converged: share by which an iteration of the incremental mapper's bundle adjustments must reduce the cost, or
            it is the last. COLMAP's 0 continues to the limit of iterations.
    """

    mapper: Literal["incremental", "global"]
    fix_intrinsics: bool
    refine_principal_point: bool
    grow_distortion: bool
    min_model_size: int
    threads: int
    seed: int
    converged: float = 0.0


def map_database(
    database: Path, images: Path, snapshot: Path, mapping: Mapping, on_registered: Callable[[int], None]
) -> list[Model]:
    """Makes models, the largest first.

    Args:
        database: database with verified matches.
        images: folder from which COLMAP reads colours.
        snapshot: folder where the incremental mapper saves its first model every half minute, and when it is
            interrupted. A later call resumes from it and ends with the same model. The caller removes the folder.
        mapping: options of mapping.
        on_registered: called with the number of photos registered so far.

    Raises:
        HardnetSfmError: photos disappeared meanwhile. COLMAP would leave their points black without a word.
    """
    manager, there = pycolmap.ReconstructionManager(), _photos_in(images, database)
    if mapping.mapper == "global":
        _map_globally(database, images, manager, mapping)
    else:
        _map_incrementally(database, images, manager, snapshot, mapping, on_registered)
    if gone := sorted(there - _photos_in(images, database)):
        raise HardnetSfmError(
            f"{images / gone[0]}: the photo disappeared while models were made ({len(gone)} photos)",
            "Put the photos back, for example by connecting their drive again. Then run the same command again.",
        )
    models = [manager.get(number) for number in range(manager.size())]
    models.sort(key=lambda model: (-model.num_reg_images(), -model.num_points3D()))
    return [Model(model) for model in models if model.num_reg_images() > 0]


def _photos_in(images: Path, database: Path) -> set[str]:
    """Returns the names of the database's photos that are in a folder."""
    with open_database(database) as opened:
        return {image.name for image in opened.read_all_images() if (images / image.name).is_file()}


def incremental_options(images: Path, mapping: Mapping) -> pycolmap.IncrementalPipelineOptions:
    """Returns the options of COLMAP's incremental mapper.

    Args:
        images: folder from which COLMAP reads colours.
        mapping: options of mapping.
    """
    options = pycolmap.IncrementalPipelineOptions()
    options.image_path, options.num_threads, options.random_seed = images, mapping.threads, mapping.seed
    options.min_model_size = mapping.min_model_size
    options.ba_global_function_tolerance = options.ba_local_function_tolerance = mapping.converged
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
    with suppress(HardnetSfmError):  # a damaged snapshot is of no use, so mapping starts anew
        Model.read(snapshot)  # COLMAP would read a truncated one without an error
        manager.read(snapshot)
    written = time.monotonic()

    def registered() -> None:
        nonlocal written
        on_registered(sum(manager.get(number).num_reg_images() for number in range(manager.size())))
        # The pipeline can resume from one model only, so snapshots of later models are useless.
        if manager.size() == 1 and time.monotonic() - written > _SECONDS_BETWEEN_SNAPSHOTS:
            _write_snapshot(manager.get(0), snapshot)
            written = time.monotonic()

    callbacks = pycolmap.IncrementalPipelineCallback
    with open_database(database) as opened:
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
    Model(model).write(beside)
    shutil.rmtree(snapshot, ignore_errors=True)
    beside.rename(snapshot)


def _map_globally(database: Path, images: Path, manager: pycolmap.ReconstructionManager, mapping: Mapping) -> None:
    options = pycolmap.GlobalPipelineOptions()
    options.image_path, options.num_threads, options.random_seed = images, mapping.threads, mapping.seed
    options.min_model_size = mapping.min_model_size
    adjustment = options.mapper.bundle_adjustment
    if mapping.fix_intrinsics:
        adjustment.refine_focal_length = adjustment.refine_extra_params = adjustment.refine_principal_point = False
    # The wheel has no CUDA. It warns at every adjustment if CUDA is requested.
    adjustment.ceres.use_gpu = options.mapper.global_positioning.use_gpu = False
    original = database
    with tempfile.TemporaryDirectory(prefix=".global-", dir=database.parent) as folder, explain_failures(original):
        if not mapping.fix_intrinsics:
            # Rotations are averaged before any focal length is refined, so they need a nearly correct one. The focal
            # lengths from fundamental matrices are written into a copy of the database, as the original belongs to the
            # user.
            database = Path(folder) / "calibrated.db"
            copy_database(original, database)
            pycolmap.calibrate_view_graph(database, pycolmap.ViewGraphCalibrationOptions(random_seed=mapping.seed))
        with pycolmap.Database.open(database) as opened:
            pipeline = pycolmap.GlobalPipeline(options, opened, manager)
            # A Python callback lets Python handle Ctrl-C.
            pipeline.add_callback(pycolmap.GlobalPipelineCallback.MODEL_UPDATE_CALLBACK.value, lambda: None)
            pipeline.run()
