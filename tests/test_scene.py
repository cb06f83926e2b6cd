from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import scenes
from numpy.typing import NDArray

from hardnet_sfm import scene

FloatArray = NDArray[np.float64]
Features = tuple[NDArray[np.float32], NDArray[np.float32]]  # (N, 2) positions, (N, 128) descriptors


@dataclass(frozen=True)
class Rendering:
    folder: Path
    truth: scene.Scene
    progress: list[int]

    def grey(self, index: int) -> NDArray[np.uint8]:
        return cv2.imread(str(self.folder / self.truth.names[index]), cv2.IMREAD_GRAYSCALE)


@pytest.fixture(scope="module")
def rendering(tmp_path_factory: pytest.TempPathFactory) -> Rendering:
    folder, progress = tmp_path_factory.mktemp("scene") / "photos", []
    truth = scene.render(folder, photos=3, size=(640, 480), on_photo=progress.append)
    return Rendering(folder, truth, progress)


def test_writes_the_photos_and_nothing_else(rendering: Rendering) -> None:
    assert rendering.truth.names == ("view_000.jpg", "view_001.jpg", "view_002.jpg")
    assert sorted(path.name for path in rendering.folder.iterdir()) == list(rendering.truth.names)
    assert rendering.progress == [1, 2, 3]
    assert rendering.grey(0).shape == (480, 640)


@pytest.mark.slow
def test_the_seed_decides_every_byte(rendering: Rendering, tmp_path: Path) -> None:
    photos = {}
    for seed in (0, 1):
        truth = scene.render(tmp_path / str(seed), photos=3, size=(640, 480), seed=seed)
        photos[seed] = [(tmp_path / str(seed) / name).read_bytes() for name in truth.names]
    expected = [(rendering.folder / name).read_bytes() for name in rendering.truth.names]
    assert photos[0] == expected
    assert not set(photos[1]) & set(expected)


def test_the_truth_survives_json(rendering: Rendering, tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    rendering.truth.save(path)
    loaded = scene.Scene.load(path)
    assert (loaded.names, loaded.size) == (rendering.truth.names, (640, 480))
    assert loaded.focal_length == rendering.truth.focal_length
    np.testing.assert_array_equal(loaded.cam_from_world, rendering.truth.cam_from_world)


def test_cameras_stand_on_the_arc_and_look_at_the_square() -> None:
    poses = scene._place_cameras(24, np.random.default_rng(3))
    cameras = scene.Scene(("",) * 24, (1024, 768), 1126.4, poses)
    rotations, translations = poses[:, :, :3], poses[:, :, 3]
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (24, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    np.testing.assert_allclose(np.einsum("vij,vj->vi", rotations, cameras.centres), -translations, atol=1e-12)
    x, y, z = cameras.centres.T
    np.testing.assert_allclose(np.diff(np.degrees(np.arctan2(y, x))), 5)
    assert np.all((np.hypot(x, y) > 21) & (np.hypot(x, y) < 25) & (z > 9) & (z < 12))
    middle = (poses @ [*scene._TARGET, 1]) @ cameras.calibration.T
    offsets = middle[:, :2] / middle[:, 2:] - [512, 384]
    assert np.abs(offsets).max() < 60
    np.testing.assert_array_less(rotations[:, 1, 2], -0.8)  # the photos are upright: their y axis points down


def test_cameras_stand_all_around_the_tower_and_look_at_it() -> None:
    poses = scenes.place_ring(12, np.random.default_rng(3))
    cameras = scene.Scene(("",) * 12, (1024, 768), 1126.4, poses)
    np.testing.assert_allclose(np.linalg.det(poses[:, :, :3]), 1)
    x, y, z = cameras.centres.T
    np.testing.assert_allclose(np.diff(np.unwrap(np.arctan2(y, x))), 2 * np.pi / 12)
    assert np.all((np.hypot(x, y) > 14) & (np.hypot(x, y) < 16) & (z > 2) & (z < 4.5))
    middle = (poses @ [*scenes.RING_TARGET, 1]) @ cameras.calibration.T
    assert np.abs(middle[:, :2] / middle[:, 2:] - [512, 384]).max() < 90


def test_facades_of_the_tower_are_equal_but_for_their_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal up to how the sun lights them; a sign hangs in front of its facade, within its outline."""
    monkeypatch.setattr(scene, "_GROUND_TEXEL", 1.0)
    monkeypatch.setattr(scene, "_WALL_TEXEL", 0.04)
    faces = scenes.build_tower(np.random.default_rng(0))
    facades, signs = faces[2:10:2], faces[3:10:2]

    def likeness(some: list[scene._Face]) -> FloatArray:
        return np.corrcoef([_grey(face.pyramid[0]).ravel() for face in some])

    assert likeness(facades).min() > 0.95
    assert likeness(signs)[~np.eye(4, dtype=bool)].max() < 0.5
    for facade, sign in zip(facades, signs, strict=True):
        height, width = sign.pyramid[0].shape[:2]
        corners = sign.world_from_texel @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
        right, down, corner = facade.world_from_texel.T
        outwards = np.cross(down, right) / np.linalg.norm(np.cross(down, right))
        np.testing.assert_allclose(outwards @ (corners - corner[:, None]), scenes.SIGN_GAP)
        assert outwards @ corner > 2.9  # away from the middle of the tower
        height, width = facade.pyramid[0].shape[:2]
        along, below = ((corners - corner[:, None]).T @ edge / (edge @ edge) for edge in (right, down))
        assert 0 < along.min() < along.max() < width and 0 < below.min() < below.max() < height


def test_the_twins_are_equal_houses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "_GROUND_TEXEL", 1.0)
    monkeypatch.setattr(scene, "_WALL_TEXEL", 0.04)
    faces = scenes.build_twins(np.random.default_rng(0))
    for side in range(5):  # the roof and four walls
        houses = [_grey(faces[1 + 5 * house + side].pyramid[0]).ravel() for house in range(3)]
        assert np.corrcoef(houses).min() > 0.95
    assert len(faces) == 1 + 5 * (3 + len(scenes.AMONG_TWINS))


@pytest.fixture(scope="module")
def features(rendering: Rendering) -> list[Features]:
    """SIFT's of each photo."""
    found = [cv2.SIFT_create().detectAndCompute(rendering.grey(index), None) for index in range(3)]
    # OpenCV counts from the centre of the first pixel.
    return [(cv2.KeyPoint.convert(keypoints) + 0.5, descriptors) for keypoints, descriptors in found]


def test_keypoints_are_plentiful_at_many_scales(rendering: Rendering) -> None:
    for index in range(3):
        keypoints = cv2.SIFT_create().detect(rendering.grey(index))
        # OpenCV keeps the octave, which starts at -1, in the lowest byte.
        counts = np.bincount([(keypoint.octave + 1) & 255 for keypoint in keypoints])
        assert len(keypoints) > 1500
        assert np.sum(counts >= 10) >= 4, counts


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2), (0, 2)])
def test_matches_obey_the_true_epipolar_geometry(
    rendering: Rendering, features: list[Features], first: int, second: int
) -> None:
    truth = rendering.truth
    points0, points1 = _match(features[first], features[second])
    distances = _sampson_distances(_fundamental(truth, first, second), points0, points1)
    assert len(distances) > 800
    assert np.median(distances) < 0.1
    assert np.mean(distances < 1) > 0.95


