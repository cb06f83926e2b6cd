"""The final adjustment of a model, which also calibrates the cameras: principal points and lens distortion."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from hardnet_sfm.colmap.database import open_database
from hardnet_sfm.colmap.distortion import GROWING, convert, hold_out, is_wide, rises_to_the_corners, squared_errors
from hardnet_sfm.colmap.mapping import Mapping

# An iteration of the adjustment must reduce the cost by this share, or it is the last. Trials use the larger share.
_CONVERGED, _TRIED = 1e-5, 1e-4
# A camera needs this many photos before its principal point is refined and its distortion model may grow.
_SHARED = 8
# The scale of the loss in standard deviations, its bounds in pixels, and the number of points for estimating it.
_EFFICIENT, _SCALES, _SAMPLED = 2.385, (0.1, 2.0), 2000
# Largest standard deviation of a principal point that counts as determined, as a share of the photo's longer side.
_CERTAIN = 2e-3


@dataclass(frozen=True)
class _Adjustment:
    """Options of one adjustment of a model.

    Attributes:
        threads: number of threads.
        loss_scale: scale of the Cauchy loss, pixels.
        focal_and_distortion: whether focal lengths and distortion are refined.
        principal_points: whether principal points are refined.
        points: whether points are refined.
        kept: numbers of cameras that stay unchanged.
        converged: share by which an iteration must reduce the cost, or it is the last.
    """

    threads: int
    loss_scale: float
    focal_and_distortion: bool
    principal_points: bool = False
    points: bool = True
    kept: frozenset[int] = frozenset()
    converged: float = _CONVERGED

    def run(self, model: pycolmap.Reconstruction) -> Any:
        """Adjusts poses, points and cameras in place, and returns the summary of Ceres."""
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
        # `pycolmap.bundle_adjustment` would write to the terminal, whatever the log is set to.
        summary: Any = pycolmap.create_default_ceres_bundle_adjuster(options, adjusted, model).solve()
        return summary.ceres_summary


def adjust_robustly(
    model: pycolmap.Reconstruction, mapping: Mapping, database: Path | None = None
) -> pycolmap.Reconstruction:
    """Adjusts all cameras and points of a model once more, with less influence of wrong observations.

    The mappers' last bundle adjustment minimises squares. There an observation that is 3 pixels off weighs as much as
    nine that are one pixel off. Such errors occur when keypoints at slightly different places are matched. Here the
    loss of an error of r pixels is c^2 log(1 + (r / c)^2) (Cauchy; Triggs et al., Bundle adjustment - a modern
    synthesis, 2000, section 3.3). Its influence falls beyond c, see `loss_scale`. So pairs can be verified with a wide
    threshold, which registers more photos. No observation is dropped, unless a distortion model grows.

    The mappers leave each principal point unchanged, usually in the middle of the photo. Few lenses have it there, and
    the error turns and moves all cameras. Cameras of eight photos or more have theirs refined from there, if the photos
    determine it. They determine it if the cost falls steeply on the way. The likelihood ratio between start and end,
    and their distance, give a standard deviation. It may be at most two thousandths of the photo's longer side. Photos
    that were all taken in one direction determine no principal point.

    The distortion models of such cameras grow from SIMPLE_RADIAL to RADIAL, OPENCV or OPENCV_FISHEYE. A larger model
    must predict held-out observations better, which it was not adjusted to. The mapper had to drop observations that do
    not fit the smaller model, often those at the borders. So tracks are completed, and the whole model is adjusted once
    more.

    Lower bound: a few iterations of an adjustment, some per cent of the time of mapping, in the mapper's memory.
    Principal points add the same time again. Distortion adds twice that time if no model grows. It adds four or five
    times that time and another copy of the model if one grows.

    Args:
        model: model to adjust in place; principal points and distortion models change only in the returned model.
        mapping: options of mapping.
        database: database that the model was made from; without it no tracks are completed.

    Returns:
        The same model, or a new one with refined principal points or larger distortion models.
    """
    how = _Adjustment(mapping.threads, loss_scale(model), focal_and_distortion=not mapping.fix_intrinsics)
    replace(how, converged=_TRIED).run(model)
    how = replace(how, loss_scale=loss_scale(model))
    how.run(model)  # run until convergence, as costs are compared from here on
    if not mapping.fix_intrinsics:
        model = _calibrated(model, how, mapping, database)
    model.update_point_3d_errors()
    return model


def loss_scale(model: pycolmap.Reconstruction) -> float:
    """Estimates the scale of the Cauchy loss from the noise of a model's observations, pixels.

    2.385 standard deviations keep 95 % of the efficiency of least squares if the noise is normal (Holland and Welsch,
    Robust regression using iteratively reweighted least-squares, 1977). The standard deviation is derived from the
    median error of the observations of some thousand points. Wrong observations hardly change the median.
    """
    numbers = sorted(model.points3D)
    of_photo: dict[int, list[tuple[int, int]]] = {}
    for number in numbers[:: max(1, len(numbers) // _SAMPLED)]:
        for element in model.point3D(number).track.elements:
            of_photo.setdefault(element.image_id, []).append((element.point2D_idx, number))
    squares = [np.zeros(0), *(squared_errors(model, photo, seen) for photo, seen in of_photo.items())]
    found = np.concatenate(squares)
    # If errors in x and y have a standard deviation of 1, the median distance is sqrt(2 log 2).
    deviation = math.sqrt(float(np.median(found)) / (2 * math.log(2))) if len(found) else 0.0
    return float(np.clip(_EFFICIENT * deviation, *_SCALES))


def _calibrated(
    model: pycolmap.Reconstruction, how: _Adjustment, mapping: Mapping, database: Path | None
) -> pycolmap.Reconstruction:
    """Refines principal points and distortion models of an adjusted model, if the photos determine them."""
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
            # Distortion that the smaller model could not express may have hidden the principal point.
            centred = _with_principal_points(grown, how)
            grown = centred or grown
        if grown and database:
            _complete_tracks(grown, database)
            # The old scale counted the smaller model's errors as noise.
            how = replace(how, loss_scale=loss_scale(grown))
            replace(how, principal_points=centred is not None).run(grown)
        calibrated = grown or calibrated
    if calibrated is not model and few:  # these cameras were adjusted to the others while the others were wrong
        replace(how, kept=frozenset()).run(calibrated)
    return calibrated


def _with_principal_points(model: pycolmap.Reconstruction, how: _Adjustment) -> pycolmap.Reconstruction | None:
    """Refines the principal points of cameras that are not kept; None if the photos leave one undetermined."""
    refined = pycolmap.Reconstruction(model)
    summary = replace(how, principal_points=True).run(refined)
    moved = max(_shift(model.camera(number), refined.camera(number)) for number in model.cameras)
    # Divided by the final cost, which is noise, this is twice the log likelihood ratio: the squared distance in
    # deviations.
    gained = summary.num_residuals * (summary.initial_cost - summary.final_cost)
    if moved**2 * summary.final_cost > _CERTAIN**2 * gained:
        return None
    return refined


def _shift(before: pycolmap.Camera, after: pycolmap.Camera) -> float:
    """Returns how far a principal point moved, as a share of the photo's longer side."""
    x, y = after.principal_point_x - before.principal_point_x, after.principal_point_y - before.principal_point_y
    return math.hypot(x, y) / max(before.width, before.height)


