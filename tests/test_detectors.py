"""Both detectors against each other, and against blobs whose place, size, contrast and shape are known.

For a Gaussian blob of amplitude a and standard deviation b the difference of Gaussians of sigma s and k s has its peak
in the middle, a b² (1 / (b² + s²) - 1 / (b² + k² s²)), and over s where k s² = b². With three layers an octave
k is the cube root of 2.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import KDTree

from hardnet_sfm.errors import UsageError
from hardnet_sfm.features.detectors import DETECTORS, DetectorOptions, make_detector
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.scene import Scene

Grey = NDArray[np.uint8]
Float64 = NDArray[np.float64]

NAMES = sorted(DETECTORS.built_in)
_K = 2 ** (1 / 3)
_BACKGROUND, _AMPLITUDE = 60, 150
_PEAK = _AMPLITUDE / 255 * (1 / (1 + 1 / _K) - 1 / (1 + _K))  # contrast of every blob, whatever its size


def detect(
    name: str,
    grey: Grey,
    max_keypoints: int = 20_000,
    peak_threshold: float = 0.02 / 3,
    edge_threshold: float = 10,
    *,
    upright: bool = False,
    affine_shape: bool = False,
) -> Keypoints:
    options = DetectorOptions(max_keypoints, peak_threshold, edge_threshold, upright, affine_shape)
    return make_detector(name, options)(grey)


def blobs(centres: Float64, covariance: Float64, amplitude: float = _AMPLITUDE) -> Grey:
    """A photo of 320x240 with Gaussian blobs on grey."""
    rows, columns = np.mgrid[:240, :320].astype(np.float64)
    precision = np.linalg.inv(covariance)
    photo = np.full((240, 320), float(_BACKGROUND))
    for x, y in centres:
        offset = np.stack([columns - x, rows - y], -1)
        photo += amplitude * np.exp(-np.einsum("hwi,ij,hwj->hw", offset, precision, offset) / 2)
    return np.rint(photo.clip(0, 255)).astype(np.uint8)


def scattered(spacing: int, seed: int) -> Float64:
    """Sub-pixel places on a loose grid."""
    x, y = np.meshgrid(np.arange(spacing, 320 - spacing, spacing), np.arange(spacing, 240 - spacing, spacing))
    places = np.column_stack([x.ravel(), y.ravel()])
    return places + np.random.default_rng(seed).uniform(-0.5, 0.5, places.shape)


@pytest.fixture(scope="module")
def photo(small_scene: tuple[Path, Scene]) -> Grey:
    folder, scene = small_scene
    return read_photo(folder / scene.names[5]).grey


@pytest.fixture(scope="module")
def found(photo: Grey) -> dict[tuple[str, bool], Keypoints]:
    """What each detector finds in the photo by default, turned and upright."""
    return {(name, upright): detect(name, photo, upright=upright) for name in NAMES for upright in (False, True)}


def test_the_fast_detector_agrees_with_colmaps(found: dict[tuple[str, bool], Keypoints]) -> None:
    """OpenCV by default doubles a photo so that everything moves by a quarter pixel; here it must not."""
    ours, colmaps = found["opencv-dog", False], found["dog", False]
    assert len(colmaps) > 2000
    pairs = []
    for number, near in enumerate(KDTree(ours.xy).query_ball_point(colmaps.xy, 0.5)):
        alike = [row for row in near if abs(np.log(ours.scales[row] / colmaps.scales[number])) < np.log(1.1)]
        if alike:
            turns = (ours.oris[alike] - colmaps.oris[number] + 180) % 360 - 180
            best = np.abs(turns).argmin()
            pairs.append((alike[best], number, turns[best]))
    rows, numbers, turns = np.array(pairs).T
    rows, numbers = rows.astype(int), numbers.astype(int)
    assert len(pairs) > 0.8 * len(colmaps)  # measured: 0.85
    offsets = ours.xy[rows] - colmaps.xy[numbers]
    assert np.abs(np.median(offsets, axis=0)).max() < 0.02
    assert np.median(np.abs(offsets), axis=0).max() < 0.005
    assert np.median(ours.scales[rows] / colmaps.scales[numbers]) == pytest.approx(1, abs=0.002)
    assert np.mean(np.abs(turns) < 10) > 0.85  # measured: 0.90; COLMAP keeps two orientations at most
    assert abs(np.median(turns)) < 0.5
    # Nearly all that the fast one finds is there for COLMAP's, too.
    back = KDTree(colmaps.xy).query(ours.xy)[0]
    assert np.mean(back < 0.5) > 0.95


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigma", [2.5, 4.0, 6.0])
def test_blobs_are_found_where_they_are_and_as_large_as_they_are(name: str, sigma: float) -> None:
    centres = scattered(int(10 * sigma), seed=1)
    found = detect(name, blobs(centres, sigma**2 * np.eye(2)), upright=True)
    distances, rows = KDTree(found.xy).query(centres)
    assert len(centres) >= 6
    assert distances.max() < 0.06
    assert np.abs(np.mean(found.xy[rows] - centres, axis=0)).max() < 0.02
    np.testing.assert_allclose(found.scales[rows], sigma / np.sqrt(_K), rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_peak_threshold_is_the_difference_of_gaussians_of_grey_values_up_to_one(name: str) -> None:
    (centre,) = centres = np.array([[160.2, 119.7]])
    photo = blobs(centres, 16 * np.eye(2))

    def finds_it(peak_threshold: float) -> bool:
        found = detect(name, photo, peak_threshold=peak_threshold)
        return bool(np.any(np.linalg.norm(found.xy - centre, axis=1) < 0.1))

    assert finds_it(0.95 * _PEAK)
    assert not finds_it(1.06 * _PEAK)


def test_the_score_of_the_fast_detector_is_the_contrast_times_the_scale() -> None:
    centre = np.array([[160.2, 119.7]])
    for amplitude in (_AMPLITUDE, _AMPLITUDE / 2):
        found = detect("opencv-dog", blobs(centre, 16 * np.eye(2), amplitude), upright=True)
        row = KDTree(found.xy).query(centre)[1]
        contrast = _PEAK * amplitude / _AMPLITUDE
        assert found.scores[row] == pytest.approx(contrast * found.scales[row], rel=0.03)


def test_peak_threshold_means_the_same_for_both(photo: Grey, found: dict[tuple[str, bool], Keypoints]) -> None:
    numbers = [(len(found["opencv-dog", False]), len(found["dog", False]))]  # at the default, 0.02 / 3
    for threshold in (0.003, 0.015, 0.03):
        fast, colmaps = (len(detect(name, photo, peak_threshold=threshold)) for name in ("opencv-dog", "dog"))
        numbers.append((fast, colmaps))
    for fast, colmaps in numbers:
        assert colmaps > 500
        assert 0.8 < fast / colmaps < 1


def test_edge_threshold_means_the_same_for_both(photo: Grey) -> None:
    for threshold in (3.0, 5.0, 20.0):
        fast, colmaps = (len(detect(name, photo, edge_threshold=threshold)) for name in ("opencv-dog", "dog"))
        assert 0.8 < fast / colmaps < 1


@pytest.mark.parametrize("name", NAMES)
def test_upright_keypoints_are_the_same_places_without_angles(
    found: dict[tuple[str, bool], Keypoints], name: str
) -> None:
    turned, upright = found[name, False], found[name, True]
    np.testing.assert_array_equal(upright.oris, 0)
    assert {*map(tuple, upright.xy.tolist())} == {*map(tuple, turned.xy.tolist())}
    assert len(turned) > 1.1 * len(upright)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("upright", [False, True])
def test_no_keypoint_has_a_twin(found: dict[tuple[str, bool], Keypoints], name: str, upright: bool) -> None:
    """Twins have the same descriptor, so that each would be the other's second nearest and fail the ratio test."""
    keypoints = found[name, upright]
    rows = np.column_stack([keypoints.xy, keypoints.scales, keypoints.oris])
    assert len(np.unique(rows, axis=0)) == len(keypoints)


