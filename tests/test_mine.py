"""Mining: what is cut is the same thing in every photo, and what is not is dropped.

The scene is rendered, so its true cameras say how a keypoint's frame has to change from photo to photo.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray
from PIL import Image
from processes import last_words, running

import hardnet_sfm
from hardnet_sfm.arrays import Float32
from hardnet_sfm.colmap.database import colmap_keypoints
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.colmap.tracks import Tracks, keypoint_tables, read_tracks
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.detectors import DetectorOptions, make_detector
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.patch_sets import PatchWriter, read_patches
from hardnet_sfm.files.photo_decoding import exif_orientation
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.frames import Frames, associated, frames_of_keypoints, frames_of_table, upright_from_stored
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.patch_set import PatchSet
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.training.observations import (
    MineOptions,
    depth_ratios,
    in_agreement,
    mean_directions,
    on_object,
    photos_of_point,
    rays_to_cameras,
    select,
)
from hardnet_sfm.verbs.mine import mine, write_sheet

FEW = ExtractOptions(descriptor="rootsift", max_keypoints=1500, orientation="estimated")  # as `made` has
# Patches as wide as the bounds on how alike they look were measured with: the wider, the more parallax changes.
NARROW = MineOptions(measurement_size=12.0)
LONG = MineOptions(min_track=5)  # fewer patches, where it matters that they are the same
ONE_CAMERA = MapOptions(camera_mode="single")
DETECT = make_detector("opencv-dog", DetectorOptions(3000, 0.02 / 3, 10.0, upright=False, affine_shape=False))


@pytest.fixture(scope="module")
def tracks(made: Workspace) -> Tracks:
    return read_tracks(made.sparse / "0")


@pytest.fixture(scope="module")
def axes(made: Workspace, tracks: Tracks) -> Float32:
    """(N, 2, 2) frame of every observation; these photos are stored upright."""
    with FeatureStore(made.features) as features:
        frames = [features.keypoints(name).frames() for name in tracks.names]
    return np.array([frames[photo][row] for photo, row in zip(tracks.photo, tracks.row, strict=True)])


@pytest.fixture(scope="module")
def mined(made: Workspace, small_scene: tuple[Path, Scene], tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    path = tmp_path_factory.mktemp("mined") / "patches.h5"
    mine(made.root, small_scene[0], path, NARROW)
    return read_patches(path)


@pytest.fixture(scope="module")
def of_long_tracks(
    made: Workspace, small_scene: tuple[Path, Scene], tmp_path_factory: pytest.TempPathFactory
) -> PatchSet:
    path = tmp_path_factory.mktemp("mined") / "patches.h5"
    mine(made.root, small_scene[0], path, LONG)
    return read_patches(path)


def pairs_of(patches: PatchSet) -> NDArray[np.intp]:
    """(M, 2) rows of the first and second patch of every point, from photos next to each other."""
    first = np.searchsorted(patches.point, np.arange(len(patches.xyz)))
    return np.stack([first, first + 1], 1)


def correlations(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(M,) normalised cross-correlation of (M, S, S) patches."""
    a, b = (x.reshape(len(x), -1) - x.mean((1, 2), dtype=float)[:, None] for x in (first, second))
    return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


