"""The last adjustment of a model, and what it finds out about the cameras: principal points and lens distortion."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from hardnet_sfm.colmap.distortion import GROWING, convert, hold_out, is_wide, rises_to_the_corners, squared_errors
from hardnet_sfm.colmap.mapping import Mapping

# Share of the cost that an iteration of it has to gain, or it was the last; in trials less precisely.
_CONVERGED, _TRIED = 1e-5, 1e-4
# Photos of a camera from which on its principal point is refined and its distortion model may grow.
_SHARED = 8
# The scale of the loss in standard deviations, its bounds in pixels, and points that it is estimated from.
_EFFICIENT, _SCALES, _SAMPLED = 2.385, (0.1, 2.0), 2000
# Largest standard deviation of a principal point that counts as determined, as a share of the photo's longer side.
_CERTAIN = 2e-3


@dataclass(frozen=True)
class _Adjustment:
    """How a model is adjusted.

    Attributes:
        threads: to use.
        loss_scale: of the Cauchy loss, pixels.
        focal_and_distortion: whether they are refined.
        principal_points: whether they are refined.
        points: whether they are refined.
        kept: numbers of cameras that stay as they are.
        converged: share of the cost that an iteration has to gain, or it is the last.
    """

    threads: int
    loss_scale: float
    focal_and_distortion: bool
    principal_points: bool = False
    points: bool = True
    kept: frozenset[int] = frozenset()
    converged: float = _CONVERGED

    def run(self, model: pycolmap.Reconstruction) -> Any:
        """Adjusts poses, points and cameras in place; returns the summary of Ceres."""
        options = pycolmap.BundleAdjustmentOptions(print_summary=False)
        options.refine_focal_length = options.refine_extra_params = self.focal_and_distortion
        options.refine_principal_point, options.refine_points3D = self.principal_points, self.points
        options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
        options.ceres.loss_function_scale = self.loss_scale
        options.ceres.solver_options.function_tolerance = self.converged
        options.ceres.solver_options.num_threads = self.threads
        adjusted = pycolmap.BundleAdjustmentConfig()
        for image in model.reg_image_ids():
            adjusted.add_image(image)
        for camera in self.kept:
            adjusted.set_constant_cam_intrinsics(camera)
        if self.points:
            adjusted.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
        # Not `pycolmap.bundle_adjustment`, which writes to the terminal whatever the log is set to.
        summary: Any = pycolmap.create_default_ceres_bundle_adjuster(options, adjusted, model).solve()
        return summary.ceres_summary


def adjust_robustly(
    model: pycolmap.Reconstruction, mapping: Mapping, database: Path | None = None
) -> pycolmap.Reconstruction:
    """Adjusts all cameras and points of a model once more, so that wrong observations pull less.

    The mappers' last bundle adjustment minimises squares. There an observation that is 3 pixels off, as matches of
    keypoints at slightly different places are, weighs as much as nine that are one off. Here the loss of an error of r
    pixels is c^2 log(1 + (r / c)^2) (Cauchy; Triggs et al., Bundle adjustment - a modern synthesis, 2000, section 3.3),
    whose pull falls beyond c, see `loss_scale`. So pairs can be verified with a wide threshold, which registers more
    photos. Observations stay; none is dropped, unless a distortion model grows.

    The mappers leave each principal point where it was, as a rule in the middle of the photo, where few lenses have it:
    that turns and moves all cameras. From there, cameras of eight photos or more have theirs refined, if the photos
    determine it. They do where the cost falls steeply on the way: the likelihood ratio of its ends and their distance
    give a standard deviation, which may be two thousandths of the photo. Photos that were all taken in one direction
    determine none.

    The distortion models of such cameras grow from SIMPLE_RADIAL to RADIAL, OPENCV or OPENCV_FISHEYE, if the larger
    model predicts observations better that it was not adjusted to. The mapper had to drop observations that do not fit
    the smaller model, often those at the borders. So tracks are completed, and all is adjusted once more.

    Lower bound: a few iterations of an adjustment, some per cent of the time of mapping, in the mapper's memory.
    Principal points take as much again. Distortion takes twice as much again where none grows, and four or five times
    where one does, and another copy of the model.

    Args:
        model: is adjusted, but for its principal points and distortion models.
        mapping: how.
        database: that the model was made from; without it no tracks are completed.

    Returns:
        The model, or another that is it with refined principal points or larger distortion models.
    """
    how = _Adjustment(mapping.threads, loss_scale(model), focal_and_distortion=not mapping.fix_intrinsics)
    replace(how, converged=_TRIED).run(model)
    how = replace(how, loss_scale=loss_scale(model))
    how.run(model)  # to the end, as costs are compared from here on
    if not mapping.fix_intrinsics:
        model = _calibrated(model, how, mapping, database)
    model.update_point_3d_errors()
    return model


def loss_scale(model: pycolmap.Reconstruction) -> float:
    """Scale of the Cauchy loss that suits the noise of a model's observations, pixels.

    2.385 standard deviations keep 95 % of the efficiency of least squares if the noise is normal (Holland and Welsch,
    Robust regression using iteratively reweighted least-squares, 1977). The deviation is that of the median error of
    some thousand observations, which the wrong ones hardly move.
    """
    numbers = sorted(model.points3D)
    of_photo: dict[int, list[tuple[int, int]]] = {}
    for number in numbers[:: max(1, len(numbers) // _SAMPLED)]:
        for element in model.point3D(number).track.elements:
            of_photo.setdefault(element.image_id, []).append((element.point2D_idx, number))
    squares = [np.zeros(0), *(squared_errors(model, photo, seen) for photo, seen in of_photo.items())]
    found = np.concatenate(squares)
    # Errors in x and y with deviation 1 are at a median distance of sqrt(2 log 2).
    deviation = math.sqrt(float(np.median(found)) / (2 * math.log(2))) if len(found) else 0.0
    return float(np.clip(_EFFICIENT * deviation, *_SCALES))


def _calibrated(
    model: pycolmap.Reconstruction, how: _Adjustment, mapping: Mapping, database: Path | None
) -> pycolmap.Reconstruction:
    """An adjusted model, with principal points and distortion models as far as the photos determine them."""
    photos = Counter(model.image(number).camera_id for number in model.reg_image_ids())
    few = frozenset(camera for camera, count in photos.items() if count < _SHARED)
    if len(few) == len(photos):
        return model
    how = replace(how, kept=few)
    centred = _with_principal_points(model, how) if mapping.refine_principal_point else None
    calibrated = centred or model
    if mapping.grow_distortion:
        grown = _with_larger_models(calibrated, replace(how, principal_points=centred is not None))
        if grown and mapping.refine_principal_point and not centred:
            # Distortion that the smaller model could not follow may have hidden it.
            centred = _with_principal_points(grown, how)
            grown = centred or grown
        if grown and database:
            _complete_tracks(grown, database)
            # The smaller model's errors counted as noise.
            how = replace(how, loss_scale=loss_scale(grown))
            replace(how, principal_points=centred is not None).run(grown)
        calibrated = grown or calibrated
    if calibrated is not model and few:  # which were adjusted to the others where these were wrong
        replace(how, kept=frozenset()).run(calibrated)
    return calibrated


def _with_principal_points(model: pycolmap.Reconstruction, how: _Adjustment) -> pycolmap.Reconstruction | None:
    """The model with the principal points of cameras that are not kept; None where the photos leave one open."""
    refined = pycolmap.Reconstruction(model)
    summary = replace(how, principal_points=True).run(refined)
    moved = max(_shift(model.camera(number), refined.camera(number)) for number in model.cameras)
    # By the final cost, which is noise, it is twice the log likelihood ratio: the squared distance in deviations.
    gained = summary.num_residuals * (summary.initial_cost - summary.final_cost)
    if moved**2 * summary.final_cost > _CERTAIN**2 * gained:
        return None
    return refined


def _shift(before: pycolmap.Camera, after: pycolmap.Camera) -> float:
    """How far a principal point moved, as a share of the photo's longer side."""
    x, y = after.principal_point_x - before.principal_point_x, after.principal_point_y - before.principal_point_y
    return math.hypot(x, y) / max(before.width, before.height)


