"""Spatial verification, against what was put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from collections_of_features import SIZE, store_of, unit_rows
from numpy.typing import NDArray

from hardnet_sfm.index_folder import open_index
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.retrieval.consensus import _frame, _hypothesis, best_transformation
from hardnet_sfm.retrieval.segments import geometry_of, pack_geometry, unpack_geometry
from hardnet_sfm.retrieval.spatial import _log_tail, cells_of, log_false_alarms
from hardnet_sfm.verbs.index import IndexOptions, index
from hardnet_sfm.verbs.vocabulary import VocabularyOptions, vocabulary

Floats = NDArray[np.float64]
TOLERANCE = 8.0  # pixels
FRAMES = np.zeros((2, 2, 2))  # room for loops to work in


def correspondences(matrix: Floats, inliers: int, outliers: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Features of two photos, (N, 4) x, y, scale, orientation each: the first are related, the others are not."""
    random = np.random.default_rng(seed)

    def features(count: int) -> Floats:
        return random.random((count, 4)) * [640, 480, 10, 2 * np.pi] + [0, 0, 2, 0]

    mine = features(inliers + outliers)
    theirs = features(inliers + outliers)
    # Chance puts a few outliers where they would agree: those are moved to where no tolerance reaches.
    away = theirs[:, :2] - (mine[:, :2] @ matrix[:, :2].T + matrix[:, 2])
    distances = np.linalg.norm(away, axis=1, keepdims=True)
    theirs[:, :2] += away / distances * np.maximum(3 * TOLERANCE - distances, 0)
    scale = np.sqrt(np.linalg.det(matrix[:, :2]))
    turn = np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1])
    theirs[:inliers, :2] = mine[:inliers, :2] @ matrix[:, :2].T + matrix[:, 2] + random.normal(0, 0.5, (inliers, 2))
    # As coarse as an index has them.
    theirs[:inliers, 2] = mine[:inliers, 2] * scale * 2 ** random.uniform(-0.06, 0.06, inliers)
    theirs[:inliers, 3] = mine[:inliers, 3] + turn + random.uniform(-0.05, 0.05, inliers)
    return mine, theirs


def verified(mine: Floats, theirs: Floats) -> tuple[NDArray[np.bool_], Floats]:
    rows = np.arange(len(mine))
    return best_transformation(mine, theirs, rows, rows, TOLERANCE, 1, 8)


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.0, 0.0, 30.0], [0.0, 1.0, -20.0]],
        [[0.0, -0.5, 300.0], [0.5, 0.0, 10.0]],
        [[1.3, 0.4, -60.0], [-0.1, 0.9, 40.0]],
    ],
    ids=["shift", "turn", "affine"],
)
def test_the_transformation_is_found_among_four_times_as_many_outliers(matrix: list[list[float]]) -> None:
    true = np.array(matrix)
    mine, theirs = correspondences(true, 25, 100)
    inside, found = verified(mine, theirs)
    assert inside.tolist() == [True] * 25 + [False] * 100
    # Least squares over the inliers, whose noise of half a pixel leaves little at the corners.
    fitted = np.linalg.lstsq(np.column_stack([mine[:25, :2], np.ones(25)]), theirs[:25, :2])[0].T
    np.testing.assert_allclose(found, fitted, rtol=1e-7, atol=1e-7)
    corners = np.array([[0, 0, 1], [640, 0, 1], [0, 480, 1], [640, 480, 1]])
    assert np.abs(corners @ (found - true).T).max() < 2


def test_chance_gives_few_inliers() -> None:
    counts = [verified(*correspondences(np.eye(2, 3), 0, 60, seed))[0].sum() for seed in range(20)]
    assert max(counts) < 6


def test_a_mirror_image_is_none() -> None:
    mine, theirs = correspondences(np.eye(2, 3), 40, 0)
    theirs[:, 0] = 640 - theirs[:, 0]
    assert verified(mine, theirs)[0].sum() < 8


def test_the_same_input_gives_the_same_bits() -> None:
    mine, theirs = correspondences(np.array([[1.3, 0.4, -60.0], [-0.1, 0.9, 40.0]]), 25, 100)
    first, second = verified(mine, theirs), verified(mine.copy(), theirs.copy())
    assert (first[0] == second[0]).all() and (first[1] == second[1]).all()


