"""database.db when photos, pairs or options change: as if made anew, but only what differs is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest
from PIL import Image
from test_camera_groups import Shot, exif, photograph

from hardnet_sfm.colmap import cameras as cameras_module
from hardnet_sfm.colmap import database as database_module
from hardnet_sfm.colmap.database import Database, read_fact, replace_database
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FEATURES, MATCHES, FeatureStore, Kind, MatchStore, Store, pair_key
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.reconstruction import camera_groups
from hardnet_sfm.reconstruction.database_maker import EXTENDS, DatabaseMaker
from hardnet_sfm.reconstruction.map_options import MapOptions

SINGLE = MapOptions(camera_mode="single")
FOLDERS = MapOptions(camera_mode="per-folder")
NAMES = [f"{'ab'[number % 2]}/{number}.png" for number in range(8)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Eight photos by one camera in two folders, with all pairs. Tests must not write into it."""
    return photograph(tmp_path_factory.mktemp("whole"), [Shot(name, 700) for name in NAMES], points=80)


def arrays_of(group: h5py.Group) -> dict[str, Any]:
    return {name: item[()] for name, item in group.items()}


def fill(folder: Path, source: Workspace, names: Sequence[str], without: Sequence[tuple[str, str]] = ()) -> Workspace:
    """Gives the stores in a folder the photos `names` of the source, and all of their pairs except some."""
    place = Workspace(folder)
    place.root.mkdir(parents=True, exist_ok=True)
    with FeatureStore(source.features) as store:
        _copy(store, FEATURES, place.features, list(names), {**store.header, "names": list(names)})
    with MatchStore(source.matches) as matches:
        pairs = [pair for pair in matches.pairs() if {*pair} <= {*names} and pair not in without]
        _copy(matches, MATCHES, place.matches, [pair_key(*pair) for pair in pairs], matches.header)
    return place


def _copy(store: Store, kind: Kind, path: Path, keys: list[str], header: dict[str, Any]) -> None:
    prints = store.fingerprints()
    with StoreWriter(path, kind) as writer, h5py.File(store.path) as file:
        for key in keys:
            if writer.fingerprints.get(key) != prints[key]:
                writer.put(key, prints[key], arrays_of(file[key]), store.index[key])
        writer.commit(keys, header)


def make(place: Workspace, options: MapOptions = SINGLE) -> str:
    """Makes the database and returns its fingerprint."""
    with FeatureStore(place.features) as features, MatchStore(place.matches) as matches:
        maker = DatabaseMaker(place, Path(features.header["images"]), features, matches, options, threads=1)
        made = maker.make()
        if made != place.database:
            replace_database(made, place.database)
        assert read_fact(place.database, "fingerprint") == maker.fingerprint
    assert not [*place.root.glob(".database*")] and not [*place.root.glob("database.db-*")]
    return maker.fingerprint