@pytest.mark.parametrize("name", NAMES)
def test_angles_are_those_of_the_gradient_from_x_towards_y_which_is_down(name: str) -> None:
    """A blob on a slope: its only strong orientation is the slope's own."""
    rows, columns = np.mgrid[:240, :320]
    for degrees in (20.0, 110.0, 200.0, 290.0):
        slope = (columns - 160) * np.cos(np.radians(degrees)) + (rows - 120) * np.sin(np.radians(degrees))
        photo = blobs(np.array([[160, 120]]), 16 * np.eye(2), 60) + np.clip(slope * 1.5, -30, 100)
        found = detect(name, np.rint(photo.clip(0, 255)).astype(np.uint8))
        near = np.linalg.norm(found.xy - [160, 120], axis=1) < 5
        assert near.any()
        turns = (found.oris[near] - degrees + 180) % 360 - 180
        assert np.abs(turns).min() < 5, (name, degrees, found.oris[near])


def places(keypoints: Keypoints) -> list[tuple[float, ...]]:
    """Position and scale of each row; rows of one place have the same."""
    return [*map(tuple, np.column_stack([keypoints.xy, keypoints.scales]).round(3).tolist())]


@pytest.mark.parametrize("upright", [False, True])
def test_max_keypoints_counts_places_and_keeps_those_of_highest_contrast_times_scale(
    photo: Grey, found: dict[tuple[str, bool], Keypoints], upright: bool
) -> None:
    everything = found["opencv-dog", upright]
    assert np.all(np.diff(everything.scores) <= 0)
    ranked = list(dict.fromkeys(places(everything)))
    for most in (1, 100, 1111):
        kept = detect("opencv-dog", photo, most, upright=upright)
        assert list(dict.fromkeys(places(kept))) == ranked[:most]
        # All orientations of a place that is kept are kept.
        assert len(kept) == sum(place in set(ranked[:most]) for place in places(everything))
    assert len(detect("opencv-dog", photo, len(everything) + 1, upright=upright)) == len(everything)


