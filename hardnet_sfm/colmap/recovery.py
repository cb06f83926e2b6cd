"""Gets more photos into the largest model: merges models that belong together, and tries left out photos again."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.colmap.calibration import adjust_robustly
from hardnet_sfm.colmap.database import open_database
from hardnet_sfm.colmap.mappers import Mapped, Step, is_better, large_enough, open_cache, refine
from hardnet_sfm.colmap.mapping import Mapping, incremental_options
from hardnet_sfm.colmap.model import Model

Points = NDArray[np.float64]
# Largest distance of a point from its place in the other model, as a share of its depth there.
_DISTANCE = 0.03
# RANSAC assumes that at least this share of the common points is right, which limits its trials.
_INLIERS = 0.1
# The merged model must have this share of the observations of both models. Otherwise they do not belong together.
_OBSERVATIONS = 0.9


def recover(mapped: Mapped, database: Path, images: Path, mapping: Mapping, new: str = "") -> Mapped:
    """Merges models into the largest one, then lets the incremental mapper register more photos in it.

    A step changes nothing if it adds no photos to the largest model, or if its cameras do not fit the matches. The
    incremental mapper continues only with a model that it did not finish itself, or if there are new matches.

    Args:
        mapped: models of the database, the largest first.
        database: database with verified matches.
        images: folder of the photos.
        mapping: threads, seed, and whether cameras stay unchanged.
        new: source of the new matches, if the database has matches that the models were not made from.

    Returns:
        The models, the largest first, with the steps that were tried.
    """
    models, steps = mapped.models, []
    changed = bool(new) or mapped.mapper == "global"
    with open_database(database) as opened:
        photos = opened.num_images()
    if len(models) > 1:
        merged = merge(models, database, images, mapping)
        steps.append(_step("merge models", photos, models, merged))
        changed, models = changed or steps[-1].registered > 0, merged
    if models and changed and len(models[0].names) < photos:
        more = [register_more(models[0], database, images, mapping), *models[1:]]
        accepted = len(more[0].names) > len(models[0].names) and is_better(more, models)
        steps.append(_step(new or "register more", photos, models, more if accepted else models))
        models = more if accepted else models
    if models:  # drop models whose photos are all in the largest one
        largest = set(models[0].names)
        models = [models[0], *(model for model in models[1:] if not set(model.names) <= largest)]
        models = large_enough(models, mapping.min_model_size)
    return replace(mapped, models=models, recovered=(*mapped.recovered, *steps))


def _step(name: str, photos: int, before: list[Model], after: list[Model]) -> Step:
    had, has = len(before[0].names), len(after[0].names)
    return Step(name, photos - had, has - had)


def register_more(model: Model, database: Path, images: Path, mapping: Mapping) -> Model:
    """Lets the incremental mapper continue with a model, and adjusts the result.

    Args:
        model: model to continue; it stays unchanged.
        database: database of its photos.
        images: folder of the photos.
        mapping: threads, seed, and whether cameras stay unchanged.
    """
    options = incremental_options(images, mapping)
    options.multiple_models = False
    manager = pycolmap.ReconstructionManager()
    with (
        tempfile.TemporaryDirectory(prefix=".recovery-", dir=database.parent) as folder,
        open_database(database) as opened,
    ):
        model.write(Path(folder))
        manager.read(folder)
        pycolmap.IncrementalPipeline(options, opened, manager).run()
    return Model(adjust_robustly(manager.get(0), mapping, database))


def with_keypoints_of(model: Model, database: Path) -> Model:
    """Rebuilds a model with the keypoints of a database: the known keypoints, followed by new ones.

    A photo of a `pycolmap.Reconstruction` cannot get more keypoints, so the model is built anew.

    Args:
        model: model to rebuild; it stays unchanged.
        database: database of its photos, with the same numbers.
    """
    old, fresh = model.colmap, pycolmap.Reconstruction()
    for camera in old.cameras.values():
        fresh.add_camera(camera)
    for rig in old.rigs.values():
        fresh.add_rig(rig)
    for frame in old.frames.values():
        copy = pycolmap.Frame(frame_id=frame.frame_id, rig_id=frame.rig_id)
        for data in frame.data_ids:
            copy.add_data_id(data)
        copy.rig_from_world = frame.rig_from_world
        fresh.add_frame(copy)
    with open_database(database) as opened:
        for number, image in old.images.items():
            keypoints = pycolmap.Point2DList(
                [pycolmap.Point2D(xy) for xy in opened.read_keypoints(number)[:, :2].astype(np.float64)]
            )
            photo = pycolmap.Image(image.name, keypoints, image.camera_id, number)
            photo.frame_id = image.frame_id
            fresh.add_image(photo)
    for number in old.reg_frame_ids():
        fresh.register_frame(number)
    for point in old.points3D.values():
        fresh.add_point3D(point.xyz, point.track, point.color)
    fresh.update_point_3d_errors()
    return Model(fresh)


def merge(models: list[Model], database: Path, images: Path, mapping: Mapping) -> list[Model]:
    """Merges models with the largest one if verified matches determine their relative position.

    Verified matches, or photos in both models, identify points of both models. RANSAC estimates a similarity from these
    points. The photos of the smaller model are moved by it. All points are then triangulated, adjusted and filtered
    again with the incremental mapper's thresholds. The merged model is accepted if no photo is lost and if it has nine
    tenths of the observations of both models. Photos of both models must also share enough points: as many as it takes
    to register a photo.

    Args:
        models: models, the largest first. They stay unchanged.
        database: database of their photos, with verified matches.
        images: folder of the photos.
        mapping: threads, seed, and whether cameras stay unchanged.

    Returns:
        The merged model, adjusted, then the models that were not merged; or the given models.
    """
    largest, left = models[0], list(models[1:])
    tried_again = True
    while tried_again:
        tried_again = False
        for other in list(left):
            merged = _merged(largest, other, database, images, mapping)
            if merged is not None:
                largest = Model(adjust_robustly(merged.colmap, mapping, database))
                left.remove(other)
                tried_again = True
    return [largest, *left]


def _merged(target: Model, source: Model, database: Path, images: Path, mapping: Mapping) -> Model | None:
    cache = open_cache(database)
    there, here = common_points(target.colmap, source.colmap, cache.correspondence_graph)
    options = incremental_options(images, mapping)
    enough = options.mapper.abs_pose_min_num_inliers
    if len(there) < enough:
        return None
    ransac = pycolmap.RANSACOptions()
    ransac.max_error, ransac.random_seed = _DISTANCE * _depth(target.colmap, there), mapping.seed
    ransac.min_inlier_ratio = _INLIERS
    found: Any = pycolmap.estimate_sim3d_robust(here, there, ransac)
    if found is None or found["num_inliers"] < enough:
        return None
    moved = pycolmap.Reconstruction(source.colmap)
    moved.transform(found["tgt_from_src"])
    merged = pycolmap.Reconstruction(target.colmap)
    old, new = set(target.names), set(source.names) - set(target.names)
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(merged)
    known = {merged.image(number).camera_id for number in merged.reg_image_ids()}
    numbers = [number for number in moved.reg_image_ids() if moved.image(number).name in new]
    for number in numbers:
        image = moved.image(number)
        if image.camera_id not in known:
            merged.camera(image.camera_id).params = list(moved.camera(image.camera_id).params)
        merged.frame(image.frame_id).set_cam_from_world(image.camera_id, image.cam_from_world())
        mapper.observation_manager.register_frame(image.frame_id)
    for number in numbers:
        mapper.triangulate_image(options.get_triangulation(), number)
    refine(mapper, options)
    mapper.end_reconstruction(False)
    result = Model(merged)
    sound = (
        set(result.names) == old | new
        and result.observations >= _OBSERVATIONS * (target.observations + source.observations)
        and _seen_from_both(merged, old, new) >= enough
    )
    return result if sound else None


def common_points(
    target: pycolmap.Reconstruction, source: pycolmap.Reconstruction, graph: pycolmap.CorrespondenceGraph
) -> tuple[Points, Points]:
    """Finds points that two models have in common.

    Args:
        target, source: the models.
        graph: verified matches of their photos.

    Returns:
        (N, 3) positions in the target and in the source, a row for each pair of points. Some pairs may be wrong.
    """
    pairs: set[tuple[int, int]] = set()
    for one in source.reg_image_ids():
        seen = {row: source.image(one).point2D(row).point3D_id for row in _observed(source.image(one))}
        for two in target.reg_image_ids():
            image = target.image(two)
            if one == two:
                rows = [(row, row) for row in seen]
            elif graph.num_matches_between_images(one, two):
                rows = graph.extract_matches_between_images(one, two).tolist()
            else:
                continue
            pairs.update(
                (image.point2D(second).point3D_id, seen[first])
                for first, second in rows
                if first in seen and image.point2D(second).has_point3D()
            )
    ordered = sorted(pairs)
    there = np.array([target.point3D(number).xyz for number, _ in ordered], np.float64).reshape(-1, 3)
    here = np.array([source.point3D(number).xyz for _, number in ordered], np.float64).reshape(-1, 3)
    return there, here


def _observed(image: pycolmap.Image) -> list[int]:
    return list(image.get_observation_point2D_idxs())


def _depth(model: pycolmap.Reconstruction, points: Points) -> float:
    """Returns the median distance of points from the nearest camera."""
    centres = np.array([model.image(number).projection_center() for number in model.reg_image_ids()])
    nearest = np.min(np.linalg.norm(points[:, None] - centres, axis=2), axis=1)
    return float(np.median(nearest))


def _seen_from_both(model: pycolmap.Reconstruction, one: set[str], other: set[str]) -> int:
    """Returns the number of points that photos of both sets observe."""
    names = {number: model.image(number).name for number in model.reg_image_ids()}
    count = 0
    for point in model.points3D.values():
        by = {names[element.image_id] for element in point.track.elements}
        count += bool(by & one) and bool(by & other)
    return count