def _with_larger_models(model: pycolmap.Reconstruction, how: _Adjustment) -> pycolmap.Reconstruction | None:
    """Gives larger distortion models to the SIMPLE_RADIAL cameras that need one; None if no camera does.

    A larger model always fits better. It is better only if it also predicts observations that it was not fitted to. So
    an eighth of the observations is held out (cross-validation; Stone, Cross-validatory choice and assessment of
    statistical predictions, 1974). The candidates are OPENCV (two focal lengths, two radial and two tangential
    coefficients) and RADIAL. OPENCV_FISHEYE is a candidate for cameras that pull their corners in strongly. A model
    with more parameters must be clearly better than the models with fewer. Distances from the principal point must rise
    up to the corners.

    Lower bound: two adjustments if no model grows, four or five if one does.
    """
    growing = {number for number, camera in model.cameras.items() if camera.model_name == GROWING} - how.kept
    growing &= {model.image(number).camera_id for number in model.reg_image_ids()}
    if not growing:
        return None
    small, held_out = hold_out(model, growing, how.loss_scale)
    how.run(small)  # run until convergence, as the held-out observations still influence the start
    briefly = replace(how, converged=_TRIED)
    opencv = _trial(small, growing, "OPENCV", briefly)
    asking = {number for number in growing if held_out.prefers(small, opencv, number)}
    if not asking:
        return None
    if len(growing) > 1:
        # Points that one camera's larger model improves also fit the other cameras better. So each camera is tested
        # again, with these points held fixed.
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
    """Returns an adjusted copy of a model in which some SIMPLE_RADIAL cameras have a larger model."""
    larger = pycolmap.Reconstruction(small)
    for number in cameras:
        convert(larger.camera(number), name)
    how.run(larger)
    return larger


def _reverted(
    larger: pycolmap.Reconstruction, small: pycolmap.Reconstruction, cameras: set[int], how: _Adjustment
) -> pycolmap.Reconstruction:
    """Returns an adjusted copy of the first model, with some cameras replaced by those of the second."""
    reverted = pycolmap.Reconstruction(larger)
    for number in cameras:
        camera, before = reverted.camera(number), small.camera(number)
        camera.model, camera.params = before.model, list(before.params)
    how.run(reverted)
    return reverted


def _complete_tracks(model: pycolmap.Reconstruction, database: Path) -> None:
    """Drops observations that the mapper would not keep, and adds observations that did not fit the smaller model."""
    options = pycolmap.IncrementalPipelineOptions()
    with open_database(database) as opened:
        graph = pycolmap.DatabaseCache.create(opened, pycolmap.DatabaseCacheOptions()).correspondence_graph
    observations = pycolmap.ObservationManager(model, graph)
    triangulator = pycolmap.IncrementalTriangulator(graph, model, observations)
    limits = options.mapper.filter_max_reproj_error, options.mapper.filter_min_tri_angle
    observations.filter_all_points3D(*limits)
    triangulator.complete_all_tracks(options.triangulation)
    triangulator.merge_all_tracks(options.triangulation)
    observations.filter_all_points3D(*limits)
