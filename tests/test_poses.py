"""How good poses are, on cameras whose errors are known, and the surveyed cameras they are held against."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.strecha import StrechaScene, read_strecha
from hardnet_sfm.evaluation.poses import area_under_recall, centre, pose_errors, relative_error
from hardnet_sfm.reconstruction.summary import reasons_unregistered
from hardnet_sfm.scene import Scene

Pose = NDArray[np.float64]
Poses = dict[str, Pose]


def pose(rotation: Rotation, position: NDArray[np.float64]) -> Pose:
    """World to camera, of a camera that stands at `position`."""
    matrix = rotation.as_matrix()
    return np.column_stack([matrix, -matrix @ position])


def turned(degrees: float, axis: int | NDArray[np.float64]) -> Rotation:
    direction = np.eye(3)[axis] if isinstance(axis, int) else axis / np.linalg.norm(axis)
    return Rotation.from_rotvec(np.radians(degrees) * direction)


def random_cameras(count: int, seed: int) -> Poses:
    rng = np.random.default_rng(seed)
    rotations = Rotation.random(count, rng=rng)
    return {f"{n}.jpg": pose(rotations[n], rng.normal(0, 3, 3)) for n in range(count)}


def moved(cameras: Mapping[str, Pose], scale: float, rotation: Rotation, shift: NDArray[np.float64]) -> Poses:
    """The same cameras in a world that is scaled, turned and shifted."""
    found = {}
    for name, camera in cameras.items():
        position = scale * rotation.apply(-camera[:, :3].T @ camera[:, 3]) + shift
        matrix = camera[:, :3] @ rotation.as_matrix().T
        found[name] = np.column_stack([matrix, -matrix @ position])
    return found


class TestRelativeError:
    FIRST = pose(turned(33, np.array([1, 2, 3])), np.array([4.0, -2, 1]))

    def second(self, turn: Rotation, direction: NDArray[np.float64]) -> Pose:
        """A camera that is `turn` from the first, with the first at `-direction` in its own frame."""
        rotation = turn.as_matrix() @ self.FIRST[:, :3]
        return np.column_stack([rotation, turn.as_matrix() @ self.FIRST[:, 3] + direction])

    @pytest.mark.parametrize("degrees", [0, 1e-9, 1e-6, 1e-3, 0.5, 10, 45, 90, 135, 179, 180 - 1e-6, 180])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_is_the_angle_between_rotations(self, degrees: float, axis: int) -> None:
        direction = np.array([1.0, 0.2, -0.4])
        base = turned(70, np.array([3, -1, 1]))
        true = (self.FIRST, self.second(base, direction))
        found = (self.FIRST, self.second(turned(degrees, axis) * base, direction))
        assert relative_error(found, true) == pytest.approx(degrees, rel=1e-6, abs=1e-12)

    @pytest.mark.parametrize("degrees", [0, 1e-9, 1e-6, 1e-3, 0.5, 10, 90, 135, 180 - 1e-6, 180])
    def test_is_the_angle_between_directions_of_translation(self, degrees: float) -> None:
        base, direction = turned(70, np.array([3, -1, 1])), np.array([1.0, 0, 0])
        true = (self.FIRST, self.second(base, direction))
        for length in (1, 0.01, 1000):  # of no account
            found = (self.FIRST, self.second(base, length * turned(degrees, 2).apply(direction)))
            assert relative_error(found, true) == pytest.approx(degrees, rel=1e-6, abs=1e-11)

    def test_is_the_larger_of_both(self) -> None:
        direction = np.array([0, 1.0, 0])
        true = (self.FIRST, self.second(turned(0, 0), direction))
        for rotation, translation in ((3, 7), (7, 3), (5, 170)):
            found = (self.FIRST, self.second(turned(rotation, 1), turned(translation, 2).apply(direction)))
            assert relative_error(found, true) == pytest.approx(max(rotation, translation))

    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 10_000), st.floats(0.01, 100))
    def test_does_not_depend_on_the_worlds_frame_nor_on_the_order(self, seed: int, scale: float) -> None:
        rng = np.random.default_rng(seed)
        true, found = (tuple(random_cameras(2, s).values()) for s in (seed, seed + 1))
        elsewhere = tuple(moved(dict(enumerate(found)), scale, Rotation.random(rng=rng), rng.normal(0, 10, 3)).values())
        expected = relative_error(found, true)
        assert relative_error(elsewhere, true) == pytest.approx(expected, abs=1e-6)
        assert relative_error(true, found) == pytest.approx(expected, abs=1e-6)
        # From the second camera to the first, too, if only the direction is wrong; else the rotation turns it as well.
        same_rotation = (true[0], np.column_stack([true[1][:, :3], found[1][:, 3]]))
        back = relative_error(same_rotation[::-1], true[::-1])
        assert back == pytest.approx(relative_error(same_rotation, true), abs=1e-6)


def umeyama(points: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points under the similarity that brings them nearest to the target: Umeyama, PAMI 1991, equations 40 to 42."""
    mean, target_mean = points.mean(0), target.mean(0)
    u, d, vt = np.linalg.svd((target - target_mean).T @ (points - mean) / len(points))
    s = np.array([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    scale = (d * s).sum() / points.var(0).sum()
    return scale * (points - mean) @ (u * s @ vt).T + target_mean


class TestPoseErrors:
    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 10_000), st.floats(0.01, 100), st.integers(3, 9))
    def test_vanish_for_the_truth_in_another_frame(self, seed: int, scale: float, count: int) -> None:
        rng = np.random.default_rng(seed)
        truth = random_cameras(count, seed)
        found = pose_errors(moved(truth, scale, Rotation.random(rng=rng), rng.normal(0, 10, 3)), truth)
        assert found.positions.max() < 1e-8
        assert found.relative.max() < 1e-6
        assert len(found.relative) == count * (count - 1) // 2
        assert found.missing == ()
        assert found.auc(5) == pytest.approx(1)

    def test_are_distances_after_the_best_similarity(self) -> None:
        truth = random_cameras(12, 1)
        rng = np.random.default_rng(2)
        wrong = {
            name: pose(
                turned(rng.uniform(0, 4), rng.normal(size=3)) * Rotation.from_matrix(camera[:, :3]),
                -camera[:, :3].T @ camera[:, 3] + rng.normal(0, 0.2, 3),
            )
            for name, camera in truth.items()
        }
        estimate = moved(wrong, 0.3, turned(50, np.array([1, 1, 0])), np.array([5, 6, 7]))
        found = pose_errors(estimate, truth)
        positions, true_positions = (
            np.array([-camera[:, :3].T @ camera[:, 3] for camera in cameras.values()]) for cameras in (estimate, truth)
        )
        expected = np.linalg.norm(umeyama(positions, true_positions) - true_positions, axis=1)
        np.testing.assert_allclose(found.positions, expected, atol=1e-9)
        assert 0.05 < expected.max() < 1
        relative = [relative_error((estimate[a], estimate[b]), (truth[a], truth[b])) for a, b in combinations(truth, 2)]
        np.testing.assert_allclose(found.relative, relative)

    def test_a_missing_camera_spoils_its_pairs(self) -> None:
        truth = random_cameras(6, 3)
        estimate = {name: camera for name, camera in truth.items() if name not in ("2.jpg", "4.jpg")}
        estimate["unknown.jpg"] = truth["0.jpg"]  # of no account
        found = pose_errors(estimate, truth)
        assert found.missing == ("2.jpg", "4.jpg")
        assert len(found.positions) == 4
        pairs = list(combinations(truth, 2))
        lost = [bool({"2.jpg", "4.jpg"} & set(pair)) for pair in pairs]
        np.testing.assert_array_equal(np.isinf(found.relative), lost)
        assert sum(lost) == 9
        assert found.auc(10) == pytest.approx(6 / 15)

    def test_need_three_cameras_that_are_not_on_a_line(self) -> None:
        truth = random_cameras(5, 4)
        for names in ((), ("0.jpg",), ("0.jpg", "1.jpg")):
            with pytest.raises(HardnetSfmError, match=f"{len(names)} camera positions do not determine"):
                pose_errors({name: truth[name] for name in names}, truth)
        on_a_line = {f"{n}.jpg": pose(turned(10 * n, 1), np.array([1.0 * n, 2 * n, 0])) for n in range(5)}
        with pytest.raises(HardnetSfmError, match="5 camera positions do not determine"):
            pose_errors(on_a_line, on_a_line)

    def test_the_centre_is_where_the_camera_stands(self) -> None:
        np.testing.assert_allclose(centre(pose(turned(77, 1), np.array([1.5, -2, 8]))), [1.5, -2, 8])


