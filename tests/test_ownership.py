"""A user's files stay as they are, wherever the workspace or an output lies."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap
import pytest

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.ledger import NAME, Ledger
from hardnet_sfm.files.outputs import write_page, write_picture
from hardnet_sfm.files.ownership import check_output, check_workspace, claim, replacing_output
from hardnet_sfm.files.workspace import Workspace, read_json, replace_folder, restore_folder
from hardnet_sfm.pages.page import make_page
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.reconstruction.summary import explain_failure
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.map import _in_no_model
from hardnet_sfm.verbs.pair import PairOptions
from hardnet_sfm.verbs.weights import convert

ONE_CAMERA = MapOptions(camera_mode="single", max_error=1.5)  # as `made` has
ONE_THREAD = Resources(workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_of(made: Workspace, folder: Path) -> Workspace:
    shutil.copytree(made.root, folder / "copy")
    return Workspace(folder / "copy")


@pytest.fixture
def project(made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path) -> Path:
    """A folder in COLMAP's usual layout, whose files a user made with COLMAP and by hand."""
    root = tmp_path / "project"
    shutil.copytree(small_scene[0], root / "images")
    shutil.copytree(made.sparse, root / "sparse")
    (root / "sparse/0/notes.txt").write_text("scaled by hand")
    pycolmap.Database.open(root / "database.db").close()
    (root / "pairs.txt").write_text("view_000.jpg view_001.jpg\n")
    (root / "report.html").write_text("<html>mine</html>")
    return root


