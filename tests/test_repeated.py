"""Pairs that contradict a model: synthetic walls that look alike, and a rendered tower of four equal facades."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray
from scenes import TOWER_IN_A_RING, TWIN_HOUSES

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.colmap.database import Database
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.evaluation.poses import pose_errors
from hardnet_sfm.files.workspace import Workspace, read_json
from hardnet_sfm.reconstruction.repeated import (
    DIFFERENT,
    STRONG,
    WEAK,
    Overlap,
    PairFit,
    Suspect,
    find_suspects,
    fit_pairs,
)
from hardnet_sfm.scene import Layout, render
from hardnet_sfm.sights import NO_POINT, Sight

FloatArray = NDArray[np.float64]
Pairs = dict[tuple[str, str], NDArray[np.int32]]

POINTS = 120  # of each wall
APART = np.array([14.0, 0, 0])  # metres from one wall to its double
PIXEL = 1 / 1100  # of a camera of 1000 pixels


@dataclass(frozen=True)
class Street:
    """Two walls with the same points on them, photos of the left one, of the right one and of both.

    Attributes:
        sights: of all photos; keypoint k of a photo of one wall is point k of it, of both walls the right one's follow.
        xyz: (2 * POINTS, 3), those of the left wall first.
        true, false: matches between photos of the same wall, and between those of different ones.
    """

    sights: dict[str, Sight]
    xyz: FloatArray
    true: Pairs
    false: Pairs

    def suspects(self, pairs: Pairs) -> list[Suspect]:
        fits = fit_pairs(pairs.items(), self.sights, self.xyz)
        return find_suspects(fits, Overlap(self.sights, self.xyz))

    def judge(self, pairs: Pairs) -> list[tuple[str, str]]:
        return [(one.fit.first, one.fit.second) for one in self.suspects(pairs)]


def look(x: float, xyz: FloatArray, points: NDArray[np.int64], noise: float, rng: np.random.Generator) -> Sight:
    """A photo taken 8 metres in front of the walls at x, of points in the plane z = 8."""
    pose = np.column_stack([np.eye(3), [-x, 0, 0]])
    local = xyz[points] - [x, 0, 0]
    rays = local[:, :2] / local[:, 2:] + rng.normal(0, noise * PIXEL, (len(points), 2))
    return Sight(pose, rays.astype(np.float32), points, 1000 * PIXEL)


@pytest.fixture
def street() -> Street:
    rng = np.random.default_rng(0)
    wall = rng.uniform((-3, -3, 8), (3, 3, 8.5), (POINTS, 3))
    xyz = np.concatenate([wall, wall + APART])
    left, right = np.arange(POINTS), np.arange(POINTS, 2 * POINTS)
    sees = {f"left {n}": (n - 2.0, left) for n in range(5)} | {f"right {n}": (n + 12.0, right) for n in range(5)}
    sees["both"] = (7.0, np.arange(2 * POINTS))
    sights = {name: look(x, xyz, points, 0.7, rng) for name, (x, points) in sees.items()}
    same = np.column_stack([np.arange(POINTS)] * 2).astype(np.int32)
    walls = [name for name in sees if name != "both"]
    true = {pair: same for pair in combinations(walls, 2) if pair[0].split()[0] == pair[1].split()[0]}
    true |= {(name, "both"): same + np.array([0, POINTS if "right" in name else 0], np.int32) for name in walls}
    false = {pair: same[::2] for pair in combinations(walls, 2) if pair not in true}
    return Street(sights, xyz, true, false)


def test_pairs_of_different_walls_are_the_suspects_and_no_others(street: Street) -> None:
    """Precision and recall are 1."""
    assert len(street.false) == 25 and len(street.true) == 30
    assert set(street.judge(street.true | street.false)) == set(street.false)
    fits = fit_pairs((street.true | street.false).items(), street.sights, street.xyz)
    assert {fit.share for fit in fits if (fit.first, fit.second) in street.true} == {1.0}
    assert {fit.share for fit in fits if (fit.first, fit.second) in street.false} == {0.0}
    assert {fit.inliers for fit in fits if (fit.first, fit.second) in street.false} == {POINTS // 2}


def test_suspects_with_fewer_matches_than_usual_are_told_from_strong_ones(street: Street) -> None:
    pairs = street.true | street.false
    assert {one.reason for one in street.suspects(pairs)} == {WEAK}
    # With half of the matches in every true pair, those of different walls are the strong ones.
    thinned = {pair: rows[::4] for pair, rows in street.true.items()} | street.false
    found = street.suspects(thinned)
    assert {(one.fit.first, one.fit.second) for one in found} == set(street.false)
    assert {one.reason for one in found} == {STRONG}


def test_folded_model_contradicts_the_photo_that_sees_both_walls(street: Street) -> None:
    """Both walls in one place: pairs of different walls fit, and those that prove the fold are the suspects."""
    folded = {
        name: replace(
            sight,
            points=sight.points % POINTS if "right" in name else sight.points,
            cam_from_world=sight.cam_from_world + np.pad(APART[:, None], ((0, 0), (3, 0))) * ("right" in name),
        )
        for name, sight in street.sights.items()
    }
    # The photo of both was registered by the left wall, and nothing was triangulated on its right half.
    both = folded["both"]
    folded["both"] = replace(both, points=np.where(both.points < POINTS, both.points, NO_POINT))
    model = replace(street, sights=folded)
    assert set(model.judge(street.true | street.false)) == {
        pair for pair in street.true if "right" in pair[0] and "both" in pair
    }


def test_split_tracks_fit_as_well_as_one(street: Street) -> None:
    """A model may hold a place twice, one point for each photo: what counts is where the points project."""
    twice = {
        name: replace(sight, points=sight.points + 2 * POINTS * (number % 2))
        for number, (name, sight) in enumerate(street.sights.items())
    }
    model = replace(street, sights=twice, xyz=np.concatenate([street.xyz, street.xyz + 0.01]))
    assert set(model.judge(street.true | street.false)) == set(street.false)


def test_few_matches_or_unobserved_keypoints_make_no_suspect(street: Street) -> None:
    few = {pair: rows[:29] for pair, rows in street.false.items()}
    assert street.judge(few) == []
    blind = {name: replace(sight, points=np.full_like(sight.points, NO_POINT)) for name, sight in street.sights.items()}
    model = replace(street, sights=blind)
    assert model.judge(street.false) == []
    (fit, *_) = fit_pairs(street.false.items(), blind, street.xyz)
    assert (fit.judged, fit.explained, fit.share) == (0, 0, 1.0)


def test_a_point_behind_the_other_camera_does_not_fit(street: Street) -> None:
    turned = np.diag([-1.0, 1, -1])  # about the vertical axis: what was ahead is behind, at mirrored rays
    sight = street.sights["left 1"]
    behind = replace(sight, cam_from_world=turned @ sight.cam_from_world, rays=sight.rays * np.float32([-1, 1]))
    behind = replace(behind, points=np.full_like(sight.points, NO_POINT))
    rows = street.true["left 0", "left 1"]
    (fit,) = fit_pairs([(("left 0", "left 1"), rows)], street.sights | {"left 1": behind}, street.xyz)
    assert (fit.judged, fit.explained) == (POINTS, 0)


def test_pairs_of_unregistered_photos_are_passed_over(street: Street) -> None:
    known = {name: sight for name, sight in street.sights.items() if name != "left 0"}
    fits = fit_pairs(street.false.items(), known, street.xyz)
    assert len(fits) == 20 and not any("left 0" in (fit.first, fit.second) for fit in fits)


def test_sights_of_a_model_and_their_fits_are_colmaps(made: Workspace) -> None:
    model = pycolmap.Reconstruction(made.sparse / "0")
    sights, xyz = Model.read(made.sparse / "0").sights()
    images = {image.name: image for image in (model.image(number) for number in model.reg_image_ids())}
    assert set(sights) == set(images)
    for name, image in images.items():
        sight, camera = sights[name], model.camera(image.camera_id)
        np.testing.assert_allclose(sight.centre, image.projection_center())
        assert sight.extent == pytest.approx(480 / camera.mean_focal_length())
        observed = image.get_observation_point2D_idxs()
        assert np.flatnonzero(sight.points != NO_POINT).tolist() == list(observed)
        for row in observed[::40]:
            seen = image.points2D[row]
            point = model.point3D(seen.point3D_id).xyz
            np.testing.assert_array_equal(xyz[sight.points[row]], point)
            np.testing.assert_allclose(sight.rays[row], camera.cam_from_img(seen.xy), atol=1e-6)
            (projected,), (depth,) = sight.project(point[None])
            np.testing.assert_allclose(camera.img_from_cam([*projected, 1]), image.project_point(point), atol=1e-6)
            assert depth == pytest.approx((image.cam_from_world() * point)[2])
    with Database(made.database) as database:
        pairs = list(database.verified())
        fits = fit_pairs(((pair, database.inliers(pair)) for pair in pairs), sights, xyz)
        for fit in fits[::5]:
            rows = database.inliers((fit.first, fit.second))
            assert (fit.inliers, fit.judged, fit.explained) == (len(rows), *judged_by_colmap(model, images, fit, rows))
    assert find_suspects(fits, Overlap(sights, xyz)) == []


def judged_by_colmap(
    model: pycolmap.Reconstruction, images: dict[str, pycolmap.Image], fit: PairFit, rows: NDArray[np.int32]
) -> tuple[int, int]:
    """Judged and explained matches of a pair, one by one, by COLMAP's projection without lens distortion."""
    judged = explained = 0
    pair = images[fit.first], images[fit.second]
    for match in rows.tolist():
        fits = []
        for side, other in ((0, 1), (1, 0)):
            seen = pair[side].points2D[match[side]]
            if seen.has_point3D():
                camera = model.camera(pair[other].camera_id)
                x, y, z = pair[other].cam_from_world() * model.point3D(seen.point3D_id).xyz
                keypoint = camera.cam_from_img(pair[other].points2D[match[other]].xy)
                off = np.hypot(x / z - keypoint[0], y / z - keypoint[1]) * camera.mean_focal_length()
                fits.append(z > 0 and off <= 0.01 * 480)
        judged += bool(fits)
        explained += any(fits)
    return judged, explained