class TestTracks:
    def test_are_what_pycolmap_says_of_each_observation(self, made: Workspace, tracks: Tracks) -> None:
        model = pycolmap.Reconstruction(made.sparse / "0")
        assert len(tracks.point) == model.compute_num_observations()
        assert len(tracks.xyz) == model.num_points3D()
        images = {image.name: image for image in model.images.values()}
        for n in range(0, len(tracks.point), 37):
            image = images[tracks.names[tracks.photo[n]]]
            seen = image.point2D(int(tracks.row[n]))
            assert seen.point3D_id == tracks.point_ids[tracks.point[n]]
            xyz = model.point3D(seen.point3D_id).xyz
            np.testing.assert_array_equal(tracks.xy[n], seen.xy)
            np.testing.assert_array_equal(tracks.xyz[tracks.point[n]], xyz)
            in_camera = image.cam_from_world() * xyz
            assert tracks.depth[n] == pytest.approx(in_camera[2])
            assert tracks.error[n] == pytest.approx(np.linalg.norm(image.project_point(xyz) - seen.xy), abs=1e-9)
            np.testing.assert_allclose(tracks.ray[n], image.camera.cam_from_img(seen.xy))

    def test_jacobian_undoes_a_shift_of_the_ray_under_strong_distortion(self, tmp_path: Path) -> None:
        model = synthetic_model(tmp_path, [900.0, 512.0, 384.0, 0.15])
        camera, found = next(iter(model.cameras.values())), read_tracks(tmp_path)
        for n in range(0, len(found.point), 50):
            for shift in (np.array([1e-5, 0]), np.array([0, 1e-5])):
                moved = camera.img_from_cam(np.append(found.ray[n] + shift, 1)) - found.xy[n]
                np.testing.assert_allclose(found.jacobian[n] @ moved, shift, atol=2e-8)

    def test_text_and_binary_give_the_same(self, made: Workspace, tracks: Tracks, tmp_path: Path) -> None:
        Model.read(made.sparse / "0").write(tmp_path / "text", "text")
        assert not list((tmp_path / "text").glob("*.bin"))
        text = read_tracks(tmp_path / "text")
        assert text.names == tracks.names
        for name in ("sizes", "photo", "point", "row", "point_ids"):
            np.testing.assert_array_equal(getattr(text, name), getattr(tracks, name))
        for name in ("xyz", "xy", "cam_from_world", "error"):
            np.testing.assert_allclose(getattr(text, name), getattr(tracks, name), atol=1e-9)

    def test_a_point_behind_the_camera_has_no_finite_error(self, made: Workspace, tmp_path: Path) -> None:
        model = pycolmap.Reconstruction(made.sparse / "0")
        number = min(model.points3D)
        element = model.point3D(number).track.elements[0]
        image = model.image(element.image_id)
        model.point3D(number).xyz = image.cam_from_world().inverse() * np.array([0, 0, -5.0])
        model.write(tmp_path)
        found = read_tracks(tmp_path)
        (n,) = np.flatnonzero((found.row == element.point2D_idx) & (found.photo == found.names.index(image.name)))
        assert found.depth[n] == pytest.approx(-5)
        assert found.error[n] == np.inf

    def test_a_model_without_points_is_an_error(self, made: Workspace, tmp_path: Path) -> None:
        model = pycolmap.Reconstruction(made.sparse / "0")
        model.delete_all_points2D_and_points3D()
        model.write(tmp_path)
        with pytest.raises(HardnetSfmError, match="no points"):
            read_tracks(tmp_path)

    def test_a_folder_without_a_model_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match="no COLMAP model"):
            read_tracks(tmp_path)


def synthetic_model(folder: Path, params: list[float]) -> pycolmap.Reconstruction:
    """A perfect SIMPLE_RADIAL model by COLMAP's own generator."""
    options = pycolmap.SyntheticDatasetOptions()
    options.camera_params = params
    model = pycolmap.synthesize_dataset(options)
    model.write(folder)
    return model


class TestDatabase:
    def test_gives_our_keypoints_back(self, made: Workspace) -> None:
        with keypoint_tables(made.database) as tables, FeatureStore(made.features) as features:
            name = features.names()[3]
            ours, theirs = (
                frames_of_keypoints(features.keypoints(name), 1, features.size(name)),
                frames_of_table(tables[name]),
            )
            assert tables["elsewhere.jpg"] is None
        assert theirs is not None
        np.testing.assert_allclose(theirs.xy, ours.xy, atol=1e-4)
        np.testing.assert_allclose(theirs.axes, ours.axes, atol=1e-4)

    def test_six_columns_are_an_affine_frame(self) -> None:
        table = np.array([[10, 20, 1, 2, 3, 4], [11, 21, 5, 6, 7, 8]], np.float32)
        found = frames_of_table(table)
        assert found is not None
        np.testing.assert_array_equal(found.axes, [[[1, 2], [3, 4]], [[5, 6], [7, 8]]])

    def test_positions_alone_are_no_frames(self) -> None:
        table = np.random.default_rng(0).uniform(0, 100, (5, 2)).astype(np.float32)
        assert frames_of_table(None) is None
        assert frames_of_table(table) is None
        filled_in = np.column_stack([table, np.tile(np.float32([1, 0, 0, 1]), (5, 1))])
        assert frames_of_table(filled_in) is None

    def test_a_missing_database_is_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match="no such file"), keypoint_tables(tmp_path / "database.db"):
            pass
        assert not list(tmp_path.iterdir())

    def test_a_damaged_database_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "database.db").write_bytes(b"no database at all" * 100)
        with pytest.raises(HardnetSfmError, match="damaged"), keypoint_tables(tmp_path / "database.db"):
            pass