def tilted(xy: Floats, others: int, seed: int = 1) -> tuple[Keypoints, Keypoints, Floats]:
    """Features of a plane in two photos, the second from aside so that it is three times as narrow, and chance ones."""
    count = len(xy)
    random = np.random.default_rng(seed)
    matrix = np.array([[0.33, -0.12, 150.0], [0.05, 0.9, 10.0]])

    def photo(xy: Floats, frames: Floats) -> Keypoints:
        scales = np.sqrt(np.linalg.det(frames))
        turns = np.rad2deg(np.arctan2(frames[:, 1, 0] - frames[:, 0, 1], frames[:, 0, 0] + frames[:, 1, 1])) % 360
        columns = [values.astype(np.float32) for values in (xy, scales, turns, np.ones(len(xy)), frames)]
        return Keypoints(*columns)

    def frames(number: int) -> Floats:
        turns, sizes = random.random((2, number)) * [[2 * np.pi], [8]] + [[0], [3]]
        rotations = np.stack([np.cos(turns), -np.sin(turns), np.sin(turns), np.cos(turns)], 1).reshape(-1, 2, 2)
        stretches = np.eye(2) + 0.15 * random.standard_normal((number, 2, 2))
        return rotations @ stretches * sizes[:, None, None]

    xy, own = np.concatenate([xy, random.random((others, 2)) * SIZE]), frames(count + others)
    seen = np.concatenate([xy[:count] @ matrix[:, :2].T + matrix[:, 2], random.random((others, 2)) * SIZE])
    moved = np.concatenate([matrix[:, :2] @ own[:count], frames(others)])
    return photo(xy, own), photo(seen, moved), matrix


def test_affine_frames_verify_a_tilted_plane_that_similarity_frames_do_not() -> None:
    # Too far apart for a similarity to fit two neighbours, from where refinement would find the others.
    grid = np.stack(np.meshgrid(np.linspace(50, 590, 6), np.linspace(40, 440, 4)), -1).reshape(-1, 2)
    first, second, matrix = tilted(grid, 120)
    mine = geometry_of(first).astype(np.float64)
    theirs = unpack_geometry(pack_geometry(second, SIZE), np.array(SIZE)).astype(np.float64)
    assert mine.shape == theirs.shape == (144, 6)
    inside, found = verified(mine, theirs)
    assert inside[:24].all() and inside[24:].sum() <= 1
    assert np.abs(found[:, :2] - matrix[:, :2]).max() < 0.02
    similar, _ = verified(mine[:, :4].copy(), theirs[:, :4].copy())
    assert similar.sum() < 5


def test_one_affine_correspondence_is_a_hypothesis_of_its_frames() -> None:
    first, second, matrix = tilted(np.array([[200.0, 120.0]]), 0)
    model = np.zeros((2, 3))
    _hypothesis(geometry_of(first)[0].astype(np.float64), geometry_of(second)[0].astype(np.float64), FRAMES, model)
    np.testing.assert_allclose(model[:, :2], matrix[:, :2], atol=1e-4)
    np.testing.assert_allclose(model[:, 2], matrix[:, 2], atol=0.05)


def test_affine_frames_come_back_as_exactly_as_their_bits_allow() -> None:
    keypoints, _, _ = tilted(np.random.default_rng(0).random((300, 2)) * SIZE, 0)
    back = unpack_geometry(pack_geometry(keypoints, SIZE), np.array(SIZE)).astype(np.float64)
    exact = geometry_of(keypoints)
    assert np.abs(back[:, 4] - exact[:, 4]).max() <= 1 / 8192 + 1e-6
    turn = np.abs((back[:, 5] - exact[:, 5] + np.pi / 2) % np.pi - np.pi / 2)
    assert turn.max() <= np.pi / 131072 + 1e-6
    # Orientation and scale as coarse as ever: the frames agree to 6 degrees and an eighth of an octave.
    for feature, frame in zip(exact.astype(np.float64), keypoints.frames(), strict=True):
        _frame(feature, FRAMES[0])
        np.testing.assert_allclose(FRAMES[0], frame, atol=1e-4 * feature[2])