def _with_larger_models(model: pycolmap.Reconstruction, how: _Adjustment) -> pycolmap.Reconstruction | None:
    """The model with larger distortion models of the SIMPLE_RADIAL cameras that need one; None where none does.

    A larger model always fits better. It is better only if it also predicts what it was not fitted to. So an eighth of
    the observations is held out (cross-validation; Stone, Cross-validatory choice and assessment of statistical
    predictions, 1974). The candidates are OPENCV (two focal lengths, two radial and two tangential coefficients),
    RADIAL and, for cameras that pull their corners in strongly, OPENCV_FISHEYE. A model with more parameters has to be
    clearly better than those with fewer, and distances from the principal point have to rise up to the corners.

    Lower bound: two adjustments where nothing grows, four or five where something does.
    """
    growing = {number for number, camera in model.cameras.items() if camera.model_name == GROWING} - how.kept
    growing &= {model.image(number).camera_id for number in model.reg_image_ids()}
    if not growing:
        return None
    small, held_out = hold_out(model, growing, how.loss_scale)
    how.run(small)  # to the end, as it starts where observations that are now held out had pulled it
    briefly = replace(how, converged=_TRIED)
    opencv = _trial(small, growing, "OPENCV", briefly)
    asking = {number for number in growing if held_out.prefers(small, opencv, number)}
    if not asking:
        return None
    if len(growing) > 1:
        # Points that one camera's larger model improves fit the other cameras better, too. So each is asked again, with
        # the points as they are then.
        briefly = replace(briefly, points=False)
        small = _reverted(opencv, small, growing, briefly)
    candidates = [_trial(small, asking, "RADIAL", briefly), opencv]
    if wide := {number for number in asking if is_wide(small.camera(number))}:
        candidates.append(_trial(small, wide, "OPENCV_FISHEYE", briefly))
    grown = pycolmap.Reconstruction(model)
    for number in asking:
        best = small
        for candidate in candidates:
            if rises_to_the_corners(candidate.camera(number)) and held_out.prefers(best, candidate, number):
                best = candidate
        convert(grown.camera(number), best.camera(number).model_name)
    if all(grown.camera(number).model_name == GROWING for number in asking):
        return None
    how.run(grown)
    return grown


