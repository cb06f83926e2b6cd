"""Which mapper makes the model, on photos that the incremental mapper finds no start in."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from scenes import WALK

import hardnet_sfm
from hardnet_sfm.colmap.mappers import complete, connected, is_better
from hardnet_sfm.colmap.mapping import Mapping, map_database
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.poses import pose_errors
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.workspace import Workspace, read_json
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.reconstruction.summary import explain_failure
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene, render

FEW = ExtractOptions(descriptor="rootsift", max_keypoints=1500)
OPTIONS = MapOptions(camera_mode="single", camera_params="1584,240,180,0")
ONE_THREAD = Resources(workers=1)
MAPPING = Mapping("global", False, True, False, 3, 1, 0)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Scene]:
    """Eight photos taken while walking straight ahead, reconstructed by default. Tests must not write into it.

    The focal length of the camera is said to be three times the true one, 528 pixels.
    """
    folder = tmp_path_factory.mktemp("street")
    scene = render(folder / "photos", photos=8, size=(480, 360), layout=WALK)
    place = Workspace(folder / "out")
    hardnet_sfm.reconstruct(
        folder / "photos", place.root, extract_options=FEW, map_options=OPTIONS, resources=ONE_THREAD, report=False
    )
    return place, scene


def truth_of(scene: Scene) -> dict[str, np.ndarray]:
    return dict(zip(scene.names, scene.cam_from_world, strict=True))


def test_photos_of_a_walk_straight_ahead_are_all_registered(street: tuple[Workspace, Scene]) -> None:
    place, scene = street
    errors = pose_errors(Model.read(place.sparse / "0").cam_from_world(), truth_of(scene))
    assert errors.missing == ()
    assert errors.positions.max() < 0.1  # metres, on a way of 10.5 m
    assert errors.auc(1) > 0.8
    summary = read_json(place.summary)
    assert summary["mapper"] == "global"
    assert summary["tried"]["global"] == 8 > summary["tried"]["incremental"]


@pytest.mark.parametrize(("mapper", "tried", "hint"), [("incremental", 1, "--mapper auto"), ("auto", 2, "parallax")])
def test_the_hint_where_nothing_was_made_names_what_was_not_tried(mapper: str, tried: int, hint: str) -> None:
    found = {
        "photos": 2,
        "keypoints": 9,
        "matches": 9,
        "pairs": 1,
        "verified_pairs": 1,
        "unregistered": {"a": "x"},
        "options": {"map": {}},
    }
    counts = dict.fromkeys(["incremental", "global"][:tried], 0)
    error = explain_failure({**found, "mapper": mapper, "tried": counts}, Path("database.db"), kept=False)
    assert hint in error.hint
    assert ("--mapper auto" in error.hint) == (tried == 1)


def test_a_second_run_maps_nothing(street: tuple[Workspace, Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    from hardnet_sfm.colmap import mappers

    monkeypatch.setattr(mappers, "map_best", None)
    assert len(hardnet_sfm.map_photos(street[0], OPTIONS, ONE_THREAD).names) == 8


def test_photos_with_wrong_poses_are_taken_out_of_a_model(street: tuple[Workspace, Scene], tmp_path: Path) -> None:
    """One photo is turned by half a turn: what it sees no longer agrees with the other photos."""
    place = copied(street[0], tmp_path)
    model = Model.read(place.sparse / "0")
    wrong = model.colmap.image(model.colmap.reg_image_ids()[0])
    pose = wrong.cam_from_world()
    pose.rotation = pose.rotation * pycolmap.Rotation3d(np.array([0, np.pi, 0]))
    model.colmap.frame(wrong.frame_id).set_cam_from_world(wrong.camera_id, pose)
    kept = complete(model, place.database, tmp_path, MAPPING)
    assert set(kept.names) == set(street[1].names) - {wrong.name}


@pytest.mark.parametrize(
    ("verified", "photos"),
    [
        ({}, 0),
        ({("a", "b"): 20}, 0),  # too few inliers to register either
        ({("a", "b"): 30, ("c", "d"): 90, ("e", "d"): 40}, 3),
        ({("a", "b"): 30, ("c", "d"): 90, ("b", "d"): 40, ("b", "e"): 29}, 4),
    ],
)
def test_connected_photos(verified: dict[tuple[str, str], int], photos: int) -> None:
    assert connected(verified) == photos


@dataclass
class Figures:
    """What `is_better` asks of a model."""

    photos: int
    observations: int

    @property
    def names(self) -> list[str]:
        return [str(number) for number in range(self.photos)]


@pytest.mark.parametrize(
    ("model", "other", "better"),
    [
        ((9, 900), (8, 900), True),
        ((9, 900), (8, 1001), False),  # of more photos, which do not fit
        ((8, 901), (8, 900), True),
        ((8, 900), (8, 900), False),
        ((7, 2000), (8, 900), False),
    ],
)
def test_a_better_model_has_more_photos_that_fit(model: tuple[int, int], other: tuple[int, int], better: bool) -> None:
    one, two = ([Figures(*of)] for of in (model, other))
    assert is_better(one, two) is better  # type: ignore[arg-type]
    assert is_better(one, []) is True and is_better([], two) is False  # type: ignore[arg-type]


def copied(place: Workspace, folder: Path) -> Workspace:
    shutil.copytree(place.root, folder / "copy")
    return Workspace(folder / "copy")


def test_photos_that_disappear_meanwhile_are_an_error(
    made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    """COLMAP would make a model whose points are black, and its next run would find it up to date."""
    shutil.copytree(small_scene[0], tmp_path / "photos")
    shutil.copy(made.database, tmp_path / "database.db")

    def disconnect_drive(_: int) -> None:
        if (tmp_path / "photos").is_dir():
            (tmp_path / "photos").rename(tmp_path / "gone")

    mapping = Mapping("incremental", False, True, False, 3, 1, 0)
    with pytest.raises(HardnetSfmError, match=r"photos/.*the photo disappeared while models were made \(8 photos\)"):
        map_database(tmp_path / "database.db", tmp_path / "photos", tmp_path / "snapshot", mapping, disconnect_drive)
