"""The pipeline that measures rules of acceptance: its neighbours, its truth and its thresholds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hardnet_sfm.scene import Scene

Float64 = NDArray[np.float64]


@pytest.fixture(scope="module")
def acceptance() -> ModuleType:
    path = Path(__file__).parents[1] / "pipelines" / "acceptance.py"
    spec = importlib.util.spec_from_file_location("acceptance", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["acceptance"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def photo_of(acceptance: ModuleType, xy: Float64, descriptors: Float64, pose: Float64 | None = None) -> Any:
    rays = (xy + 0.5 - 320) / 500
    unit = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
    size, pose = (640, 640), np.eye(3, 4) if pose is None else pose
    return acceptance.Photo(xy.astype(np.float32), size, torch.from_numpy(unit).float(), rays, 500.0, pose)


def test_neighbours_and_rivals_are_those_of_a_loop(acceptance: ModuleType) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(60, 16))
    photos = [
        photo_of(acceptance, rng.uniform(0, 60, (60, 2)), base + rng.normal(size=base.shape) * 0.7) for _ in range(2)
    ]
    found = acceptance.nearest_neighbours(*photos)
    vectors = [photo.descriptors.double().numpy() for photo in photos]
    apart = np.linalg.norm(vectors[0][:, None] - vectors[1], axis=2)
    expected = [
        (row, column) for row, column in enumerate(apart.argmin(1).tolist()) if int(apart[:, column].argmin()) == row
    ]
    assert [tuple(pair) for pair in found.rows.tolist()] == expected
    assert len(expected) > 20
    for number, (row, column) in enumerate(expected):
        best = apart[row, column]
        ratios: dict[float, list[float]] = {0.0: [], 10.0: []}
        for reach, kept in ratios.items():
            for distances, xy, own in ((apart[row], photos[1].xy, column), (apart[:, column], photos[0].xy, row)):
                away = np.linalg.norm(xy - xy[own], axis=1)
                kept.append(best / distances[(away > reach) & (np.arange(60) != own)].min())
        assert found.distance[number] == pytest.approx(best, abs=1e-5)
        assert found.ratio[number] == pytest.approx(max(ratios[0.0]), abs=1e-5)
        assert found.fginn[number] == pytest.approx(max(ratios[10.0]), abs=1e-5)
    assert (found.fginn <= found.ratio + 1e-6).all()


def test_the_epipolar_error_is_how_far_a_keypoint_is_off_its_line(
    acceptance: ModuleType, small_scene: tuple[Path, Scene]
) -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-3, 3, (50, 3))
    poses = small_scene[1].cam_from_world[[0, 4]]
    none = np.ones((50, 2))
    seen = []
    for pose in poses:
        in_camera = points @ pose[:, :3].T + pose[:, 3]
        seen.append(500 * in_camera[:, :2] / in_camera[:, 2:] + 320 - 0.5)
    rows = np.column_stack([np.arange(50)] * 2).astype(np.int32)
    exact = [photo_of(acceptance, xy, none, pose) for xy, pose in zip(seen, poses, strict=True)]
    assert acceptance.epipolar_error(*exact, rows).max() < 1e-6
    # The line of a point: the images in the second photo of two points on the first one's ray.
    rotation, translation = poses[0][:, :3], poses[0][:, 3]
    ends = []
    for factor in (1.0, 1.5):
        world = ((points @ rotation.T + translation) * factor - translation) @ rotation
        in_camera = world @ poses[1][:, :3].T + poses[1][:, 3]
        ends.append(500 * in_camera[:, :2] / in_camera[:, 2:])
    along = ends[1] - ends[0]
    across = np.column_stack([-along[:, 1], along[:, 0]]) / np.linalg.norm(along, axis=1, keepdims=True)
    moved = [exact[0], photo_of(acceptance, seen[1] + 7 * across + 20 * along / 100, none, poses[1])]
    errors = acceptance.epipolar_error(*moved, rows)
    assert (errors >= 7 - 1e-6).all()  # in the second photo it is 7; the larger one of both photos counts
    assert np.median(errors) < 9


def test_a_regression_finds_the_weights_that_outcomes_were_drawn_with(acceptance: ModuleType) -> None:
    rng = np.random.default_rng(2)
    features, weights = rng.normal(size=(40000, 2)), np.array([-2.0, 1.0, 0.5])
    chance = 1 / (1 + np.exp(-(features @ weights[:2] + weights[2])))
    found = acceptance.logistic(features, (rng.uniform(size=len(chance)) < chance).astype(np.float64))
    np.testing.assert_allclose(found, weights, atol=0.08)


def test_a_threshold_accepts_no_more_wrong_ones_than_allowed(acceptance: ModuleType) -> None:
    costs = [np.array([0.3, 0.1, 0.9]), np.array([0.2, 0.5])]
    wrong = [np.array([1.0, 0.0, 1.0]), np.array([0.0, 1.0])]
    assert acceptance.threshold_at(costs, wrong, 0.0) == 0.2
    assert acceptance.threshold_at(costs, wrong, 1.0) == 0.3
    assert acceptance.threshold_at(costs, wrong, 5.0) == 0.9
    assert acceptance.threshold_at([costs[0][:1]], [wrong[0][:1]], 0.5) == -np.inf
