"""Photos that the model left out are matched again, and the model goes on from where it was."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path

import pycolmap
import pytest

import hardnet_sfm
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.errors import NoModel, UsageError
from hardnet_sfm.evaluation.poses import pose_errors
from hardnet_sfm.files.again import Again, read_again, write_again
from hardnet_sfm.files.stores import MatchStore
from hardnet_sfm.files.workspace import Workspace, read_json
from hardnet_sfm.reconstruction.left_out import retry_left_out
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.map import map_photos
from hardnet_sfm.verbs.match import MatchOptions, match_photos
from hardnet_sfm.verbs.pair import PairOptions
from hardnet_sfm.verbs.reconstruct import RetryOptions
from hardnet_sfm.view_synthesis import ViewSynthesisOptions

CPU = Resources(device="cpu", workers=1)
MAPPING = MapOptions(camera_mode="single", max_error=1.5)

pytestmark = pytest.mark.usefixtures("one_thread")


def made_of(place: Workspace) -> str:
    with MatchStore(place.matches) as matches:
        return str(matches.header["made_of"])


def without_pairs_of_two(made: Workspace, folder: Path) -> tuple[Workspace, list[str]]:
    """A copy of the workspace whose list lacks all pairs of the last two photos; and all names."""
    place = Workspace(folder)
    place.root.mkdir()
    shutil.copy(made.features, place.features)
    with MatchStore(made.matches) as matches:
        names = sorted({name for pair in matches.pairs() for name in pair})
    place.pairs.write_text("".join(f"{a} {b}\n" for a, b in combinations(names[:-2], 2)))
    return place, names


@pytest.fixture
def left_out(made: Workspace, tmp_path: Path) -> tuple[Workspace, list[str]]:
    """Matched and mapped, but for two photos."""
    place, names = without_pairs_of_two(made, tmp_path / "place")
    match_photos(place, resources=CPU)
    assert len(map_photos(place, MAPPING, CPU).names) == len(names) - 2
    return place, names


def inliers(place: Workspace) -> dict[int, list[list[int]]]:
    with pycolmap.Database.open(place.database) as database:
        numbers, geometries = database.read_two_view_geometries()
        return {number: one.inlier_matches.tolist() for number, one in zip(numbers, geometries, strict=True)}


def test_a_round_gets_photos_into_the_model_and_keeps_what_was_done(
    left_out: tuple[Workspace, list[str]], small_scene: tuple[Path, Scene]
) -> None:
    place, names = left_out
    before = inliers(place)
    pairs = tuple((name, last) for last in names[-2:] for name in names[:-2])
    write_again(place.again, Again(made_of(place), ("more pairs",), pairs))
    assert match_photos(place, resources=CPU).computed == len(pairs)
    model = map_photos(place, MAPPING, CPU)
    assert sorted(model.names) == names
    summary = read_json(place.summary)
    assert summary["recovered"][-1] == {"step": "more pairs", "tried": 2, "registered": 2}
    assert summary["unregistered"] == {} and summary["pairs"] == 15 + len(pairs)
    after = inliers(place)
    assert all(after[pair] == rows for pair, rows in before.items()) and len(after) == len(before) + len(pairs)
    errors = pose_errors(
        model.cam_from_world(), dict(zip(small_scene[1].names, small_scene[1].cam_from_world, strict=True))
    )
    assert errors.relative.max() < 0.5

    files = (place.matches, place.database, place.summary, place.sparse / "0" / "images.bin")
    times = [path.stat().st_mtime_ns for path in files]
    assert match_photos(place, resources=CPU).computed == 0
    map_photos(place, MAPPING, CPU)
    assert [path.stat().st_mtime_ns for path in files] == times


def test_with_other_options_all_is_mapped_anew(left_out: tuple[Workspace, list[str]]) -> None:
    place, names = left_out
    pairs = tuple((name, last) for last in names[-2:] for name in names[:-2])
    write_again(place.again, Again(made_of(place), ("more pairs",), pairs))
    match_photos(place, resources=CPU)
    model = map_photos(place, MapOptions(camera_mode="single", max_error=2), CPU)
    assert sorted(model.names) == names and read_json(place.summary)["recovered"] == []


def test_pairs_of_another_run_are_passed_over(left_out: tuple[Workspace, list[str]]) -> None:
    place, names = left_out
    write_again(place.again, Again(made_of(place), ("more pairs",), ((names[0], names[-1]),)))
    place.pairs.write_text("\n".join(place.pairs.read_text().splitlines()[1:]))
    match_photos(place, resources=CPU)
    with MatchStore(place.matches) as matches:
        assert len(matches.pairs()) == 14 and matches.header["rounds"] == []
    for damaged in ("", "[]", json.dumps({"made_of": made_of(place)})):
        place.again.write_text(damaged)
        assert read_again(place.again, made_of(place)) == Again(made_of(place))


def test_views_are_tried_with_the_photos_of_the_model_that_most_speaks_for(
    left_out: tuple[Workspace, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the pairs of the photo that was left out, those with most verified matches, then those with most matches."""
    place, names = left_out
    with place.pairs.open("a") as file:
        file.writelines(f"{name} {names[-1]}\n" for name in names[:-1])
    match_photos(place, resources=CPU)
    with MatchStore(place.matches) as matches:
        counts = {name: matches.count(name, names[-1]) for name in names[:-2]}
    monkeypatch.setattr("hardnet_sfm.colmap.database.Database.verified", lambda _: {(names[0], names[-1]): 9})
    calls: list[Again] = []
    failed = NoModel("", "", read_json(place.summary), place.database)

    def match_and_map() -> NoModel:
        calls.append(read_again(place.again, made_of(place)))
        return failed

    for _ in range(2):
        retry_left_out(place, failed, match_and_map, neighbours=None, views=True, resources=CPU)
    expected = {names[0], *sorted(counts, key=lambda name: (name != names[0], -counts[name]))[1:5]}
    (again,) = calls  # and not once more
    assert again.rounds == ("view synthesis",) and again.pairs == ()
    assert {pair[0] for pair in again.views if pair[1] == names[-1]} == expected