def _trial(small: pycolmap.Reconstruction, cameras: set[int], name: str, how: _Adjustment) -> pycolmap.Reconstruction:
    """An adjusted copy of a model in which some of its SIMPLE_RADIAL cameras are of a larger model."""
    larger = pycolmap.Reconstruction(small)
    for number in cameras:
        convert(larger.camera(number), name)
    how.run(larger)
    return larger


def _reverted(
    larger: pycolmap.Reconstruction, small: pycolmap.Reconstruction, cameras: set[int], how: _Adjustment
) -> pycolmap.Reconstruction:
    """An adjusted copy of the first model that has some of the cameras of the second."""
    reverted = pycolmap.Reconstruction(larger)
    for number in cameras:
        camera, before = reverted.camera(number), small.camera(number)
        camera.model, camera.params = before.model, list(before.params)
    how.run(reverted)
    return reverted


def _complete_tracks(model: pycolmap.Reconstruction, database: Path) -> None:
    """Drops observations that the mapper would not keep, and adds observations that did not fit the smaller model."""
    options = pycolmap.IncrementalPipelineOptions()
    with pycolmap.Database.open(database) as opened:
        graph = pycolmap.DatabaseCache.create(opened, pycolmap.DatabaseCacheOptions()).correspondence_graph
    observations = pycolmap.ObservationManager(model, graph)
    triangulator = pycolmap.IncrementalTriangulator(graph, model, observations)
    limits = options.mapper.filter_max_reproj_error, options.mapper.filter_min_tri_angle
    observations.filter_all_points3D(*limits)
    triangulator.complete_all_tracks(options.triangulation)
    triangulator.merge_all_tracks(options.triangulation)
    observations.filter_all_points3D(*limits)
