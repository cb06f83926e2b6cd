"""Distortion models that grow, on synthetic photos whose cameras are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray

from hardnet_sfm.colmap.calibration import adjust_robustly, loss_scale
from hardnet_sfm.colmap.database import Database
from hardnet_sfm.colmap.distortion import convert, hold_out, rises_to_the_corners
from hardnet_sfm.colmap.log import native_log
from hardnet_sfm.colmap.mapping import Mapping, map_database
from hardnet_sfm.colmap.two_view import Verification
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.verbs.map import _describe_growth

Float64 = NDArray[np.float64]
SIZE = (1600, 1200)
MAPPING = Mapping("incremental", False, True, True, 3, 1, 0)
SIMPLE = ("SIMPLE_RADIAL", [1400.0, 806.0, 594.0, -0.05])
RADIAL = ("RADIAL", [1400.0, 806.0, 594.0, -0.10, 0.12])
OPENCV = ("OPENCV", [1400.0, 1408.0, 806.0, 594.0, -0.08, 0.05, 0.002, -0.0015])
# An action camera: 120 degrees from left to right.
FISHEYE = ("OPENCV_FISHEYE", [764.0, 764.0, 800.0, 600.0, 0.03, -0.005, 0.002, 0.0])


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path) -> Iterator[None]:
    with native_log(tmp_path / "logs"):
        yield


def camera(name: str, params: list[float], number: int = 1) -> pycolmap.Camera:
    return pycolmap.Camera(camera_id=number, model=name, width=SIZE[0], height=SIZE[1], params=params)


def around(rng: np.random.Generator, count: int, distance: float) -> list[pycolmap.Rigid3d]:
    """Poses on one side of the origin that look at it and are turned about that direction."""
    poses = []
    for angles in rng.uniform(-0.6, 0.6, (count, 3)):
        rotation = np.eye(3)
        for axis, angle in zip(([0.0, 1, 0], [1.0, 0, 0], [0.0, 0, 1]), angles, strict=True):
            rotation = pycolmap.Rotation3d(angle * np.array(axis)).matrix() @ rotation
        place = np.array([0, 0, distance * rng.uniform(1, 1.2)])
        poses.append(pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), place))
    return poses


def photograph(
    rng: np.random.Generator, by: pycolmap.Camera, pose: pycolmap.Rigid3d, points: Float64
) -> tuple[NDArray[np.int64], Float64]:
    """Rows of the points in the photo and their pixels: noise of 0.4 pixels, 3 % of them are 4 pixels off."""
    xy = np.asarray(by.img_from_cam(pose * points), np.float64)
    rows = np.flatnonzero(np.isfinite(xy).all(axis=1) & (xy > 0).all(axis=1) & (xy < SIZE).all(axis=1))
    wrong = rng.random((len(rows), 1)) < 0.03
    return rows, xy[rows] + rng.normal(0, 1, (len(rows), 2)) * np.where(wrong, 4, 0.4)


def photographed(
    seed: int, cameras: list[pycolmap.Camera], poses: list[list[pycolmap.Rigid3d]], points: Float64
) -> pycolmap.Reconstruction:
    """The true poses and points as photos by cameras see them; their model is said to be SIMPLE_RADIAL."""
    model, rng = pycolmap.Reconstruction(), np.random.default_rng(seed)
    tracks = [pycolmap.Track() for _ in points]
    for by, places in zip(cameras, poses, strict=True):
        first = camera("SIMPLE_RADIAL", [by.mean_focal_length(), SIZE[0] / 2, SIZE[1] / 2, 0.0], by.camera_id)
        model.add_camera_with_trivial_rig(first)
        for pose in places:
            rows, xy = photograph(rng, by, pose, points)
            number = model.num_images() + 1
            image = pycolmap.Image(name=str(number), keypoints=xy, camera_id=by.camera_id, image_id=number)
            model.add_image_with_trivial_frame(image, pose)
            for keypoint, row in enumerate(rows):
                tracks[row].add_element(number, keypoint)
    for point, track in zip(points, tracks, strict=True):
        if track.length() >= 2:
            model.add_point3D(point, track, np.zeros(3, np.uint8))
    return model


def cloud(rng: np.random.Generator) -> Float64:
    return rng.normal(0, 1, (400, 3)) * (2.6, 2, 1.5)


def taken_by(name: str, params: list[float], seed: int, photos: int = 12) -> pycolmap.Reconstruction:
    """Photos of a cloud of points by one camera."""
    rng = np.random.default_rng(seed)
    points = cloud(rng)
    return photographed(seed, [camera(name, params)], [around(rng, photos, 9)], points)


def position_error(model: pycolmap.Reconstruction, truth: Float64) -> float:
    """Mean distance of camera centres to the (V, 3) true ones, once they are aligned."""
    found = np.array([model.image(number).projection_center() for number in sorted(model.reg_image_ids())])
    aligned = pycolmap.estimate_sim3d(found, truth)
    assert aligned is not None
    return float(np.linalg.norm(aligned * found - truth, axis=1).mean())


def projection_error(found: pycolmap.Camera, true: pycolmap.Camera) -> float:
    """Largest distance in pixels of two cameras' projections of the rays of a grid in the photo."""
    x, y = np.meshgrid(np.linspace(100, SIZE[0] - 100, 9), np.linspace(100, SIZE[1] - 100, 7))
    grid = np.column_stack([x.ravel(), y.ravel()])
    rays = np.column_stack([np.asarray(true.cam_from_img(grid)), np.ones(len(grid))])
    return float(np.linalg.norm(np.asarray(found.img_from_cam(rays)) - grid, axis=1).max())


