"""Which photos are matched, and the stage `match`: the same matches as brute force, computed once."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hdf5 import contents
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from processes import PROCESSES

from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.pair_list import read_pairs
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FEATURES, FeatureStore, MatchStore, feature_arrays, pair_key
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.verbs.match import MatchOptions, match
from hardnet_sfm.verbs.pair import AUTO_EXHAUSTIVE_PHOTOS, PairOptions, pair, sequential

CPU = Resources(device="cpu", workers=2)
FEW = ExtractOptions(descriptor="rootsift", max_keypoints=300)
Pair = tuple[str, str]


pytestmark = pytest.mark.usefixtures("one_thread")


def store_of(
    path: Path,
    names: list[str],
    descriptors: list[NDArray[np.float16]] | None = None,
    more: dict[str, float] | None = None,
) -> Path:
    """A features store of photos without pixels; without descriptors they have no keypoints either.

    Its header says what old ones say, and `more`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with StoreWriter(path, FEATURES) as writer:
        for number, name in enumerate(names):
            vectors = np.zeros((0, 128), np.float16) if descriptors is None else descriptors[number]
            zeros = np.zeros(len(vectors), np.float32)
            keypoints = Keypoints(np.zeros((len(vectors), 2), np.float32), zeros, zeros, zeros)
            facts: dict[str, str | int] = {"photo_sha256": "", "exif_orientation": 1, "keypoints": len(vectors)}
            writer.put(name, f"{name} {vectors.sum()}", feature_arrays(keypoints, vectors, (1, 1)), facts)
        writer.commit(names, {"names": names, "images": "", "options": {}, "skipped": {}, **(more or {})})
    return path


def numbered(count: int) -> list[str]:
    return [f"{number}.jpg" for number in range(count)]


def paired(place: Workspace, options: PairOptions | None = None) -> list[Pair]:
    """The pairs that `pair` writes, each of its lines split at the one separator."""
    pair(place.features, place.pairs, options)
    lines = place.pairs.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""  # the last line ends as all do
    found = [tuple(line.split("\t" if "\t" in line else " ")) for line in lines]
    assert all(len(names) == 2 for names in found)
    return found


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 30), window=st.integers(1, 35), interval=st.integers(0, 12))
def test_sequential_pairs_are_those_of_the_definition(count: int, window: int, interval: int) -> None:
    names = numbered(count)
    found = list(sequential(names, window, interval))
    expected = {
        (names[i], names[j])
        for i, j in combinations(range(count), 2)
        if j - i <= window or (interval and i % interval == 0 and j % interval == 0)
    }
    assert set(found) == expected
    assert len(found) == len(expected)


