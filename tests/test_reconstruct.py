"""The main job, end to end: photos to a COLMAP model."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.colmap.database import read_fact
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.poses import pose_errors
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files import weight_files
from hardnet_sfm.files.workspace import Workspace, read_json
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.stages import StageResult
from hardnet_sfm.verbs.match import MatchOptions
from hardnet_sfm.verbs.pair import PairOptions

FEW = ExtractOptions(descriptor="rootsift", max_keypoints=1500, orientation="estimated")  # as `made` has
ONE_CAMERA = MapOptions(camera_mode="single", max_error=1.5)  # as `made` has
ONE_THREAD = Resources(workers=1)


def truth_of(scene: Scene) -> dict[str, np.ndarray]:
    return dict(zip(scene.names, scene.cam_from_world, strict=True))


def test_recovers_the_cameras_of_a_rendered_scene(made: Workspace, small_scene: tuple[Path, Scene]) -> None:
    model = Model.read(made.sparse / "0")
    errors = pose_errors(model.cam_from_world(), truth_of(small_scene[1]))
    assert errors.missing == ()
    assert errors.positions.max() < 0.05  # metres, of a square 20 m wide
    assert errors.auc(1.0) > 0.9
    focal_length = next(iter(model.colmap.cameras.values())).focal_length
    assert focal_length == pytest.approx(small_scene[1].focal_length, rel=0.01)


def test_summary_agrees_with_the_files(made: Workspace) -> None:
    summary = read_json(made.summary)
    colmap = pycolmap.Reconstruction(made.sparse / "0")
    with pycolmap.Database.open(made.database) as database:
        assert summary["verified_matches"] == database.num_inlier_matches()
        assert summary["matches"] == database.num_matches()
        assert summary["keypoints"] == database.num_keypoints()
        assert summary["cameras"] == database.num_cameras() == 1
    assert summary["grown_cameras"] == {} and colmap.camera(1).model_name == "SIMPLE_RADIAL"
    assert summary["registered"] == colmap.num_reg_images() == 8
    assert summary["models"][0]["points"] == colmap.num_points3D()
    assert summary["unregistered"] == {} and summary["skipped"] == {}
    assert summary["suspect_pairs"] == 0 and summary["suspects"] == []
    assert set(summary["seconds"]) == {"extract", "pair", "match", "map"}


def test_database_holds_keypoints_half_a_pixel_on(made: Workspace) -> None:
    with hardnet_sfm.FeatureStore(made.features) as features, pycolmap.Database.open(made.database) as database:
        for image in database.read_all_images():
            there = database.read_keypoints(image.image_id)[:, :2]
            np.testing.assert_allclose(there, features.keypoints(image.name).xy + 0.5, atol=1e-4)


def test_points_project_onto_their_keypoints(made: Workspace) -> None:
    with hardnet_sfm.FeatureStore(made.features) as features:
        colmap = pycolmap.Reconstruction(made.sparse / "0")
        errors = []
        for image in (colmap.image(number) for number in colmap.reg_image_ids()):
            xy = features.keypoints(image.name).xy
            for row in image.get_observation_point2D_idxs():
                projected = image.project_point(colmap.point3D(image.point2D(row).point3D_id).xyz)
                errors.append(np.linalg.norm(projected - 0.5 - xy[row]))
    assert np.median(errors) < 0.5


def test_second_run_computes_nothing(made: Workspace, small_scene: tuple[Path, Scene]) -> None:
    # Photos get their notes when they are two seconds old, which may be in either run.
    others = {made.root / ".lock", made.photo_hashes}
    files = [path for path in made.root.rglob("*") if path.is_file() and path not in others]
    before = {path: path.stat().st_mtime_ns for path in files}
    computed: list[int] = []

    def note(_: str, report: StageResult) -> None:
        computed.append(getattr(report, "computed", 0))

    hardnet_sfm.reconstruct(small_scene[0], made.root, extract_options=FEW, map_options=ONE_CAMERA, on_stage=note)
    assert computed == [0, 0, 0]
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert {path for path in made.root.rglob("*") if path.is_file()} - {*files} <= others


def copy_of(made: Workspace, folder: Path) -> Workspace:
    shutil.copytree(made.root, folder / "copy")
    return Workspace(folder / "copy")


def test_changed_options_recompute_what_they_touch(
    made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    place = copy_of(made, tmp_path)
    reports: dict[str, StageResult] = {}
    hardnet_sfm.reconstruct(
        small_scene[0],
        place.root,
        extract_options=FEW,
        match_options=MatchOptions(max_ratio=0.7),
        map_options=ONE_CAMERA,
        on_stage=reports.__setitem__,
    )
    assert reports["extract"].computed == 0
    assert reports["match"].computed == 28
    assert reports["match"].reason == "max_ratio 0.9 -> 0.7"
    assert read_json(place.summary)["matches"] < read_json(made.summary)["matches"]
    stale = [part.stale for part in hardnet_sfm.info(place)]
    assert stale == ["", "", ""]


def dump(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as opened:
        return list(opened.iterdump())


def test_global_mapper_recovers_the_cameras_and_keeps_the_database(
    made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    place = copy_of(made, tmp_path)
    before = dump(place.database)
    model = hardnet_sfm.map_photos(place, replace(ONE_CAMERA, mapper="global"))
    errors = pose_errors(model.cam_from_world(), truth_of(small_scene[1]))
    assert errors.missing == ()
    assert errors.positions.max() < 0.1
    assert dump(place.database) == before


@pytest.mark.slow
def test_global_mapper_finds_the_focal_length(made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    scene = small_scene[1]
    wrong = f"{3 * scene.focal_length},{scene.size[0] / 2},{scene.size[1] / 2},0"
    options = MapOptions(camera_mode="single", mapper="global", camera_params=wrong)
    model = hardnet_sfm.map_photos(copy_of(made, tmp_path), options)
    assert len(model.names) == 8
    camera = next(iter(model.colmap.cameras.values()))
    assert camera.focal_length == pytest.approx(scene.focal_length, rel=0.02)


def test_matches_of_other_features_are_not_mapped(
    made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    place = copy_of(made, tmp_path)
    model = (place.sparse / "0" / "points3D.bin").read_bytes()
    hardnet_sfm.extract(small_scene[0], place.features, replace(FEW, max_keypoints=700))
    with pytest.raises(HardnetSfmError, match="28 of 28 pairs were matched from other features") as raised:
        hardnet_sfm.map_photos(place, ONE_CAMERA)
    assert "hardnet-sfm match" in raised.value.hint
    assert (place.sparse / "0" / "points3D.bin").read_bytes() == model


def test_matches_of_photos_that_are_gone_are_not_mapped(
    made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    place = copy_of(made, tmp_path)
    (tmp_path / "six").mkdir()
    for name in small_scene[1].names[:6]:
        shutil.copy(small_scene[0] / name, tmp_path / "six" / name)
    hardnet_sfm.extract(tmp_path / "six", place.features, FEW)
    with pytest.raises(HardnetSfmError, match="13 of 28 pairs were matched from other features"):
        hardnet_sfm.map_photos(place, ONE_CAMERA)


def test_matches_of_another_list_of_pairs_are_not_mapped(made: Workspace, tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    hardnet_sfm.pair(place.features, place.pairs, PairOptions(pairing="sequential", window=2, loop_interval=0))
    assert [part.stale for part in hardnet_sfm.info(place)] == ["", "pairs.txt lists other pairs", ""]
    with pytest.raises(HardnetSfmError, match=r"another list of pairs than pairs\.txt"):
        hardnet_sfm.map_photos(place, ONE_CAMERA)


def test_a_damaged_or_lost_model_is_made_again(made: Workspace, tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    expected = Model.read(made.sparse / "0").facts()
    (place.sparse / "0" / "points3D.bin").unlink()
    assert hardnet_sfm.map_photos(place, ONE_CAMERA, ONE_THREAD).facts() == expected
    shutil.rmtree(place.sparse)
    assert hardnet_sfm.info(place)[2].stale == f"{place.sparse} is gone"
    assert hardnet_sfm.map_photos(place, ONE_CAMERA, ONE_THREAD).facts() == expected
    place.summary.write_text("nothing", encoding="utf-8")
    assert hardnet_sfm.map_photos(place, ONE_CAMERA, ONE_THREAD).facts() == expected


def test_a_mapping_that_makes_nothing_leaves_no_other_model_behind(made: Workspace, tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    with pytest.raises(HardnetSfmError, match="no model could be made"):
        hardnet_sfm.map_photos(place, MapOptions(camera_mode="single", min_inliers=100_000))
    assert not place.sparse.exists()
    with pytest.raises(HardnetSfmError, match="no model in"):
        hardnet_sfm.export(place, tmp_path / "exported")


def test_cameras_of_which_nothing_is_known_are_not_fixed(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in small_scene[1].names[:3]:
        grey = Image.open(small_scene[0] / name).convert("L")
        Image.fromarray(np.asarray(grey)).save(tmp_path / "photos" / name, quality=95)  # no EXIF data
    with pytest.raises(HardnetSfmError, match="1 of 1 cameras have no focal length") as raised:
        hardnet_sfm.reconstruct(
            tmp_path / "photos",
            tmp_path / "out",
            extract_options=FEW,
            map_options=MapOptions(camera_mode="single", fix_intrinsics=True),
        )
    assert "--camera-params" in raised.value.hint


def test_paths_may_be_strings(made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    assert hardnet_sfm.extract(str(small_scene[0]), str(place.features), FEW).computed == 0
    hardnet_sfm.pair(str(place.features), str(place.pairs))
    assert hardnet_sfm.match(str(place.features), str(place.pairs), str(place.matches)).computed == 0
    assert len(hardnet_sfm.map_photos(str(place.root), ONE_CAMERA).names) == 8
    with hardnet_sfm.FeatureStore(str(place.features)) as features:
        assert len(features.names()) == 8


def test_the_api_gives_functions_every_time() -> None:
    for name in ("demo", "extract", "pair", "match", "map_photos", "export", "info", "reconstruct"):
        assert callable(getattr(hardnet_sfm, name)) and callable(getattr(hardnet_sfm, name)), name


@pytest.mark.parametrize("wrong", [{"camera_mode": "bogus"}, {"mapper": "local"}])
def test_choices_that_there_are_not_are_refused(made: Workspace, wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="is not one of"):
        hardnet_sfm.map_photos(made, MapOptions(**wrong))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is not one of"):
        hardnet_sfm.export(made, "nowhere", ("nonsense",))  # type: ignore[arg-type]


def test_fixed_intrinsics_stay_as_given(made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    scene = small_scene[1]
    params = (scene.focal_length, scene.size[0] / 2, scene.size[1] / 2)
    options = MapOptions(
        camera_mode="single",
        camera_model="SIMPLE_PINHOLE",
        camera_params=",".join(map(str, params)),
        fix_intrinsics=True,
    )
    model = hardnet_sfm.map_photos(copy_of(made, tmp_path), options)
    camera = next(iter(model.colmap.cameras.values()))
    assert tuple(camera.params) == params
    assert pose_errors(model.cam_from_world(), truth_of(scene)).positions.max() < 0.03


def test_interrupted_mapping_goes_on_to_the_same_model(
    made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copy_of(made, tmp_path)
    shutil.rmtree(place.sparse)
    place.summary.unlink()
    from hardnet_sfm.colmap import mappers
    from hardnet_sfm.colmap.mapping import map_database

    run = map_database

    def interrupted(*args: object) -> list[Model]:
        def press_ctrl_c(registered: int) -> None:
            if registered == 5:
                raise KeyboardInterrupt

        return run(*args[:-1], press_ctrl_c)  # type: ignore[arg-type]

    monkeypatch.setattr(mappers, "map_database", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hardnet_sfm.map_photos(place, ONE_CAMERA, ONE_THREAD)
    assert next(place.root.glob(".snapshot-*/images.bin")).is_file()
    registered: list[int] = []
    monkeypatch.setattr(mappers, "map_database", lambda *args: run(*args[:-1], registered.append))
    resumed = hardnet_sfm.map_photos(place, ONE_CAMERA, ONE_THREAD)
    assert registered == [5, 6, 7, 8]
    assert resumed.facts() == Model.read(made.sparse / "0").facts()
    assert not list(place.root.glob(".snapshot-*"))


@pytest.mark.slow
def test_run_killed_anywhere_and_run_again_ends_with_the_same_model(
    made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "hardnet_sfm", "reconstruct", str(small_scene[0]), "--workspace", str(tmp_path)]
    command += ["--descriptor", "rootsift", "--max-keypoints", "1500", "--orientation", "estimated", "--workers", "1"]
    command += ["--camera-mode", "single", "--max-error", "1.5"]
    delays = [2.0, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0]
    for delay in delays:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert Model.read(tmp_path / "sparse/0").facts() == Model.read(made.sparse / "0").facts()
    assert not list(tmp_path.glob(".*.journal*")) and not list(tmp_path.glob(".database*"))


@pytest.mark.slow
def test_ctrl_c_leaves_a_workspace_that_continues(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hardnet_sfm", "extract", str(small_scene[0]), "--workspace", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / ".features.h5.journal"
    while process.poll() is None and not journal.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    if process.returncode:  # the run may have ended before the signal came
        assert process.returncode == 130
        assert "the same command resumes" in said
    assert hardnet_sfm.extract(small_scene[0], tmp_path / "features.h5").photos == 8


def test_names_with_spaces_umlauts_and_equal_base_names(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    names = ["a b/täglich 1.jpg", "a b/x.jpg", "ü/x.jpg", "x.jpg"]
    for name, source in zip(names, sorted(small_scene[0].glob("*.jpg")), strict=False):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, photos / name)
    model = hardnet_sfm.reconstruct(photos, tmp_path / "out", extract_options=FEW, map_options=ONE_CAMERA)
    assert sorted(model.names) == sorted(names)
    for form, instead in (("pairs", "matches.h5"), ("text", "binary")):
        with pytest.raises(HardnetSfmError, match=rf"--forms {form}: 2 photos have white space .*a b/") as raised:
            hardnet_sfm.export(tmp_path / "out", tmp_path / "one", (form,))  # type: ignore[arg-type]
        assert instead in raised.value.hint
    assert not (tmp_path / "one").exists()
    left_out: list[str] = []
    written = hardnet_sfm.export(
        tmp_path / "out", tmp_path / "all", on_left_out=lambda form, why: left_out.append(f"{form}: {why}")
    )
    assert [path.relative_to(tmp_path / "all").as_posix() for path in written] == [
        "sparse/0",
        "points/0",
        "database.db",
    ]
    assert [line.split(":")[0] for line in left_out] == ["text", "pairs"]
    exported = pycolmap.Reconstruction(tmp_path / "all/sparse/0")
    assert sorted(image.name for image in exported.images.values()) == sorted(names)


@pytest.mark.slow
def test_webp_photos_are_mapped_with_their_colours(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, source in enumerate(sorted(small_scene[0].glob("*.jpg"))[:4]):
        suffix = ".webp" if number % 2 else ".png"
        cv2.imwrite(str(photos / f"{number}{suffix}"), cv2.imread(str(source)))
    (photos / "3.webp").rename(photos / "3.jpg")  # as some web sites name them
    model = hardnet_sfm.reconstruct(photos, tmp_path / "out", extract_options=FEW, map_options=ONE_CAMERA)
    assert sorted(model.names) == ["0.png", "1.webp", "2.png", "3.jpg"]
    colours = np.array([point.color for point in model.colmap.points3D.values()])
    assert colours.std() > 10
    assert not (tmp_path / "out/.readable").exists()


@pytest.mark.slow
def test_turned_photos_share_the_camera_of_upright_ones(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    """A photo stored on its side, with an EXIF orientation that says so, is reconstructed as if it were not."""
    from PIL import Image

    folder, scene = small_scene
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 8
    for name in scene.names[:5]:
        with Image.open(folder / name) as photo:
            # Orientation 8 is undone by a quarter turn counter-clockwise, so it is stored turned clockwise.
            photo.transpose(Image.Transpose.ROTATE_270).save(photos / name, exif=exif, quality=97)
    model = hardnet_sfm.reconstruct(photos, tmp_path / "out", extract_options=FEW, map_options=ONE_CAMERA)
    camera = next(iter(model.colmap.cameras.values()))
    assert (camera.width, camera.height) == scene.size[::-1]  # as stored, which is how COLMAP reads it
    assert camera.focal_length == pytest.approx(scene.focal_length, rel=0.01)
    # Camera centres do not depend on how a sensor is turned about its axis.
    errors = pose_errors(model.cam_from_world(), {name: truth_of(scene)[name] for name in scene.names[:5]})
    assert errors.missing == () and errors.positions.max() < 0.05


def test_exports_are_what_colmap_and_hloc_read(made: Workspace, tmp_path: Path) -> None:
    hardnet_sfm.export(made, tmp_path)
    original = pycolmap.Reconstruction(made.sparse / "0")
    for form in ("sparse", "text"):
        exported = pycolmap.Reconstruction(tmp_path / form / "0")
        assert exported.num_points3D() == original.num_points3D()
        number = original.reg_image_ids()[0]
        np.testing.assert_allclose(
            exported.image(number).cam_from_world().matrix(),
            original.image(number).cam_from_world().matrix(),
            atol=1e-9,
        )
    assert b"element vertex %d" % original.num_points3D() in (tmp_path / "points/0/points3D.ply").read_bytes()[:500]
    # hloc's parse: two words a line, separated by white space.
    pairs = [tuple(line.split()) for line in (tmp_path / "pairs.txt").read_text().splitlines()]
    with hardnet_sfm.MatchStore(made.matches) as matches:
        assert sorted(pairs) == sorted(matches.pairs())
    assert read_fact(made.database, "fingerprint") != ""
    assert read_fact(tmp_path / "database.db", "fingerprint") == ""
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        assert database.num_images() == 8


def test_info_says_what_is_stale(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    names = small_scene[1].names[:4]
    photos.mkdir()
    for name in names:
        shutil.copy(small_scene[0] / name, photos)
    place = Workspace(tmp_path / "out")
    hardnet_sfm.reconstruct(photos, place.root, extract_options=FEW, map_options=ONE_CAMERA)
    assert [part.stale for part in hardnet_sfm.info(place)] == ["", "", ""]
    (photos / names[0]).unlink()
    shutil.copy(photos / names[1], photos / names[2])
    assert hardnet_sfm.info(place)[0].stale == "1 photos gone, 1 photos changed"
    hardnet_sfm.extract(photos, place.features, FEW)
    features, matches, model = hardnet_sfm.info(place)
    assert features.stale == ""
    assert matches.stale == "5 pairs were made from other features"  # 3 of the one that is gone, 2 of the other
    assert "changed" in model.stale


BAD_INPUT = {
    "empty folder": (1, "it is empty"),
    "no photos": (1, "no photos in it"),
    "one photo": (1, "a pair needs two"),
    "flat photos": (1, "no features"),
    "a file": (1, "is a file, not a folder"),
    "missing folder": (1, "no such folder"),
    "workspace is a file": (1, "a folder is needed"),
    "missing pairs file": (1, "cannot read the pairs file"),
    "unknown pairs": (1, "not name two different photos"),
    "wrong parameter count": (2, "SIMPLE_RADIAL takes 4 parameters (f, cx, cy, k), not 3"),
    "unknown camera model": (2, "unknown camera model: PINHOL"),
    "no-effect option": (2, "--window has no effect without --pairing sequential"),
    "rootsift weights": (2, "--weights has no effect with --descriptor rootsift"),
    "affine opencv": (2, "--affine-shape has no effect"),
    "hardnet without weights": (1, "comes without trained HardNet weights"),
    "weights not safetensors": (1, "not a safetensors file"),
    "unknown detector": (2, "Did you mean opencv-dog?"),
    "unknown option": (2, "--max-keypoints"),
    "corrupt photo, strict": (1, "bad.jpg"),
    "cuda without cuda": (2, "finds no CUDA device"),  # on a machine that has none
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_a_clear_error(
    case: str,
    small_scene: tuple[Path, Scene],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    sources = sorted(small_scene[0].glob("*.jpg"))[: 1 if case == "one photo" else 3]
    if case not in ("empty folder", "no photos", "flat photos"):
        for source in sources:
            shutil.copy(source, photos)
    extra: list[object] = []
    match case:
        case "no photos":
            (photos / "notes.txt").write_text("nothing")
        case "flat photos":
            for number in range(3):
                cv2.imwrite(str(photos / f"{number}.png"), np.full((240, 320), 128, np.uint8))
        case "a file":
            photos = photos / sources[0].name
        case "missing folder":
            photos = tmp_path / "nowhere"
        case "workspace is a file":
            out.write_text("")
        case "missing pairs file":
            extra = ["--pairs-file", tmp_path / "pairs.txt"]
        case "unknown pairs":
            (tmp_path / "pairs.txt").write_text("view_000.jpg nobody.jpg\n")
            extra = ["--pairs-file", tmp_path / "pairs.txt"]
        case "wrong parameter count":
            extra = ["--camera-params", "500,160,120"]
        case "unknown camera model":
            extra = ["--camera-model", "PINHOL"]
        case "no-effect option":
            extra = ["--window", 3]
        case "rootsift weights":
            extra = ["--descriptor", "rootsift", "--weights", tmp_path / "w.safetensors"]
        case "affine opencv":
            extra = ["--affine-shape"]
        case "hardnet without weights":
            monkeypatch.setattr(weight_files, "_FOLDERS", (tmp_path,))
            extra = ["--descriptor", "hardnet"]
        case "weights not safetensors":
            (tmp_path / "w.safetensors").write_bytes(b"\x80\x04pickle")
            extra = ["--descriptor", "hardnet", "--weights", tmp_path / "w.safetensors"]
        case "unknown detector":
            extra = ["--detector", "opencv-do"]
        case "unknown option":
            extra = ["--max-keypoint", 5]
        case "corrupt photo, strict":
            (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff broken")
            extra = ["--strict"]
        case "cuda without cuda":
            extra = ["--device", "cuda"]
    if case == "cuda without cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    status, said = BAD_INPUT[case]
    with pytest.raises(SystemExit) as exit:
        main(["reconstruct", str(photos), "--workspace", str(out), "--max-keypoints", "300", *map(str, extra)])
    assert exit.value.code == status
    assert said in capsys.readouterr().err


def test_photos_that_do_not_overlap_say_what_was_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        noise = cv2.resize(rng.integers(0, 255, (60, 80), np.uint8), (960, 720), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(photos / f"{number}.png"), noise)
    with pytest.raises(HardnetSfmError, match=r"3 photos, .* keypoints, .* 0 of them verified") as caught:
        hardnet_sfm.reconstruct(photos, tmp_path / "out", extract_options=FEW)
    assert "overlap" in caught.value.hint
    summary = read_json(tmp_path / "out/summary.json")
    assert summary["models"] == [] and set(summary["unregistered"].values()) == {"no verified pairs"}


@pytest.mark.slow
def test_corrupt_photo_is_skipped_and_listed(
    small_scene: tuple[Path, Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in small_scene[1].names[:4]:
        shutil.copy(small_scene[0] / name, photos)
    (photos / "bad.jpg").write_bytes(b"not a photo")
    main(["reconstruct", str(photos), "--workspace", str(tmp_path / "out"), "--max-keypoints", "600"])
    assert "bad.jpg" in capsys.readouterr().err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert list(summary["skipped"]) == ["bad.jpg"]
    assert summary["registered"] == 4


def test_options_are_refused_before_photos_are_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        hardnet_sfm.reconstruct(tmp_path / "nowhere", tmp_path, pair_options=PairOptions(window=3))


@pytest.mark.slow
def test_turned_photos_of_a_real_set(shared_data: Path, tmp_path: Path) -> None:
    """Sakharov's photos have EXIF orientation 8: COLMAP reads 1092x728, people see 728x1092."""
    photos = shared_data / "train/saharov32/images"
    pairs = PairOptions(pairing="sequential", window=4)
    model = hardnet_sfm.reconstruct(
        photos, tmp_path, extract_options=ExtractOptions(max_keypoints=3000), pair_options=pairs, map_options=ONE_CAMERA
    )
    assert len(model.names) >= 30
    camera = next(iter(model.colmap.cameras.values()))
    assert (camera.width, camera.height) == (1092, 728)
    with hardnet_sfm.FeatureStore(tmp_path / "features.h5") as features:
        assert {features.size(name) for name in features.names()} == {(728, 1092)}
    # Colours that COLMAP takes at its keypoints are those of the upright photo at ours.
    image = model.colmap.image(model.colmap.reg_image_ids()[0])
    upright = cv2.imread(str(photos / image.name))
    with hardnet_sfm.FeatureStore(tmp_path / "features.h5") as features:
        xy = features.keypoints(image.name).xy
    rows = list(image.get_observation_point2D_idxs())
    theirs = np.array([model.colmap.point3D(image.point2D(row).point3D_id).color for row in rows], float)
    ours = cv2.remap(upright, xy[rows, 0], xy[rows, 1], cv2.INTER_LINEAR).reshape(-1, 3)[:, ::-1].astype(float)
    assert np.corrcoef(theirs.mean(1), ours.mean(1))[0, 1] > 0.9