def values(place: Workspace) -> dict[Any, Any]:
    """Everything in a database by the names of photos, without numbers that depend on its history."""
    found: dict[Any, Any] = {}
    with pycolmap.Database.open(place.database) as database:
        images = {image.name: image for image in database.read_all_images()}
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        rigs = {frame.frame_id: frame.rig_id for frame in database.read_all_frames()}
        assert len(rigs) == len(images) == database.num_frames()
        assert {image.camera_id for image in images.values()} == cameras.keys() and database.num_rigs() == len(cameras)
        ids = {image.image_id for image in images.values()}
        for number in {*database.read_num_matches()[0], *database.read_two_view_geometry_num_inliers()[0]}:
            assert {*pycolmap.pair_id_to_image_pair(number)} <= ids
        for name, image in images.items():
            camera = cameras[image.camera_id]
            what = camera.model_name, camera.width, camera.height, *camera.params, camera.has_prior_focal_length
            found[name] = (what, sorted(other for other in images if images[other].camera_id == image.camera_id))
            found[name, "keypoints"] = database.read_keypoints(image.image_id).tolist()
        for pair in combinations(sorted(images), 2):
            one, two = (images[name].image_id for name in pair)
            if database.exists_matches(one, two):
                found[pair, "matches"] = sorted(database.read_matches(one, two).tolist())
            if database.exists_two_view_geometry(one, two):
                geometry = database.read_two_view_geometry(one, two)
                found[pair, "inliers"] = sorted(np.asarray(geometry.inlier_matches).tolist())
                found[pair, "geometry"] = geometry.config
                for name in "EFH":
                    matrix = getattr(geometry, name)
                    found[pair, name] = (
                        None if matrix is None else np.round(matrix / np.linalg.norm(matrix), 9).tolist()
                    )
    return found


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each pair that is verified."""
    calls: list[int] = []
    estimate = pycolmap.estimate_two_view_geometry

    def counted(*args: Any) -> Any:
        calls.append(1)
        return estimate(*args)

    monkeypatch.setattr(database_module.pycolmap, "estimate_two_view_geometry", counted)
    return calls


def fresh(tmp_path: Path, source: Workspace, names: Sequence[str], options: MapOptions = SINGLE) -> dict[Any, Any]:
    place = fill(tmp_path / "fresh", source, names)
    make(place, options)
    return values(place)


@pytest.mark.parametrize("options", [SINGLE, FOLDERS, MapOptions(camera_mode="per-image")])
def test_new_photos_are_added(options: MapOptions, whole: Workspace, tmp_path: Path, verified: list[int]) -> None:
    place = fill(tmp_path / "grown", whole, NAMES[:6])
    make(place, options)
    before, file = values(place), place.database.stat().st_ino
    assert len(verified) == 15
    fill(place.root, whole, NAMES)
    make(place, options)
    assert len(verified) == 15 + 2 * 6 + 1 and place.database.stat().st_ino == file
    after = values(place)
    assert after == fresh(tmp_path, whole, NAMES, options)
    of_pairs = [key for key in before if key not in NAMES]  # photos got companions in their cameras
    assert all(after[key] == before[key] for key in of_pairs)


def test_photos_that_are_gone_leave_nothing(whole: Workspace, tmp_path: Path, verified: list[int]) -> None:
    place = fill(tmp_path / "shrunk", whole, NAMES)
    make(place, FOLDERS)
    fill(place.root, whole, NAMES[:1] + NAMES[2:7])
    make(place, FOLDERS)
    assert len(verified) == 28
    assert values(place) == fresh(tmp_path, whole, NAMES[:1] + NAMES[2:7], FOLDERS)
    fill(place.root, whole, NAMES)
    make(place, FOLDERS)
    assert values(place) == fresh(tmp_path / "again", whole, NAMES, FOLDERS)


def test_photos_that_were_imported_in_part_get_the_same_numbers(
    whole: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hardnet_sfm.colmap import cameras

    def numbers(place: Workspace) -> list[tuple[str, int, int, int]]:
        with pycolmap.Database.open(place.database) as database:
            images = database.read_all_images()
        return [(image.name, image.image_id, image.camera_id, image.frame_id) for image in images]

    def stop(database: Path, images: Path, names: list[str], *more: Any) -> None:
        whole_import(database, images, names[:5], *more)
        raise KeyboardInterrupt

    whole_import, place, other = (
        cameras.import_photos,
        fill(tmp_path / "a", whole, NAMES),
        fill(tmp_path / "b", whole, NAMES),
    )
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cameras, "import_photos", stop)
        make(place)
    make(place)
    make(other)
    assert numbers(place) == numbers(other)


def test_a_photo_with_new_features_is_replaced(whole: Workspace, tmp_path: Path, verified: list[int]) -> None:
    place = fill(tmp_path / "changed", whole, NAMES)
    make(place)
    other = photograph(tmp_path / "other", [Shot(name, 700) for name in NAMES], points=70, seed=1)
    mixed = fill(tmp_path / "mixed", whole, NAMES[1:])
    _put_photo_of(mixed, other, NAMES[0])
    _put_photo_of(place, other, NAMES[0])
    make(place)
    assert len(verified) == 28 + 7
    make(mixed)
    assert values(place) == values(mixed)


def _put_photo_of(place: Workspace, other: Workspace, name: str) -> None:
    """Gives a workspace the photo of another one, with the matches of the first one's pairs in the other."""
    with FeatureStore(other.features) as store, StoreWriter(place.features, FEATURES) as writer:
        with h5py.File(other.features) as file:
            writer.put(name, store.fingerprints()[name], arrays_of(file[name]), store.index[name])
        names = sorted({*writer.header["names"], name}, key=NAMES.index)
        writer.commit(names, {**writer.header, "names": names})
    with MatchStore(other.matches) as matches, StoreWriter(place.matches, MATCHES) as writer:
        with h5py.File(other.matches) as file:
            for key in (pair_key(*pair) for pair in matches.pairs() if name in pair):
                writer.put(key, f"{matches.fingerprints()[key]} mixed", arrays_of(file[key]), matches.index[key])
        writer.commit(list(writer.facts), writer.header)


