"""A workspace remembers its options, and says before it starts what other options make again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import hardnet_sfm
from hardnet_sfm.cli import main, parse
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.ledger import NAME, Ledger, say_again
from hardnet_sfm.files.workspace import Workspace, read_json
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.terminal import print_recalled
from hardnet_sfm.verbs.match import MatchOptions
from hardnet_sfm.verbs.pair import PairOptions
from hardnet_sfm.verbs.reconstruct import PRESETS, Preset, ReconstructCommand, RetryOptions
from hardnet_sfm.verbs.vocabulary import VocabularyOptions
from hardnet_sfm.view_synthesis import ViewSynthesisOptions

ONE_CAMERA = MapOptions(camera_mode="single", max_error=1.5)  # as `made` has
ONE_THREAD = Resources(workers=1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path)
    ledger.start({})
    return ledger


def copy_of(made: Workspace, folder: Path) -> Workspace:
    shutil.copytree(made.root, folder / "copy")
    return Workspace(folder / "copy")


OPTIONS = {
    "extract": ExtractOptions(max_keypoints=7, strict=True, weights=Path("w.safetensors")),
    "pair": PairOptions(pairing="sequential", window=3),
    "match": MatchOptions(max_ratio=0.7, rescore=Path("/nets/matchnet.safetensors")),
    "views": ViewSynthesisOptions(view_synthesis=True, view_tilts=(2.0, 4.5)),
    "map": MapOptions(camera_mode="single", retry=False, camera_params="1,2,3,4"),
    "retry": RetryOptions(retry_views=True),
    "vocabulary": VocabularyOptions(words=64),
}


@pytest.mark.parametrize("stage", OPTIONS)
def test_options_come_back_as_they_were(stage: str, ledger: Ledger) -> None:
    options: Any = OPTIONS[stage]
    ledger.remember(stage, options)
    ledger.remember(stage, options)
    recalled = Ledger(ledger.root).recall(stage, type(options))
    if stage == "extract":  # the path has to hold in any folder
        assert recalled.weights == Path("w.safetensors").resolve()
        recalled = ExtractOptions(**{**vars(recalled), "weights": options.weights})
    assert recalled == options
    assert ledger.recall("another stage", type(options)) is None


def test_options_of_a_later_version_are_passed_over(ledger: Ledger) -> None:
    ledger.remember("map", ONE_CAMERA)
    path = ledger.root / NAME
    path.write_text(path.read_text().replace('"camera_mode"', '"later": 1,\n "camera_mode"'))
    assert ledger.recall("map", MapOptions) == ONE_CAMERA


def damaged(**parts: object) -> str:
    return json.dumps({"format": "hardnet-sfm workspace", "options": {}, "seconds": {}, "written": {}} | parts)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"format": "hardnet-sfm workspace"}',
        '{"name": 1}',
        damaged(options={"map": 1}),
        damaged(options={"map": {"seed": "none"}}),
        damaged(seconds={"map": [1, 0, 1]}),
        damaged(seconds={"map": 3}),
        damaged(written={"sparse": 7}),
    ],
)
def test_a_damaged_file_is_a_clear_error(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / NAME).write_text(damage)
    with pytest.raises(SystemExit) as exit:
        main(["map", "--workspace", str(tmp_path)])
    said = capsys.readouterr().err
    assert exit.value.code == 1 and NAME in said and "Move it elsewhere" in said and "Delete" not in said
    assert (tmp_path / NAME).read_text() == damage


def test_a_folder_that_is_no_workspace_remembers_nothing(tmp_path: Path) -> None:
    Ledger(tmp_path).remember("map", ONE_CAMERA)
    assert not list(tmp_path.iterdir())


def parsed(line: str, root: Path) -> tuple[Any, list[str]]:
    args = [*line.split(), "--workspace", str(root)]
    return parse(args), args


def test_a_verb_takes_the_options_that_are_not_typed_from_the_workspace(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.remember("map", MapOptions(camera_mode="single", retry=False, min_inliers=20))
    command, args = parsed("map --min-inliers 30", ledger.root)
    assert command.map == MapOptions(camera_mode="single", retry=False, min_inliers=30)
    print_recalled(command, args[1:])
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"remembered: --camera-mode single --no-retry ({ledger.root / NAME})"
    command, args = parsed("map --camera-mode auto --retry --min-inliers=15", ledger.root)
    assert command.map == MapOptions()
    print_recalled(command, args[1:])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", ["extract photos", "index photos", "vocabulary photos", "reconstruct photos"])
def test_every_verb_that_extracts_takes_the_same_options(line: str, ledger: Ledger) -> None:
    ledger.remember("extract", ExtractOptions(max_keypoints=99, affine_shape=True, detector="dog"))
    command, _ = parsed(line, ledger.root)
    assert command.extract == ExtractOptions(max_keypoints=99, affine_shape=True, detector="dog")
    assert command.images == Path("photos")
    command, _ = parsed(f"{line} --no-affine-shape --detector opencv-dog", ledger.root)
    assert command.extract == ExtractOptions(max_keypoints=99)


def test_a_new_choice_of_pairs_replaces_the_old_one_as_a_whole(ledger: Ledger) -> None:
    ledger.remember("pair", PairOptions(pairing="sequential", window=3))
    assert parsed("pair --window 5", ledger.root)[0].pair == PairOptions(pairing="sequential", window=5)
    assert parsed("pair --retrieval 5", ledger.root)[0].pair == PairOptions(retrieval=5)
    assert parsed("reconstruct p --pairs-file x", ledger.root)[0].pair == PairOptions(pairs_file=Path("x"))


def test_views_are_switched_off_with_their_options(ledger: Ledger) -> None:
    ledger.remember("views", ViewSynthesisOptions(view_synthesis=True, view_tilts=(2.0,)))
    assert parsed("match", ledger.root)[0].views == ViewSynthesisOptions(view_synthesis=True, view_tilts=(2.0,))
    assert parsed("match --no-view-synthesis", ledger.root)[0].views == ViewSynthesisOptions()


def test_a_preset_given_anew_forgets_the_options(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.remember("extract", ExtractOptions(max_keypoints=99))
    ledger.remember("pair", PRESETS["video"].pair)
    command, _ = parsed("reconstruct photos", ledger.root)
    assert isinstance(command, ReconstructCommand)
    assert (command.extract.max_keypoints, command.pair) == (99, PRESETS["video"].pair)
    command, args = parsed("reconstruct photos --preset default --window 3 --pairing sequential", ledger.root)
    assert Preset(command.extract, command.pair, command.match, command.views, command.map) == Preset(
        pair=PairOptions(pairing="sequential", window=3)
    )
    print_recalled(command, args[1:])
    assert capsys.readouterr().err == ""


def test_map_keeps_the_cameras_of_an_earlier_option(made: Workspace, tmp_path: Path) -> None:
    """Without --camera-mode single, six photos once got six cameras."""
    place = copy_of(made, tmp_path)
    before = place.summary.read_bytes()
    assert len(hardnet_sfm.map_photos(place).names) == 8  # up to date
    assert place.summary.read_bytes() == before
    hardnet_sfm.map_photos(place, MapOptions(camera_mode="single", max_error=2), ONE_THREAD)
    assert Ledger(place.root).recall("map", MapOptions) == MapOptions(camera_mode="single", max_error=2)


def test_a_failed_mapping_leaves_the_options_of_the_model(made: Workspace, tmp_path: Path) -> None:
    place = copy_of(made, tmp_path)
    with pytest.raises(HardnetSfmError, match="no model could be made"):
        hardnet_sfm.map_photos(place, MapOptions(camera_mode="single", min_inliers=100_000))
    assert Ledger(place.root).recall("map", MapOptions) == ONE_CAMERA


def test_a_second_run_without_options_computes_nothing(
    made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = copy_of(made, tmp_path)
    main(f"reconstruct {small_scene[0]} --workspace {place.root} --no-report".split())
    said = capsys.readouterr()
    assert [line.rpartition("; ")[2] for line in said.out.splitlines()[:3:2]] == ["up to date"] * 2
    assert "remembered: --max-keypoints 1500 --orientation estimated --descriptor rootsift" in said.err
    assert "--camera-mode single --max-error 1.5" in said.err and "again:" not in said.err
    assert read_json(place.summary) == read_json(made.summary)


def test_other_options_say_first_what_is_made_again_and_how_long_it_takes(
    small_scene: tuple[Path, Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in small_scene[1].names[:3]:
        shutil.copy(small_scene[0] / name, photos)
    line = f"extract {photos} --workspace {tmp_path / 'out'} --descriptor rootsift --orientation upright"
    main([*line.split(), "--max-keypoints", "200"])
    ledger = Ledger(tmp_path / "out")
    assert ledger.seconds("extract") > 0
    ledger.note_seconds("extract", 60, 3, 3)
    ledger.note_seconds("match", 120, 1, 3)
    ledger.note_seconds("map", 240, 3, 3)
    (ledger.root / "matches.h5").touch()
    (ledger.root / "sparse").mkdir()
    capsys.readouterr()
    main([*line.split(), "--max-keypoints", "100"])
    said = " ".join(capsys.readouterr().err.split())
    assert "again: extract of 3 photos (max_keypoints 200 -> 100), about 60 s; then match, map, about 10 min" in said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, ""), (12, ", about 12 s"), (600, ", about 10 min"), (9000, ", about 2.5 h")]
)
def test_times_are_said_roughly(seconds: int, said: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    if seconds:
        ledger.note_seconds("map", seconds, 5, 5)
    say_again(ledger, "map", "5 photos", "seed 0 -> 1")
    assert " ".join(capsys.readouterr().err.split()) == f"again: map of 5 photos (seed 0 -> 1){said}"