# Largest mean position error, metres, and smallest AUC at 0.1 degree. COLMAP's SIFT, with half as many keypoints again:
# 2.76 mm and 0.434 (pipelines/strecha.py). HardNet is less accurate than RootSIFT on the same keypoints: 3.01 mm.
@pytest.mark.slow
@pytest.mark.parametrize(("descriptor", "error", "auc"), [("rootsift", 0.003, 0.434), ("hardnet", 0.0033, 0.434)])
def test_fountain_is_as_accurate_as_surveyed(
    descriptor: str, error: float, auc: float, shared_data: Path, tmp_path: Path
) -> None:
    from hardnet_sfm.evaluation.datasets.strecha import read_strecha

    scene = read_strecha(shared_data / "fountain-P11")
    params = ",".join(map(repr, map(float, scene.colmap_pinhole())))
    options = MapOptions(camera_mode="single", camera_model="PINHOLE", camera_params=params, fix_intrinsics=True)
    extract_options = ExtractOptions(descriptor=descriptor)
    model = hardnet_sfm.reconstruct(scene.images, tmp_path, extract_options=extract_options, map_options=options)
    errors = pose_errors(model.cam_from_world(), scene.cam_from_world)
    assert errors.missing == ()
    assert errors.positions.mean() < error
    assert errors.auc(0.1) > auc
