"""From photos to ranked photos, by Python and by the command line, and what goes wrong on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.extraction import ExtractOptions, PhotoDescriber
from hardnet_sfm.files.index_files import Manifest
from hardnet_sfm.files.pair_list import read_pairs
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import MANIFEST, Workspace
from hardnet_sfm.index_folder import IndexBuilder, OpenIndex, open_index, open_vocabulary
from hardnet_sfm.photo_index import Index
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.methods import METHODS
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.verbs.index import index_photos
from hardnet_sfm.verbs.retrieve import open_current
from hardnet_sfm.verbs.vocabulary import VocabularyOptions

CPU = Resources(device="cpu", workers=2)
FEW = ExtractOptions(max_keypoints=300)
WORDS = VocabularyOptions(words=64, iterations=4)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(small_scene: tuple[Path, Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which eight rendered photos, copied into its folder `photos`, are indexed."""
    place = tmp_path_factory.mktemp("retrieve")
    shutil.copytree(small_scene[0], place / "photos", ignore=lambda _, names: [n for n in names if "." not in n])
    index_photos(place / "photos", place, extract_options=FEW, vocabulary_options=WORDS, resources=CPU)
    return place


def photo_names(place: Path) -> list[str]:
    with FeatureStore(place / "features.h5") as store:
        return store.names()