class TestAreaUnderRecall:
    @pytest.mark.parametrize(
        ("errors", "threshold", "area"),
        [
            ([0], 5, 1.0),
            ([5], 5, 0.0),
            ([1], 5, 0.8),  # recall is 0 up to 1 and 1 from there to 5
            ([1, 3, np.inf], 5, (0.8 + 0.4 + 0) / 3),
            ([2.5, 2.5, 7], 10, (0.75 + 0.75 + 0.3) / 3),
            ([6, np.inf], 5, 0.0),
            ([], 5, 0.0),
        ],
    )
    def test_by_hand(self, errors: list[float], threshold: float, area: float) -> None:
        assert area_under_recall(errors, threshold) == pytest.approx(area)

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.floats(0, 20), min_size=1, max_size=12), st.floats(0.5, 20))
    def test_is_the_mean_recall_over_thresholds(self, errors: list[float], threshold: float) -> None:
        thresholds = (np.arange(20_000) + 0.5) / 20_000 * threshold
        recall = np.mean(np.array(errors)[:, None] <= thresholds, axis=0)
        assert area_under_recall(errors, threshold) == pytest.approx(recall.mean(), abs=1e-3)


class TestStrecha:
    @pytest.fixture
    def surveyed(self, small_scene: tuple[Path, Scene], tmp_path: Path) -> tuple[Path, Scene]:
        """The rendered scene in Strecha's layout, surveyed at twice the size of the photos."""
        folder, scene = small_scene
        (tmp_path / "images").mkdir()
        (tmp_path / "gt_dense_cameras").mkdir()
        # Of photos twice as large, with the centre of the first pixel at (0, 0) as Strecha's have it.
        calibration = np.diag([2, 2, 1]) @ scene.calibration - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        for name, camera, position in zip(scene.names[:4], scene.cam_from_world, scene.centres, strict=False):
            shutil.copy(folder / name, tmp_path / "images")
            rows = [*calibration, [0, 0, 0], *camera[:, :3].T, position, np.multiply(scene.size, 2)]
            text = "".join(" ".join(map(repr, map(float, row))) + " \n" for row in rows)
            (tmp_path / f"gt_dense_cameras/{name}.camera").write_text(text.replace("960.0 720.0", "960 720"), "ascii")
        return tmp_path, scene

    def test_smaller_photos_have_a_smaller_calibration(self, surveyed: tuple[Path, Scene]) -> None:
        folder, scene = surveyed
        read = read_strecha(folder)
        assert read.images == folder / "images"
        half_a_pixel = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        np.testing.assert_allclose(read.calibration + half_a_pixel, scene.calibration, atol=1e-9)
        np.testing.assert_allclose(read.colmap_pinhole(), (528, 528, 240, 180), atol=1e-9)

    def test_poses_take_points_to_cameras(self, surveyed: tuple[Path, Scene]) -> None:
        """Files say how cameras are turned and where they stand; we, where a point of the world is for a camera."""
        folder, scene = surveyed
        read = read_strecha(folder)
        assert list(read.cam_from_world) == list(scene.names[:4])
        point = np.array([0.5, 3.5, 2.0])
        for name, camera in zip(scene.names[:4], scene.cam_from_world, strict=False):
            np.testing.assert_allclose(read.cam_from_world[name], camera, atol=1e-9)
            seen = scene.calibration @ camera @ [*point, 1]
            projected = read.calibration @ read.cam_from_world[name] @ [*point, 1]
            expected = seen[:2] / seen[2] - 0.5  # the scene counts from the corner of the photo
            np.testing.assert_allclose(projected[:2] / projected[2], expected, atol=1e-6)
            assert projected[2] > 0

    def test_photos_of_the_surveyed_size_keep_the_calibration(self, surveyed: tuple[Path, Scene]) -> None:
        folder, _ = surveyed
        for path in (folder / "images").iterdir():
            Image.new("L", (960, 720)).save(path)
        np.testing.assert_allclose(read_strecha(folder).calibration[0], [1056, 0, 479.5])

    def test_what_is_wrong_with_a_camera_file_is_said(self, surveyed: tuple[Path, Scene]) -> None:
        folder, scene = surveyed
        path = folder / f"gt_dense_cameras/{scene.names[1]}.camera"
        whole = path.read_text("ascii")
        path.write_text(whole + "1\n", "ascii")
        with pytest.raises(HardnetSfmError, match=rf"{scene.names[1]}\.camera: 27 numbers"):
            read_strecha(folder)
        path.write_text(whole.replace("960", "wide"), "ascii")
        with pytest.raises(HardnetSfmError, match=rf"{scene.names[1]}\.camera: missing, or not"):
            read_strecha(folder)
        path.write_text(whole.replace(whole.split()[0], "2000"), "ascii")
        with pytest.raises(HardnetSfmError, match="different calibrations"):
            read_strecha(folder)
        path.unlink()
        with pytest.raises(HardnetSfmError, match=rf"{scene.names[1]}\.camera: missing"):
            read_strecha(folder)

    def test_fountain(self, shared_data: Path) -> None:
        read = read_strecha(shared_data / "fountain-P11")
        assert list(read.cam_from_world) == [f"{number:04}.jpg" for number in range(11)]
        # Surveyed at 3072x2048: f 2759.48 and 2764.16, centre at 1520.69 and 1006.81.
        expected = [[1379.74, 0, 760.095], [0, 1382.08, 503.155], [0, 0, 1]]
        np.testing.assert_allclose(read.calibration, expected, atol=1e-6)
        for camera in read.cam_from_world.values():
            np.testing.assert_allclose(camera[:, :3] @ camera[:, :3].T, np.eye(3), atol=1e-4)
            assert np.linalg.det(camera[:, :3]) > 0
        steps = np.diff([centre(camera) for camera in read.cam_from_world.values()], axis=0)
        assert np.all((np.linalg.norm(steps, axis=1) > 1) & (np.linalg.norm(steps, axis=1) < 2.5)), "metres"

    def test_fountains_photos_obey_its_cameras(self, shared_data: Path) -> None:
        distances = _sampson_distances(read_strecha(shared_data / "fountain-P11"), "0004.jpg", "0005.jpg")
        assert len(distances) > 200
        assert np.median(distances) < 0.5
        assert np.mean(distances < 2) > 0.85