def test_a_photo_that_was_replaced_gets_the_camera_of_its_new_file(tmp_path: Path) -> None:
    source = photograph(tmp_path / "source", [Shot(f"{number}.png", 700) for number in range(4)], points=80)
    place = fill(tmp_path / "place", source, [f"{number}.png" for number in range(4)])
    make(place, MapOptions(camera_mode="per-image"))
    Image.new("L", (640, 480)).save(tmp_path / "source" / "photos" / "1.png", exif=exif("Maker", "Camera", 0, 50))
    with FeatureStore(source.features) as store, StoreWriter(place.features, FEATURES) as writer:
        with h5py.File(source.features) as file:
            writer.put("1.png", "another file", arrays_of(file["1.png"]), store.index["1.png"])
        writer.commit(store.names(), store.header)
    before = values(place)
    make(place, MapOptions(camera_mode="per-image"))
    after = values(place)
    with pycolmap.Database.open(place.database) as database:
        cameras = {image.name: database.read_camera(image.camera_id) for image in database.read_all_images()}
    assert [cameras[name].has_prior_focal_length for name in sorted(cameras)] == [False, True, False, False]
    assert cameras["1.png"].focal_length == pytest.approx(50 * 800 / np.hypot(36, 24), rel=0.001)
    assert before.keys() == after.keys()
    same = [key for key in before if "1.png" not in key and "1.png" not in key[0]]
    assert all(after[key] == before[key] for key in same)


def test_new_pairs_extend_the_database(whole: Workspace, tmp_path: Path, verified: list[int]) -> None:
    place = fill(tmp_path / "pairs", whole, NAMES, without=list(combinations(NAMES[:4], 2)))
    first = make(place)
    assert len(verified) == 22 and read_fact(place.database, EXTENDS) == ""
    fill(place.root, whole, NAMES)
    second = make(place)
    assert len(verified) == 28 and read_fact(place.database, EXTENDS) == first != second
    assert values(place) == fresh(tmp_path, whole, NAMES)
    fill(place.root, whole, NAMES, without=[(NAMES[0], NAMES[1])])
    make(place)
    assert len(verified) == 28 + 28, "the fresh one's; a pair that is gone verifies nothing"
    assert (*sorted(NAMES[:2]),) not in {key[0] for key in values(place) if isinstance(key, tuple)}