class TestFrames:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_go_to_colmaps_pixels_and_back(self, orientation: int) -> None:
        rng = np.random.default_rng(orientation)
        n, size = 20, (40, 30)
        draw = lambda *shape: rng.uniform(0, 30, shape).astype(np.float32)  # noqa: E731
        keypoints = Keypoints(draw(n, 2), draw(n), draw(n), draw(n), draw(n, 2, 2))
        stored = frames_of_keypoints(keypoints, orientation, size)
        table = colmap_keypoints(keypoints, orientation, size)
        np.testing.assert_allclose(stored.xy, table[:, :2], atol=1e-5)
        np.testing.assert_allclose(stored.axes.reshape(n, 4), table[:, 2:], atol=1e-5)
        back = stored.through(upright_from_stored(orientation, size))
        np.testing.assert_allclose(back.xy, keypoints.xy, atol=1e-5)
        np.testing.assert_allclose(back.axes, keypoints.frames(), atol=1e-5)


class TestAssociation:
    def test_is_that_of_a_loop(self) -> None:
        rng = np.random.default_rng(0)
        found = Frames(rng.uniform(0, 60, (400, 2)).astype(np.float32), np.zeros((400, 2, 2), np.float32))
        xy = np.concatenate([found.xy[:150] + rng.normal(0, 0.6, (150, 2)), rng.uniform(-5, 65, (150, 2))])
        expected = []
        for at in xy:
            distance = np.linalg.norm(found.xy - at, axis=1)
            expected.append(distance.argmin() if distance.min() <= 1 else -1)
        assert -1 in expected
        np.testing.assert_array_equal(associated(xy, np.arange(300), found, 1.0), expected)

    def test_of_two_orientations_at_one_place_the_models_own_row_is_taken(self) -> None:
        found = Frames(np.array([[5, 5], [9, 9], [9, 9]], np.float32), np.zeros((3, 2, 2), np.float32))
        xy = np.array([[9, 9], [9, 9], [5, 5]], float)
        np.testing.assert_array_equal(associated(xy, np.array([2, 1, 0]), found, 0.5), [2, 1, 0])

    def test_of_other_keypoints_rows_say_nothing(self) -> None:
        found = Frames(np.array([[5, 5], [9, 9], [9, 9]], np.float32), np.zeros((3, 2, 2), np.float32))
        xy = np.array([[9.2, 9], [5, 5.3], [30, 30]], float)
        np.testing.assert_array_equal(associated(xy, np.array([0, 1, 2]), found, 0.5), [1, 0, -1])

    def test_nothing_to_find(self) -> None:
        nothing = Frames(np.zeros((0, 2), np.float32), np.zeros((0, 2, 2), np.float32))
        np.testing.assert_array_equal(associated(np.ones((2, 2)), np.arange(2), nothing, 0.5), [-1, -1])
        assert associated(np.ones((0, 2)), np.arange(0), nothing, 0.5).shape == (0,)


class TestAgreement:
    @pytest.mark.parametrize("period", [np.inf, 360.0])
    def test_is_that_of_a_loop(self, period: float) -> None:
        rng = np.random.default_rng(1)
        point, values = rng.integers(0, 60, 300), rng.uniform(-180, 180, 300)
        values[::17] = np.nan
        expected = np.zeros(300, bool)
        for number in range(60):
            rows = np.flatnonzero(point == number)
            apart = [[abs(values[i] - values[j]) for j in rows] for i in rows]
            if period == 360:
                apart = [[min(d % 360, 360 - d % 360) for d in line] for line in apart]
            votes = [sum(max(0, 1 - d / 40) for d in line if d == d) for line in apart]
            for i, d in zip(rows, apart[int(np.argmax(votes))] if len(rows) else [], strict=True):
                expected[i] = d <= 40
        assert 0 < expected.sum() < 300
        np.testing.assert_array_equal(in_agreement(values, point, 40, period), expected)

    def test_the_larger_of_two_groups_stays_whole(self) -> None:
        values = np.array([1, 1.1, 5, 5.1, 5.2])
        np.testing.assert_array_equal(in_agreement(values, np.zeros(5, int), 0.5), [False, False, True, True, True])

    def test_angles_meet_at_360_degrees(self) -> None:
        values = np.array([179.0, -179, 90])
        np.testing.assert_array_equal(in_agreement(values, np.zeros(3, int), 5, 360), [True, True, False])


