"""Guided matching against a plain search, one keypoint after the other, on points seen by two cameras."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray

from hardnet_sfm.colmap.guided import Described, guided_matches

SIZE, FOCAL, POINTS, NOISE = (640, 480), 600.0, 400, 0.04
KINDS = pycolmap.TwoViewGeometryConfiguration


class TwoPhotos:
    """Points that two cameras see, with descriptors that differ a little, and as many keypoints of nothing.

    Args:
        flat: whether all points are in one plane.
    """

    def __init__(self, flat: bool = False) -> None:
        rng = np.random.default_rng(0)
        xyz = np.column_stack(
            [rng.uniform(-2, 2, (POINTS, 2)), np.full(POINTS, 6) if flat else rng.uniform(4, 9, POINTS)]
        )
        turn, self.move = pycolmap.Rotation3d(np.array([0.02, 0.2, -0.03])).matrix(), np.array([-1.2, 0.1, 0.2])
        self.rotation = np.asarray(turn)
        self.camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", FOCAL, *SIZE)
        k = self.camera.calibration_matrix()
        one, two = xyz @ k.T, (xyz @ self.rotation.T + self.move) @ k.T
        noise = rng.uniform(0, SIZE, (POINTS, 2)), rng.uniform(0, SIZE, (POINTS, 2))
        places = [
            np.concatenate([seen[:, :2] / seen[:, 2:], other]) for seen, other in zip((one, two), noise, strict=True)
        ]
        true = rng.normal(size=(POINTS, 32))
        true /= np.linalg.norm(true, axis=1, keepdims=True)
        descriptors = []
        for _ in places:
            mine = np.concatenate([true + NOISE * rng.normal(size=true.shape), rng.normal(size=true.shape)])
            descriptors.append((mine / np.linalg.norm(mine, axis=1, keepdims=True)).astype(np.float32))
        self.photos = [Described(xy, d, self.camera) for xy, d in zip(places, descriptors, strict=True)]
        skew = np.array(
            [[0, -self.move[2], self.move[1]], [self.move[2], 0, -self.move[0]], [-self.move[1], self.move[0], 0]]
        )
        self.essential, back = skew @ self.rotation, np.linalg.inv(k)
        self.fundamental = back.T @ self.essential @ back
        self.homography = k @ (self.rotation + np.outer(self.move, [0, 0, 1]) / 6) @ back

    def geometry(self, kind: KINDS) -> pycolmap.TwoViewGeometry:
        """With every tenth of the points as inliers."""
        geometry = pycolmap.TwoViewGeometry()
        geometry.config, geometry.E = kind, self.essential
        geometry.F, geometry.H = self.fundamental, self.homography
        rows = np.arange(0, POINTS, 10, dtype=np.uint32)
        geometry.inlier_matches = np.column_stack([rows, rows])
        return geometry


def slowly(photos: list[Described], transfer: NDArray[np.float64], flat: bool, known: set[int]) -> set[tuple[int, int]]:
    """All that the docstring of `guided_matches` says, keypoint by keypoint."""
    one, two = photos
    inliers = sorted(known)
    distances = [np.linalg.norm(one.descriptors[row].astype(float) - two.descriptors[row]) for row in inliers]
    farthest = np.quantile(distances, 0.9)

    def answers(queries: Described, others: Described, matrix: NDArray[np.float64]) -> dict[int, int]:
        found = {}
        for row, xy in enumerate(queries.xy):
            x, y, w = matrix @ [*xy, 1]
            if flat:
                errors = np.linalg.norm(others.xy - [x / w, y / w], axis=1)
            else:
                errors = np.abs(others.xy @ [x, y] + w) / np.hypot(x, y)
            near = np.flatnonzero(errors <= 4)
            distance = np.linalg.norm(others.descriptors[near].astype(float) - queries.descriptors[row], axis=1)
            order = np.argsort(distance)
            if not len(near) or distance[order[0]] > farthest:
                continue
            if len(near) == 1 or distance[order[0]] < 0.9 * distance[order[1]]:
                found[row] = int(near[order[0]])
        return found

    there = answers(one, two, transfer)
    back = answers(two, one, np.linalg.inv(transfer) if flat else transfer.T)
    return {(a, b) for a, b in there.items() if back.get(b) == a and a not in known and b not in known}


@pytest.mark.parametrize(
    ("flat", "kind"),
    [(False, KINDS.UNCALIBRATED), (False, KINDS.CALIBRATED), (True, KINDS.PLANAR), (True, KINDS.PLANAR_OR_PANORAMIC)],
)
def test_matches_are_those_of_a_plain_search(flat: bool, kind: KINDS) -> None:
    made = TwoPhotos(flat)
    found = guided_matches(*made.photos, made.geometry(kind), max_error=4, max_ratio=0.9)
    transfer = made.homography if flat else made.fundamental
    assert {(a, b) for a, b in found.tolist()} == slowly(made.photos, transfer, flat, set(range(0, POINTS, 10)))
    right = found[:, 0] == found[:, 1]
    # Nine tenths of what was not known yet, less the tenth that is farther than nine tenths of the inliers.
    assert right.sum() > 0.75 * 0.9 * POINTS
    assert right.mean() > 0.97


def test_keypoints_without_descriptors_are_left_alone() -> None:
    made = TwoPhotos()
    one, two = made.photos
    short = Described(one.xy, one.descriptors[:100], one.camera)
    found = guided_matches(short, two, made.geometry(KINDS.UNCALIBRATED), max_error=4, max_ratio=0.9)
    assert len(found) > 60 and found[:, 0].max() < 100


def test_without_inliers_among_the_described_there_is_nothing() -> None:
    made = TwoPhotos()
    one, two = made.photos
    none = Described(one.xy, one.descriptors[:0], one.camera)
    assert len(guided_matches(none, two, made.geometry(KINDS.UNCALIBRATED), max_error=4, max_ratio=0.9)) == 0