def test_sequential_pairs_come_in_the_order_of_the_photos_and_loops_at_the_end(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    store_of(place.features, numbered(7))
    options = PairOptions(pairing="sequential", window=2, loop_interval=3)
    assert paired(place, options) == [
        ("0.jpg", "1.jpg"),
        ("0.jpg", "2.jpg"),
        ("1.jpg", "2.jpg"),
        ("1.jpg", "3.jpg"),
        ("2.jpg", "3.jpg"),
        ("2.jpg", "4.jpg"),
        ("3.jpg", "4.jpg"),
        ("3.jpg", "5.jpg"),
        ("4.jpg", "5.jpg"),
        ("4.jpg", "6.jpg"),
        ("5.jpg", "6.jpg"),
        ("0.jpg", "3.jpg"),
        ("0.jpg", "6.jpg"),
        ("3.jpg", "6.jpg"),
    ]


def test_sequential_by_default_takes_ten_and_closes_loops_every_ten(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    names = numbered(45)
    store_of(place.features, names)
    assert paired(place, PairOptions(pairing="sequential")) == [*sequential(names, 10, 10)]
    assert paired(place, PairOptions(pairing="sequential", loop_interval=0)) == [*sequential(names, 10, 0)]


@pytest.mark.parametrize("count", [2, 3, 20])
def test_exhaustive_pairs_are_all_pairs(count: int, tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    names = numbered(count)
    store_of(place.features, names)
    found = paired(place, PairOptions(pairing="exhaustive"))
    assert found == [(names[i], names[j]) for i in range(count) for j in range(i + 1, count)]
    report = pair(place.features, place.pairs, PairOptions(pairing="exhaustive"))
    assert (report.pairs, report.photos, report.how) == (count * (count - 1) // 2, count, "exhaustive")


def test_auto_is_exhaustive_up_to_200_photos_and_those_that_look_alike_beyond(tmp_path: Path) -> None:
    assert AUTO_EXHAUSTIVE_PHOTOS == 200
    names = numbered(201)
    store_of(tmp_path / "200" / "features.h5", names[:200])
    report = pair(tmp_path / "200" / "features.h5", tmp_path / "pairs.txt")
    assert (report.how, report.pairs) == ("exhaustive", 200 * 199 // 2)
    store_of(tmp_path / "201" / "features.h5", names)
    with pytest.raises(UsageError, match="proposed"):
        pair(tmp_path / "201" / "features.h5", tmp_path / "pairs.txt")
    (tmp_path / "proposed.txt").write_text("0.jpg\t7.jpg\n3.jpg\t200.jpg\n")
    report = pair(tmp_path / "201" / "features.h5", tmp_path / "pairs.txt", proposed=tmp_path / "proposed.txt")
    assert (report.how, report.pairs) == ("retrieval", 2)
    assert read_pairs(tmp_path / "pairs.txt", names).pairs == [("0.jpg", "7.jpg"), ("3.jpg", "200.jpg")]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_photos_are_an_error(count: int, tmp_path: Path) -> None:
    path = store_of(tmp_path / "features.h5", numbered(count))
    with pytest.raises(HardnetSfmError, match=f"{count} photo"):
        pair(path, tmp_path / "pairs.txt")
    assert not (tmp_path / "pairs.txt").exists()


def test_names_are_separated_by_a_space_or_by_a_tab_where_one_of_them_has_a_space(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    store_of(place.features, ["a.jpg", "b/ü.jpg", "c d.jpg"])
    pair(place.features, place.pairs)
    assert place.pairs.read_bytes().decode() == "a.jpg b/ü.jpg\na.jpg\tc d.jpg\nb/ü.jpg\tc d.jpg\n"


def test_an_unchanged_list_is_not_written_again(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    store_of(place.features, numbered(4))
    pair(place.features, place.pairs)
    os.utime(place.pairs, ns=(5, 5))
    pair(place.features, place.pairs)
    assert place.pairs.stat().st_mtime_ns == 5
    pair(place.features, place.pairs, PairOptions(pairing="sequential", window=1))
    assert place.pairs.stat().st_mtime_ns != 5
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


_names = st.lists(st.text("ab1-# \t.ü/\u2028\x85", min_size=1, max_size=6), min_size=2, max_size=5, unique=True)


@settings(max_examples=150, deadline=None)
@given(stems=_names)
@example(stems=["#1", "#2", "c"])
@pytest.mark.slow
def test_every_list_that_pair_writes_is_read_back_as_it_was_meant(stems: list[str]) -> None:
    """Whatever a file system lets a photo be called: match must get the same pairs, or pair must say that it cannot."""
    names = [f"{stem}.jpg" for stem in stems]
    parts = [part for name in names for part in name.split("/")]
    assume(all(part and not part.startswith(".") for part in parts))
    with tempfile.TemporaryDirectory() as folder:
        place = Workspace(Path(folder))
        store_of(place.features, names)
        try:
            pair(place.features, place.pairs)
        except HardnetSfmError:
            return
        assert read_pairs(place.pairs, names).pairs == [*combinations(names, 2)]


def _pairs_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "my pairs.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg b.jpg\n", [("a.jpg", "b.jpg")]),
        ("a.jpg b.jpg", [("a.jpg", "b.jpg")]),
        ("b.jpg a.jpg\r\nb.jpg c d.jpg\r\n", [("b.jpg", "a.jpg"), ("b.jpg", "c d.jpg")]),
        ("a.jpg\tc d.jpg\n", [("a.jpg", "c d.jpg")]),
        ("c d.jpg a.jpg\n", [("c d.jpg", "a.jpg")]),
        ("c d.jpg e f/g h.jpg\n", [("c d.jpg", "e f/g h.jpg")]),
        ("e f/g h.jpg\tc d.jpg\n", [("e f/g h.jpg", "c d.jpg")]),
        ("a.jpg   b.jpg  \n\n  \n", [("a.jpg", "b.jpg")]),
        ("# from hloc\na.jpg b.jpg\n#a.jpg c d.jpg\n", [("a.jpg", "b.jpg")]),
        ("a.jpg b.jpg\nb.jpg a.jpg\na.jpg b.jpg\n", [("a.jpg", "b.jpg")]),
        ("b.jpg c d.jpg\na.jpg b.jpg\n", [("b.jpg", "c d.jpg"), ("a.jpg", "b.jpg")]),
    ],
)
def test_a_pairs_file_is_read_as_hloc_and_colmap_write_it(text: str, expected: list[Pair], tmp_path: Path) -> None:
    known = ["a.jpg", "b.jpg", "c d.jpg", "e f/g h.jpg"]
    assert read_pairs(_pairs_file(tmp_path, text), known).pairs == expected
    place = Workspace(tmp_path / "out")
    store_of(place.features, known)
    assert paired(place, PairOptions(pairs_file=_pairs_file(tmp_path, text))) == expected
    report = pair(place.features, place.pairs, PairOptions(pairing="file", pairs_file=_pairs_file(tmp_path, text)))
    assert (report.pairs, report.photos, report.how) == (len(expected), 4, "file")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n\na.jpg x.jpg\n", "line 3: a.jpg x.jpg"),
        ("a.jpg\n", "line 1: a.jpg"),
        ("a.jpg b.jpg c.jpg\n", "line 1: .*a.jpg b.jpg c.jpg"),
        ("a.jpg a.jpg\n", "two different photos .*line 1: a.jpg a.jpg"),
        ("a.jpg,b.jpg\n", "line 1: .*a.jpg,b.jpg"),
        ("", "no pairs"),
        ("# nothing\n\n", "no pairs"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
    ],
)
def test_a_wrong_pairs_file_is_an_error_that_names_file_and_line(text: str | bytes, says: str, tmp_path: Path) -> None:
    path = _pairs_file(tmp_path, text)
    store_of(tmp_path / "features.h5", ["a.jpg", "b.jpg", "c.jpg"])
    with pytest.raises(HardnetSfmError, match=says) as raised:
        pair(tmp_path / "features.h5", tmp_path / "pairs.txt", PairOptions(pairs_file=path))
    assert str(path) in raised.value.message
    assert not (tmp_path / "pairs.txt").exists()


def test_bad_lines_are_counted_and_named_and_the_other_pairs_are_taken(tmp_path: Path) -> None:
    store_of(tmp_path / "features.h5", ["a.jpg", "b.jpg", "c.jpg"])
    bad = [f"a.jpg x{number}.jpg" for number in range(7)]
    path = _pairs_file(tmp_path, "\n".join(["a.jpg b.jpg", *bad, "b.jpg c.jpg"]))
    result = pair(tmp_path / "features.h5", tmp_path / "pairs.txt", PairOptions(pairs_file=path))
    assert (tmp_path / "pairs.txt").read_text() == "a.jpg b.jpg\nb.jpg c.jpg\n"
    (said,) = result.skipped.values()
    assert said.startswith(f"{path}: 7 of 9 lines do not name") and "line 2: a.jpg x0.jpg" in said
    assert said.endswith("line 6: a.jpg x4.jpg; and 2 more)")


def test_composed_and_decomposed_names_are_the_same_name(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9.jpg", "cafe\u0301.jpg"
    assert read_pairs(_pairs_file(tmp_path, f"a.jpg {composed}\n"), ["a.jpg", decomposed]).pairs == [
        ("a.jpg", decomposed)
    ]
    assert read_pairs(_pairs_file(tmp_path, f"{decomposed} a.jpg\n"), ["a.jpg", composed]).pairs == [
        (composed, "a.jpg")
    ]
    # Two photos that differ in nothing else are two photos.
    both = [composed, decomposed]
    assert read_pairs(_pairs_file(tmp_path, f"{decomposed} {composed}\n"), both).pairs == [(decomposed, composed)]


def test_a_missing_pairs_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    store_of(tmp_path / "features.h5", ["a.jpg", "b.jpg"])
    for path in (tmp_path / "gone.txt", tmp_path):
        with pytest.raises(HardnetSfmError) as raised:
            pair(tmp_path / "features.h5", tmp_path / "pairs.txt", PairOptions(pairs_file=path))
        assert str(path) in raised.value.message


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--pairing", "file"], "--pairing file needs --pairs-file"),
        (["--pairing", "exhaustive", "--pairs-file", "p.txt"], "--pairs-file has no effect with --pairing exhaustive"),
        (["--pairing", "sequential", "--pairs-file", "p.txt"], "--pairs-file has no effect with --pairing sequential"),
        (["--window", "5"], "--window has no effect without --pairing sequential"),
        (["--pairing", "exhaustive", "--window", "5"], "--window has no effect without --pairing sequential"),
        (["--pairs-file", "p.txt", "--window", "5"], "--window has no effect without --pairing sequential"),
        (["--loop-interval", "0"], "--loop-interval has no effect without --pairing sequential"),
        (["--pairing", "sequential", "--window", "0"], "--window must be at least 1"),
        (["--pairing", "sequential", "--loop-interval", "-1"], "--loop-interval must be at least 0"),
    ],
)
def test_pairing_options_without_effect_are_refused(
    args: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Workspace(tmp_path)
    store_of(place.features, numbered(3))
    with pytest.raises(SystemExit) as ended:
        main(["pair", "--workspace", str(tmp_path), *args])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not place.pairs.exists()


@pytest.mark.parametrize(
    "options", [MatchOptions(max_ratio=0), MatchOptions(max_ratio=1.1), MatchOptions(max_distance=-1)]
)
def test_matching_options_that_make_no_sense_are_refused(options: MatchOptions, tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    store_of(place.features, numbered(2))
    pair(place.features, place.pairs)
    with pytest.raises(UsageError, match=r"--max-(ratio|distance) must be above 0"):
        match(place.features, place.pairs, place.matches, options)
    assert not place.matches.exists()


@pytest.fixture(scope="module")
def extracted(small_scene: tuple[Path, Scene], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Six photos in two folders with all pairs, matched; to be copied, not written to."""
    folder = tmp_path_factory.mktemp("extracted")
    for number, name in enumerate(small_scene[1].names[:6]):
        path = folder / "images" / ("left" if number % 2 else "right side") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(small_scene[0] / name, path)
    place = Workspace(folder / "out")
    extract(folder / "images", place.features, FEW, CPU)
    pair(place.features, place.pairs)
    match(place.features, place.pairs, place.matches, None, CPU)
    return place


@pytest.fixture
def place(extracted: Workspace, tmp_path: Path) -> Workspace:
    """A copy of `extracted` for one test: photos beside it, everything matched."""
    shutil.copytree(extracted.root.parent, tmp_path / "copy")
    return Workspace(tmp_path / "copy" / "out")


def names_of(place: Workspace) -> list[str]:
    with FeatureStore(place.features) as store:
        return store.names()


def brute_force(
    first: NDArray[np.float16], second: NDArray[np.float16], max_ratio: float, max_distance: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`matches0` and its scores, from all distances in double precision, one row after the other."""
    similarity = first.astype(np.float64) @ second.astype(np.float64).T
    matches, scores = np.full(len(first), -1), np.zeros(len(first))

    def best(of_row: NDArray[np.float64]) -> int:
        """The nearest, or -1 where it fails the tests."""
        order = np.argsort(-of_row, kind="stable")
        distance = np.sqrt(np.maximum(0, 2 - 2 * of_row[order]))
        second_distance = distance[1] if len(order) > 1 else 2.0
        passes = distance[0] <= max_distance and (max_ratio >= 1 or distance[0] < max_ratio * second_distance)
        return int(order[0]) if passes else -1

    if similarity.size:
        back = [best(column) for column in similarity.T]
        for row, of_row in enumerate(similarity):
            other = best(of_row)
            if other >= 0 and back[other] == row:
                matches[row], scores[row] = other, (1 + of_row[other]) / 2
    return matches, scores


@pytest.mark.parametrize("options", [MatchOptions(), MatchOptions(max_ratio=1), MatchOptions(0.95, 0.6)])
def test_matches_of_every_pair_are_those_of_brute_force(options: MatchOptions, place: Workspace) -> None:
    report = match(place.features, place.pairs, place.matches, options, CPU)
    found_pairs, total = set(), 0
    with FeatureStore(place.features) as store, h5py.File(place.matches, "r") as file:
        for name0, name1 in combinations(store.names(), 2):
            entry = file[name0.replace("/", "-")][name1.replace("/", "-")]
            descriptors = store.descriptors(name0), store.descriptors(name1)
            ratio = store.max_ratio() if options.max_ratio is None else options.max_ratio
            expected, scores = brute_force(*descriptors, ratio, options.max_distance)
            np.testing.assert_array_equal(entry["matches0"][()], expected)
            np.testing.assert_allclose(entry["matching_scores0"][()], scores, atol=1e-3)
            found_pairs.add((name0, name1))
            total += int(np.sum(expected >= 0))
    assert (report.pairs, report.matches) == (15, total)
    assert total > 15 * 10
    with MatchStore(place.matches) as matches:
        assert set(matches.pairs()) == found_pairs


def test_photos_with_no_or_one_keypoint_are_matched_like_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 128))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    of_photo = [vectors[:0], vectors[7:8], vectors, vectors[::-1][:5], vectors[:0]]
    place = Workspace(tmp_path)
    store_of(place.features, numbered(5), of_photo)
    pair(place.features, place.pairs)
    match(place.features, place.pairs, place.matches, None, CPU)
    with h5py.File(place.matches, "r") as file:
        for i, j in combinations(range(5), 2):
            expected, scores = brute_force(of_photo[i], of_photo[j], 0.8, 2.0)
            entry = file[pair_key(f"{i}.jpg", f"{j}.jpg")]
            np.testing.assert_array_equal(entry["matches0"][()], expected)
            np.testing.assert_allclose(entry["matching_scores0"][()], scores, atol=1e-3)
        assert file["1.jpg/2.jpg/matches0"][()].tolist() == [7]


def test_the_result_does_not_depend_on_the_number_of_workers_or_the_order_of_the_list(place: Workspace) -> None:
    expected = contents(place.matches)
    lines = place.pairs.read_text(encoding="utf-8").splitlines(keepends=True)
    for workers, order in ((1, lines), (4, lines[::-1])):
        place.matches.unlink()
        place.pairs.write_text("".join(order), encoding="utf-8")
        match(place.features, place.pairs, place.matches, None, Resources(device="cpu", workers=workers))
        found = contents(place.matches)
        assert {key: value for key, value in found.items() if not key.startswith("@")} == {
            key: value for key, value in expected.items() if not key.startswith("@")
        }


def test_a_second_run_computes_nothing_and_leaves_the_file_alone(place: Workspace) -> None:
    before = place.matches.stat().st_mtime_ns, place.matches.stat().st_ino
    report = match(place.features, place.pairs, place.matches, None, CPU)
    assert (report.pairs, report.computed, report.reason) == (15, 0, "")
    assert (place.matches.stat().st_mtime_ns, place.matches.stat().st_ino) == before


def test_changed_options_recompute_every_pair_and_the_report_says_which(place: Workspace) -> None:
    report = match(place.features, place.pairs, place.matches, MatchOptions(max_ratio=0.7), CPU)
    assert (report.computed, report.reason) == (15, "max_ratio 0.9 -> 0.7")


def test_a_rule_is_the_users_or_the_descriptors_or_that_of_old_stores(tmp_path: Path) -> None:
    """Angles of the vectors give ratios of 0.70, 0.85 and 0.95 of the distances to the nearest two."""
    rows, columns = [], []
    for number, ratio in enumerate((0.70, 0.85, 0.95)):
        axes = np.eye(128)[3 * number : 3 * number + 3]
        near, far = 1 - (ratio * 0.6) ** 2 / 2, 1 - 0.6**2 / 2  # similarities of vectors that far apart
        rows.append(axes[0])
        columns += [near * axes[0] + (1 - near**2) ** 0.5 * axes[1], far * axes[0] + (1 - far**2) ** 0.5 * axes[2]]
    of_photo = [np.array(vectors, np.float16) for vectors in (rows, columns)]

    def matched(place: Workspace, options: MatchOptions | None = None) -> tuple[list[int], float]:
        match(place.features, place.pairs, place.matches, options, CPU)
        with MatchStore(place.matches) as store:
            return store.matches("0.jpg", "1.jpg").pairs[:, 0].tolist(), store.header["options"]["max_ratio"]

    old, new = Workspace(tmp_path / "old"), Workspace(tmp_path / "new")
    store_of(old.features, numbered(2), of_photo)
    store_of(new.features, numbered(2), of_photo, {"max_ratio": 0.9})
    for place in (old, new):
        pair(place.features, place.pairs)
    assert matched(old) == ([0], 0.8)
    assert matched(new) == ([0, 1], 0.9)
    for place in (old, new):
        assert matched(place, MatchOptions(max_ratio=0.8)) == ([0], 0.8)
        assert matched(place, MatchOptions(max_ratio=1)) == ([0, 1, 2], 1)


@pytest.mark.parametrize("ratio", [0.0, 1.5, float("nan")])
def test_a_store_with_a_senseless_recommendation_is_refused(ratio: float, tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    store_of(place.features, numbered(2), more={"max_ratio": ratio})
    pair(place.features, place.pairs)
    with pytest.raises(HardnetSfmError, match=r"features\.h5: damaged.*max_ratio"):
        match(place.features, place.pairs, place.matches, None, CPU)
    match(place.features, place.pairs, place.matches, MatchOptions(max_ratio=0.8), CPU)


def test_another_recommendation_matches_again_and_leaves_features_alone(place: Workspace) -> None:
    with StoreWriter(place.features, FEATURES) as writer:
        prints = dict(writer.fingerprints)
        writer.commit(list(prints), {name: fact for name, fact in writer.header.items() if name != "max_ratio"})
    report = match(place.features, place.pairs, place.matches, None, CPU)
    assert (report.computed, report.reason) == (15, "max_ratio 0.9 -> 0.8")
    assert extract(place.root.parent / "images", place.features, FEW, CPU).computed == 0
    with FeatureStore(place.features) as store:
        assert (store.max_ratio(), store.fingerprints()) == (0.9, prints)
        assert "max_ratio" not in store.header["options"]


def test_only_pairs_whose_features_changed_are_recomputed(place: Workspace, tmp_path: Path) -> None:
    images, names = place.root.parent / "images", names_of(place)
    before = contents(place.matches)
    shutil.copy(images / names[4], images / names[2])
    assert extract(images, place.features, FEW, CPU).computed == 1
    report = match(place.features, place.pairs, place.matches, None, CPU)
    assert (report.pairs, report.computed) == (15, 5)
    after = contents(place.matches)
    for name0, name1 in combinations(names, 2):
        key = pair_key(name0, name1)
        of_pair = [{k: value for k, value in found.items() if k.startswith(f"{key}/")} for found in (before, after)]
        assert (of_pair[0] == of_pair[1]) == (names[2] not in (name0, name1))
    match(place.features, place.pairs, tmp_path / "anew.h5", None, CPU)
    assert after == contents(tmp_path / "anew.h5")


def test_photos_that_are_extracted_again_to_the_same_features_are_not_matched_again(place: Workspace) -> None:
    place.features.unlink()
    assert extract(place.root.parent / "images", place.features, FEW, CPU).computed == 6
    assert match(place.features, place.pairs, place.matches, None, CPU).computed == 0


def test_a_shorter_list_drops_pairs_and_a_longer_one_computes_the_new_ones(place: Workspace) -> None:
    whole = contents(place.matches)
    pair(place.features, place.pairs, PairOptions(pairing="sequential", window=1, loop_interval=0))
    report = match(place.features, place.pairs, place.matches, None, CPU)
    assert (report.pairs, report.computed) == (5, 0)
    with MatchStore(place.matches) as store:
        names = names_of(place)
        assert set(store.pairs()) == set(pairwise(names))
    pair(place.features, place.pairs)
    report = match(place.features, place.pairs, place.matches, None, CPU)
    assert (report.pairs, report.computed) == (15, 10)
    assert contents(place.matches) == whole


def test_a_pair_the_other_way_round_replaces_the_one_that_was_there(place: Workspace) -> None:
    first, second = names_of(place)[:2]
    with MatchStore(place.matches) as store:
        forward = store.matches(first, second).pairs
    place.pairs.write_text(f"{second}\t{first}\n", encoding="utf-8")
    assert match(place.features, place.pairs, place.matches, None, CPU).computed == 1
    with MatchStore(place.matches) as store:
        assert store.pairs() == [(second, first)]
        backward = store.matches(second, first).pairs[:, ::-1]
    assert sorted(map(tuple, backward.tolist())) == sorted(map(tuple, forward.tolist()))


def _match_until_killed(place: Workspace, pairs: int) -> None:
    """Matches, and dies as by `kill -9` when that many pairs are put."""
    torch.set_num_threads(1)
    put, done = StoreWriter.put, []

    def counted(self: StoreWriter, *args: Any) -> None:
        put(self, *args)
        done.append(args[0])
        if len(done) == pairs:
            os.kill(os.getpid(), signal.SIGKILL)

    pytest.MonkeyPatch().setattr(StoreWriter, "put", counted)
    match(place.features, place.pairs, place.matches, None, CPU)


@pytest.mark.parametrize("finished", [1, 7, 15])
def test_a_run_killed_after_some_pairs_goes_on_with_the_others(finished: int, place: Workspace) -> None:
    expected = contents(place.matches)
    place.matches.unlink()
    process = PROCESSES.Process(target=_match_until_killed, args=(place, finished))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not place.matches.exists()
    report = match(place.features, place.pairs, place.matches, None, CPU)
    assert (report.pairs, report.computed) == (15, 15 - finished)
    assert contents(place.matches) == expected


def test_a_killed_run_keeps_the_matches_of_the_run_before(place: Workspace) -> None:
    before = place.matches.read_bytes()
    shutil.copy(place.root.parent / "images" / names_of(place)[4], place.root.parent / "images" / names_of(place)[2])
    extract(place.root.parent / "images", place.features, FEW, CPU)
    process = PROCESSES.Process(target=_match_until_killed, args=(place, 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert place.matches.read_bytes() == before
    assert match(place.features, place.pairs, place.matches, None, CPU).computed == 3


def test_photos_whose_names_have_the_same_key_are_not_mixed_up(tmp_path: Path) -> None:
    """`extract` refuses such photos; a store from elsewhere must not lead to wrong matches either."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 128))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    names = ["a-b/c.jpg", "a/b-c.jpg", "z.jpg"]
    place = Workspace(tmp_path)
    store_of(place.features, names, [vectors[:10], vectors[10:], vectors])
    place.pairs.write_text("a-b/c.jpg z.jpg\na/b-c.jpg z.jpg\n", encoding="utf-8")
    with pytest.raises(HardnetSfmError) as raised:
        match(place.features, place.pairs, place.matches, None, CPU)
    assert "a-b/c.jpg" in raised.value.message
    assert "a/b-c.jpg" in raised.value.message


def test_descriptors_of_different_length_are_a_clear_error(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    store_of(place.features, numbered(2), [np.ones((3, 8), np.float16), np.ones((3, 16), np.float16)])
    pair(place.features, place.pairs)
    with pytest.raises(HardnetSfmError, match=r"0\.jpg and 1\.jpg differ in length"):
        match(place.features, place.pairs, place.matches, None, CPU)


def test_what_match_needs_is_named_where_it_is_missing(place: Workspace) -> None:
    place.pairs.unlink()
    with pytest.raises(HardnetSfmError) as raised:
        match(place.features, place.pairs, place.matches, None, CPU)
    assert str(place.pairs) in raised.value.message
    place.features.unlink()
    with pytest.raises(HardnetSfmError) as raised:
        match(place.features, place.pairs, place.matches, None, CPU)
    assert str(place.features) in raised.value.message
    assert "hardnet-sfm extract" in raised.value.hint


def test_lines_that_name_a_photo_that_is_gone_are_left_out_and_named(place: Workspace) -> None:
    gone = names_of(place)[3]
    (place.root.parent / "images" / gone).unlink()
    extract(place.root.parent / "images", place.features, FEW, CPU, prune=True)
    result = match(place.features, place.pairs, place.matches, None, CPU)
    assert (result.pairs, result.computed) == (10, 0)
    assert "5 of 15 lines" in result.skipped[str(place.pairs)] and gone in result.skipped[str(place.pairs)]
    pair(place.features, place.pairs)
    result = match(place.features, place.pairs, place.matches, None, CPU)
    assert (result.pairs, result.computed, result.skipped) == (10, 0, {})