@pytest.mark.parametrize(
    "command",
    [
        "reconstruct IMAGES",
        "extract IMAGES",
        "pair IMAGES",
        "pair",
        "match",
        "map",
        "vocabulary IMAGES",
        "index IMAGES",
        "demo",
    ],
)
def test_a_project_of_colmap_is_refused_as_a_workspace_and_stays_as_it_is(
    command: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(project)
    args = [str(project / "images") if word == "IMAGES" else word for word in command.split()]
    with pytest.raises(SystemExit) as exit:
        main([*args, "--workspace", str(project)])
    said = " ".join(capsys.readouterr().err.split())
    assert exit.value.code == 1
    assert "hardnet-sfm did not make the files in this folder: pairs.txt, database.db, sparse, report.html" in said
    assert f"--workspace, such as {project}/hardnet-sfm-out" in said
    assert contents(project) == before


def test_features_of_hloc_are_refused_too(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["a.jpg/keypoints"] = np.zeros((3, 2), np.float32)
    before = contents(tmp_path)
    with pytest.raises(HardnetSfmError, match=r"did not make the files in this folder: features\.h5"):
        hardnet_sfm.reconstruct(small_scene[0], tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_with_unrelated_files_becomes_a_workspace(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "logs").mkdir()
    claim(tmp_path, "pairs.txt")
    assert Ledger(tmp_path).written() == {}
    assert read_json(tmp_path / NAME)["format"] == "hardnet-sfm workspace"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_workspace_of_an_earlier_version_is_recognised_by_its_content(made: Workspace, tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    (place.root / NAME).unlink()
    model = (place.sparse / "0/points3D.bin").read_bytes()
    assert len(hardnet_sfm.map_photos(place, ONE_CAMERA, ONE_THREAD).names) == 8
    assert (place.sparse / "0/points3D.bin").read_bytes() == model
    written = Ledger(place.root).written()
    assert {"features.h5", "pairs.txt", "matches.h5", "database.db", "sparse", "summary.json"} <= written.keys()
    alone = Workspace(tmp_path / "database only")
    alone.root.mkdir()
    shutil.copy(made.database, alone.root)
    check_workspace(alone.root, "database.db", "sparse")


def test_a_model_that_was_there_before_is_not_replaced(made: Workspace, tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for path in (made.features, made.pairs, made.matches):
        shutil.copy(path, tmp_path)
    (place.sparse / "0").mkdir(parents=True)
    (place.sparse / "0/cameras.txt").write_text("mine")
    with pytest.raises(HardnetSfmError, match="sparse: hardnet-sfm did not make it, so it is not replaced"):
        hardnet_sfm.map_photos(place, ONE_CAMERA)
    assert contents(place.sparse) == {"0/cameras.txt": b"mine"} and not place.database.exists()


def test_what_a_user_makes_before_the_stage_did_is_not_replaced(made: Workspace, tmp_path: Path) -> None:
    """A list of pairs after `extract`, and a model that COLMAP made after `map` failed."""
    place = Workspace(tmp_path)
    claim(tmp_path, "features.h5", "pairs.txt", "sparse")
    for path in (made.features, made.matches):
        shutil.copy(path, tmp_path)
    place.pairs.write_text("view_000.jpg view_001.jpg\n")
    with pytest.raises(HardnetSfmError, match=r"pairs\.txt: hardnet-sfm did not make it"):
        hardnet_sfm.pair(place.features, place.pairs)
    assert place.pairs.read_text() == "view_000.jpg view_001.jpg\n"
    place.pairs.unlink()
    with pytest.raises(HardnetSfmError, match="no model could be made"):
        hardnet_sfm.map_photos(place, MapOptions(camera_mode="single", min_inliers=100_000))
    shutil.copytree(made.sparse, place.sparse)
    before = contents(place.sparse)
    with pytest.raises(HardnetSfmError, match="sparse: hardnet-sfm did not make it"):
        hardnet_sfm.map_photos(place, ONE_CAMERA)
    assert contents(place.sparse) == before


@pytest.mark.parametrize("change", ["a file added", "a file changed"])
def test_a_model_that_a_user_worked_on_is_not_replaced(change: str, made: Workspace, tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    path = place.sparse / "0" / ("notes.txt" if change == "a file added" else "points3D.bin")
    path.write_bytes(b"scaled by hand")
    before = contents(place.sparse)
    with pytest.raises(HardnetSfmError, match="added or changed after hardnet-sfm wrote sparse") as raised:
        hardnet_sfm.map_photos(place, MapOptions(camera_mode="single", max_error=2))
    assert str(path) in raised.value.message and "Move it elsewhere" in raised.value.hint
    assert contents(place.sparse) == before


def test_a_database_and_a_page_of_a_user_are_not_replaced(made: Workspace, tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    place.database.unlink()
    pycolmap.Database.open(place.database).close()
    theirs = place.database.read_bytes()
    with pytest.raises(HardnetSfmError, match=r"database\.db: hardnet-sfm did not make it"):
        hardnet_sfm.map_photos(place, ONE_CAMERA)
    assert place.database.read_bytes() == theirs
    place.report.write_text("mine")
    with pytest.raises(HardnetSfmError, match=r"report\.html is there already, and hardnet-sfm did not make it"):
        hardnet_sfm.write_report(place)
    assert place.report.read_text() == "mine"


def test_asking_whose_a_database_is_leaves_no_files_of_sqlite(tmp_path: Path) -> None:
    pycolmap.Database.open(tmp_path / "database.db").close()
    with closing(sqlite3.connect(tmp_path / "database.db")) as opened:
        opened.execute("PRAGMA journal_mode=WAL")
    before = contents(tmp_path)
    with pytest.raises(HardnetSfmError, match="did not make"):
        check_workspace(tmp_path)
    assert contents(tmp_path) == before


def test_pairs_that_a_user_edited_are_matched_on_request_and_never_replaced(made: Workspace, tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    edited = "# the good ones\nview_000.jpg view_001.jpg\nview_001.jpg view_002.jpg\n"
    place.pairs.write_text(edited)
    with pytest.raises(HardnetSfmError, match=r"pairs\.txt: added or changed after") as raised:
        hardnet_sfm.pair(place.features, place.pairs, PairOptions())
    assert f"--pairs-file {place.pairs}" in raised.value.hint
    result = hardnet_sfm.pair(place.features, place.pairs, PairOptions(pairs_file=place.pairs))
    assert result.pairs == 2 and place.pairs.read_text() == edited


def test_what_a_killed_run_was_writing_counts_as_ours(tmp_path: Path) -> None:
    claim(tmp_path)
    ledger = Ledger(tmp_path)
    with replacing_output(ledger, "pairs.txt") as path:
        path.write_text("a b\n")
    with replacing_output(ledger, "pairs.txt") as path:
        path.write_text("half of")
        during = Ledger(tmp_path).written()
    assert during == {"pairs.txt": None}
    path.write_text("by hand")
    with pytest.raises(HardnetSfmError, match="added or changed"):
        check_workspace(tmp_path, "pairs.txt")
    ledger.note_written("pairs.txt", None)
    check_workspace(tmp_path, "pairs.txt")


@pytest.mark.parametrize(
    "name",
    [
        *("vocabulary/unfinished.safetensors", "vocabulary/.unfinished.safetensors.tmp"),
        *("vocabulary/.words-0a1b2c3d.safetensors.tmp", "vocabulary/words-0a1b2c3d.safetensors"),
        *("vocabulary/.card.json.tmp", "index/.manifest.json.tmp", "index/.unfinished.json.tmp", "index/.draft/x.npy"),
        *("index/vocabulary-0a1b2c3d/.words-0a1b2c3d.safetensors.tmp", "index/vocabulary-0a1b2c3d/.card.json.tmp"),
    ],
)
def test_what_a_killed_run_left_before_the_first_card_counts_as_ours(name: str, tmp_path: Path) -> None:
    claim(tmp_path, "vocabulary", "index")
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(b"half")
    check_workspace(tmp_path, "vocabulary", "index")
    (tmp_path / name).with_name("words.txt").write_bytes(b"of a user")
    if ".draft" not in name:
        with pytest.raises(HardnetSfmError, match="hardnet-sfm did not make it"):
            check_workspace(tmp_path, "vocabulary", "index")


def test_demo_does_not_render_into_a_folder_of_photos(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/view_000.jpg").write_bytes(b"mine")
    with pytest.raises(HardnetSfmError, match="photos: hardnet-sfm did not make it"):
        hardnet_sfm.demo(tmp_path)
    assert (tmp_path / "photos/view_000.jpg").read_bytes() == b"mine"


def test_an_export_replaces_an_earlier_one_only(made: Workspace, tmp_path: Path) -> None:
    to = tmp_path / "exported"
    hardnet_sfm.export(made, to)
    first = contents(to)
    hardnet_sfm.export(made, to)
    assert contents(to) == first
    (to / "text/0/cameras.txt").write_text("scaled by hand")
    before = contents(to)
    with pytest.raises(HardnetSfmError, match=r"cameras\.txt: added or changed after hardnet-sfm wrote text"):
        hardnet_sfm.export(made, to)
    assert contents(to) == before
    hardnet_sfm.export(made, to, ("binary", "database"))  # these are still ours


def test_an_export_into_a_project_of_colmap_is_refused(made: Workspace, project: Path) -> None:
    before = contents(project)
    for form in ("binary", "pairs", "database"):
        with pytest.raises(HardnetSfmError, match="hardnet-sfm did not make it"):
            hardnet_sfm.export(made, project, (form,))  # type: ignore[arg-type]
    assert contents(project) == before


def write_ours(path: Path) -> None:
    """Writes a file as the verbs write it."""
    match path.suffix:
        case ".html":
            write_page(path, make_page("title", "scores", {}))
        case ".json":
            path.write_text(json.dumps({"data_set": "brown", "results": []}))
        case ".csv":
            path.write_text("data_set,measure,descriptor,column,value,mark\n")
        case _:
            write_picture(path, np.zeros((8, 8, 3), np.uint8))


def write_theirs(path: Path) -> None:
    match path.suffix:
        case ".html" | ".csv" | ".txt":
            path.write_text("name,value\n")
        case ".json":
            path.write_text('{"name": 1}')
        case _:
            cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("suffix", [".html", ".json", ".csv", ".png", ".jpg", ".webp"])
def test_an_output_replaces_only_what_a_verb_wrote(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"output{suffix}"
    check_output(path)  # nothing is there
    write_ours(path)
    check_output(path)
    write_theirs(path)
    with pytest.raises(HardnetSfmError, match="is there already, and hardnet-sfm did not make it"):
        check_output(path)


@pytest.mark.parametrize(
    "command",
    [
        "retrieve --query QUERY --workspace INDEXED --montage THEIRS.png",
        "retrieve --query QUERY --workspace INDEXED --report THEIRS.html",
        "report MADE -o THEIRS.html",
        "mine MADE --images PHOTOS -o patches.h5 --sheet THEIRS.png",
        "warp PHOTOS -o patches.h5 --sheet THEIRS.png",
        "evaluate brown PHOTOS --csv THEIRS.csv",
        "evaluate brown PHOTOS --json THEIRS.json",
    ],
)
def test_verbs_refuse_an_output_that_is_not_ours_before_they_start(
    command: str,
    made: Workspace,
    indexed: Path,
    small_scene: tuple[Path, Scene],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"INDEXED": indexed, "MADE": made.root, "PHOTOS": small_scene[0], "THEIRS": tmp_path / "theirs"}
    places["QUERY"] = small_scene[0] / small_scene[1].names[0]
    for name, path in places.items():
        command = command.replace(name, str(path))
    theirs = tmp_path / f"theirs.{command.rpartition('.')[2]}"
    write_theirs(theirs)
    before = theirs.read_bytes()
    with pytest.raises(SystemExit) as exit:
        main(command.replace("patches.h5", str(tmp_path / "patches.h5")).split())
    assert exit.value.code == 1 and "hardnet-sfm did not make it" in " ".join(capsys.readouterr().err.split())
    assert theirs.read_bytes() == before and not (tmp_path / "patches.h5").exists()


def test_weights_are_not_converted_onto_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "network.pth").write_bytes(b"")
    (tmp_path / "other.safetensors").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already"):
        convert(tmp_path / "network.pth", tmp_path / "other.safetensors")


def test_a_mapping_that_makes_nothing_keeps_the_last_model(made: Workspace, tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    before = contents(place.root)
    kept = [name for name in before if name.startswith(("sparse/", "database.db", "summary.json"))]
    with pytest.raises(HardnetSfmError, match="no model could be made") as raised:
        hardnet_sfm.map_photos(place, MapOptions(camera_mode="single", min_inliers=100_000))
    assert "The earlier model and its summary stay as they were." in raised.value.hint
    assert "that no model has" not in raised.value.hint
    after = contents(place.root)
    assert len(kept) > 5 and {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert [part.stale for part in hardnet_sfm.info(place)] == ["", "", ""]
    assert len(hardnet_sfm.export(place, tmp_path / "exported", ("binary",))) == 1
    model = hardnet_sfm.map_photos(place, ONE_CAMERA, ONE_THREAD)  # up to date
    assert len(model.names) == 8 and contents(place.root)["summary.json"] == before["summary.json"]


def test_a_kill_between_model_and_summary_leaves_the_earlier_ones(
    made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier figures stay with the earlier model. Only the fingerprint goes, so the model is made again."""
    place = copy_of(made, tmp_path)
    before, options = contents(place.sparse), MapOptions(camera_mode="single", max_error=2)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr("hardnet_sfm.verbs.map.replace_folder", die)
        hardnet_sfm.map_photos(place, options, ONE_THREAD)
    assert contents(place.sparse) == before
    assert read_json(place.summary) == {**read_json(made.summary), "fingerprint": ""}
    hardnet_sfm.map_photos(place, options, ONE_THREAD)
    assert read_json(place.summary)["options"]["map"]["max_error"] == 2
    assert len(hardnet_sfm.Model.read(place.sparse / "0").names) == 8


def test_a_mapping_of_photos_that_are_gone_keeps_the_last_model(
    made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    place = copy_of(made, tmp_path)
    (tmp_path / "some").mkdir()
    for name in small_scene[1].names[:4]:
        shutil.copy(small_scene[0] / name, tmp_path / "some")
    before = contents(place.sparse)
    for images in (tmp_path / "some", tmp_path / "nowhere"):
        with pytest.raises(HardnetSfmError, match=r"missing|no longer in"):
            hardnet_sfm.map_photos(place, MapOptions(camera_mode="single", max_error=2), images=images)
    assert contents(place.sparse) == before and len(hardnet_sfm.Model.read(place.sparse / "0").names) == 8


def test_photos_that_no_model_has_are_named(made: Workspace, tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    with pycolmap.Database.open(place.database) as database:
        late = pycolmap.Image(name="late.jpg", camera_id=database.read_all_cameras()[0].camera_id)
        database.write_image(late)
    assert _in_no_model(place, place.database) == ["late.jpg"]
    explained = explain_failure(read_json(place.summary) | {"unregistered": {"a": "b"}}, place.database, kept=True)
    assert "no model has" not in explained.hint
    summary = read_json(place.summary) | {"unregistered": {"a": "b"}}
    explained = explain_failure(summary, place.database, kept=True, left_out=["late.jpg"])
    assert explained.hint.endswith("database.db has 1 photo that no model has: late.jpg.")


def test_a_first_mapping_that_makes_nothing_leaves_its_results_to_look_at(made: Workspace, tmp_path: Path) -> None:
    for path in (made.features, made.pairs, made.matches):
        shutil.copy(path, tmp_path)
    with pytest.raises(HardnetSfmError, match="no model could be made") as raised:
        hardnet_sfm.map_photos(tmp_path, MapOptions(camera_mode="single", min_inliers=100_000))
    assert "database.db has 8 photos that no model has: view_000.jpg, " in raised.value.hint
    assert read_json(tmp_path / "summary.json")["models"] == [] and (tmp_path / "database.db").is_file()
    assert not (tmp_path / "sparse").exists()


def test_a_folder_that_was_set_aside_comes_back(tmp_path: Path) -> None:
    fresh, target = tmp_path / "fresh", tmp_path / "sparse"
    for folder in (fresh, target):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    target.rename(tmp_path / ".sparse.old")  # the run was killed here
    restore_folder(target)
    assert (target / "name").read_text() == "sparse"
    replace_folder(fresh, target)
    assert (target / "name").read_text() == "fresh" and [path.name for path in tmp_path.iterdir()] == ["sparse"]