class TestGrowth:
    """Of the cameras of one model."""

    @pytest.mark.parametrize("k", [0.0, -0.05, -0.15])
    @pytest.mark.parametrize("seed", range(4))
    def test_photos_of_the_smallest_model_stay_with_it(self, seed: int, k: float) -> None:
        adjusted = adjust_robustly(taken_by("SIMPLE_RADIAL", [1400.0, 806.0, 594.0, k], seed), MAPPING)
        assert adjusted.camera(1).model_name == "SIMPLE_RADIAL"
        np.testing.assert_allclose(adjusted.camera(1).params, [1400, 806, 594, k], rtol=2e-3, atol=2e-3)

    @pytest.mark.parametrize(("name", "params"), [RADIAL, OPENCV])
    @pytest.mark.parametrize("seed", range(3))
    def test_photos_of_a_larger_model_find_it_and_its_parameters(
        self, seed: int, name: str, params: list[float]
    ) -> None:
        model = taken_by(name, params, seed)
        truth = np.array([model.image(number).projection_center() for number in sorted(model.reg_image_ids())])
        small = adjust_robustly(pycolmap.Reconstruction(model), replace(MAPPING, grow_distortion=False))
        assert small.camera(1).model_name == "SIMPLE_RADIAL"
        grown = adjust_robustly(model, MAPPING)
        assert grown.camera(1).model_name == name
        off = np.abs(grown.camera(1).params - params)
        tolerance = {"RADIAL": [2, 2, 2, 4e-3, 8e-3], "OPENCV": [2, 2, 2, 2, 4e-3, 8e-3, 4e-4, 4e-4]}
        assert (off < tolerance[name]).all()
        assert position_error(grown, truth) < position_error(small, truth)
        assert grown.compute_mean_reprojection_error() < 0.95 * small.compute_mean_reprojection_error()

    def test_few_photos_decide_nothing(self) -> None:
        adjusted = adjust_robustly(taken_by(*OPENCV, seed=0, photos=7), MAPPING)
        assert adjusted.camera(1).model_name == "SIMPLE_RADIAL"

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("relief", [0.0, 0.5])
    def test_a_wall_photographed_in_one_direction_grows_nothing(self, relief: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        places = [(1.5 * (number % 4 - 1.5), 1.5 * (number // 4 - 1), 0) for number in range(12)]
        points = np.column_stack([rng.uniform(-6, 6, (400, 2)), 10 + rng.uniform(-relief, relief, 400)])
        poses = [pycolmap.Rigid3d(pycolmap.Rotation3d(), -np.array(place)) for place in places]
        adjusted = adjust_robustly(photographed(seed, [camera(*SIMPLE)], [poses], points), MAPPING)
        assert adjusted.camera(1).model_name == "SIMPLE_RADIAL"

    def test_each_camera_decides_for_itself_and_those_of_few_photos_follow(self) -> None:
        rng = np.random.default_rng(0)
        points = cloud(rng)
        cameras = [camera(*OPENCV, 1), camera(*SIMPLE, 2), camera(*RADIAL, 3), camera(*SIMPLE, 4)]
        poses = [around(rng, count, 9) for count in (10, 10, 10, 4)]
        adjusted = adjust_robustly(photographed(0, cameras, poses, points), MAPPING)
        names = [adjusted.camera(number).model_name for number in (1, 2, 3, 4)]
        assert names == ["OPENCV", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL"]
        assert adjusted.camera(4).focal_length == pytest.approx(1400, abs=4)
        assert adjusted.compute_mean_reprojection_error() < 0.7

    def test_known_cameras_stay(self) -> None:
        model = taken_by(*OPENCV, seed=0)
        before = model.camera(1).params.copy()
        adjusted = adjust_robustly(model, replace(MAPPING, fix_intrinsics=True))
        assert adjusted.camera(1).model_name == "SIMPLE_RADIAL"
        np.testing.assert_array_equal(adjusted.camera(1).params, before)


class TestMapped:
    """From verified matches on: mapped as SIMPLE_RADIAL of unknown focal length, then grown."""

    @staticmethod
    def database(path: Path, by: pycolmap.Camera, poses: list[pycolmap.Rigid3d], points: Float64) -> None:
        """Photos that see 70 % of the points each; a tenth of their matches is wrong."""
        rng = np.random.default_rng(0)
        seen: list[dict[int, int]] = []
        with pycolmap.Database.open(path) as database:
            guess = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 1.2 * max(SIZE), *SIZE)
            database.write_camera(guess, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=1)
            rig.add_ref_sensor(guess.sensor_id)
            database.write_rig(rig, use_rig_id=True)
            for number, pose in enumerate(poses, 1):
                image = pycolmap.Image(name=f"{number:02}", camera_id=1, image_id=number)
                database.write_image(image, use_image_id=True)
                frame = pycolmap.Frame(frame_id=number, rig_id=1)
                frame.add_data_id(image.data_id)
                database.write_frame(frame, use_frame_id=True)
                rows, xy = photograph(rng, by, pose, points)
                found = rng.random(len(rows)) < 0.7
                database.write_keypoints(number, xy[found].astype(np.float32))
                seen.append({row: keypoint for keypoint, row in enumerate(rows[found])})
            for first, second in combinations(range(len(poses)), 2):
                common = [(seen[first][row], seen[second][row]) for row in seen[first] if row in seen[second]]
                matches = np.array(common, np.uint32).reshape(-1, 2)
                wrong = rng.random(len(matches)) < 0.1
                matches[wrong, 1] = rng.permutation(matches[wrong, 1])
                database.write_matches(first + 1, second + 1, matches)
        with Database(path) as opened:
            names = sorted(opened.ids)
            assert list(opened.verify(list(combinations(names, 2)), Verification(4.0, 15, 0), 1))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "params"), [FISHEYE, ("RADIAL", [1000.0, 790.0, 610.0, -0.28, 0.08])], ids=["fisheye", "radial"]
    )
    def test_strong_distortion_is_found_and_the_borders_come_back(
        self, tmp_path: Path, name: str, params: list[float]
    ) -> None:
        rng = np.random.default_rng(0)
        points = rng.normal(0, 1, (500, 3)) * (5, 4, 1.5)
        poses = around(rng, 10, 4)
        true = camera(name, params)
        self.database(tmp_path / "d.db", true, poses, points)
        mapped = map_database(tmp_path / "d.db", tmp_path, tmp_path / "snapshot", MAPPING, lambda _: None)[0].colmap
        assert mapped.num_reg_images() == 10
        before = mapped.compute_num_observations()
        truth = np.array([pose.inverse().translation for pose in poses])
        small = adjust_robustly(pycolmap.Reconstruction(mapped), replace(MAPPING, grow_distortion=False))
        grown = adjust_robustly(mapped, MAPPING, tmp_path / "d.db")
        assert grown.camera(1).model_name == name
        assert projection_error(grown.camera(1), true) < 2
        assert grown.compute_num_observations() > 1.05 * before
        assert grown.compute_mean_reprojection_error() < 0.6
        assert position_error(grown, truth) < 0.15 * position_error(small, truth)


class TestConversion:
    """SIMPLE_RADIAL cameras as larger models."""

    @pytest.mark.parametrize("name", ["RADIAL", "OPENCV"])
    def test_larger_models_project_alike(self, name: str) -> None:
        before, after = camera(*SIMPLE), camera(*SIMPLE)
        convert(after, name)
        assert after.model_name == name
        assert projection_error(after, before) < 1e-6

    def test_a_fisheye_model_projects_nearly_alike(self) -> None:
        params = [845.0, 800.0, 600.0, -0.126]
        before, after = camera("SIMPLE_RADIAL", params), camera("SIMPLE_RADIAL", params)
        convert(after, "OPENCV_FISHEYE")
        angles = np.linspace(0, np.deg2rad(50), 50)
        rays = np.column_stack([np.sin(angles), 0 * angles, np.cos(angles)])
        assert np.abs(np.asarray(after.img_from_cam(rays)) - np.asarray(before.img_from_cam(rays))).max() < 15

    @pytest.mark.parametrize(
        ("name", "params", "rises"),
        [
            (*SIMPLE, True),
            (*OPENCV, True),
            (*FISHEYE, True),
            (
                "SIMPLE_RADIAL",
                [1400.0, 800.0, 600.0, -0.6],
                False,
            ),  # turns back at 0.497 of the focal length, the corner is at 0.714
            ("RADIAL", [1400.0, 800.0, 600.0, 0.1, -1.0], False),
            ("RADIAL", [1400.0, 800.0, 600.0, 0.1, 1.0], True),
        ],
    )
    def test_cameras_that_fold_inside_the_photo_are_told(self, name: str, params: list[float], rises: bool) -> None:
        assert rises_to_the_corners(camera(name, params)) == rises


@pytest.mark.parametrize("seed", range(3))
def test_the_scale_of_the_loss_follows_the_noise_and_not_the_outliers(seed: int) -> None:
    """The noise is 0.4 pixels, of which points and poses take up some: three of 16 coordinates of a point's eight
    observations, which leaves 0.9 of the deviation."""
    model = adjust_robustly(taken_by(*SIMPLE, seed=seed), MAPPING)
    assert loss_scale(model) == pytest.approx(2.385 * 0.9 * 0.4, rel=0.1)


class TestHoldOut:
    """Observations that decide about a larger model."""

    def test_takes_an_eighth_and_leaves_two_with_each_point_and_the_model_as_it_is(self) -> None:
        model = taken_by(*SIMPLE, seed=0)
        before = model.compute_num_observations()
        reduced, held_out = hold_out(model, {1}, 0.5)
        assert model.compute_num_observations() == before
        taken = sum(len(pairs) for _, pairs in held_out.of_camera[1])
        assert reduced.compute_num_observations() == before - taken
        assert taken == pytest.approx(before / 8, rel=0.05)
        assert set(reduced.points3D) == set(model.points3D)
        assert min(point.track.length() for point in reduced.points3D.values()) >= 2

    def test_losses_are_those_of_the_adjustment(self) -> None:
        model = adjust_robustly(taken_by(*SIMPLE, seed=0), MAPPING)
        _, held_out = hold_out(model, {1}, 0.5)
        expected = []
        for number, pairs in held_out.of_camera[1]:
            image = model.image(number)
            for row, point in pairs:
                projected = image.project_point(model.point3D(point).xyz)
                square = min(float(((projected - image.point2D(row).xy) ** 2).sum()), 100)
                expected.append(0.25 * np.log(1 + square / 0.25))
        np.testing.assert_allclose(held_out.losses(model, 1), expected)

    def test_leaves_other_cameras_alone(self) -> None:
        reduced, held_out = hold_out(taken_by(*SIMPLE, seed=0), {2}, 0.5)
        assert held_out.of_camera == {}
        assert held_out.losses(reduced, 2).shape == (0,)


class TestOptions:
    """`--camera-model`, and what the terminal says."""

    def test_auto_starts_from_simple_radial_and_shares_its_database(self) -> None:
        automatic, stated = MapOptions(), MapOptions(camera_model="SIMPLE_RADIAL")
        assert automatic.camera_setup() == stated.camera_setup()
        assert automatic.of_database() == stated.of_database()
        assert automatic.of_mapper() == stated.of_mapper() | {"grow_distortion": True}

    def test_stated_parameters_do_not_grow(self) -> None:
        assert not MapOptions(camera_params="1400,800,600,0").grow_distortion()

    def test_the_terminal_names_what_grew(self) -> None:
        assert _describe_growth({"cameras": 1, "grown_cameras": {}}) == ""
        grown = {"cameras": 1, "grown_cameras": {"OPENCV": 1}}
        assert _describe_growth(grown) == " (OPENCV, grown from SIMPLE_RADIAL)"
        several = {"cameras": 4, "grown_cameras": {"OPENCV": 1, "RADIAL": 2}}
        assert _describe_growth(several) == " (1 OPENCV, 2 RADIAL, grown from SIMPLE_RADIAL)"
