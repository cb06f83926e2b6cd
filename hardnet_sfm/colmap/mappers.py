"""Chooses the mapper of a model: the incremental one, the global one, or the better of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Mapping as Dict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pycolmap

from hardnet_sfm.colmap.calibration import adjust_robustly
from hardnet_sfm.colmap.database import open_database
from hardnet_sfm.colmap.mapping import Mapping, incremental_options, map_database
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.keypoints import PhotoPair

Mapper = Literal["auto", "incremental", "global"]
# The other mapper is tried if the first one registers less than this share of the connected photos. On 135 internet
# photos, of which the incremental mapper registers 117, the global mapper takes as long again.
_ENOUGH = 0.5
# A model with more photos must have this share of the other model's observations. Otherwise its cameras do not fit the
# matches.
_OBSERVATIONS = 0.9


@dataclass(frozen=True)
class Step:
    """The result of one recovery step.

    Attributes:
        step: name of the step, for messages.
        tried: number of photos that were not in the largest model before.
        registered: number of these photos that are in it now.
    """

    step: str
    tried: int
    registered: int


@dataclass(frozen=True)
class Mapped:
    """The result of mapping.

    Attributes:
        models: adjusted models, the largest first.
        mapper: mapper that made the models.
        tried: number of photos in the largest model of each mapper that was tried.
        recovered: recovery steps that were tried afterwards to get more photos into the largest model.
    """

    models: list[Model]
    mapper: str
    tried: dict[str, int]
    recovered: tuple[Step, ...] = ()


def map_best(
    database: Path,
    images: Path,
    snapshot: Path,
    mapper: Mapper,
    mapping: Mapping,
    verified: Dict[PhotoPair, int],
    on_registered: Callable[[int], None],
) -> Mapped:
    """Maps with one mapper, and also with the other one if the first leaves out connected photos.

    The incremental mapper needs a pair of photos with parallax to start from. Photos that look along the direction of
    motion have none, as the lines of sight to the points hardly change. The global mapper needs no such pair, but it
    registers every connected photo, even wrongly. So its models are first completed and filtered with the incremental
    mapper's own thresholds. Photos that then have too few observations are removed.

    Args:
        database: database with verified matches.
        images: folder from which COLMAP reads colours.
        snapshot: see `map_database`; the caller removes it.
        mapper: "incremental" uses only that one. "auto" starts with the incremental mapper, "global" with the global
            one. Both try the other mapper if less than half of the connected photos are registered.
        mapping: all other options.
        verified: number of inliers of each verified pair.
        on_registered: called with the number of photos registered so far.
    """

    def run(name: Literal["incremental", "global"]) -> list[Model]:
        models = map_database(database, images, snapshot, replace(mapping, mapper=name), on_registered)
        if name == "global":
            models = [complete(model, database, images, mapping) for model in models]
            models = [model for model in models if len(model.names) >= mapping.min_model_size]
        adjusted = [Model(adjust_robustly(model.colmap, mapping, database)) for model in models if model.points]
        adjusted.sort(key=lambda model: (-len(model.names), -model.points))
        return large_enough(adjusted, mapping.min_model_size)

    first: Literal["incremental", "global"] = "global" if mapper == "global" else "incremental"
    best, models = first, run(first)
    tried: dict[str, int] = {first: _photos(models)}
    if mapper != "incremental" and tried[first] < max(1, _ENOUGH * connected(verified)):
        other: Literal["incremental", "global"] = "global" if first == "incremental" else "incremental"
        others = run(other)
        tried[other] = _photos(others)
        if is_better(others, models):
            best, models = other, others
    return Mapped(models, best, tried)


def large_enough(models: list[Model], least: int) -> list[Model]:
    """Drops models with fewer photos than `least`, except the first one. COLMAP drops them before photos are filtered.

    Args:
        models: models, the largest first.
        least: smallest number of photos.
    """
    return [model for number, model in enumerate(models) if number == 0 or len(model.names) >= least]


def connected(verified: Dict[PhotoPair, int]) -> int:
    """Returns the number of photos in the largest set that verified pairs connect.

    Only pairs with enough inliers to register a photo count.
    """
    least = pycolmap.IncrementalMapperOptions().abs_pose_min_num_inliers
    group: dict[str, set[str]] = {}
    for pair, inliers in verified.items():
        one, other = (group.setdefault(name, {name}) for name in pair)
        if inliers >= least and one is not other:
            joined = one | other
            group.update(dict.fromkeys(joined, joined))
    return max((len(names) for names in group.values() if len(names) > 1), default=0)


def is_better(models: list[Model], others: list[Model]) -> bool:
    """Says whether some models are better than others, by the largest model of each.

    It must have more photos, or as many photos and more observations. If its cameras do not fit the matches, it has few
    observations. So a model with more photos must also have nine tenths of the other model's observations.
    """
    if not models or not others:
        return bool(models)
    (photos, seen), (other_photos, other_seen) = ((_photos(of), of[0].observations) for of in (models, others))
    return (photos > other_photos and seen >= _OBSERVATIONS * other_seen) or (
        photos == other_photos and seen > other_seen
    )


def _photos(models: list[Model]) -> int:
    return len(models[0].names) if models else 0


def open_cache(database: Path) -> pycolmap.DatabaseCache:
    """Loads the photos, keypoints and verified matches of a database into memory."""
    with open_database(database) as opened:
        options = pycolmap.DatabaseCacheOptions()
        options.min_num_matches = pycolmap.IncrementalPipelineOptions().min_num_matches
        return pycolmap.DatabaseCache.create(opened, options)


def complete(model: Model, database: Path, images: Path, mapping: Mapping) -> Model:
    """Triangulates missing points of a model, then adjusts and filters it like the incremental mapper at its end.

    The global mapper makes only points of three photos or more, and keeps observations up to ten pixels off. Photos
    that end up with fewer observations than the incremental mapper needs to register a photo are removed.

    Args:
        model: model to change.
        database: database that it was made from.
        images: folder of its photos.
        mapping: threads, seed, and whether cameras stay unchanged.
    """
    options = incremental_options(images, mapping)
    mapper = pycolmap.IncrementalMapper(open_cache(database))
    colmap = model.colmap
    mapper.begin_reconstruction(colmap)
    for number in list(colmap.reg_image_ids()):
        mapper.triangulate_image(options.get_triangulation(), number)
    refine(mapper, options)
    visible = mapper.observation_manager.num_visible_points3D
    while weak := _weak(colmap, colmap.reg_image_ids(), visible, options.mapper):
        for number in weak:
            mapper.observation_manager.deregister_frame(colmap.image(number).frame_id)
        if colmap.num_reg_images():
            refine(mapper, options)
    mapper.end_reconstruction(False)
    return Model(colmap)


def refine(mapper: pycolmap.IncrementalMapper, options: pycolmap.IncrementalPipelineOptions) -> None:
    """Repeatedly adjusts, completes, merges and filters all points, until few of them change."""
    mapper.iterative_global_refinement(
        options.ba_global_max_refinements,
        options.ba_global_max_refinement_change,
        options.get_mapper(),
        options.get_global_bundle_adjustment(),
        options.get_triangulation(),
    )


def _weak(
    colmap: pycolmap.Reconstruction,
    photos: Iterable[int],
    visible: Callable[[int], int],
    options: pycolmap.IncrementalMapperOptions,
) -> list[int]:
    """Returns photos that no longer meet the limits for registration.

    Such a photo sees too few points, or too small a share of the points that its matches lead to.
    """
    return [
        number
        for number in photos
        if (seen := colmap.image(number).num_points3D) < options.abs_pose_min_num_inliers
        or seen < options.abs_pose_min_inlier_ratio * visible(number)
    ]