@pytest.mark.parametrize("texel", [0.05, 0.012, 0.004])
def test_the_texture_appears_where_its_points_project(texel: float) -> None:
    """Epipolar lines forgive a shift of half a pixel, a comparison with the texture itself does not.

    The prediction casts a ray through the centre of every pixel and shares nothing with the renderer's homographies.
    The three textures are magnified, about as fine as the photo and minified, so that several pyramid levels take part.
    """
    size, focal_length = (320, 240), 700.0
    corner, right, down = np.array([-4.0, 5.0, 0.0]), np.array([8.0, 0, 0]), np.array([0, -8.0, 0])
    face = scene._make_face((corner, right, down), texel, np.random.default_rng(5))
    pose = scene._place_cameras(1, np.random.default_rng(6))
    cameras = scene.Scene(("",), size, focal_length, pose)
    photo = scene._expose([face], cameras.calibration @ pose[0], size, np.random.default_rng(7))

    for offset in ((0.0, 0.0), (0.5, 0.0), (0.0, -0.5)):
        calibration = cameras.calibration
        calibration[:2, 2] -= offset
        predicted, inside = _cast_rays(face.pyramid[0], (corner, right, down), calibration, pose[0], size)
        shift = _shift_between(predicted, _grey(photo), inside)
        np.testing.assert_allclose(shift, offset, atol=0.03, rtol=0.1)


def test_a_face_covers_the_polygon_between_its_projected_corners() -> None:
    size = (320, 240)
    corner, right, down = np.array([-4.0, 5.0, 0.0]), np.array([8.0, 0, 0]), np.array([0, -8.0, 0])
    face = scene._make_face((corner, right, down), 0.05, np.random.default_rng(10))
    black = scene._Face(face.world_from_texel, tuple(np.zeros_like(level) for level in face.pyramid))
    (pose,) = scene._place_cameras(1, np.random.default_rng(11))
    projection = np.array([[600, 0, 160], [0, 600, 120], [0, 0, 1]]) @ pose
    with_face, sky = (
        _grey(scene._expose(faces, projection, size, np.random.default_rng(12))) for faces in ([black], [])
    )
    coverage = (sky - with_face) / sky

    corners = np.array([corner, corner + right, corner + right + down, corner + down])
    points = np.column_stack([corners, np.ones(4)]) @ projection.T
    polygon = cv2.moments((points[:, :2] / points[:, 2:]).astype(np.float32))
    assert coverage.sum() == pytest.approx(polygon["m00"], rel=0.005)
    rows, columns = np.indices(coverage.shape) + 0.5
    centroid = np.array([(coverage * columns).sum(), (coverage * rows).sum()]) / coverage.sum()
    expected = np.array([polygon["m10"], polygon["m01"]]) / polygon["m00"]
    np.testing.assert_allclose(centroid, expected, atol=0.05)