def _sampson_distances(scene: StrechaScene, first: str, second: str) -> NDArray[np.float64]:
    """(M,) pixels, of matches between two photos that pass the ratio test."""
    sift = cv2.SIFT_create(1500)
    photos = [cv2.imread(str(scene.images / name), cv2.IMREAD_GRAYSCALE) for name in (first, second)]
    (found0, described0), (found1, described1) = (sift.detectAndCompute(photo, None) for photo in photos)
    neighbours = cv2.BFMatcher(cv2.NORM_L2).knnMatch(described0, described1, k=2)
    pairs = [(best.queryIdx, best.trainIdx) for best, other in neighbours if best.distance < 0.7 * other.distance]
    x0 = np.array([[*found0[row].pt, 1] for row, _ in pairs])
    x1 = np.array([[*found1[row].pt, 1] for _, row in pairs])
    pose0, pose1 = scene.cam_from_world[first], scene.cam_from_world[second]
    rotation = pose1[:, :3] @ pose0[:, :3].T
    x, y, z = pose1[:, 3] - rotation @ pose0[:, 3]
    inverse = np.linalg.inv(scene.calibration)
    fundamental = inverse.T @ np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation @ inverse
    lines1, lines0 = x0 @ fundamental.T, x1 @ fundamental
    gradients = np.hstack([lines0[:, :2], lines1[:, :2]])
    return np.abs(np.sum(x1 * lines1, axis=1)) / np.linalg.norm(gradients, axis=1)