@dataclass(frozen=True)
class Fold:
    """Two groups of photos in one place in front of a wall, on which either group has points of its own."""

    sights: dict[str, Sight]
    xyz: FloatArray

    def suspects(self) -> dict[tuple[str, str], str]:
        rows = np.column_stack([np.arange(200)] * 2).astype(np.int32)  # of points that all observe
        pairs = dict.fromkeys(combinations(self.sights, 2), rows)
        found = find_suspects(fit_pairs(pairs.items(), self.sights, self.xyz), Overlap(self.sights, self.xyz))
        return {(one.fit.first, one.fit.second): one.reason for one in found}


def fold(own: tuple[float, float], own_points: int, seed: int = 0) -> Fold:
    """Points that all photos observe lie on all of the wall, those of one group between two heights of it."""
    rng = np.random.default_rng(seed)
    shared = rng.uniform((-3, -3, 8), (3, 3, 8.1), (400, 3))
    if own[0] > -3:  # what only one group observes covers what both would
        shared = shared[(shared[:, 1] < own[0]) | (shared[:, 1] > own[1])]
    apart = rng.uniform((-3, own[0], 8), (3, own[1], 8.1), (2 * own_points, 3))
    xyz = np.concatenate([shared, apart])
    sights = {}
    for group in range(2):
        points = np.concatenate([np.arange(len(shared)), len(shared) + own_points * group + np.arange(own_points)])
        sights |= {f"{'AB'[group]}{n}": look(0.2 * n + 0.1 * group, xyz, points, 0.7, rng) for n in range(3)}
    return Fold(sights, xyz)


