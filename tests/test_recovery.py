"""Models that belong together become one, on COLMAP's synthetic cameras and points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from hardnet_sfm.colmap.mappers import Mapped, Step
from hardnet_sfm.colmap.mapping import Mapping
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.colmap.recovery import merge, recover, register_more
from hardnet_sfm.evaluation.poses import pose_errors

MAPPING = Mapping("incremental", False, False, False, 3, 1, 0)
PHOTOS, HALF = 12, 6


class Made:
    """Twelve photos of a synthetic scene, whose halves have matches with each other for some points only.

    Args:
        folder: for the database.
        matches: how many a pair of photos of different halves has.
        wrong: these are of points by chance.
    """

    def __init__(self, folder: Path, matches: int, wrong: bool = False) -> None:
        pycolmap.set_random_seed(0)
        options = pycolmap.SyntheticDatasetOptions(
            num_rigs=1,
            num_cameras_per_rig=1,
            num_frames_per_rig=PHOTOS,
            num_points3D=300,
            num_points2D_without_point3D=0,
        )
        self.images, self.database, rng = folder, folder / "database.db", np.random.default_rng(0)
        with pycolmap.Database.open(self.database) as opened:
            self.truth = pycolmap.synthesize_dataset(options, opened)
            self.numbers = sorted(self.truth.reg_image_ids())
            for one in self.numbers[:HALF]:
                for two in self.numbers[HALF:]:
                    geometry = opened.read_two_view_geometry(one, two)
                    rows = geometry.inlier_matches[:matches]
                    if wrong:
                        rows = np.column_stack([rows[:, 0], rng.permutation(rows[:, 1])]).astype(np.uint32)
                    geometry.inlier_matches = rows
                    opened.update_two_view_geometry(one, two, geometry)

    def part(self, numbers: list[int]) -> Model:
        """The true cameras and points of some photos, in a frame of their own."""
        model = pycolmap.Reconstruction(self.truth)
        for number in self.numbers:
            if number not in numbers:
                model.deregister_frame(model.image(number).frame_id)
        turned = pycolmap.Rotation3d(np.array([0.1 * numbers[0], 0.4, 0]))
        model.transform(pycolmap.Sim3d(1.0 + 0.1 * numbers[0], turned, np.array([3.0, 2, 1])))
        return Model(model)

    def halves(self) -> list[Model]:
        return [self.part(self.numbers[:HALF]), self.part(self.numbers[HALF:])]

    def largest_error(self, model: Model) -> float:
        """Of the camera centres, which are some 5 apart."""
        errors = pose_errors(model.cam_from_world(), Model(self.truth).cam_from_world())
        assert errors.missing == ()
        return float(errors.positions.max())


def test_two_halves_that_few_matches_join_become_one_model(tmp_path: Path) -> None:
    made = Made(tmp_path, matches=40)
    before = [model.facts() for model in made.halves()]
    halves = made.halves()
    merged = merge(halves, made.database, tmp_path, MAPPING)
    assert len(merged) == 1
    assert made.largest_error(merged[0]) < 0.02
    assert [model.facts() for model in halves] == before


def test_halves_without_matches_stay_apart(tmp_path: Path) -> None:
    made = Made(tmp_path, matches=0)
    assert [len(model.names) for model in merge(made.halves(), made.database, tmp_path, MAPPING)] == [HALF, HALF]


def test_halves_that_wrong_matches_join_stay_apart(tmp_path: Path) -> None:
    made = Made(tmp_path, matches=40, wrong=True)
    assert [len(model.names) for model in merge(made.halves(), made.database, tmp_path, MAPPING)] == [HALF, HALF]


def test_a_photo_of_both_models_joins_them(tmp_path: Path) -> None:
    made = Made(tmp_path, matches=0)
    both = [made.part(made.numbers[: HALF + 1]), made.part(made.numbers[HALF:])]
    merged = merge(both, made.database, tmp_path, MAPPING)
    assert len(merged) == 1
    assert made.largest_error(merged[0]) < 0.02


def test_the_incremental_mapper_registers_photos_that_a_model_lacks(tmp_path: Path) -> None:
    made = Made(tmp_path, matches=300)
    few = made.part(made.numbers[:9])
    assert made.largest_error(register_more(few, made.database, tmp_path, MAPPING)) < 0.02
    assert len(few.names) == 9


def test_each_step_tells_what_it_brought(tmp_path: Path) -> None:
    made = Made(tmp_path, matches=40)
    parts = [made.part(made.numbers[:HALF]), made.part(made.numbers[HALF:-1])]
    found = recover(Mapped(parts, "incremental", {"incremental": 6}), made.database, tmp_path, MAPPING)
    assert found.recovered == (Step("merge models", 6, 5), Step("register more", 1, 1))
    assert len(found.models) == 1
    assert made.largest_error(found.models[0]) < 0.02


def test_a_complete_model_is_not_touched(tmp_path: Path) -> None:
    made = Made(tmp_path, matches=300)
    whole = made.part(made.numbers)
    found = recover(Mapped([whole], "global", {"global": 12}), made.database, tmp_path, MAPPING)
    assert found.models[0] is whole and found.recovered == ()


def test_a_step_that_gives_a_worse_model_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More photos, but most observations lost: the cameras do not fit the matches."""
    made = Made(tmp_path, matches=300)
    few, worse = made.part(made.numbers[:9]), made.part(made.numbers[:10])
    for number in list(worse.colmap.points3D)[:200]:
        worse.colmap.delete_point3D(number)
    monkeypatch.setattr("hardnet_sfm.colmap.recovery.register_more", lambda *_: worse)
    found = recover(Mapped([few], "global", {"global": 9}), made.database, tmp_path, MAPPING)
    assert found.models[0] is few and found.recovered == (Step("register more", 3, 0),)
