"""Synthetic views: where their pixels are from, what is found in them, and which matches of them are believed."""

from __future__ import annotations

from math import cos, radians, sin
from typing import Literal

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.features.synthetic_views import (
    SAME_PLACE,
    View,
    ViewDescriber,
    joined,
    relative_area,
    same_keypoints,
    views_of,
    with_frames,
)
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.matching.nearest import Acceptance, mutual_nearest_neighbours, prepare, rounding_for
from hardnet_sfm.matching.view_matching import PhotoInViews, candidates_of_views, merged
from hardnet_sfm.photos import Photo
from hardnet_sfm.resources import Resources

VIEWS = [View(2, 0), View(2, 36), View(4, 90), View(4, 126), View(1, 45), View(3, 171)]
SIZE = (150, 110)

pytestmark = pytest.mark.usefixtures("one_thread")


def some_keypoints(count: int, size: tuple[int, int], seed: int = 0) -> Keypoints:
    rng = np.random.default_rng(seed)
    frames = rng.normal(size=(count, 2, 2)) + 2 * np.eye(2)
    return with_frames(rng.uniform((0, 0), size, (count, 2)), frames, rng.random(count).astype(np.float32))


def moments(grey: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre (x, y) and (2, 2) covariance of what is bright."""
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
    weights = grey.ravel() / grey.sum(dtype=np.float64)
    places = np.stack([x.ravel(), y.ravel()])
    centre = places @ weights
    return centre, (places - centre[:, None]) * weights @ (places - centre[:, None]).T


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_rendered_is_where_the_map_says_and_as_large(view: View) -> None:
    """A blob is rendered as the blob that the affine map makes of it, blurred by 0.8 sqrt(t^2 - 1) before its tilt."""
    centre, sigma = np.array([67.25, 48.5]), 5.0
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    blob = 200 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))
    affine = view.photo_to_view(SIZE)
    found, covariance = moments(view.render(np.rint(blob).astype(np.uint8)))
    assert found == pytest.approx(affine[:, :2] @ centre + affine[:, 2], abs=0.02)
    expected = sigma**2 * affine[:, :2] @ affine[:, :2].T
    expected[0, 0] += 0.64 * (view.tilt**2 - 1) / view.tilt**2
    assert covariance == pytest.approx(expected, rel=0.03, abs=0.05)  # rounding cuts off the faintest part


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_shows_the_whole_photo_and_little_else(view: View) -> None:
    height, width = view.render(np.zeros(SIZE[::-1], np.uint8)).shape
    affine = view.photo_to_view(SIZE)
    corners = np.array([(x, y) for x in (-0.5, SIZE[0] - 0.5) for y in (-0.5, SIZE[1] - 0.5)])
    places = corners @ affine[:, :2].T + affine[:, 2]
    assert places.min(0) == pytest.approx([-0.5, -0.5], abs=1e-9)
    assert (places.max(0) <= [width - 0.5 + 1e-6, height - 0.5 + 1e-6]).all()
    assert (places.max(0) > [width - 2.5, height - 1.5]).all()
    assert np.linalg.det(affine[:, :2]) == pytest.approx(1 / view.tilt)


@pytest.mark.parametrize("period", [2.5, 4.0, 8.0, 16.0])
def test_a_tilt_dampens_what_it_would_alias(period: float) -> None:
    """A wave along the tilt keeps exp(-2 pi^2 sigma^2 / period^2) of its amplitude under a blur of sigma pixels."""
    tilt, amplitude = 2.0, 100.0
    wave = 128 + amplitude * np.cos(2 * np.pi * np.arange(640) / period)
    view = View(tilt, 0).render(np.tile(np.rint(wave).astype(np.uint8), (8, 1))).astype(np.float64)
    inner = view[4, 40:280] - 128  # 240 pixels of the view, 480 of the photo: whole periods of all of these
    kept = np.exp(-2 * np.pi**2 * 0.64 * (tilt**2 - 1) / period**2)
    # Linear interpolation halfway between two pixels of the photo dampens by a cosine.
    kept *= abs(np.cos(np.pi / period))
    assert np.sqrt(2 * np.mean(inner**2)) == pytest.approx(amplitude * kept, abs=1.0)


@pytest.mark.parametrize("view", VIEWS)
def test_keypoints_are_mapped_back_with_the_exact_product_of_maps(view: View) -> None:
    height, width = view.render(np.zeros(SIZE[::-1], np.uint8)).shape
    found = some_keypoints(300, (width, height))
    back, rows = view.back(found, SIZE)
    assert 0 < len(rows) < 300
    affine = view.photo_to_view(SIZE)
    for x, y, frame, row in zip(*back.xy.T, back.frames(), rows, strict=True):
        # Points of the photo's patch, taken to the view, are those of the view's patch.
        for unit in (np.zeros(2), np.array([1.0, 0]), np.array([0, 1.0]), np.array([-6, 6.0])):
            there = affine[:, :2] @ ((x, y) + frame @ unit) + affine[:, 2]
            assert there == pytest.approx(found.xy[row] + found.frames()[row] @ unit, abs=1e-3)
    assert back.scales == pytest.approx(found.scales[rows] * np.sqrt(view.tilt), rel=1e-4)
    assert (back.scores == found.scores[rows]).all()


@pytest.mark.parametrize("view", VIEWS)
def test_keypoints_whose_patch_leaves_the_photo_are_dropped(view: View) -> None:
    height, width = view.render(np.zeros(SIZE[::-1], np.uint8)).shape
    found = some_keypoints(300, (width, height), seed=1)
    _, rows = view.back(found, SIZE)
    back = np.linalg.inv(np.vstack([view.photo_to_view(SIZE), [0, 0, 1]]))
    turn = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)])
    inside = []
    for row in range(300):
        x, y = back[:2, :2] @ (found.xy[row][:, None] + 6 * found.scales[row] * circle) + back[:2, 2:]
        inside.append(x.min() >= -0.5 and y.min() >= -0.5 and x.max() <= SIZE[0] - 0.5 and y.max() <= SIZE[1] - 0.5)
    assert rows.tolist() == np.flatnonzero(inside).tolist()


def test_views_of_a_tilt_are_72_degrees_divided_by_it_apart() -> None:
    assert [view.rotation for view in views_of(2, 72)] == [0, 36, 72, 108, 144]
    assert len(views_of(4, 72)) == 10
    assert len(views_of(2**0.5, 72)) == 4  # 3.5 steps of 51 degrees do not fit a half turn
    assert [view.rotation for view in views_of(2, 180)] == [0, 90]


def test_the_area_of_the_views_is_that_of_asift() -> None:
    assert relative_area((), 72) == 1
    assert relative_area((2, 4), 72) == 1 + 5 / 2 + 10 / 4
    width, height = 400, 300
    pixels = sum(abs(np.linalg.det(view.photo_to_view((width, height))[:, :2])) for view in views_of(4, 72))
    assert relative_area((4,), 72) == pytest.approx(1 + pixels)


@pytest.mark.parametrize("view", VIEWS)
def test_upright_keypoints_of_a_view_are_upright_in_the_photo(view: View) -> None:
    height, width = view.render(np.zeros(SIZE[::-1], np.uint8)).shape
    xy = np.random.default_rng(0).uniform((0, 0), (width, height), (50, 2)).astype(np.float32)
    ones = np.ones(50, np.float32)
    back, rows = view.back(view.turned(Keypoints(xy, ones, 0 * ones, ones)), SIZE)
    assert len(rows)
    assert np.minimum(back.oris, 360 - back.oris) == pytest.approx(np.zeros(len(rows)), abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_keypoint_is_that_of_a_brute_force_search(seed: int) -> None:
    found, known = some_keypoints(40, (12, 12), seed), some_keypoints(60, (12, 12), seed + 1)
    for row, same in enumerate(same_keypoints(found, known).tolist()):
        costs = []
        for other in range(60):
            apart = np.linalg.norm(found.xy[row] - known.xy[other])
            factor = max(found.scales[row], known.scales[other]) / min(found.scales[row], known.scales[other])
            between = np.linalg.norm(found.frames()[row] - known.frames()[other])
            alike = apart <= SAME_PLACE and factor <= 1.5
            costs.append((apart**2 + between**2) / known.scales[other] if alike else np.inf)
        assert (same < 0) == np.isinf(costs).all()
        assert same < 0 or costs[same] == pytest.approx(min(costs))


def textured(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=size[::-1]).astype(np.float32)
    summed = sum(sigma * cv2.GaussianBlur(noise, (0, 0), sigma) for sigma in (1.5, 3, 6))
    return np.clip(128 + 60 * summed / summed.std(), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("orientation", ["estimated", "upright"])
def test_a_keypoint_that_is_found_again_is_no_new_one(orientation: Literal["estimated", "upright"]) -> None:
    options = ExtractOptions(descriptor="rootsift", max_keypoints=300, orientation=orientation)
    describe = ViewDescriber(options, Resources("cpu", 1))
    photo, known = Photo(textured((240, 180)), 1, ""), Keypoints.empty()
    steps = [describe(photo, known, [View(1, 0)])]
    known = joined(known, steps[0].keypoints)
    # A photo that is turned by a right angle has the same pixels, so nearly all is found again.
    steps.append(describe(photo, known, [View(1, 90), View(2, 0)]))
    turned, tilted = np.split(steps[1].rows, steps[1].ends[:-1])
    assert (turned < len(known)).mean() > 0.9
    assert 0.1 < (tilted < len(known)).mean() < 0.9
    everything = joined(known, steps[1].keypoints)
    assert set(range(len(known), len(everything))) <= set(steps[1].rows.tolist())
    assert same_keypoints(steps[1].keypoints, known).max() == -1
    # What is found again is described alike, where the orientation is the same.
    again = turned < len(known)
    cosines = (steps[1].descriptors[: len(turned)][again] * steps[0].descriptors[turned[again]]).sum(1)
    assert np.median(cosines) > 0.95


def in_views(
    rng: np.random.Generator, points: NDArray[np.float32], vectors: NDArray[np.float32], views: int, noise: float
) -> PhotoInViews:
    """Points with a noisy description in most of the views each."""
    rounding, described, rows = None, [], []
    for view in range(views):
        seen = np.flatnonzero((rng.random(len(points)) < 0.7) | (view == 0))
        of_view = vectors[seen] + noise * rng.normal(size=(len(seen), vectors.shape[1]))
        of_view = (of_view / np.linalg.norm(of_view, axis=1, keepdims=True)).astype(np.float16)
        rounding = rounding or rounding_for(of_view, "cpu")
        described.append(of_view)
        rows.append(seen.astype(np.int32))
    rounding = rounding_for(np.concatenate(described), "cpu")
    return PhotoInViews(tuple(prepare(one, rounding) for one in described), np.concatenate(rows), points)


@pytest.fixture(scope="module")
def two_photos() -> tuple[PhotoInViews, PhotoInViews]:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(60, 16)).astype(np.float32)
    vectors[40:50] = vectors[30:40] + 0.2 * rng.normal(size=(10, 16))  # look alike, far from each other or not
    places = rng.uniform(0, 80, (60, 2)).astype(np.float32)
    places[50:] = places[40:50] + 1  # the same place, another look
    first = in_views(rng, places, vectors, 3, 0.25)
    second = in_views(rng, places[::-1] * 1.5, vectors[::-1], 2, 0.25)
    shared = rounding_for(first.exact().numpy().astype(np.float16), "cpu")
    prepared = (
        tuple(prepare(view.exact.numpy().astype(np.float16), shared) for view in photo.views)
        for photo in (first, second)
    )
    return tuple(  # type: ignore[return-value]
        PhotoInViews(views, photo.rows, photo.xy) for views, photo in zip(prepared, (first, second), strict=True)
    )


def test_candidates_are_the_mutual_neighbours_of_each_pair_of_views(
    two_photos: tuple[PhotoInViews, PhotoInViews],
) -> None:
    first, second = two_photos
    accept = Acceptance(0.9)
    expected = []
    for a, one in enumerate(first.views):
        for b, other in enumerate(second.views):
            if (a, b) != (0, 0):
                offset = sum(map(len, first.views[:a])), sum(map(len, second.views[:b]))
                expected += [tuple(pair + offset) for pair in mutual_nearest_neighbours(one, other, accept).pairs]
    pairs, scores = candidates_of_views(first, second, accept, (1, 1))
    assert [tuple(pair) for pair in pairs] == expected
    cosines = (first.exact()[pairs[:, 0]] * second.exact()[pairs[:, 1]]).sum(1)
    assert scores == pytest.approx((1 + cosines.numpy()) / 2, abs=1e-5)


def test_merged_matches_are_those_of_brute_force(two_photos: tuple[PhotoInViews, PhotoInViews]) -> None:
    first, second = two_photos
    accept = Acceptance(0.85)
    pairs, scores = candidates_of_views(first, second, Acceptance(1.0), (0, 0))
    similarity = (first.exact() @ second.exact().T).numpy()

    def beats(asked: int, answer: int, side: int) -> bool:
        """Of the asked description, against those more than 10 pixels from the answer's place."""
        photo = second if side == 0 else first
        row = similarity[asked] if side == 0 else similarity[:, asked]
        places = photo.xy[photo.rows]
        rivals = row[np.linalg.norm(places - places[answer], axis=1) > 10]
        best, second_best = row[answer], rivals.max()
        return bool(np.sqrt(2 - 2 * best) < 0.85 * np.sqrt(2 - 2 * second_best))

    best_of: dict[tuple[int, int], tuple[float, int, int]] = {}
    for (one, other), score in zip(pairs.tolist(), scores.tolist(), strict=True):
        key = int(first.rows[one]), int(second.rows[other])
        best_of[key] = max(best_of.get(key, (0.0, 0, 0)), (score, one, other))
    held = [(s, key) for key, (s, one, other) in best_of.items() if beats(one, other, 0) and beats(other, one, 1)]
    expected: list[tuple[int, int]] = []
    for _, (one, other) in sorted(held, reverse=True):
        near = (
            np.linalg.norm(first.xy[one] - first.xy[a]) <= 1.5 or np.linalg.norm(second.xy[other] - second.xy[b]) <= 1.5
            for a, b in expected
        )
        if not any(near):
            expected.append((one, other))
    found = merged(first, second, (pairs, scores), accept)
    assert [tuple(pair) for pair in found.pairs.tolist()] == sorted(expected)
    assert len(best_of) > len(held) > len(expected) > 20


def test_photos_without_keypoints_have_no_matches() -> None:
    nothing = np.zeros((0, 16), np.float16)
    rounding = rounding_for(nothing, "cpu")
    empty = PhotoInViews((prepare(nothing, rounding),) * 2, np.zeros(0, np.int32), np.zeros((0, 2), np.float32))
    candidates = candidates_of_views(empty, empty, Acceptance(), (0, 0))
    assert len(merged(empty, empty, candidates, Acceptance())) == 0


def test_a_view_is_turned_in_the_direction_that_its_docstring_says() -> None:
    """The photo's direction (cos, sin) of the rotation becomes the view's x axis, which the tilt shortens."""
    view = View(2, 30)
    direction = view.photo_to_view(SIZE)[:, :2] @ [cos(radians(30)), sin(radians(30))]
    assert direction == pytest.approx([0.5, 0])