@pytest.mark.parametrize("upright", [False, True])
def test_max_keypoints_counts_places_and_keeps_the_largest_of_colmaps(
    photo: Grey, found: dict[tuple[str, bool], Keypoints], upright: bool
) -> None:
    """COLMAP stops at a level of its pyramid, and levels overlap: up to 4 % of what is left out is a little larger."""
    everything = found["dog", upright]
    for most in (1, 700, 1500):
        kept = detect("dog", photo, most, upright=upright)
        assert len(set(places(kept))) == most
        largest = np.sort([place[2] for place in set(places(everything))])[::-1][:most]
        assert np.all(np.diff(kept.scales.round(3)) <= 0)
        assert np.mean(np.isin(largest, kept.scales.round(3))) >= 0.95
        np.testing.assert_array_less(largest[-1] * 0.9, kept.scales)
    assert len(detect("dog", photo, len(everything) + 1, upright=upright)) == len(everything)


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_the_circle_of_one_sigma_turned_by_the_angle(
    found: dict[tuple[str, bool], Keypoints], name: str
) -> None:
    keypoints = found[name, False]
    assert keypoints.affines is None
    assert np.all((keypoints.oris >= 0) & (keypoints.oris < 360))
    x_axis = keypoints.frames()[:, :, 0].astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(x_axis, axis=1), keypoints.scales, rtol=1e-5)
    turns = np.degrees(np.arctan2(x_axis[:, 1], x_axis[:, 0])) - keypoints.oris
    np.testing.assert_allclose((turns + 180) % 360 - 180, 0, atol=1e-3)
    np.testing.assert_allclose(np.linalg.det(keypoints.frames()), keypoints.scales**2, rtol=1e-4)


def test_an_angle_just_below_zero_does_not_become_360(monkeypatch: pytest.MonkeyPatch, photo: Grey) -> None:
    detector = make_detector("dog", DetectorOptions(100, 0.01, 10, upright=False, affine_shape=False))
    point = SimpleNamespace(x=5.0, y=6.0, a11=2.0, a12=1e-8, a21=-1e-8, a22=2.0)
    extractor = SimpleNamespace(extract_from_uint8_array=lambda _: ([point], None))
    monkeypatch.setattr(detector, "_extractor", extractor)
    (angle,) = detector(photo).oris
    assert 0 <= angle < 360