class TestReasonsUnregistered:
    def test_every_reason(self) -> None:
        keypoints = {
            "in.jpg": 900,
            "in too.jpg": 900,
            "other a.jpg": 900,
            "other b.jpg": 900,
            "third.jpg": 900,
            "white wall.jpg": 0,
            "holiday.jpg": 900,
            "far.jpg": 900,
            "farther.jpg": 900,
            "near.jpg": 900,
            "next to near.jpg": 900,
        }
        verified = {
            ("in.jpg", "in too.jpg"): 200,
            ("other a.jpg", "other b.jpg"): 100,
            ("far.jpg", "farther.jpg"): 30,
            ("in too.jpg", "near.jpg"): 20,
            ("next to near.jpg", "near.jpg"): 20,
        }
        models = [["in.jpg", "in too.jpg"], ["other b.jpg", "other a.jpg"], ["third.jpg"]]
        assert reasons_unregistered(keypoints, verified, models) == {
            "other a.jpg": "in another model, sparse/1",
            "other b.jpg": "in another model, sparse/1",
            "third.jpg": "in another model, sparse/2",
            "white wall.jpg": "no features",
            "holiday.jpg": "no verified pairs",
            "far.jpg": "not connected to the model",
            "farther.jpg": "not connected to the model",
            "near.jpg": "connected, but too few points in common with the model",
            "next to near.jpg": "connected, but too few points in common with the model",
        }

    def test_without_any_model(self) -> None:
        reasons = reasons_unregistered({"a": 5, "b": 5, "c": 5, "d": 0}, {("a", "b"): 20}, [])
        started = "no pair of photos to start a model from"
        assert reasons == {"a": started, "b": started, "c": "no verified pairs", "d": "no features"}

    def test_a_complete_model_leaves_nothing_to_say(self) -> None:
        assert reasons_unregistered({"a": 5, "b": 5}, {("a", "b"): 20}, [["b", "a"]]) == {}

    def test_a_photo_of_the_largest_model_is_registered_even_if_a_smaller_one_has_it_too(self) -> None:
        assert reasons_unregistered({"a": 5, "b": 5}, {("a", "b"): 20}, [["a", "b"], ["a"]]) == {}
