"""Matching with view synthesis: more right matches where the view changes much, and nothing else where it does not."""

from __future__ import annotations

import shutil
from contextlib import suppress
from math import cos, radians, sin
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pycolmap
import pytest
from hdf5 import contents
from numpy.typing import NDArray

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.homographies import pair_truth
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.features.synthetic_views import DescribedViews, ViewDescriber
from hardnet_sfm.files.again import Again, write_again
from hardnet_sfm.files.fingerprints import matched_keypoints, stale_pairs, view_fingerprints
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import (
    FEATURES,
    KEYPOINTS,
    FeatureStore,
    KeypointStore,
    MatchStore,
    keypoint_arrays,
    pair_key,
)
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.verbs.map import map_photos
from hardnet_sfm.verbs.match import MatchOptions, match, match_photos
from hardnet_sfm.verbs.pair import PairOptions, pair
from hardnet_sfm.view_synthesis import ViewSynthesisOptions

CPU = Resources(device="cpu", workers=2)
ONE_STEP = ViewSynthesisOptions(view_synthesis=True, view_tilts=(2.0,))
# One photo of a wall, the wall leaned in one direction, and leaned in another one: between the last two a tilt of 4.8.
FRONT, LEFT, DOWN = "front.png", "left.png", "down.png"
HARD, EASY = (LEFT, DOWN), (LEFT, "left again.png")

pytestmark = pytest.mark.usefixtures("one_thread")


def wall(size: int, seed: int) -> NDArray[np.uint8]:
    """Polygons of all sizes on top of each other."""
    rng = np.random.default_rng(seed)
    grey = np.full((size, size), 128, np.uint8)
    for radius in size / 4 * np.linspace(1, 0.02, 1500) ** 3 + 4:
        turn = np.sort(rng.uniform(0, 2 * np.pi, 5))
        corners = rng.uniform(0, size, 2) + radius * np.column_stack([np.cos(turn), np.sin(turn)])
        cv2.fillConvexPoly(grey, (16 * corners).astype(np.int32), int(rng.integers(20, 235)), shift=4)
    return cv2.GaussianBlur(grey, (0, 0), 0.7)


def leaned(grey: NDArray[np.uint8], tilt: float, degrees: float) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The wall shortened in a direction, and the (3, 3) map of pixels to it. It is made at four times the size."""
    c, s, size = cos(radians(degrees)), sin(radians(degrees)), len(grey)
    turn = np.array([[c, s], [-s, c]])
    linear = turn.T @ np.diag([1 / tilt, 1]) @ turn
    middle = np.full(2, (size - 1) / 2)
    affine = np.column_stack([linear, middle - linear @ middle])
    fine = np.column_stack([4 * linear, 4 * affine[:, 2] + 1.5])
    # Beyond the wall there is nothing to see.
    large = cv2.warpAffine(grey, fine, (4 * size, 4 * size), flags=cv2.INTER_CUBIC, borderValue=128)
    photo = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(photo, np.uint8), np.vstack([affine, [0, 0, 1]])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.float64]]:
    """Folder of the photos, and the homography of the hard pair. Tests must not write into the folder."""
    folder = tmp_path_factory.mktemp("walls")
    grey = wall(256, 0)
    (left, to_left), (down, to_down) = leaned(grey, 2.2, 0), leaned(grey, 2.2, 80)
    for name, photo in ((FRONT, grey), (LEFT, left), (DOWN, down), (EASY[1], np.roll(left, 2, axis=0))):
        cv2.imwrite(str(folder / name), photo)
    return folder, to_down @ np.linalg.inv(to_left)


@pytest.fixture(scope="module")
def extracted(photos: tuple[Path, NDArray[np.float64]], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    place = Workspace(tmp_path_factory.mktemp("extracted"))
    extract(photos[0], place.features, ExtractOptions(descriptor="rootsift", max_keypoints=500), CPU)
    list_of_pairs = place.root / "mine.txt"
    list_of_pairs.write_text(f"{HARD[0]}\t{HARD[1]}\n{EASY[0]}\t{EASY[1]}\n")
    pair(place.features, place.pairs, PairOptions(pairs_file=list_of_pairs))
    return place


def copied(place: Workspace, folder: Path) -> Workspace:
    shutil.copytree(place.root, folder, dirs_exist_ok=True)
    return Workspace(folder)


@pytest.fixture(scope="module")
def made(extracted: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Matched with views. Tests must not write into it."""
    place = copied(extracted, tmp_path_factory.mktemp("made"))
    match_photos(place, view_options=ONE_STEP, resources=CPU)
    return place