def test_photos_with_points_of_their_own_in_one_part_are_suspects() -> None:
    """As on facades that differ by a sign; the pairs within a group are none."""
    folded = fold(own=(0.5, 2.5), own_points=150)
    across = {pair for pair in combinations(folded.sights, 2) if pair[0][0] != pair[1][0]}
    assert folded.suspects() == dict.fromkeys(across, DIFFERENT)
    count, share = Overlap(folded.sights, folded.xyz).conflict("A0", "B0")
    assert 75 < count <= 150 and 0.1 < share < 0.4  # of a grid, whose cells have more of either group by chance


def test_points_that_a_detector_misses_at_random_are_no_conflict() -> None:
    """A photo misses a third of the points of the other, but nowhere all."""
    mixed = fold(own=(-3, 3), own_points=200)
    assert mixed.suspects() == {}
    assert Overlap(mixed.sights, mixed.xyz).conflict("A0", "B0")[1] < 0.02


def test_points_seen_from_elsewhere_are_no_conflict() -> None:
    """From other directions, or from closer by, other points are to be expected."""
    folded = fold(own=(0.5, 2.5), own_points=150)
    for moved in ([-6.0, 0, 0], [0, 0, -5.0]):
        away = {
            name: replace(
                sight, cam_from_world=sight.cam_from_world + np.pad(np.array(moved)[:, None], ((0, 0), (3, 0)))
            )
            if name[0] == "B"
            else sight
            for name, sight in folded.sights.items()
        }
        assert Overlap(away, folded.xyz).conflict("A0", "B0") == (0, 0.0)


