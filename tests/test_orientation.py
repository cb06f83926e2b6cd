"""The trial of `--orientation auto` against photos that were turned on purpose."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial import KDTree

from hardnet_sfm.errors import UsageError
from hardnet_sfm.features.extraction import ExtractOptions, PhotoDescriber
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.keypoints import Keypoints, strongest
from hardnet_sfm.orientation import choose_sample, estimate_turn, estimated_is_better, find_quarter_turns
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.extract import extract

CPU = Resources("cpu", 2)
ROOTSIFT = ExtractOptions(descriptor="rootsift", max_keypoints=300)
# What is to the right in the scene points down in a photo that was turned clockwise: 90 degrees from x towards y.
CLOCKWISE = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def keypoints(oris: list[float]) -> Keypoints:
    n = len(oris)
    one = np.ones(n, np.float32)
    return Keypoints(np.arange(2 * n, dtype=np.float32).reshape(n, 2), one, np.array(oris, np.float32), one)


def turned_copy(photos: Path, names: list[str], folder: Path, turns: dict[str, int]) -> Path:
    """A folder with some of the photos, some of them turned by quarter turns."""
    folder.mkdir(exist_ok=True)
    for name in names:
        if name in turns:
            turned = cv2.rotate(cv2.imread(str(photos / name)), CLOCKWISE[turns[name]])
            cv2.imwrite(str(folder / name), turned)
        else:
            shutil.copy(photos / name, folder / name)
    return folder


def trial(store: Path) -> dict[str, object]:
    with FeatureStore(store) as features:
        return {"options": features.header["options"]["orientation"], **features.header["trial"]}


class TestTurnBetween:
    def test_is_the_difference_that_most_matches_share(self) -> None:
        rng = np.random.default_rng(0)
        one = rng.uniform(0, 360, 100)
        other = one + 75 + rng.normal(0, 5, 100)
        other[:40] = rng.uniform(0, 360, 40)
        rows = np.stack([np.arange(100), np.arange(100)], 1).astype(np.int32)
        turn = estimate_turn(keypoints(list(one % 360)), keypoints(list(other % 360)), rows)
        assert turn == pytest.approx(75, abs=2)

    def test_is_unknown_where_matches_disagree(self) -> None:
        rng = np.random.default_rng(1)
        rows = np.stack([np.arange(100), np.arange(100)], 1).astype(np.int32)
        assert estimate_turn(keypoints([0.0] * 100), keypoints(list(rng.uniform(0, 360, 100))), rows) is None
        assert estimate_turn(keypoints([0.0]), keypoints([0.0]), rows[:0]) is None


class TestQuarterTurns:
    def test_the_direction_of_most_photos_is_upright(self) -> None:
        between = {("a", "b"): (3.0, 50), ("b", "c"): (88.0, 40), ("c", "d"): (-92.0, 30), ("d", "e"): (1.0, 30)}
        assert find_quarter_turns(between) == {"c": 90}

    def test_follows_the_pairs_with_most_matches(self) -> None:
        between = {("a", "b"): (0.0, 90), ("b", "c"): (180.0, 80), ("a", "c"): (90.0, 15), ("a", "d"): (0.0, 70)}
        assert find_quarter_turns(between) == {"c": 180}

    def test_judges_each_connected_part_by_itself(self) -> None:
        between = {("a", "b"): (0.0, 90), ("x", "y"): (90.0, 90), ("y", "z"): (0.0, 90)}
        assert find_quarter_turns(between) == {"x": 270}


@pytest.mark.parametrize(
    ("gains", "before", "better"),
    [
        ([24, 3, 4, 10, -2, -3, 6, 4, -10, 0], 34.6, False),  # ten pairs of strangers' photos of Paris
        ([20, -10, 15, -5, 8] * 40, 150, False),  # less than a twentieth, though hardly by chance
        ([20, -10, 15, -5, 8] * 40, 40, True),
        ([60, 70, 80], 5, True),  # three photos at odd angles
        ([], 0, False),
    ],
)
def test_estimated_orientations_win_by_clear_evidence_alone(gains: list[int], before: float, better: bool) -> None:
    upright = np.full(len(gains), before)
    assert estimated_is_better(upright, upright + gains) == better


def test_the_sample_has_runs_of_neighbours() -> None:
    names = [f"{number:03}" for number in range(100)]
    sample = choose_sample(names)
    assert len(set(sample)) == 24 and sample[:4] == names[:4] and sample[-4:] == names[-4:]
    assert choose_sample(names[:24]) == names[:24]


def test_upright_photos_are_described_upright(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    photos, _ = small_scene
    report = extract(photos, tmp_path / "features.h5", ROOTSIFT, CPU)
    found = trial(tmp_path / "features.h5")
    assert found["options"] == found["orientation"] == "upright" and found["turned"] == {}
    assert report.orientation.startswith("upright: ")
    with FeatureStore(tmp_path / "features.h5") as store:
        assert all(not store.keypoints(name).oris.any() for name in store.names())


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_photo_among_upright_ones_is_found_and_described_along_its_upright(
    small_scene: tuple[Path, Scene], tmp_path: Path, turn: int
) -> None:
    photos, scene = small_scene
    name = scene.names[2]
    folder = turned_copy(photos, scene.names, tmp_path / "photos", {name: turn})
    extract(folder, tmp_path / "features.h5", ROOTSIFT, CPU)
    assert trial(tmp_path / "features.h5")["turned"] == {name: turn}
    plain, descriptors = PhotoDescriber(
        ExtractOptions(descriptor="rootsift", max_keypoints=300, orientation="upright"), CPU
    )(read_photo(photos / name))
    with FeatureStore(tmp_path / "features.h5") as store:
        turned, described = store.keypoints(name), store.descriptors(name)
        width, height = store.size(name)
    assert set(turned.oris.tolist()) == {float(turn)}
    x, y = turned.xy.T
    back = {90: (y, width - 1 - x), 180: (width - 1 - x, height - 1 - y), 270: (height - 1 - y, x)}[turn]
    distances, rows = KDTree(plain.xy).query(np.stack(back, 1))
    same = distances < 0.2
    assert same.mean() > 0.75  # the copy is compressed again, which changes which keypoints are the strongest
    cosines = (described.astype(np.float32) * descriptors[rows].astype(np.float32)).sum(1)[same]
    assert np.median(cosines) > 0.99


def turned_at_odd_angles(photos: Path, names: Sequence[str], folder: Path) -> None:
    """Copies photos, each turned by another multiple of 47 degrees."""
    folder.mkdir()
    for number, name in enumerate(names):
        photo = cv2.imread(str(photos / name))
        height, width = photo.shape[:2]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), 47 * number, 1)
        cv2.imwrite(str(folder / name), cv2.warpAffine(photo, turn, (width, height)))


def test_photos_turned_by_any_angle_get_estimated_orientations(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    photos, scene = small_scene
    turned_at_odd_angles(photos, scene.names, tmp_path / "photos")
    extract(tmp_path / "photos", tmp_path / "features.h5", ROOTSIFT, CPU)
    found = trial(tmp_path / "features.h5")
    assert found["options"] == found["orientation"] == "estimated" and found["turned"] == {}


def test_a_decision_is_made_again_when_there_are_twice_as_many_photos(
    small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    photos, scene = small_scene
    turned_at_odd_angles(photos, scene.names, tmp_path / "all")
    (tmp_path / "photos").mkdir()
    shutil.copy(tmp_path / "all" / scene.names[0], tmp_path / "photos")
    extract(tmp_path / "photos", tmp_path / "features.h5", ROOTSIFT, CPU)
    assert trial(tmp_path / "features.h5")["orientation"] == "upright"
    shutil.copytree(tmp_path / "all", tmp_path / "photos", dirs_exist_ok=True)
    extract(tmp_path / "photos", tmp_path / "features.h5", ROOTSIFT, CPU)
    found = trial(tmp_path / "features.h5")
    assert (found["orientation"], found["photos"]) == ("estimated", len(scene.names))


def test_photos_that_come_later_keep_the_decision_and_are_turned_against_the_others(
    small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    photos, scene = small_scene
    first, late = scene.names[:6], scene.names[6]
    folder = turned_copy(photos, first, tmp_path / "photos", {first[1]: 90})
    extract(folder, tmp_path / "features.h5", ROOTSIFT, CPU)
    before = trial(tmp_path / "features.h5")
    turned_copy(photos, [late], folder, {late: 270})
    report = extract(folder, tmp_path / "features.h5", ROOTSIFT, CPU)
    assert report.computed == 1
    after = trial(tmp_path / "features.h5")
    assert after == {**before, "turned": {first[1]: 90, late: 270}}
    assert extract(folder, tmp_path / "features.h5", ROOTSIFT, CPU).computed == 0


def test_an_unknown_orientation_is_refused() -> None:
    with pytest.raises(UsageError, match="--orientation: sideways is not one of auto, upright, estimated, both"):
        ExtractOptions(orientation="sideways").check()  # type: ignore[arg-type]


class TestKeypoints:
    TWO_PLACES = Keypoints(
        np.array([[5, 5], [5, 5], [9, 9]], np.float32),
        np.array([2, 2, 4], np.float32),
        np.array([10, 120, 200], np.float32),
        np.array([1, 1, 3], np.float32),
    )

    def test_a_place_with_two_orientations_counts_once(self) -> None:
        scores = self.TWO_PLACES.scores
        assert strongest(self.TWO_PLACES, scores, 1).oris.tolist() == [200]
        assert strongest(self.TWO_PLACES, scores, 2).oris.tolist() == [200, 10, 120]
        assert len(strongest(Keypoints.empty(), Keypoints.empty().scores, 5)) == 0

    def test_both_ways_adds_what_is_not_nearly_upright(self) -> None:
        both = self.TWO_PLACES.both_ways()
        assert both.oris.tolist() == [0, 0, 120, 200]
        assert both.xy.tolist() == [[5, 5], [9, 9], [5, 5], [9, 9]]

    def test_affine_frames_turn_with_the_orientation(self) -> None:
        shape = np.array([[3, 0.5], [0, 2]], np.float32)
        turn = np.deg2rad(30)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        one = np.ones(1, np.float32)
        found = Keypoints(np.ones((1, 2), np.float32), one, 30 * one, one, (shape @ rotation)[None].astype(np.float32))
        upright = found.along(0)
        assert upright.affines is not None
        np.testing.assert_allclose(upright.affines[0], shape, atol=1e-6)