@pytest.fixture
def place(extracted: Workspace, tmp_path: Path) -> Workspace:
    return copied(extracted, tmp_path / "place")


@pytest.fixture
def finished(made: Workspace, tmp_path: Path) -> Workspace:
    return copied(made, tmp_path / "finished")


def only_the_hard_pair(place: Workspace) -> None:
    place.pairs.write_text(place.pairs.read_text().splitlines()[0] + "\n")


def ends(place: Workspace, names: tuple[str, str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Positions of the matches of a pair in both photos."""
    with MatchStore(place.matches) as matches:
        rows = matches.matches(*names).pairs
        views = "view_tilts" in matches.header["options"]
    with KeypointStore(place.view_keypoints) if views else FeatureStore(place.features) as store:
        return store.keypoints(names[0]).xy[rows[:, 0]], store.keypoints(names[1]).xy[rows[:, 1]]


def right(place: Workspace, homography: NDArray[np.float64]) -> NDArray[np.bool_]:
    first, second = ends(place, HARD)
    return np.linalg.norm(pair_truth(homography, first, second).places - second, axis=1) <= 3


def test_a_pair_that_plain_matching_fails_on_is_matched(
    made: Workspace, place: Workspace, photos: tuple[Path, NDArray[np.float64]]
) -> None:
    match(place.features, place.pairs, place.matches, resources=CPU)
    plain, views = right(place, photos[1]), right(made, photos[1])
    assert plain.sum() < 10
    assert views.sum() > 60
    assert views.mean() > 0.9


def test_a_pair_that_has_enough_is_matched_as_without_views(made: Workspace, place: Workspace) -> None:
    match(place.features, place.pairs, place.matches, resources=CPU)
    with h5py.File(place.matches) as plain, h5py.File(made.matches) as views:
        for name in ("matches0", "matching_scores0"):
            key = f"{pair_key(*EASY)}/{name}"
            assert (plain[key][()] == views[key][()]).all()
            assert (plain[key][()] >= 0).sum() > 50
    with MatchStore(made.matches) as store:
        assert [facts["view_steps"] for facts in store.index.values()] == [1, 0]


def test_without_the_option_nothing_differs_by_a_bit(place: Workspace, tmp_path: Path) -> None:
    other = copied(place, tmp_path / "other")
    match(place.features, place.pairs, place.matches, resources=CPU)
    match_photos(other, resources=CPU)
    assert place.matches.read_bytes() == other.matches.read_bytes()
    there = {path.name for path in place.root.iterdir()}
    assert {path.name for path in other.root.iterdir()} == there | {"workspace.json"}


def test_no_point_of_a_photo_is_matched_twice(made: Workspace) -> None:
    for side in ends(made, HARD):
        apart = np.linalg.norm(side[:, None] - side, axis=2) + 10 * np.eye(len(side))
        assert apart.min() > 1.5


def test_keypoints_of_views_come_after_those_of_the_photo(made: Workspace) -> None:
    with FeatureStore(made.features) as features, KeypointStore(made.view_keypoints) as store:
        assert list(store.index) == features.names()
        for name in features.names():
            own, all_of_them = features.keypoints(name), store.keypoints(name)
            same = all_of_them.select(np.arange(len(own)))
            assert (same.xy == own.xy).all() and (same.scales == own.scales).all() and (same.oris == own.oris).all()
            assert (same.frames() == own.frames()).all()
            assert len(all_of_them) > len(own) if name in HARD else len(all_of_them) == len(own)


def test_matches_and_keypoints_have_hlocs_layout(made: Workspace) -> None:
    with h5py.File(made.view_keypoints) as keypoints, h5py.File(made.matches) as matches:
        of_pair = matches[pair_key(*HARD)]
        xy = [keypoints[name]["keypoints"] for name in HARD]
        assert all(one.dtype == np.float32 and one.shape[1] == 2 for one in xy)
        assert of_pair["matches0"].shape == of_pair["matching_scores0"].shape == (len(xy[0]),)
        assert of_pair["matches0"].dtype == np.int32 and of_pair["matches0"][()].max() < len(xy[1])
        assert keypoints[LEFT]["image_size"][()].tolist() == [256, 256]


def test_the_result_does_not_depend_on_the_number_of_workers_nor_on_pairs_beside(
    made: Workspace, place: Workspace
) -> None:
    only_the_hard_pair(place)
    match_photos(place, view_options=ONE_STEP, resources=Resources("cpu", 1))
    found, expected = contents(place.matches), contents(made.matches)
    assert all(found[key] == expected[key] for key in found if pair_key(*HARD) in key)
    assert any(pair_key(*HARD) in key for key in found)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of views that are described from now on."""
    described: list[int] = []
    describe = ViewDescriber.__call__

    def counted(self: ViewDescriber, photo: Any, known: Any, views: Any, turn: int) -> DescribedViews:
        described.append(len(views))
        return describe(self, photo, known, views, turn)

    monkeypatch.setattr(ViewDescriber, "__call__", counted)
    return described


def test_an_interrupted_run_goes_on_to_the_same_result(
    made: Workspace, place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        put = StoreWriter.put

        def interrupted(self: StoreWriter, key: str, *args: Any) -> None:
            if key == pair_key(*HARD):
                raise KeyboardInterrupt
            put(self, key, *args)

        patch.setattr(StoreWriter, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            match_photos(place, view_options=ONE_STEP, resources=CPU)
    assert not place.matches.exists()
    described = counting(monkeypatch)
    match_photos(place, view_options=ONE_STEP, resources=CPU)
    assert described == []
    for name in ("matches", "view_keypoints"):
        found, expected = contents(getattr(place, name)), contents(getattr(made, name))
        assert found.keys() == expected.keys()
        assert all(found[key] == expected[key] for key in found)


def test_a_second_run_computes_nothing_and_leaves_the_files_alone(
    finished: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [path.stat().st_mtime_ns for path in (finished.matches, finished.view_keypoints)]
    described = counting(monkeypatch)
    report = match_photos(finished, view_options=ONE_STEP, resources=CPU)
    assert (report.computed, report.by_views, described) == (0, 1, [])
    assert [path.stat().st_mtime_ns for path in (finished.matches, finished.view_keypoints)] == before


def test_keypoints_that_were_deleted_are_made_again_as_they_were(made: Workspace, finished: Workspace) -> None:
    """As the hint says that is given of a damaged file of them; the matches are still there."""
    finished.view_keypoints.unlink()
    assert match_photos(finished, view_options=ONE_STEP, resources=CPU).computed == 0
    found, expected = contents(finished.view_keypoints), contents(made.view_keypoints)
    assert found.keys() == expected.keys()
    assert all(found[key] == expected[key] for key in expected)


def test_one_more_step_describes_what_that_step_adds(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    only_the_hard_pair(finished)
    described = counting(monkeypatch)
    two_steps = ViewSynthesisOptions(view_synthesis=True, view_tilts=(2.0, 3.0), view_rotation=180, view_enough=10**6)
    report = match_photos(finished, view_options=two_steps, resources=CPU)
    assert report.reason == "view_enough 50 -> 1000000, view_rotation 72.0 -> 180.0, view_tilts [2.0] -> [2.0, 3.0]"
    # Two photos; two views of tilt 2, of other directions than before, and three of tilt 3.
    assert sorted(described) == [2, 2, 3, 3]
    described.clear()
    other = ViewSynthesisOptions(view_synthesis=True, view_tilts=(2.0, 4.0), view_rotation=180, view_enough=10**6)
    match_photos(finished, view_options=other, resources=CPU)
    assert described == [4, 4]


def test_views_that_are_damaged_are_described_again(made: Workspace, finished: Workspace) -> None:
    finished.matches.unlink()
    left, down = sorted(finished.views.iterdir())
    left.write_bytes(left.read_bytes()[: left.stat().st_size // 2])
    down.write_bytes(b"not an archive")
    match_photos(finished, view_options=ONE_STEP, resources=CPU)
    found, expected = contents(finished.matches), contents(made.matches)
    assert all(found[key] == expected[key] for key in expected)


def test_matching_without_views_afterwards_is_matching_without_views(finished: Workspace, place: Workspace) -> None:
    report = match_photos(finished, view_options=ViewSynthesisOptions(), resources=CPU)
    assert "view_tilts [2.0] -> none" in report.reason
    match_photos(place, resources=CPU)
    assert contents(finished.matches).keys() == contents(place.matches).keys()
    assert finished.matches.read_bytes() == place.matches.read_bytes()


def test_map_verifies_what_was_matched_without_further_options(finished: Workspace) -> None:
    with suppress(HardnetSfmError):  # whether planes give a model is of no account here
        map_photos(finished, resources=CPU)
    with pycolmap.Database.open(finished.database) as database, KeypointStore(finished.view_keypoints) as store:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        for name, number in ids.items():
            assert database.read_keypoints(number)[:, :2] == pytest.approx(store.keypoints(name).xy + 0.5, abs=1e-3)
        verified = database.read_two_view_geometry(ids[HARD[0]], ids[HARD[1]])
        assert len(verified.inlier_matches) > 60


def test_map_refuses_keypoints_that_are_not_those_of_the_matches(finished: Workspace, place: Workspace) -> None:
    other = ViewSynthesisOptions(view_synthesis=True, view_tilts=(3.0,), view_rotation=180)
    match_photos(place, view_options=other, resources=CPU)
    shutil.copy(place.view_keypoints, finished.view_keypoints)
    with pytest.raises(HardnetSfmError, match="not the keypoints of"):
        map_photos(finished, resources=CPU)
    finished.view_keypoints.unlink()
    with FeatureStore(finished.features) as store, StoreWriter(finished.view_keypoints, KEYPOINTS) as writer:
        options = ONE_STEP.recipe()
        for name, made_from in store.fingerprints().items():  # those of the photos alone
            arrays = keypoint_arrays(store.keypoints(name), store.size(name))
            writer.put(name, view_fingerprints(options, made_from)[0], arrays, {"keypoints": len(arrays["scores"])})
        writer.commit(store.names(), {"images": "", "names": store.names(), "options": options})
    with pytest.raises(HardnetSfmError, match="not the keypoints of"):
        map_photos(finished, resources=CPU)
    finished.view_keypoints.unlink()
    with pytest.raises(HardnetSfmError, match="no keypoints at"):
        map_photos(finished, resources=CPU)


def test_a_photo_that_is_gone_or_was_changed_is_a_clear_error(
    photos: tuple[Path, NDArray[np.float64]], place: Workspace, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(photos[0], images)
    extract(images, place.features, ExtractOptions(descriptor="rootsift", max_keypoints=500), CPU)
    cv2.imwrite(str(images / DOWN), np.zeros((256, 256), np.uint8))
    with pytest.raises(HardnetSfmError, match=f"{DOWN}: not the photo that features were extracted from"):
        match_photos(place, view_options=ONE_STEP, resources=CPU)
    (images / DOWN).unlink()
    with pytest.raises(HardnetSfmError, match=DOWN):
        match_photos(place, view_options=ONE_STEP, resources=CPU)
    shutil.rmtree(images)
    with pytest.raises(HardnetSfmError, match=r"no folder of photos at .*images") as raised:
        match_photos(place, view_options=ONE_STEP, resources=CPU)
    assert "--images" in raised.value.hint


def test_views_are_described_with_the_weights_of_the_photos(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with StoreWriter(place.features, FEATURES) as writer:
        options = {**writer.header["options"], "descriptor": "hardnet", "weights_sha256": "0" * 64}
        names = writer.header["names"]
        writer.commit(names, {**writer.header, "options": options})
    with pytest.raises(SystemExit) as ended:
        main(["match", "--workspace", str(place.root), "--view-synthesis"])
    assert ended.value.code == 1
    assert "other weights (0000000000000000...)" in capsys.readouterr().err


def test_the_command_says_how_many_pairs_were_matched_with_views(
    finished: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["match", "--workspace", str(finished.root), "--view-synthesis", "--view-tilts", "2"])
    assert "in 2 pairs, 1 of them with synthetic views; up to date" in capsys.readouterr().out
    finished.pairs.write_text("\t".join(EASY) + "\n")
    main(["match", "--workspace", str(finished.root), "--view-synthesis", "--view-tilts", "2"])
    assert "in 1 pairs, 0 of them with synthetic views; up to date" in capsys.readouterr().out
    main(["match", "--workspace", str(finished.root), "--no-view-synthesis"])
    assert "in 1 pairs; computed 1" in capsys.readouterr().out


def test_without_pairs_the_command_says_what_it_says_without_views(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    for lines, says in (("# none\n", "no pairs in it"), (None, "it does not exist")):
        place.pairs.unlink()
        if lines is not None:
            place.pairs.write_text(lines)
        said = []
        for views in ([], ["--view-synthesis"]):
            with pytest.raises(SystemExit) as ended:
                main(["match", "--workspace", str(place.root), *views])
            said.append((ended.value.code, capsys.readouterr().err))
        assert said[0] == said[1] and said[0][0] == 1 and says in said[0][1]
        assert not place.matches.exists() and not place.view_keypoints.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (ViewSynthesisOptions(view_tilts=(2.0,)), "no effect without --view-synthesis"),
        (ViewSynthesisOptions(view_rotation=72), "no effect without --view-synthesis"),
        (ViewSynthesisOptions(view_enough=20), "no effect without --view-synthesis"),
        (ViewSynthesisOptions(view_synthesis=True, view_tilts=()), "--view-tilts must be"),
        (ViewSynthesisOptions(view_synthesis=True, view_tilts=(1.0,)), "--view-tilts must be"),
        (ViewSynthesisOptions(view_synthesis=True, view_tilts=(2.0, float("nan"))), "--view-tilts must be"),
        (ViewSynthesisOptions(view_synthesis=True, view_tilts=(2.0, 2.0)), "the same tilt twice"),
        (ViewSynthesisOptions(view_synthesis=True, view_rotation=0), "--view-rotation must be"),
        (ViewSynthesisOptions(view_synthesis=True, view_rotation=float("nan")), "--view-rotation must be"),
        (ViewSynthesisOptions(view_synthesis=True, view_enough=3), "--view-enough must be at least 15"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: ViewSynthesisOptions, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        match_photos(tmp_path / "none", view_options=options)
    with pytest.raises(UsageError, match=says):
        hardnet_sfm.reconstruct(tmp_path, tmp_path / "none", view_options=options)
    assert not (tmp_path / "none").exists()


def test_views_and_rescoring_are_not_combined(tmp_path: Path) -> None:
    network = MatchOptions(rescore=tmp_path / "matchnet.safetensors")
    with pytest.raises(UsageError, match="cannot be combined"):
        match_photos(tmp_path / "none", network, ONE_STEP)
    with pytest.raises(UsageError, match="cannot be combined"):
        hardnet_sfm.reconstruct(tmp_path, tmp_path / "none", match_options=network, view_options=ONE_STEP)
    assert not (tmp_path / "none").exists()


def test_weights_without_views_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["match", "--workspace", str(tmp_path), "--weights", str(tmp_path / "mine.safetensors")])
    assert raised.value.code == 2 and "--weights has no effect" in capsys.readouterr().err


def test_pairs_that_are_tried_again_get_views_and_others_none(place: Workspace) -> None:
    match_photos(place, resources=CPU)
    with MatchStore(place.matches) as matches:
        write_again(place.again, Again(str(matches.header["made_of"]), ("view synthesis",), (), (HARD,)))
        plain = matches.matches(*EASY).pairs
    report = match_photos(place, resources=CPU)
    assert (report.computed, report.by_views) == (1, 1)
    with MatchStore(place.matches) as found, FeatureStore(place.features) as features:
        # The steps are those of the default options, and one is enough for the hard pair.
        assert len(found.matches(*HARD)) > len(plain) / 10
        assert np.array_equal(found.matches(*EASY).pairs, plain)
        assert stale_pairs(features, found) == []
        with matched_keypoints(place.view_keypoints, features, found) as keypoints:
            assert found.matches(*HARD).pairs[:, 0].max() < len(keypoints.keypoints(HARD[0]))
    assert match_photos(place, resources=CPU).computed == 0


@pytest.mark.slow
def test_reconstruct_takes_views_for_pairs_that_need_them(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    """Photos of the rendered square that are 25 degrees and more apart: views verify pairs, and the model has them."""
    images = tmp_path / "images"
    images.mkdir()
    names = small_scene[1].names
    for name in names[::2]:
        shutil.copy(small_scene[0] / name, images)
    model = hardnet_sfm.reconstruct(
        images,
        tmp_path / "out",
        extract_options=ExtractOptions(descriptor="rootsift", max_keypoints=1000),
        match_options=MatchOptions(),
        view_options=ViewSynthesisOptions(view_synthesis=True, view_tilts=(2.0,), view_enough=10**6),
        map_options=hardnet_sfm.MapOptions(camera_mode="single"),
        resources=Resources("cpu", 2),
    )
    assert len(model.names) == 4
    with MatchStore(tmp_path / "out" / "matches.h5") as matches:
        assert any(int(facts.get("view_steps", 0)) > 0 for facts in matches.index.values())
