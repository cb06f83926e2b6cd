"""Spatial verification, against what was put in."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hardnet_sfm.retrieval.consensus import best_transformation

Floats = NDArray[np.float64]
TOLERANCE = 8.0  # pixels


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