class TestAffineShape:
    def test_is_for_colmaps_detector_only(self, photo: Grey) -> None:
        with pytest.raises(UsageError, match="--affine-shape has no effect with --detector opencv-dog") as refused:
            detect("opencv-dog", photo, affine_shape=True)
        assert "--detector dog" in refused.value.hint

    @pytest.mark.parametrize("degrees", [0, 30, 75, 120])
    def test_lies_along_the_blob(self, degrees: float) -> None:
        """COLMAP stops before it has reached the true ratio of axes, here 1.73, but the direction is right."""
        turn = np.radians(degrees)
        axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        centre = np.array([[160.3, 120.2]])
        found = detect("dog", blobs(centre, axes @ np.diag([36.0, 12.0]) @ axes.T), affine_shape=True)
        assert found.affines is not None
        frames = found.affines[np.linalg.norm(found.xy - centre, axis=1) < 0.2]
        assert len(frames) >= 1
        for frame in frames.astype(np.float64):
            squares, vectors = np.linalg.eigh(frame @ frame.T)
            off = (np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])) - degrees + 90) % 180 - 90
            assert abs(off) < 2
            assert 1.2 < np.sqrt(squares[1] / squares[0]) < 1.8

    def test_is_consistent_with_scale_and_angle(self, photo: Grey) -> None:
        found = detect("dog", photo, affine_shape=True)
        assert found.affines is not None
        np.testing.assert_array_equal(found.frames(), found.affines)
        frames = found.affines.astype(np.float64)
        np.testing.assert_allclose(np.sqrt(np.linalg.det(frames)), found.scales, rtol=1e-4)
        turns = np.degrees(np.arctan2(frames[:, 1, 0], frames[:, 0, 0])) - found.oris
        np.testing.assert_allclose((turns + 180) % 360 - 180, 0, atol=1e-3)
        singular = np.linalg.svd(frames, compute_uv=False)
        assert np.median(singular[:, 0] / singular[:, 1]) > 1.1, "they are not similarities"

    def test_keeps_the_vertical_where_upright(self, photo: Grey) -> None:
        found = detect("dog", photo, affine_shape=True, upright=True)
        assert found.affines is not None
        down = found.affines[:, :, 1]
        assert np.abs(down[:, 0] / down[:, 1]).max() < 1e-3

    def test_has_no_angle_where_upright(self, photo: Grey) -> None:
        np.testing.assert_array_equal(detect("dog", photo, affine_shape=True, upright=True).oris, 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_photo_gives_the_same_keypoints_also_from_several_threads(
    small_scene: tuple[Path, Scene], name: str
) -> None:
    """`extract` calls one detector from all its threads."""
    folder, scene = small_scene
    photos = [np.ascontiguousarray(read_photo(folder / name).grey[:180, 120:360]) for name in scene.names[:4]]
    detector = make_detector(name, DetectorOptions(300, 0.02 / 3, 10, upright=False, affine_shape=False))
    alone = [detector(grey) for grey in photos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector, photos * 2))
    for one, other in zip(alone * 2, together, strict=True):
        for field in ("xy", "scales", "oris", "scores"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(240, 320), (1, 1), (2, 300), (15, 15)])
def test_a_flat_photo_has_no_keypoints(name: str, shape: tuple[int, int]) -> None:
    found = detect(name, np.full(shape, 128, np.uint8))
    assert len(found) == 0
    assert found.frames().shape == (0, 2, 2)


def test_unknown_detectors_get_a_guess() -> None:
    with pytest.raises(UsageError, match="unknown detector: opencv-dogs") as refused:
        detect("opencv-dogs", np.zeros((9, 9), np.uint8))
    assert "Did you mean opencv-dog?" in refused.value.hint


@pytest.mark.parametrize("size", [(800, 12), (12, 300), (15, 15), (1, 1), (40, 16)])
def test_affine_shapes_in_narrow_photos_end_nothing(size: tuple[int, int]) -> None:
    """COLMAP ends the process if a side is shorter than 16 pixels."""
    grey = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), np.uint8)
    found = detect("dog", grey, affine_shape=True)
    assert (found.xy < np.array(size) - 0.5).all()
    assert len(found) > 0 or max(size) < 100