class TestOnObject:
    def test_frames_that_are_photos_of_one_square_come_back_as_that_square(self, tmp_path: Path) -> None:
        """A small square on the plane that faces the mean ray, projected by distorting cameras."""
        model = synthetic_model(tmp_path, [900.0, 512.0, 384.0, 0.15])
        camera, found = next(iter(model.cameras.values())), read_tracks(tmp_path)
        rows = np.arange(len(found.point))
        mean = mean_directions(rays_to_cameras(found, rows), found.point, len(found.xyz))
        sides = np.random.default_rng(0).normal(size=(len(found.xyz), 3))
        side = np.cross(mean, sides)
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        square = 1e-5 * np.stack([side, np.cross(mean, side)], 2)
        axes = np.empty((len(rows), 2, 2))
        for n in rows:
            pose, point = found.cam_from_world[found.photo[n]], found.point[n]
            corners = found.xyz[point] + np.concatenate([np.zeros((1, 3)), square[point].T])
            centre, *tips = camera.img_from_cam(corners @ pose[:, :3].T + pose[:, 3])
            axes[n] = np.stack([tip - centre for tip in tips], 1)
        sizes, turns = on_object(found, rows, axes, mean)
        np.testing.assert_allclose(sizes, 1e-5, rtol=1e-3)
        for point in range(len(found.xyz)):
            of_point = turns[found.point == point]
            np.testing.assert_allclose((of_point - of_point[0] + 180) % 360 - 180, 0, atol=0.1)

    def test_mean_directions_are_those_of_a_loop(self, tracks: Tracks) -> None:
        rows = np.arange(len(tracks.point))
        rays = rays_to_cameras(tracks, rows)
        mean = mean_directions(rays, tracks.point, len(tracks.xyz))
        for point in range(0, len(mean), 50):
            total = sum(
                (-pose[:, :3].T @ pose[:, 3] - tracks.xyz[point])
                / np.linalg.norm(-pose[:, :3].T @ pose[:, 3] - tracks.xyz[point])
                for pose in tracks.cam_from_world[tracks.photo[tracks.point == point]]
            )
            np.testing.assert_allclose(mean[point], total / np.linalg.norm(total))