@dataclass(frozen=True)
class Reconstructed:
    """A rendered scene with doubles, reconstructed with wide thresholds.

    Attributes:
        place: the workspace, with its page.
        errors: of the camera positions by name, as shares of the largest distance of two cameras.
        angles: direction of each true camera from the middle of the scene by name, degrees.
    """

    place: Workspace
    errors: dict[str, float]
    angles: dict[str, float]

    @property
    def suspects(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = read_json(self.place.summary)["suspects"]
        return found

    def turn(self, suspect: dict[str, Any]) -> float:
        """Angle between the directions of a pair's photos, degrees."""
        apart = abs(self.angles[suspect["first"]] - self.angles[suspect["second"]])
        return min(apart, 360 - apart)


def reconstructed(layout: Layout, photos: int, folder: Path) -> Reconstructed:
    scene = render(folder / "photos", photos=photos, size=(480, 360), layout=layout)
    place = Workspace(folder / "out")
    model = hardnet_sfm.reconstruct(
        folder / "photos",
        place.root,
        extract_options=hardnet_sfm.ExtractOptions(orientation="upright", max_keypoints=1500),
        match_options=hardnet_sfm.MatchOptions(max_ratio=0.9),
        map_options=hardnet_sfm.MapOptions(max_error=4, camera_mode="single"),
        resources=hardnet_sfm.Resources(workers=1),
    )
    poses = dict(zip(scene.names, scene.cam_from_world, strict=True))
    found = pose_errors(model.cam_from_world(), poses)
    names = [name for name in scene.names if name not in found.missing]
    extent = max(float(np.linalg.norm(a - b)) for a, b in combinations(scene.centres, 2))
    x, y, _ = scene.centres.T
    angles = dict(zip(scene.names, np.degrees(np.arctan2(y, x)).tolist(), strict=True))
    return Reconstructed(place, dict(zip(names, (found.positions / extent).tolist(), strict=True)), angles)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_equal_houses_among_others_put_no_photo_in_a_wrong_place(tmp_path: Path) -> None:
    made = reconstructed(TWIN_HOUSES, 16, tmp_path)
    assert len(made.errors) == 16
    assert max(made.errors.values()) < 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_tower_of_equal_facades_names_pairs_of_different_facades(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing in these photos keeps the mapper from folding the tower, so the page has to say it."""
    made = reconstructed(TOWER_IN_A_RING, 20, tmp_path)
    assert max(made.errors.values()) > 0.05  # else this scene tests nothing
    across = [one for one in made.suspects if made.turn(one) > 60]
    assert len(across) >= 10
    assert all(made.turn(one) > 60 for one in made.suspects if one["reason"] == DIFFERENT)
    main(["map", "--workspace", str(made.place.root), "--max-error", "4", "--camera-mode", "single", "--workers", "1"])
    count = read_json(made.place.summary)["suspect_pairs"]
    assert f"{count} pairs look alike but disagree with the model" in " ".join(capsys.readouterr().err.split())
