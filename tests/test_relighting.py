"""Changes of light against what they state: factors, shares and places."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hardnet_sfm.features.detectors import DetectorOptions, make_detector
from hardnet_sfm.textures import make_texture
from hardnet_sfm.training.relighting import draw_lamps, draw_sensor, draw_shadow, relight, see
from hardnet_sfm.training.warping import WarpOptions, cut_warped_patches

SIZE = (240, 320)


@pytest.fixture(scope="module")
def colours() -> np.ndarray:
    return make_texture(SIZE[1], SIZE[0], 1.0, np.random.default_rng(0))


def test_a_sensor_sees_grey_as_it_is() -> None:
    """The shares sum to 1, so every sensor gives a grey photo the same values."""
    grey = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    rng = np.random.default_rng(2)
    for _ in range(20):
        seen = see(np.dstack([grey] * 3), draw_sensor(rng))
        np.testing.assert_allclose(255 * seen, grey, atol=0.01)


def test_a_sensor_of_one_colour_sees_that_channel(colours: np.ndarray) -> None:
    for channel in range(3):
        seen = see(colours, np.eye(3)[channel])
        np.testing.assert_allclose(255 * seen, colours[..., channel], atol=0.01)


def test_a_fifth_of_the_sensors_have_a_negative_share() -> None:
    rng = np.random.default_rng(3)
    drawn = np.array([draw_sensor(rng) for _ in range(2000)])
    np.testing.assert_allclose(drawn.sum(1), 1)
    assert 0.17 < (drawn.min(1) < 0).mean() < 0.23


def test_a_shadow_keeps_its_bounds() -> None:
    rng = np.random.default_rng(4)
    shadows = [draw_shadow(SIZE, rng) for _ in range(50)]
    assert max(shadow.max() for shadow in shadows) == 1
    darkest = np.array([shadow.min() for shadow in shadows])
    assert 0.25 <= darkest.min() < 0.35
    assert all((shadow == 1).any() for shadow in shadows[:5])


def test_lamps_light_up_what_the_night_leaves_dark() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        light = draw_lamps(SIZE, rng)
        assert light.min() > 0.03
        assert light.max() > light.min() + 0.25


def test_everything_stays_in_its_place(colours: np.ndarray) -> None:
    """Phase correlation of the edges finds no shift between a photo and the relit one."""
    edges = cv2.Laplacian(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    for seed in range(10):
        relit = relight(colours, np.random.default_rng(seed))
        assert relit.shape == SIZE and relit.dtype == np.uint8
        (right, down), _ = cv2.phaseCorrelate(edges, cv2.Laplacian(relit, cv2.CV_32F))
        assert abs(right) < 0.5 and abs(down) < 0.5


def test_relit_views_show_the_same_points_with_other_patches(colours: np.ndarray) -> None:
    detect = make_detector("opencv-dog", DetectorOptions(400, 0.02 / 3, 10, False, False))
    grey = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)
    options = WarpOptions(views=2, still=1, points=200)

    def change(relit: float) -> float:
        """Mean distance between standardised patches of a point in the photo and in its views."""
        rng = np.random.default_rng(0)
        made = cut_warped_patches(grey, detect, WarpOptions(**{**vars(options), "relit": relit}), rng, colours)
        values = made.patches.reshape(len(made.patches), -1).astype(np.float64)
        values = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
        first = {int(point): row for row, point in enumerate(made.point) if made.view[row] == 0}
        later = [row for row in range(len(values)) if made.view[row] > 0]
        assert len(later) > 30
        return float(np.mean([np.abs(values[row] - values[first[int(made.point[row])]]).mean() for row in later]))

    assert change(relit=1) > 1.2 * change(relit=0)