def test_an_index_keeps_affine_frames_where_there_are_any_through_merges(tmp_path: Path) -> None:
    photos = {}
    for number in range(6):
        keypoints = tilted(np.random.default_rng(number).random((50, 2)) * SIZE, 0, number)[0]
        photos[f"{number}.jpg"] = keypoints, unit_rows(np.random.default_rng(number), 50)
    store_of(tmp_path / "features.h5", photos)
    vocabulary(tmp_path / "features.h5", tmp_path / "vocabulary", VocabularyOptions(words=16, iterations=3))
    index(tmp_path / "features.h5", tmp_path, tmp_path / "index", IndexOptions(checkpoint=2))
    opened = open_index(tmp_path, thorough=True).lists
    entries = opened.entries(range(6))
    for number, name in enumerate(opened.names):
        rows = entries.rows[entries.photos == number]
        (segment,) = opened.segment_of(np.array([number]))
        keypoints = photos[name][0]
        expected = unpack_geometry(pack_geometry(keypoints, SIZE), np.array(SIZE))
        found = opened.geometry_of(segment, rows)
        assert found.shape == (50, 6)
        assert sorted(found.tolist()) == sorted(expected.tolist())


class TestAcceptance:
    """Chance must not explain the inliers of an accepted photo."""

    @pytest.mark.parametrize(("trials", "successes"), [(1, 1), (20, 3), (1000, 4), (1000, 60), (50, 50)])
    def test_the_tail_is_that_of_the_binomial_distribution(self, trials: int, successes: int) -> None:
        binom = pytest.importorskip("scipy.stats").binom
        assert _log_tail(trials, successes) * np.log(10) == pytest.approx(
            binom.logsf(successes - 1, trials, 0.004), rel=1e-9
        )

    @staticmethod
    def judged(mine: Floats, theirs: Floats, distances: NDArray[np.int64]) -> float:
        order = np.argsort(distances, kind="stable")
        inside, _ = verified(mine[order], theirs[order])
        cells = np.stack([cells_of(side[order, :2], 32) for side in (mine, theirs)])
        return log_false_alarms(distances[order], cells, np.flatnonzero(inside))

    def test_inliers_among_wrong_correspondences_are_no_chance(self) -> None:
        matrix = np.array([[1.1, 0.2, 30], [-0.2, 1.1, -20]])
        for seed in range(5):
            mine, theirs = correspondences(matrix, 20, 300, seed)
            assert self.judged(mine, theirs, np.full(320, 20)) < -3

    def test_as_many_inliers_with_near_signatures_say_more(self) -> None:
        mine, theirs = correspondences(np.array([[1.0, 0, 9], [0, 1, 9]]), 9, 400)
        far, near = np.full(409, 20), np.where(np.arange(409) < 9, 6, 20)
        assert self.judged(mine, theirs, near) < self.judged(mine, theirs, far) - 3

    def test_chance_is_explained_by_chance(self) -> None:
        """Of correspondences between places at random, hardly any set gives less than one false alarm in 100."""
        random, few = np.random.default_rng(0), 0
        for _ in range(100):
            mine, theirs = random.random((2, 400, 4)) * [640, 480, 4, 0.5] + [0, 0, 4, 0]
            few += self.judged(mine, theirs, random.integers(8, 25, 400)) < -2
        assert few <= 3

    def test_many_correspondences_of_one_place_count_once(self) -> None:
        """A repeated texture matches itself in many ways, which agree without showing the same thing."""
        mine, theirs = correspondences(np.array([[1.0, 0, 9], [0, 1, 9]]), 3, 300)
        random = np.random.default_rng(1)
        places = np.concatenate([mine[:1] + random.normal(0, 3, (40, 4)) * [1, 1, 0, 0], mine])
        matched = np.concatenate([theirs[:1] + random.normal(0, 3, (40, 4)) * [1, 1, 0, 0], theirs])
        assert verified(places, matched)[0].sum() > 30
        assert self.judged(places, matched, np.full(343, 20)) > 0
