"""Spatial verification and query expansion, against what was put in and against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardnet_sfm.retrieval.consensus import best_transformation
from hardnet_sfm.retrieval.kernels import aggregate

Floats = NDArray[np.float64]


def correspondences(matrix: Floats, inliers: int, outliers: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Features of two photos, (N, 4) x, y, scale, orientation each: the first are related, the others are not."""
    random = np.random.default_rng(seed)

    def features(count: int) -> Floats:
        return random.random((count, 4)) * [640, 480, 10, 2 * np.pi] + [0, 0, 2, 0]

    mine = features(inliers + outliers)
    theirs = features(inliers + outliers)
    scale = np.sqrt(np.linalg.det(matrix[:, :2]))
    turn = np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1])
    theirs[:inliers, :2] = mine[:inliers, :2] @ matrix[:, :2].T + matrix[:, 2] + random.normal(0, 0.5, (inliers, 2))
    # As coarse as an index has them.
    theirs[:inliers, 2] = mine[:inliers, 2] * scale * 2 ** random.uniform(-0.06, 0.06, inliers)
    theirs[:inliers, 3] = mine[:inliers, 3] + turn + random.uniform(-0.05, 0.05, inliers)
    return mine, theirs


def verified(mine: Floats, theirs: Floats) -> tuple[NDArray[np.bool_], Floats]:
    rows = np.arange(len(mine))
    return best_transformation(mine, theirs, rows, rows, 8.0, 1, 8)


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
    assert inside[:25].all() and inside[25:].sum() <= 3
    corners = np.array([[0, 0, 1], [640, 0, 1], [0, 480, 1], [640, 480, 1]])
    assert np.abs(corners @ (found - true).T).max() < 8  # the tolerance


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


def slow_aggregate(rows: list[tuple[int, int, int]], reach: int, least: int) -> list[tuple[int, int]]:
    """Groups of (word, signature, source) rows by the first member within reach, in plain Python."""
    groups: list[list[tuple[int, int, int]]] = []
    for row in rows:
        for group in groups:
            if group[0][0] == row[0] and (group[0][1] ^ row[1]).bit_count() <= reach:
                group.append(row)
                break
        else:
            groups.append([row])
    result = []
    for group in groups:
        if group[0][2] and len({source for _, _, source in group}) < least:
            continue
        merged = 0
        for bit in range(64):
            ones = sum(signature >> bit & 1 for _, signature, _ in group)
            first = group[0][1] >> bit & 1
            merged |= int(2 * ones > len(group) or (2 * ones == len(group) and first)) << bit
        result.append((group[0][0], merged))
    return result


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1), st.integers(0, 4)), max_size=30), st.data())
def test_signatures_are_grouped_as_loops_do(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    # Copies with a few bits flipped make groups.
    for word, signature, _ in rows[:10]:
        flips = data.draw(st.sets(st.integers(0, 63), max_size=20))
        rows.append((word, signature ^ sum(1 << bit for bit in flips), data.draw(st.integers(0, 4))))
    rows = sorted(rows, key=lambda row: (row[0], row[2], row[1]))
    words, sources = (np.array([row[part] for row in rows], np.int64) for part in (0, 2))
    found = aggregate(words, np.array([row[1] for row in rows], np.uint64), sources, 16, 2)
    assert sorted(zip(found[0].tolist(), found[1].tolist(), strict=True)) == sorted(slow_aggregate(rows, 16, 2))