def said_by(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = 0
    try:
        main(args)
    except SystemExit as exit:
        status = int(exit.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("turn", [cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE])
def test_a_turned_query_finds_what_the_upright_one_finds(turn: int, place: Path) -> None:
    """The rendered photos are upright, so they are described upright."""
    index = Index.open(place, resources=CPU)
    assert index.options["orientation"] == "upright"
    name = photo_names(place)[3]
    photo = cv2.cvtColor(cv2.imread(str(place / "photos" / name)), cv2.COLOR_BGR2RGB)
    straight = index.search(place / "photos" / name, top=1)[0]
    turned = index.search(np.ascontiguousarray(cv2.rotate(photo, turn)), top=1)[0]
    assert turned.image == straight.image == name
    assert turned.inliers is not None and straight.inliers is not None
    assert turned.inliers > 0.8 * straight.inliers
    assert turned.accepted and straight.accepted and straight.identical


def stranger(path: Path) -> Path:
    """A photo of nothing: spots of noise of several sizes."""
    random = np.random.default_rng(5)
    layers = [cv2.resize(random.random((360 // step, 480 // step)), (480, 360)) for step in (3, 6, 12)]
    cv2.imwrite(str(path), (255 * np.mean(layers, 0)).astype(np.uint8))
    return path


@pytest.mark.parametrize("method", ["hqe+ma+sv", "he+sv", "bow+sv"])
def test_a_query_that_shows_nothing_of_the_collection_finds_nothing(method: str, place: Path, tmp_path: Path) -> None:
    results = Index.open(place, resources=CPU).search(stranger(tmp_path / "q.png"), method=method)
    assert results and not any(found.accepted for found in results)


def test_the_command_line_says_that_nothing_was_found(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query, page = str(stranger(tmp_path / "q.png")), tmp_path / "page.html"
    args = ["retrieve", "--workspace", str(place), "--device", "cpu", "--query", query]
    status, out, _ = said_by([*args, "--report", str(page)], capsys)
    assert status == 3 and out.startswith(f"{query}  hqe+ma+sv: nothing found")
    assert "accepted" not in out and "nothing found" in page.read_text("utf-8")
    status, out, _ = said_by([*args, "--json"], capsys)
    answer = json.loads(out)
    assert status == 3 and answer["found"] == 0
    assert [row["accepted"] for row in answer["results"]] == [False] * len(answer["results"])
    # Without verification nobody knows.
    status, out, _ = said_by([*args, "--json", "--method", "he"], capsys)
    answer = json.loads(out)
    assert status == 0 and answer["found"] is None and answer["results"][0]["accepted"] is None


def test_min_inliers_accepts_what_has_as_many(place: Path) -> None:
    index = Index.open(place, resources=CPU)
    name = photo_names(place)[3]
    pixels = cv2.imread(str(place / "photos" / name))[..., ::-1]
    counts = [found.inliers or 0 for found in index.search(np.ascontiguousarray(pixels))]
    for least in (1, counts[1], counts[1] + 1, 10_000):
        results = index.search(np.ascontiguousarray(pixels), min_inliers=least)
        assert [found.accepted for found in results] == [count >= least for count in counts]
    for wrong in ({"min_inliers": 0}, {"min_inliers": 8, "method": "hqe"}):
        with pytest.raises(UsageError, match="--min-inliers"):
            index.search(place / "photos" / name, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2])
def test_the_identical_photo_is_found_in_a_collection_of_one_or_two(count: int, place: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in photo_names(place)[:count]:
        shutil.copy(place / "photos" / name, photos)
    index = index_photos(photos, tmp_path / "out", extract_options=FEW, resources=CPU)
    for name in photo_names(place)[:count]:
        copy = shutil.copy(photos / name, tmp_path / "query.jpg")
        found = index.search(copy, method="he+sv")[0]
        assert (found.image, found.accepted, found.identical) == (name, True, True)
        # The same picture in another file is found by what it shows.
        pixels = np.ascontiguousarray(cv2.imread(str(photos / name))[..., ::-1])
        found = index.search(pixels, method="he+sv")[0]
        assert (found.image, found.accepted, found.identical) == (name, True, False)


@pytest.mark.parametrize("method", METHODS)
def test_a_photo_of_the_collection_finds_itself_first(method: str, place: Path) -> None:
    index = Index.open(place, resources=CPU)
    name = photo_names(place)[3]
    results = index.search(place / "photos" / name, top=5, method=method)
    assert results[0].image == name
    assert [found.score for found in results] == sorted((found.score for found in results), reverse=True)
    assert all((found.inliers is None) == (found.lines is None) for found in results)
    if "+sv" in method:
        assert results[0].inliers is not None and results[0].inliers > 100
        assert results[0].lines is not None and len(results[0].lines) == results[0].inliers
        x_step, y_step = 480 / 1024, 360 / 1024
        apart = np.abs(results[0].lines[:, :2] - results[0].lines[:, 2:])
        assert np.median(apart[:, 0]) <= x_step and np.median(apart[:, 1]) <= y_step


def test_a_query_is_described_bit_by_bit_as_the_photos_are(place: Path) -> None:
    name = photo_names(place)[2]
    upright = ExtractOptions(max_keypoints=FEW.max_keypoints, orientation="upright")
    keypoints, descriptors = PhotoDescriber(upright, CPU)(read_photo(place / "photos" / name))
    with FeatureStore(place / "features.h5") as store:
        assert (keypoints.xy == store.keypoints(name).xy).all()
        assert (descriptors == store.descriptors(name)).all()


def test_a_box_keeps_the_keypoints_whose_centre_is_in_it(place: Path) -> None:
    index = Index.open(place, resources=CPU)
    name = photo_names(place)[0]
    box = (100.0, 50.0, 350.0, 300.0)
    with FeatureStore(place / "features.h5") as store:
        xy = store.keypoints(name).xy
    inside = ((xy >= box[:2]) & (xy <= box[2:])).all(1)
    found = index.describe(place / "photos" / name, box)
    assert 0 < inside.sum() < len(xy)
    assert (found.geometry[:, :2] == xy[inside]).all()
    # Without expansion: an expanded query can be more like another photo of the same place than like its own.
    assert index.search(place / "photos" / name, top=1, method="he+sv", bbox=box)[0].image == name
    assert index.search(found, top=1, method="he+sv")[0].image == name


def test_pixels_will_do_for_a_query(place: Path) -> None:
    index = Index.open(place, resources=CPU)
    path = place / "photos" / photo_names(place)[1]
    rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    assert index.search(np.asarray(rgb, np.uint8), top=1)[0].image == path.name
    for wrong in (rgb.astype(np.float32), np.zeros((0, 5), np.uint8), np.zeros((5, 5, 4), np.uint8)):
        with pytest.raises(UsageError, match="uint8 is needed"):
            index.search(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("box", [(10, 10, 10, 50), (50, 10, 20, 40), (600, 10, 700, 50), (-90, 0, -5, 9)])
def test_a_box_that_is_empty_or_outside_is_refused(box: tuple[float, ...], place: Path) -> None:
    with pytest.raises(UsageError, match="the box"):
        Index.open(place, resources=CPU).search(place / "photos" / photo_names(place)[0], bbox=box)  # type: ignore[arg-type]


def test_what_of_a_box_is_beyond_the_photo_is_cut_off(place: Path) -> None:
    index = Index.open(place, resources=CPU)
    query = place / "photos" / photo_names(place)[0]  # 480 x 360
    whole, beyond = index.describe(query), index.describe(query, (-50, -0.5, 9000, 400))
    assert whole.region == beyond.region == (-0.5, -0.5, 479.5, 359.5)
    assert (beyond.descriptors == whole.descriptors).all()
    assert index.describe(query, (100, -9, 350, 300)).region == (100, -0.5, 350, 300)


def test_the_command_line_says_what_is_left_of_a_box(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = str(place / "photos" / photo_names(place)[0])
    args = ["retrieve", "--workspace", str(place), "--device", "cpu", "--method", "he", "--query", query, "--json"]
    status, cut, err = said_by([*args, "--bbox", "100", "50", "9000", "300"], capsys)
    assert status == 0 and err == f"cut: the box goes beyond {query}; 100 50 479.5 300 is left\n"
    for inside in ("479.5", "480"):  # pixels may be counted by their edges, too
        assert said_by([*args, "--bbox", "100", "50", inside, "300"], capsys) == (0, cut, "")
    status, out, err = said_by([*args, "--bbox", "480", "50", "9000", "300"], capsys)
    assert status == 2 and not out and "the box 480 50 9000 300 is outside its 480 x 360 pixels" in err


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_query_is_searched_and_named(
    suffix: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = tmp_path / f"q{suffix}"
    cv2.imwrite(str(query), cv2.imread(str(place / "photos" / photo_names(place)[0])))
    args = ["retrieve", "--query", str(query), "--workspace", str(place), "--workers", "1", "--device", "cpu"]
    assert "truncated" not in said_by(args, capsys)[2]
    query.write_bytes(query.read_bytes()[: query.stat().st_size * 3 // 4])
    status, out, err = said_by(args, capsys)
    assert status == 0 and err.startswith(f"truncated: {query}: read as far as they go")
    assert out.splitlines()[1].endswith(photo_names(place)[0])


def test_a_query_without_keypoints_is_refused(place: Path) -> None:
    index = Index.open(place, resources=CPU)
    with pytest.raises(HardnetSfmError, match="no keypoints"):
        index.search(np.full((200, 200), 128, np.uint8))
    with pytest.raises(HardnetSfmError, match="the box: no keypoints"):
        index.search(place / "photos" / photo_names(place)[0], bbox=(0, 0, 0.5, 0.5))


def test_a_query_that_is_no_photo_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jpg").write_text("no photo")
    with pytest.raises(HardnetSfmError, match="not a photo"):
        Index.open(place, resources=CPU).search(tmp_path / "q.jpg")


def test_unknown_methods_and_no_results_are_refused(place: Path) -> None:
    index = Index.open(place, resources=CPU)
    with pytest.raises(UsageError, match="is not one of bow"):
        index.search(place / "photos" / photo_names(place)[0], method="sift")
    with pytest.raises(UsageError, match="at least 1"):
        index.search(place / "photos" / photo_names(place)[0], top=0)


def test_an_index_of_other_weights_is_refused(place: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    shutil.copytree(place / "index", tmp_path / "index")
    path = tmp_path / "index" / MANIFEST
    manifest = Manifest.read(path)
    replace(manifest, options={**manifest.options, "weights_sha256": "0123456789abcdef" * 4}).write(path)
    with pytest.raises(HardnetSfmError, match="other weights"):
        Index.open(tmp_path, resources=CPU).search(place / "photos" / photo_names(place)[0])


def test_the_command_line_prints_a_json_object_a_query(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = photo_names(place)[:2]
    queries = [str(place / "photos" / name) for name in names]
    args = ["retrieve", "--workspace", str(place), "--device", "cpu", "--json", "--top", "3", "--method", "he+sv"]
    status, out, _ = said_by([*args, "--query", *queries], capsys)
    assert status == 0
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(answer["query"], answer["method"]) for answer in answers] == [(query, "he+sv") for query in queries]
    for name, answer in zip(names, answers, strict=True):
        assert [row["rank"] for row in answer["results"]] == [1, 2, 3]
        assert answer["results"][0]["image"] == name and answer["results"][0]["inliers"] > 100
        assert set(answer["results"][0]) == {"rank", "image", "score", "inliers", "accepted", "identical"}
        assert answer["results"][0]["accepted"] and answer["results"][0]["identical"]
        assert answer["found"] == sum(row["accepted"] for row in answer["results"])


def test_a_folder_of_queries_is_answered_but_for_what_is_no_photo(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = photo_names(place)[0]
    (tmp_path / "queries").mkdir()
    shutil.copy(place / "photos" / name, tmp_path / "queries" / "b.png")
    (tmp_path / "queries" / "a.png").write_text("no photo")
    args = ["retrieve", "--workspace", str(place), "--device", "cpu", "--query", str(tmp_path / "queries")]
    status, out, err = said_by(args, capsys)
    assert status == 1
    assert name in out and "inliers" in out
    assert "a.png" in err and "1 of 2 queries" in err
    assert said_by([*args, "--bbox", "0", "0", "9", "9"], capsys)[0] == 2


def test_retrieve_makes_the_index_first_and_needs_features(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = str(place / "photos" / photo_names(place)[4])
    args = ["retrieve", "--workspace", str(tmp_path), "--device", "cpu", "--query", query, "--top", "1"]
    status, _, err = said_by(args, capsys)
    assert status == 1 and "hardnet-sfm index" in err
    shutil.copy(place / "features.h5", tmp_path)
    status, out, err = said_by(args, capsys)
    assert status == 0 and "updating it first" in err and photo_names(place)[4] in out
    assert "updating it first" not in said_by(args, capsys)[2]


def test_one_search_finds_what_an_open_index_finds(place: Path) -> None:
    query = place / "photos" / photo_names(place)[4]
    found = hardnet_sfm.retrieve(query, place, top=3, method="bow", resources=CPU)
    expected = hardnet_sfm.Index.open(place, resources=CPU).search(query, 3, "bow")
    assert [(one.image, one.score) for one in found] == [(one.image, one.score) for one in expected]
    assert found[0].image == photo_names(place)[4]


def test_retrieve_opens_an_index_that_is_up_to_date_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = []

    def counted(folder: Path, *args: Any, **options: Any) -> OpenIndex:
        opened.append(folder)
        return open_index(folder, *args, **options)

    monkeypatch.setattr("hardnet_sfm.index_folder.open_index", counted)
    query = str(place / "photos" / photo_names(place)[4])
    status, out, _ = said_by(
        ["retrieve", "--workspace", str(place), "--device", "cpu", "--query", query, "--top", "1"], capsys
    )
    assert status == 0 and photo_names(place)[4] in out
    assert opened == [place / "index"]


def test_an_index_that_lost_all_its_photos_is_made_anew(place: Path, tmp_path: Path) -> None:
    """An empty index is refused only where there are no features to fill it with."""
    shutil.copytree(place / "index", tmp_path / "index")
    options = Manifest.read(place / "index" / MANIFEST).options
    builder = IndexBuilder(tmp_path / "index", open_vocabulary(place), "", options)
    builder.keep_only({})
    builder.finish()
    with pytest.raises(HardnetSfmError, match="no photos in the index"):
        open_current(Workspace(tmp_path), resources=CPU)
    shutil.copy(place / "features.h5", tmp_path)
    told: list[str] = []
    current = open_current(Workspace(tmp_path), resources=CPU, on_update=lambda: told.append("made"))
    assert sorted(current.names) == sorted(photo_names(place)) and told == ["made"]


@pytest.mark.parametrize("verb", ["vocabulary", "index", "pair", "extract", "reconstruct"])
def test_the_workspace_lies_apart_from_the_photos(
    verb: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photo_names(place)[0]
    shutil.copy(place / "photos" / photo, tmp_path)
    status, _, err = said_by([verb, str(tmp_path), "--workspace", str(tmp_path / "." / "")], capsys)
    assert status == 2 and "cannot be the folder of the photos" in err and "--workspace" in err
    assert [path.name for path in tmp_path.iterdir()] == [photo]


def test_photos_deleted_or_changed_since_are_named_and_go_with_the_next_index(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, work = tmp_path / "photos", tmp_path / "work"
    shutil.copytree(place / "photos", photos)
    work.mkdir()
    shutil.copy(place / "features.h5", work)  # of the same photos: nothing to compute
    common = ["--workspace", str(work), "--device", "cpu", "--max-keypoints", "300"]
    status, out, _ = said_by(["index", str(photos), *common, "--vocabulary", str(place)], capsys)
    assert status == 0 and "added 8, removed 0" in out
    names = photo_names(place)
    query = place / "photos" / names[0]
    (photos / names[0]).unlink()
    shutil.copy(photos / names[5], photos / names[1])
    index = Index.open(work, resources=CPU)
    assert index.changed(names) == {names[0]: "gone", names[1]: "changed"}
    status, _, err = said_by(["retrieve", *common[:4], "--query", str(query)], capsys)
    assert status == 0 and f"gone since it was indexed: {names[0]}" in err
    assert "added 1, removed 2" in said_by(["index", str(photos), *common, "--prune"], capsys)[1]
    assert names[0] not in Index.open(work, resources=CPU).names
    assert hardnet_sfm.Index is Index


def test_pair_by_retrieval_proposes_neighbours(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["pair", str(place / "photos"), "--workspace", str(place), "--retrieval", "2"]
    status, out, _ = said_by(args, capsys)
    assert status == 0 and "(retrieval)" in out
    names = photo_names(place)
    pairs = read_pairs(Workspace(place).pairs, names).pairs
    index = Index.open(place, resources=CPU)
    chosen = set(map(frozenset, pairs))
    assert len(names) <= len(chosen) <= 2 * len(names)
    for name in names:
        # The same words and signatures as a query of the photo itself has.
        found = [other.image for other in index.search(place / "photos" / name, 3, "he") if other.image != name]
        assert all(frozenset((name, other)) in chosen for other in found[:2])
    assert said_by([*args[:-1], "0"], capsys)[0] == 2
    assert said_by([*args, "--pairing", "sequential"], capsys)[0] == 2


@pytest.mark.slow
def test_reconstruct_pairs_by_retrieval_and_registers_all(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    told: list[str] = []
    model = hardnet_sfm.reconstruct(
        small_scene[0],
        tmp_path,
        pair_options=hardnet_sfm.PairOptions(retrieval=4),
        resources=CPU,
        on_stage=lambda name, _: told.append(name),
    )
    assert told[:5] == ["extract", "vocabulary", "index", "propose", "pair"]
    assert len(model.names) == 8


def test_info_says_what_vocabulary_and_index_there_are_and_whether_they_are_stale(place: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(place, work, ignore=shutil.ignore_patterns("photos"))
    parts = {part.name: part for part in hardnet_sfm.info(work)}
    assert list(parts) == ["features", "words", "index"]
    assert parts["words"].holds.startswith("64 words of ") and parts["index"].holds.startswith("8 photos of ")
    stored = sum(path.stat().st_size for path in (work / "index").rglob("*") if path.is_file())
    assert parts["index"].holds.endswith(f", 64 words, {stored / 1e6:.1f} MB")
    assert parts["words"].stale == parts["index"].stale == ""
    # Another photo, one that is gone, one that has changed: features know of them, the index not yet.
    photos = tmp_path / "photos"
    shutil.copytree(place / "photos", photos)
    first, second, third = sorted(photos.iterdir())[:3]
    first.rename(photos / "another.jpg")
    shutil.copy(third, second)
    extract(photos, work / "features.h5", FEW, CPU)
    stale = {part.name: part.stale for part in hardnet_sfm.info(work)}
    assert stale == {"features": "", "words": "", "index": "1 photos new, 1 photos gone, 1 photos changed"}
    extract(photos, work / "features.h5", ExtractOptions(max_keypoints=300, descriptor="rootsift"), CPU)
    stale = {part.name: part.stale for part in hardnet_sfm.info(work)}
    assert stale["words"] == stale["index"] == "the features are of another descriptor"
    # An index alone can be searched, and so is described.
    (work / "features.h5").unlink()
    assert [part.stale for part in hardnet_sfm.info(work)] == ["", ""]
    (work / "index" / "manifest.json").write_text("{}")
    with pytest.raises(HardnetSfmError, match=r"manifest\.json: damaged"):
        hardnet_sfm.info(work)