def test_nearer_faces_hide_farther_ones_in_any_order() -> None:
    rng = np.random.default_rng(8)
    quads = [quad for box in scene._BOXES for quad in scene._box_quads(*box)]
    faces = [scene._make_face(quad, 0.1, rng) for quad in quads]
    (pose,) = scene._place_cameras(1, rng)
    projection = np.array([[350, 0, 160], [0, 350, 120], [0, 0, 1]]) @ pose
    forth, back = (
        scene._expose(order, projection, (320, 240), np.random.default_rng(9)) for order in (faces, faces[::-1])
    )
    assert np.mean(forth != back) < 1e-3  # samples on an edge that two faces share may go to either


def _match(first: Features, second: Features) -> tuple[FloatArray, FloatArray]:
    """(M, 2) and (M, 2) matching positions: mutual nearest neighbours that pass Lowe's ratio test."""
    (xy0, descriptors0), (xy1, descriptors1) = first, second
    # SIFT's numbers are whole and below 256, so that these sums are exact.
    squares0, squares1 = ((descriptors**2).sum(1) for descriptors in (descriptors0, descriptors1))
    squared = squares0[:, None] + squares1 - 2 * descriptors0 @ descriptors1.T
    best, following = np.partition(squared, 1, axis=1)[:, :2].T
    nearest = squared.argmin(1)
    mutual = squared.argmin(0)[nearest] == np.arange(len(nearest))
    kept = mutual & (best < 0.8**2 * following)
    return xy0[kept], xy1[nearest[kept]]


def _fundamental(truth: scene.Scene, first: int, second: int) -> FloatArray:
    rotation0, rotation1 = truth.cam_from_world[[first, second], :, :3]
    rotation = rotation1 @ rotation0.T
    x, y, z = rotation1 @ (truth.centres[first] - truth.centres[second])
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    inverse = np.linalg.inv(truth.calibration)
    return inverse.T @ essential @ inverse


def _sampson_distances(fundamental: FloatArray, points0: FloatArray, points1: FloatArray) -> FloatArray:
    """(M,) distances in pixels."""
    x0, x1 = (np.column_stack([points, np.ones(len(points))]) for points in (points0, points1))
    lines1, lines0 = x0 @ fundamental.T, x1 @ fundamental
    gradients = np.hstack([lines0[:, :2], lines1[:, :2]])
    return np.abs(np.sum(x1 * lines1, axis=1)) / np.linalg.norm(gradients, axis=1)


def _cast_rays(
    texture: NDArray[np.uint8],
    quad: tuple[FloatArray, FloatArray, FloatArray],
    calibration: FloatArray,
    pose: FloatArray,
    size: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(H, W) prediction of a grey photo of a textured quad on z = 0, and where it is valid."""
    corner, right, down = quad
    columns, rows = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(calibration).T @ pose[:, :3]
    centre = -pose[:, :3].T @ pose[:, 3]
    points = centre - rays * (centre[2] / rays[..., 2:])
    along, across = ((points - corner) @ edge / (edge @ edge) for edge in (right, down))
    inside = (np.abs(along - 0.5) < 0.45) & (np.abs(across - 0.5) < 0.45)

    height, width = texture.shape[:2]
    texels_per_pixel = np.median(np.abs(np.diff(along, axis=1))) * width
    smooth = cv2.GaussianBlur(_grey(texture), (0, 0), 0.5 * texels_per_pixel)
    maps = (along * width - 0.5).astype(np.float32), (across * height - 0.5).astype(np.float32)
    return cv2.remap(smooth, *maps, interpolation=cv2.INTER_LINEAR), inside


def _shift_between(before: NDArray[np.float32], after: NDArray[np.float32], inside: NDArray[np.bool_]) -> FloatArray:
    """(2,) translation in pixels that takes one picture to the other, by Lucas and Kanade's least squares."""
    before, after = (cv2.GaussianBlur(picture, (0, 0), 1.5) for picture in (before, after))
    # The gradient of the mean picture, whose error is of third order in the shift.
    rows, columns = np.gradient((before + after) / 2)
    slopes = np.column_stack([columns[inside], rows[inside]])
    return np.linalg.lstsq(slopes, (before - after)[inside])[0]


def _grey(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