@pytest.mark.slow
def test_reconstruct_asks_the_index_for_more_pairs(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    """With one neighbour each, photos of the scene fall apart."""

    def reconstruct(folder: Path, retry: bool = True) -> Model:
        return hardnet_sfm.reconstruct(
            small_scene[0],
            folder,
            extract_options=hardnet_sfm.ExtractOptions(descriptor="rootsift", max_keypoints=1000),
            pair_options=PairOptions(retrieval=1),
            map_options=MapOptions(camera_mode="single", retry=retry),
            resources=CPU,
            report=False,
        )

    few = len(reconstruct(tmp_path / "once", retry=False).names)
    place = Workspace(tmp_path / "again")
    assert few < len(reconstruct(place.root).names) == 8
    steps = [step for step in read_json(place.summary)["recovered"] if step["step"] == "more pairs"]
    assert steps == [{"step": "more pairs", "tried": 8 - few, "registered": 8 - few}]
    before = place.matches.stat().st_mtime_ns
    reconstruct(place.root)
    assert place.matches.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("match", "views", "mapping", "said"),
    [
        (MatchOptions(), ViewSynthesisOptions(), MapOptions(retry=False), "--no-retry"),
        (MatchOptions(), ViewSynthesisOptions(view_synthesis=True), MapOptions(), "--view-synthesis"),
        (MatchOptions(rescore=Path("matchnet.safetensors")), ViewSynthesisOptions(), MapOptions(), "--rescore"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    match: MatchOptions, views: ViewSynthesisOptions, mapping: MapOptions, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        RetryOptions(retry_views=True).check_with(match, views, mapping)
    RetryOptions().check_with(match, views, mapping)