class TestFilters:
    def test_depth_ratios_are_those_of_a_loop(self, tracks: Tracks) -> None:
        rows = np.arange(len(tracks.point))
        ratios = depth_ratios(tracks, rows)
        square = np.floor(tracks.xy / (480 / 64))
        for n in rows[::23]:
            same = (tracks.photo == tracks.photo[n]) & (square == square[n]).all(1)
            around = np.sort(tracks.depth[same])
            assert ratios[n] == pytest.approx(tracks.depth[n] / around[(len(around) - 1) // 4])

    def test_photos_of_point_counts_a_photo_once(self, tracks: Tracks) -> None:
        rows = np.arange(0, len(tracks.point), 2)
        counted = photos_of_point(tracks, np.concatenate([rows, rows]))
        for place, n in enumerate(rows[::50]):
            photos = {tracks.photo[m] for m in rows if tracks.point[m] == tracks.point[n]}
            assert counted[place * 50] == len(photos)

    def test_corrupted_scales_and_orientations_are_dropped_and_clean_ones_kept(
        self, tracks: Tracks, axes: Float32
    ) -> None:
        """One frame of each track is twice too large, or turned by 60 degrees."""
        clean = select(tracks, axes, MineOptions())
        points, first = np.unique(tracks.point[clean.rows], return_index=True)
        wrong = clean.rows[first + np.arange(len(points)) % 3][photos_of_point(tracks, clean.rows)[first] >= 3]
        large, turned = wrong[::2], wrong[1::2]
        corrupted = axes.copy()
        corrupted[large] *= 2
        turn = np.deg2rad(60)
        corrupted[turned] = axes[turned] @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        selection = select(tracks, corrupted, MineOptions())
        right = np.setdiff1d(clean.rows, wrong)
        assert len(np.intersect1d(selection.rows, wrong)) < 0.01 * len(wrong)
        assert len(np.intersect1d(selection.rows, right)) > 0.99 * len(right)
        more = {name: count - clean.dropped[name] for name, count in selection.dropped.items()}
        assert more["scale"] == pytest.approx(len(large), rel=0.02)
        assert more["orientation"] == pytest.approx(len(turned), rel=0.02)

    def test_every_observation_is_kept_or_counted_once(self, tracks: Tracks, axes: Float32) -> None:
        some = axes.copy()
        some[:100] = np.nan
        selection = select(tracks, some, MineOptions(max_angle=15))
        assert selection.dropped["no keypoint"] == 100
        assert selection.dropped["viewing angle"] > 0
        assert selection.angle.max() <= 15
        assert len(selection.rows) + sum(selection.dropped.values()) == len(axes)
        assert photos_of_point(tracks, selection.rows).min() >= 2
        assert (np.diff(tracks.point[selection.rows]) >= 0).all()

    def test_reprojection_error_and_track_length(self, tracks: Tracks, axes: Float32) -> None:
        rows = select(tracks, axes, MineOptions(max_error=0.3, min_track=4)).rows
        assert tracks.error[rows].max() <= 0.3
        precise = np.flatnonzero(tracks.error <= 0.3)
        long = {n for n, photos in zip(precise, photos_of_point(tracks, precise), strict=True) if photos >= 4}
        assert set(rows) <= long

    @pytest.mark.parametrize(
        "wrong",
        [
            {"min_track": 1},
            {"max_depth_ratio": np.inf},
            {"max_scale_ratio": 0.5},
            {"max_scale_ratio": 1.0},
            {"max_error": 0},
            {"max_error": np.nan},
            {"max_angle": np.inf},
            {"max_turn": np.nan},
            {"measurement_size": np.inf},
            {"measurement_size": np.nan},
        ],
    )
    def test_options_that_make_no_sense(self, wrong: dict[str, int | float]) -> None:
        with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')} must be"):
            MineOptions(**wrong).check()  # type: ignore[arg-type]


def on_plane(
    projection: NDArray[np.float64],
    centre: NDArray[np.float64],
    xy: NDArray[np.float64],
    point: NDArray[np.float64],
    normal: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Where the ray of a pixel meets a plane."""
    direction = np.linalg.solve(projection[:, :3], np.append(xy, 1))
    return centre + direction * (normal @ (point - centre)) / (normal @ direction)


class TestPatches:
    def test_two_of_a_point_look_alike_and_two_of_different_points_do_not(self, mined: PatchSet) -> None:
        first, last = pairs_of(mined)[::3].T
        alike = correlations(mined.patches[first], mined.patches[last])
        shuffled = np.random.default_rng(0).permutation(last)
        different = correlations(mined.patches[first], mined.patches[shuffled])
        # Measured: 0.82 and 0.10. Keypoints are ranked by contrast times scale, so patches are larger than those of the
        # highest contrast alone (0.86): parallax changes them more, and they are smoother.
        assert np.mean(alike) > 0.8
        assert abs(np.mean(different)) < 0.12

    def test_frames_change_between_photos_as_the_true_cameras_say(
        self, mined: PatchSet, small_scene: tuple[Path, Scene]
    ) -> None:
        """The tip of one keypoint's x axis, put on a plane that faces both cameras, projected into the other photo."""
        scene = small_scene[1]
        half_pixel = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
        calibration = half_pixel @ scene.calibration
        poses = {name: calibration @ pose for name, pose in zip(scene.names, scene.cam_from_world, strict=True)}
        centres = dict(zip(scene.names, scene.centres, strict=True))
        turns, ratios = [], []
        for pair in pairs_of(mined):
            a, b = (mined.images[mined.image[n]] for n in pair)
            if a == b:  # two keypoints of one photo on the same point
                continue
            (frame_a, xy_a), (frame_b, xy_b) = (np.split(mined.frame[n].astype(float), [2], 1) for n in pair)
            point = cv2.triangulatePoints(poses[a], poses[b], xy_a, xy_b)[:, 0]
            xy_a = xy_a[:, 0]
            point = point[:3] / point[3]
            rays = [(centres[name] - point) / np.linalg.norm(centres[name] - point) for name in (a, b)]
            normal = sum(rays)
            start, tip = (on_plane(poses[a], centres[a], at, point, normal) for at in (xy_a, xy_a + frame_a[:, 0] / 10))
            here, there = (poses[b] @ np.append(at, 1) for at in (start, tip))
            predicted = 10 * (there[:2] / there[2] - here[:2] / here[2])
            found = frame_b[:, 0]
            turn = np.arctan2(predicted[0] * found[1] - predicted[1] * found[0], predicted @ found)
            turns.append(abs(np.rad2deg(turn)))
            ratios.append(abs(np.log2(np.linalg.norm(found) / np.linalg.norm(predicted))))
        assert np.median(turns) < 4
        assert np.quantile(turns, 0.95) < 20
        assert np.median(ratios) < 0.1
        assert np.quantile(ratios, 0.95) < 0.5

    def test_say_where_they_are_from(self, mined: PatchSet, tracks: Tracks) -> None:
        assert (mined.source, mined.measurement_size) == ("sfm", 12.0)
        assert set(mined.images) == set(tracks.names)
        assert mined.options["max_turn"] == 25
        assert 0 < mined.extent < np.linalg.norm(np.ptp(tracks.xyz, axis=0))
        known = {tuple(xyz) for xyz in tracks.xyz.astype(np.float32).tolist()}
        assert all(tuple(xyz) in known for xyz in mined.xyz.tolist())
        assert (mined.angle >= 0).all() and (mined.angle <= 50).all()

    def test_are_of_the_models_points_by_their_numbers(self, mined: PatchSet, made: Workspace) -> None:
        """Every patch lies where pycolmap has an observation of that point in that photo."""
        model = pycolmap.Reconstruction(made.sparse / "0")
        assert mined.point_id is not None and mined.point_id.dtype == np.int64
        assert (np.diff(mined.point_id) > 0).all()
        np.testing.assert_array_equal(
            mined.xyz, [model.point3D(number).xyz.astype(np.float32) for number in mined.point_id.tolist()]
        )
        seen: dict[tuple[str, int], list[NDArray[np.float64]]] = {}
        for number, point in model.points3D.items():
            for element in point.track.elements:
                image = model.image(element.image_id)
                seen.setdefault((image.name, number), []).append(image.point2D(element.point2D_idx).xy - 0.5)
        for n in range(len(mined)):
            of_point = seen[mined.images[mined.image[n]], int(mined.point_id[mined.point[n]])]
            assert min(np.abs(mined.frame[n, :, 2] - xy).max() for xy in of_point) < 1e-3

    def test_do_not_depend_on_the_number_of_threads(
        self, made: Workspace, small_scene: tuple[Path, Scene], of_long_tracks: PatchSet, tmp_path: Path
    ) -> None:
        mine(made.root, small_scene[0], tmp_path / "patches.h5", LONG, resources=Resources(workers=3))
        again = read_patches(tmp_path / "patches.h5")
        for name in ("patches", "point", "image", "frame", "angle", "xyz"):
            np.testing.assert_array_equal(getattr(again, name), getattr(of_long_tracks, name))


class TestSources:
    """The same patches, wherever scales and orientations come from."""

    def test_of_a_text_model_in_another_folder(
        self, made: Workspace, small_scene: tuple[Path, Scene], of_long_tracks: PatchSet, tmp_path: Path
    ) -> None:
        Model.read(made.sparse / "0").write(tmp_path / "text", "text")
        mine(tmp_path / "text", small_scene[0], tmp_path / "p.h5", LONG, keypoints=made.features)
        again = read_patches(tmp_path / "p.h5")
        np.testing.assert_array_equal(again.patches, of_long_tracks.patches)
        np.testing.assert_array_equal(again.point, of_long_tracks.point)

    def test_of_colmaps_database_beside_the_model(
        self, made: Workspace, small_scene: tuple[Path, Scene], of_long_tracks: PatchSet, tmp_path: Path
    ) -> None:
        shutil.copytree(made.sparse / "0", tmp_path / "sparse" / "0")
        shutil.copy(made.database, tmp_path / "database.db")
        mine(tmp_path / "sparse" / "0", small_scene[0], tmp_path / "p.h5", LONG)
        again = read_patches(tmp_path / "p.h5")
        np.testing.assert_array_equal(again.point, of_long_tracks.point)
        # Angles go through radians and back.
        assert np.abs(again.patches.astype(int) - of_long_tracks.patches).mean() < 0.05

    def test_detected_again(
        self, made: Workspace, small_scene: tuple[Path, Scene], mined: PatchSet, tmp_path: Path
    ) -> None:
        model = made.sparse / "0"
        shutil.copytree(model, tmp_path / "elsewhere")
        with pytest.raises(HardnetSfmError, match="no scales and orientations"):
            mine(tmp_path / "elsewhere", small_scene[0], tmp_path / "p.h5")
        report = mine(tmp_path / "elsewhere", small_scene[0], tmp_path / "p.h5", NARROW, detect=DETECT)
        again = read_patches(tmp_path / "p.h5")
        # Keypoints with several orientations are told apart by position no more, so some of these are lost.
        assert report.patches > 0.8 * len(mined)
        first, last = pairs_of(again)[::3].T
        assert np.mean(correlations(again.patches[first], again.patches[last])) > 0.8

    @pytest.mark.slow
    def test_photos_stored_on_their_side(
        self, small_scene: tuple[Path, Scene], mined: PatchSet, tmp_path: Path
    ) -> None:
        """The same photos with their pixels turned and EXIF orientation 8: other pixels for COLMAP, the same for us."""
        images = tmp_path / "images"
        images.mkdir()
        for name in small_scene[1].names:
            turned = Image.open(small_scene[0] / name).transpose(Image.Transpose.ROTATE_270)
            tags = Image.Exif()
            tags[0x0112] = 8
            turned.save((images / name).with_suffix(".png"), exif=tags)
        path = (images / small_scene[1].names[0]).with_suffix(".png")
        assert exif_orientation(path.read_bytes()) == 8
        assert read_photo(path).size == (480, 360)
        place = Workspace(tmp_path / "out")
        hardnet_sfm.reconstruct(images, place.root, extract_options=FEW, map_options=ONE_CAMERA)
        assert read_tracks(place.sparse / "0").sizes.tolist() == [[360, 480]] * 8
        mine(place.root, images, tmp_path / "p.h5", NARROW)
        found = read_patches(tmp_path / "p.h5")
        assert len(found) > 0.9 * len(mined)
        first, last = pairs_of(found)[::3].T
        assert np.mean(correlations(found.patches[first], found.patches[last])) > 0.8
        # The patches themselves are those of the upright photos, at the same places.
        places = {
            (mined.images[image].split(".")[0], *frame.ravel().round(1)): patch
            for image, frame, patch in zip(mined.image, mined.frame, mined.patches, strict=True)
        }
        keys = [
            (found.images[image].split(".")[0], *frame.ravel().round(1))
            for image, frame in zip(found.image, found.frame, strict=True)
        ]
        both = [(places[key], patch) for key, patch in zip(keys, found.patches, strict=True) if key in places]
        assert len(both) > 0.5 * len(found)
        assert np.median([np.abs(a.astype(int) - b).mean() for a, b in both]) < 1


class TestRuns:
    def test_a_second_run_finds_everything_done(
        self, made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path
    ) -> None:
        first = mine(made.root, small_scene[0], tmp_path / "p.h5", LONG)
        again = mine(made.root, small_scene[0], tmp_path / "p.h5", LONG)
        assert (first.computed, again.computed) == (8, 0)
        assert (again.patches, again.points, again.dropped) == (first.patches, first.points, first.dropped)
        assert mine(made.root, small_scene[0], tmp_path / "p.h5", replace(LONG, measurement_size=15)).computed == 8

    def test_a_killed_run_goes_on_with_the_photo_it_was_at(
        self,
        made: Workspace,
        small_scene: tuple[Path, Scene],
        of_long_tracks: PatchSet,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        put, finished = PatchWriter.put, iter(range(8))

        def put_three(writer: PatchWriter, *args: object) -> None:
            if next(finished) == 3:
                raise KeyboardInterrupt
            put(writer, *args)  # type: ignore[arg-type]

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(PatchWriter, "put", put_three)
            mine(made.root, small_scene[0], tmp_path / "p.h5", LONG)
        assert not (tmp_path / "p.h5").exists()
        assert mine(made.root, small_scene[0], tmp_path / "p.h5", LONG).computed == 5
        np.testing.assert_array_equal(read_patches(tmp_path / "p.h5").patches, of_long_tracks.patches)


def _mine_on_a_small_disk(model: Path, images: Path, output: Path, limit: int, pipe: Connection) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        mine(model, images, output, LONG, resources=Resources(workers=1))
    except HardnetSfmError as error:
        pipe.send(f"error: {error.message} {error.hint}")
    except Exception as error:
        pipe.send(f"traceback: {error!r}")


class TestBadInput:
    @pytest.fixture
    def images(self, small_scene: tuple[Path, Scene], tmp_path: Path) -> Iterator[Path]:
        """A copy of the photos that may be spoilt."""
        return shutil.copytree(small_scene[0], tmp_path / "images")

    def test_missing_photos_are_passed_over_and_named(self, made: Workspace, images: Path, tmp_path: Path) -> None:
        of_all = mine(made.root, images, tmp_path / "all.h5", LONG)
        assert of_all.dropped["no photo"] == 0
        (images / "view_002.jpg").unlink()
        (images / "view_005.jpg").write_bytes(b"")
        report = mine(made.root, images, tmp_path / "p.h5", LONG)
        assert sorted(report.skipped) == ["view_002.jpg", "view_005.jpg"]
        assert report.photos == 6
        assert not {"view_002.jpg", "view_005.jpg"} & set(read_patches(tmp_path / "p.h5").images)
        photos = pycolmap.Reconstruction(made.sparse / "0").images.values()
        assert report.dropped["no photo"] == sum(image.num_points3D for image in photos if image.name in report.skipped)
        assert report.dropped["no keypoint"] == of_all.dropped["no keypoint"] == 0
        assert report.patches + sum(report.dropped.values()) == report.observations

    @pytest.mark.parametrize("name", ["nowhere.h5", "nowhere.db"])
    def test_keypoints_that_are_not_there(self, made: Workspace, images: Path, tmp_path: Path, name: str) -> None:
        with pytest.raises(HardnetSfmError, match=rf"^no such file: .*{name}") as raised:
            mine(made.root, images, tmp_path / "p.h5", keypoints=tmp_path / name)
        assert "features.h5 or database.db" in raised.value.hint
        assert not (tmp_path / "p.h5").exists() and not (tmp_path / name).exists()

    def test_all_photos_missing(self, made: Workspace, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match="no such folder"):
            mine(made.root, tmp_path / "nowhere", tmp_path / "p.h5")
        (tmp_path / "empty").mkdir()
        with pytest.raises(HardnetSfmError, match="none of the model's 8 photos"):
            mine(made.root, tmp_path / "empty", tmp_path / "p.h5")

    def test_resized_photos_are_named_and_older_patches_stay(
        self, made: Workspace, images: Path, mined: PatchSet, tmp_path: Path
    ) -> None:
        shutil.copy(Path(mined.origin), tmp_path / "p.h5")
        before = (tmp_path / "p.h5").read_bytes()
        photo = Image.open(images / "view_003.jpg")
        photo.resize((240, 180)).save(images / "view_003.jpg")
        with pytest.raises(HardnetSfmError, match=r"view_003.jpg 240x180, its camera 480x360"):
            mine(made.root, images, tmp_path / "p.h5")
        assert (tmp_path / "p.h5").read_bytes() == before

    def test_a_model_without_tracks(self, made: Workspace, images: Path, mined: PatchSet, tmp_path: Path) -> None:
        model = pycolmap.Reconstruction(made.sparse / "0")
        model.delete_all_points2D_and_points3D()
        (tmp_path / "bare").mkdir()
        model.write(tmp_path / "bare")
        shutil.copy(Path(mined.origin), tmp_path / "p.h5")
        with pytest.raises(HardnetSfmError, match=r"bare: .*no points"):
            mine(tmp_path / "bare", images, tmp_path / "p.h5")
        assert (tmp_path / "p.h5").read_bytes() == Path(mined.origin).read_bytes()

    def test_a_disk_that_fills_up_loses_no_finished_photo(
        self, made: Workspace, images: Path, of_long_tracks: PatchSet, tmp_path: Path
    ) -> None:
        """No file can grow beyond a share of the patches; then there is room again."""
        limit = 4096 * len(of_long_tracks) // 2
        with running(_mine_on_a_small_disk, made.root, images, tmp_path / "p.h5", limit) as (_, pipe):
            (end,) = last_words(pipe)
        assert end.startswith("error: ") and "Make room" in end and str(tmp_path) in end, end
        assert not (tmp_path / "p.h5").exists()
        assert 0 < mine(made.root, images, tmp_path / "p.h5", LONG).computed < 8
        np.testing.assert_array_equal(read_patches(tmp_path / "p.h5").patches, of_long_tracks.patches)

    def test_features_of_other_photos(self, made: Workspace, images: Path, tmp_path: Path) -> None:
        """A database whose keypoints are elsewhere."""
        other = shutil.copy(made.features, tmp_path / "other.h5")
        with h5py.File(other, "r+") as file:
            for name in json.loads(file.attrs["index"]):
                file[name]["keypoints"][...] += np.float32(1000)
        with pytest.raises(HardnetSfmError, match=r"none of the \d+ observations .* no keypoint \d+"):
            mine(made.root, images, tmp_path / "p.h5", keypoints=other)

    def test_a_file_that_is_something_else_is_not_written_over(
        self, made: Workspace, images: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "p.h5").write_text("my diary")
        with pytest.raises(HardnetSfmError, match="not an HDF5 file"):
            mine(made.root, images, tmp_path / "p.h5")
        assert (tmp_path / "p.h5").read_text() == "my diary"


class TestSheet:
    def test_has_a_row_for_a_point_and_a_column_for_a_patch(self, mined: PatchSet, tmp_path: Path) -> None:
        write_sheet(Path(mined.origin), tmp_path / "sheet.png", points=5, columns=3)
        picture = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_GRAYSCALE)
        assert picture.shape == (5 * 66 - 2, 3 * 66 - 2)
        np.testing.assert_array_equal(picture[:64, 66:130], mined.patches[1])
        last = np.flatnonzero(mined.point == mined.point[-1])
        np.testing.assert_array_equal(picture[-64:, :64], mined.patches[last[0]])
        if len(last) == 2:
            assert (picture[-64:, 132:] == 255).all()

    def test_without_patches(self, tmp_path: Path) -> None:
        with pytest.raises(HardnetSfmError, match="no patches"):
            write_sheet(tmp_path / "p.h5", tmp_path / "sheet.png")
        (tmp_path / "p.h5").write_bytes(b"no HDF5")
        with pytest.raises(HardnetSfmError, match="damaged"):
            write_sheet(tmp_path / "p.h5", tmp_path / "sheet.png")