def test_options_redo_what_they_affect(
    whole: Workspace, tmp_path: Path, verified: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = fill(tmp_path / "options", whole, NAMES)
    make(place)
    written: list[str] = []
    write = Database.write_keypoints
    monkeypatch.setattr(
        Database, "write_keypoints", lambda self, photos: write(self, [written.append(one[0]) or one for one in photos])
    )
    time = place.database.stat().st_mtime_ns
    make(place, MapOptions(camera_mode="single", mapper="global", min_model_size=5, retry=False))
    assert (len(verified), written, place.database.stat().st_mtime_ns) == (28, [], time)
    tighter = MapOptions(camera_mode="single", max_error=0.5)
    make(place, tighter)
    assert (len(verified), written) == (56, [])
    assert values(place) == fresh(tmp_path, whole, NAMES, tighter)
    written.clear()
    make(place, FOLDERS)
    assert (len(verified), sorted(written)) == (56 + 28 + 28, sorted(NAMES))


STEPS: list[tuple[Any, str]] = [
    (database_module, "remove_photos"),
    (cameras_module, "import_photos"),
    (Database, "write_keypoints"),
    (database_module, "forget_pairs"),
    (Database, "write_matches"),
    (Database, "verify"),
    (database_module, "write_facts"),
]


@pytest.mark.parametrize(("where", "step"), STEPS, ids=[step for _, step in STEPS])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_run_that_is_stopped_at_any_step_is_continued(
    where: Any, step: str, after: bool, whole: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos come and go. Between the stop and the next run, other photos come and go."""
    place = fill(tmp_path / "stopped", whole, NAMES[:6])
    make(place)
    expected = fresh(tmp_path, whole, NAMES[:7])
    fill(place.root, whole, NAMES[1:])
    for occasion in range(9):
        with monkeypatch.context() as patched:
            patched.setattr(where, step, _stopping(getattr(where, step), occasion, after))
            try:
                make(place)
            except KeyboardInterrupt:
                fill(place.root, whole, NAMES[:7] if occasion % 2 else NAMES[1:])
            else:
                break
    assert 0 < occasion < 8
    fill(place.root, whole, NAMES[:7])
    make(place)
    assert values(place) == expected


def _stopping(call: Callable[..., Any], occasion: int, after: bool) -> Callable[..., Any]:
    """Raises KeyboardInterrupt at the first call, or on later occasions at later calls."""
    left = occasion

    def stopping(*args: Any, **others: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 and not after:
            raise KeyboardInterrupt
        result = call(*args, **others)
        if left < 0:
            raise KeyboardInterrupt
        return result

    return stopping


def test_a_new_photo_joins_the_camera_of_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight photos by one zoom, two by another. Nothing is decided again, and only new photos are read."""
    auto = MapOptions()
    tags = [exif("Maker", "Camera", 10), exif("Maker", "Camera", 20)]
    shots = [Shot(f"{number}.png", 700 + 300 * (number % 4 == 3), tags[number % 4 == 3]) for number in range(10)]
    names = [shot.name for shot in shots]
    source = photograph(tmp_path / "source", shots)
    place = fill(tmp_path / "grown", source, names[:8])
    make(place, auto)
    wide, near = ["0.png", "1.png", "2.png", "4.png", "5.png", "6.png"], ["3.png", "7.png"]
    assert [cameras for _, cameras in _groups(place)] == [wide, near]
    read: list[str] = []
    read_lens = camera_groups.read_lens
    monkeypatch.setattr(camera_groups, "read_lens", lambda path: (read.append(path.name), read_lens(path))[1])
    monkeypatch.setattr(camera_groups.CameraTrials, "_decide_one", None)
    fill(place.root, source, names)
    make(place, auto)
    assert read == names[8:]
    monkeypatch.undo()
    assert values(place) == fresh(tmp_path, source, names, auto)


def _groups(place: Workspace) -> list[tuple[int, list[str]]]:
    groups: dict[int, list[str]] = {}
    with pycolmap.Database.open(place.database) as database:
        for image in database.read_all_images():
            groups.setdefault(image.camera_id, []).append(image.name)
    return sorted((number, sorted(names)) for number, names in groups.items())


def test_a_group_that_has_doubled_is_decided_again(tmp_path: Path) -> None:
    auto = MapOptions()
    names = [f"{number}.png" for number in range(8)]
    source = photograph(tmp_path / "source", [Shot(name, 700) for name in names])
    place = fill(tmp_path / "grown", source, names[:2])
    make(place, auto)
    assert len(_groups(place)) == 2, "two photos are too few to tell"
    inode = place.database.stat().st_ino
    for count, cameras in ((3, 3), (8, 1)):
        fill(place.root, source, names[:count])
        make(place, auto)
        assert len(_groups(place)) == cameras
    assert place.database.stat().st_ino != inode, "photos got another camera, so a new database was made"
    assert values(place) == fresh(tmp_path, source, names, auto)


def test_photos_of_other_sizes_do_not_join_a_camera(tmp_path: Path) -> None:
    shots = [Shot(f"{number}.png", 700) for number in range(5)]
    names = [shot.name for shot in shots]
    source = photograph(tmp_path / "source", shots, points=80)
    place = fill(tmp_path / "grown", source, names[:4])
    make(place)
    before = values(place)
    Image.new("L", (320, 240)).save(tmp_path / "source" / "photos" / names[4])
    fill(place.root, source, names)
    with pytest.raises(Exception, match="photos of different sizes cannot share a camera"):
        make(place)
    fill(place.root, source, names[:4])
    make(place)
    assert values(place) == before
