"""Interest points at known places, and their orientations beside OpenCV's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, laplace

from hardnet_sfm.features.detectors import DetectorOptions, make_detector
from hardnet_sfm.literature.interest_points import dominant_orientations, harris_laplace_points, hessian_points


def blobs(places: list[tuple[int, int, float]], size: tuple[int, int] = (200, 260)) -> NDArray[np.uint8]:
    """A grey photo with bright round blobs, x, y, sigma."""
    y, x = np.mgrid[: size[0], : size[1]]
    light = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2)) for cx, cy, sigma in places)
    return np.clip(60 + 150 * np.asarray(light), 0, 255).astype(np.uint8)


def texture(seed: int = 3) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    paint = sum(
        weight * cv2.resize(random.standard_normal(size), (320, 240), interpolation=cv2.INTER_CUBIC)
        for weight, size in ((40, (12, 16)), (30, (40, 53)))
    )
    return np.clip(128 + np.asarray(paint), 0, 255).astype(np.uint8)


def test_hessian_finds_blobs_at_their_scale() -> None:
    """The determinant of the Hessian of a blob of sigma s, times sigma to the fourth, is largest at sigma s."""
    places = [(60, 50, 3.0), (190, 60, 5.0), (120, 140, 8.0)]
    found = hessian_points(blobs(places), 3)
    assert len(found) == 3
    for x, y, sigma in places:
        nearest = np.linalg.norm(found.xy - [x, y], axis=1).argmin()
        assert np.linalg.norm(found.xy[nearest] - [x, y]) <= 1
        assert abs(np.log2(found.scales[nearest] / sigma)) <= 1 / 3
    assert (np.diff(found.scores) <= 0).all()


def test_harris_points_are_maxima_of_scipys_measure_where_the_laplacian_is_largest_over_scale() -> None:
    """By the definition, with Gaussian derivatives of SciPy, well inside the photo."""
    photo = texture()
    grey = photo / 255
    found = harris_laplace_points(photo, 25)
    assert len(found) == 25
    checked = 0
    for (x, y), sigma, score in zip(
        found.xy.astype(int).tolist(), found.scales.tolist(), found.scores.tolist(), strict=True
    ):
        if not 40 <= x < 280 or not 40 <= y < 200:
            continue
        checked += 1
        inner = (0.7 * sigma) ** 2 - 0.25
        smooth = gaussian_filter(grey, inner**0.5)
        dy, dx = np.gradient(smooth)
        xx, yy, xy = (gaussian_filter(product, sigma) * (0.7 * sigma) ** 2 for product in (dx * dx, dy * dy, dx * dy))
        response = xx * yy - xy * xy - 0.04 * (xx + yy) ** 2
        assert response[y, x] == pytest.approx(score, rel=0.02)
        assert response[y, x] >= 0.999 * response[y - 1 : y + 2, x - 1 : x + 2].max()
        steps = [sigma * 2 ** (step / 3) for step in (-1, 0, 1)]
        laplacians = [abs(laplace(gaussian_filter(grey, (s**2 - 0.25) ** 0.5))[y, x]) * s**2 for s in steps]
        assert laplacians[1] >= 0.99 * max(laplacians)
    assert checked > 8


@pytest.mark.parametrize("detect", [hessian_points, harris_laplace_points])
def test_points_of_a_photo_of_half_the_size_have_half_the_scale(detect) -> None:  # type: ignore[no-untyped-def]
    large = cv2.resize(texture(), (640, 480), interpolation=cv2.INTER_CUBIC)
    half = cv2.resize(large, (320, 240), interpolation=cv2.INTER_AREA)
    first, second = detect(large, 150), detect(half, 150)
    places = (second.xy + 0.5) * 2 - 0.5
    distances = np.linalg.norm(places[:, None] - first.xy, axis=2)
    nearest = distances.argmin(1)
    near = distances.min(1) < 2 * second.scales
    assert near.mean() > 0.6
    ratio = np.median(first.scales[nearest][near] / second.scales[near])
    assert abs(np.log2(ratio) - 1) <= 1 / 3


def test_nothing_in_a_flat_photo() -> None:
    flat = np.full((100, 120), 90, np.uint8)
    assert len(hessian_points(flat, 10)) == len(harris_laplace_points(flat, 10)) == 0


def test_orientations_are_opencvs() -> None:
    """Where OpenCV has one orientation for a point; within one of its 36 bins for nearly all."""
    photo = texture()
    oriented = make_detector("opencv-dog", DetectorOptions(500, 0.02 / 3, 10, False, False))(photo)
    _, first, counts = np.unique(oriented.xy, axis=0, return_index=True, return_counts=True)
    single = oriented.select(first[counts == 1])
    assert len(single) > 50
    angles = dominant_orientations(photo, single)
    off = np.abs((angles - single.oris + 180) % 360 - 180)
    assert np.median(off) < 4
    assert (off < 20).mean() > 0.85


def test_orientation_turns_with_the_photo() -> None:
    photo = texture()
    points = hessian_points(photo, 80)
    turned = points.__class__(
        np.stack([photo.shape[0] - 1 - points.xy[:, 1], points.xy[:, 0]], 1), points.scales, points.oris, points.scores
    )
    before = dominant_orientations(photo, points)
    after = dominant_orientations(np.ascontiguousarray(np.rot90(photo, -1)), turned)
    off = np.abs((after - before - 90 + 180) % 360 - 180)
    assert np.median(off) < 1
    assert (off < 5).mean() > 0.9
