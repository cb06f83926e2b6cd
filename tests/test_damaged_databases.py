"""Damaged COLMAP databases, and models that COLMAP wrote on a full disk: each is an error that names the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from hardnet_sfm.colmap.database import (
    Database,
    camera_numbers,
    forget_verification,
    matched_pairs,
    open_database,
    write_facts,
)
from hardnet_sfm.colmap.mappers import open_cache
from hardnet_sfm.colmap.mapping import Mapping, map_database
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.colmap.recovery import register_more
from hardnet_sfm.colmap.tracks import keypoint_tables
from hardnet_sfm.colmap.two_view import Verification
from hardnet_sfm.errors import HardnetSfmError

MAPPING = Mapping("incremental", False, False, False, 3, 1, 0)
HOW = Verification(4.0, 15, 0)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Six synthetic photos of 100 points, and their verified pairs."""
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1, num_cameras_per_rig=1, num_frames_per_rig=6, num_points3D=100, num_points2D_without_point3D=0
    )
    path = tmp_path / "database.db"
    with pycolmap.Database.open(path) as opened:
        pycolmap.synthesize_dataset(options, opened).write_binary(tmp_path)
    return path


def verify(path: Path) -> None:
    forget_verification(path)
    with Database(path) as opened:
        names = sorted(opened.ids)
        list(opened.verify([(names[0], names[1])], HOW, 1))


def verified(path: Path) -> None:
    with Database(path) as opened:
        opened.verified()


def check_inliers(path: Path) -> None:
    with Database(path) as opened:
        opened.check_inliers()


def read_tables(path: Path) -> None:
    with keypoint_tables(path) as tables, Database(path) as opened:
        for name in opened.ids:
            tables[name]


def map_incrementally(path: Path) -> None:
    map_database(path, path.parent, path.parent / "snapshot", MAPPING, lambda _: None)


def map_globally(path: Path) -> None:
    map_database(path, path.parent, path.parent / "snapshot", replace(MAPPING, mapper="global"), print)


@pytest.mark.parametrize(
    ("damage", "use"),
    [
        ("UPDATE keypoints SET rows = 1000000", verify),
        ("UPDATE keypoints SET rows = -1", verify),
        ("UPDATE keypoints SET data = x'00'", read_tables),
        ("UPDATE matches SET rows = 1000000000", verify),
        ("UPDATE matches SET data = randomblob(length(data))", verify),
        ("UPDATE cameras SET model = 77", verify),
        ("UPDATE cameras SET params = x'00'", map_incrementally),
        ("UPDATE two_view_geometries SET rows = 9", check_inliers),
        ("UPDATE two_view_geometries SET data = randomblob(length(data))", check_inliers),
        ("UPDATE two_view_geometries SET F = x'00'", check_inliers),
        ("UPDATE two_view_geometries SET pair_id = 12345 WHERE pair_id = (SELECT MIN(pair_id) FROM matches)", verified),
        ("UPDATE keypoints SET cols = 7", map_incrementally),
        ("UPDATE keypoints SET cols = 7", open_cache),
        ("UPDATE two_view_geometries SET rows = 9", map_incrementally),
        ("UPDATE two_view_geometries SET rows = 9", map_globally),
        ("UPDATE images SET name = CAST(x'ff' AS TEXT) WHERE image_id = 1", verified),
        ("UPDATE images SET name = CAST(x'ff' AS TEXT) WHERE image_id = 1", camera_numbers),
        ("UPDATE matches SET pair_id = 12345 WHERE pair_id = (SELECT MIN(pair_id) FROM matches)", matched_pairs),
    ],
)
def test_damaged_rows_are_an_error_of_the_file(database: Path, damage: str, use: Callable[[Path], object]) -> None:
    with closing(sqlite3.connect(database)) as opened, opened:
        opened.execute(damage)
    with pytest.raises(HardnetSfmError) as raised:
        use(database)
    assert raised.value.message.startswith(f"{database}: ") and "damaged" in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("use", [verified, map_incrementally, open_cache, matched_pairs, read_tables])
def test_a_truncated_database_is_an_error_of_the_file(database: Path, use: Callable[[Path], object]) -> None:
    database.write_bytes(database.read_bytes()[:5000])
    with pytest.raises(HardnetSfmError) as raised:
        use(database)
    assert raised.value.message.startswith(f"{database}: ") and "damaged" in raised.value.message


def test_a_sound_database_is_used(database: Path) -> None:
    (model,) = map_database(database, database.parent, database.parent / "snapshot", MAPPING, lambda _: None)
    assert len(model.names) == 6 and len(camera_numbers(database)) == 6 and len(matched_pairs(database)) == 15
    for use in (verified, check_inliers, read_tables, open_cache, verify):
        use(database)


def test_a_full_disk_is_not_called_damage(database: Path) -> None:
    with (
        pytest.raises(HardnetSfmError, match=f"^{database}: No space left on device"),
        open_database(database),
    ):
        raise RuntimeError("[database_sqlite.cc:1350] SQLite error: database or disk is full")


def test_a_lock_is_not_called_damage(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **how: connect(*args, **{**how, "timeout": 0}))
    with closing(connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(HardnetSfmError, match=f"^{database}: in use by another program"):
            write_facts(database, {"a": "b"})


@pytest.mark.parametrize("part", ["images.bin", "points3D.bin", "frames.bin", "cameras.bin"])
def test_mapping_starts_anew_if_its_snapshot_is_truncated(database: Path, part: str) -> None:
    """COLMAP would read on behind the end of the file, for hours."""
    whole = map_database(database, database.parent, database.parent / "snapshot", MAPPING, lambda _: None)[0]
    whole.write(database.parent / "snapshot")
    path = database.parent / "snapshot" / part
    path.write_bytes(path.read_bytes()[:-9])
    again = map_database(database, database.parent, database.parent / "snapshot", MAPPING, lambda _: None)[0]
    assert again.facts() == whole.facts()


def test_a_model_that_a_full_disk_truncates_on_the_way_is_an_error(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = pycolmap.Reconstruction.write_binary

    def write_in_part(model: pycolmap.Reconstruction, folder: Path) -> None:
        write(model, folder)
        path = Path(folder) / "points3D.bin"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    model = Model.read(database.parent)
    monkeypatch.setattr(pycolmap.Reconstruction, "write_binary", write_in_part)
    with pytest.raises(HardnetSfmError, match=r"cannot write the model to .*: its files are incomplete"):
        register_more(model, database, database.parent, MAPPING)


def test_matches_beyond_the_keypoints_are_named(database: Path) -> None:
    with pycolmap.Database.open(database) as opened:
        pair = opened.read_two_view_geometry(1, 2)
        names = [opened.read_image(number).name for number in (1, 2)]
        pair.inlier_matches = np.array([[0, opened.num_keypoints_for_image(2)]], np.uint32)
        opened.update_two_view_geometry(1, 2, pair)
    with pytest.raises(HardnetSfmError, match=f"matches of {names[0]} and {names[1]} are beyond their keypoints"):
        check_inliers(database)
