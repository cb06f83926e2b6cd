"""features.h5 and matches.h5: what others read in them, and that no kill, full disk or damage costs finished work."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import signal
import time
import zlib
from base64 import b64decode
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from hdf5 import contents
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from processes import last_words, running

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import (
    FEATURES,
    MATCHES,
    FeatureStore,
    Kind,
    MatchStore,
    check_names_apart,
    feature_arrays,
    match_arrays,
    pair_key,
)
from hardnet_sfm.files.workspace import digest, digest_after, locked
from hardnet_sfm.keypoints import Keypoints, Matches
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.extract import extract

NAMES = tuple(f"photo {number}.jpg" if number % 2 else f"day/{number}.jpg" for number in range(24))
HEADER = {"names": list(NAMES), "options": {"max_keypoints": 300}}


class Entry(NamedTuple):
    keypoints: Keypoints
    descriptors: NDArray[np.float16]
    size: tuple[int, int]

    @classmethod
    def random(cls, seed: int, count: int = 60, dimension: int = 128, affine: bool = False) -> Entry:
        rng = np.random.default_rng(seed)
        size = int(rng.integers(2000, 8000)), int(rng.integers(2000, 8000))
        xy = (rng.random((count, 2)) * size).astype(np.float32)
        scales, oris, scores = (rng.random((3, count)) * [[30], [360], [1]]).astype(np.float32)
        vectors = rng.normal(size=(count, dimension))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        affines = rng.normal(size=(count, 2, 2)).astype(np.float32) if affine else None
        return cls(Keypoints(xy, scales, oris, scores, affines), vectors.astype(np.float16), size)

    def put(self, writer: StoreWriter, name: str, fingerprint: str = "f") -> None:
        facts: dict[str, str | int] = {"photo_sha256": "00", "exif_orientation": 6, "keypoints": len(self.keypoints)}
        writer.put(name, fingerprint, feature_arrays(*self), facts)


def put_all(writer: StoreWriter, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        if name not in writer.fingerprints:
            Entry.random(NAMES.index(name)).put(writer, name)


def made(path: Path, names: tuple[str, ...] = NAMES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with StoreWriter(path, FEATURES) as writer:
        put_all(writer, names)
        writer.commit(names, HEADER)
    return path


def arrays_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    """The part of `contents` that belongs to one photo."""
    return {key: value for key, value in found.items() if key == name or key.startswith(f"{name}/")}


def kept(path: Path, scratch: Path) -> dict[str, Any]:
    """What a run would find finished after a kill: the contents of the store made of it, from a copy of the folder."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(path.parent, scratch)
    with StoreWriter(scratch / path.name, FEATURES) as writer:
        finished = [name for name in NAMES if name in writer.fingerprints]
        assert set(finished) == set(writer.fingerprints)
        writer.commit(finished, {"names": finished})
    return contents(scratch / path.name)


# What hloc reads, as documented in hloc/utils/io.py and hloc/utils/parsers.py.


def hloc_names(path: Path) -> set[str]:
    names = []
    with h5py.File(path, "r", libver="latest") as file:
        file.visititems(
            lambda _, item: names.append(item.parent.name.strip("/")) if isinstance(item, h5py.Dataset) else None
        )
    return set(names)


def hloc_names_to_pair(name0: str, name1: str, separator: str = "/") -> str:
    return separator.join((name0.replace("/", "-"), name1.replace("/", "-")))


def hloc_matches(path: Path, name0: str, name1: str) -> tuple[NDArray[Any], NDArray[Any]]:
    with h5py.File(path, "r", libver="latest") as file:
        pair, reverse = hloc_names_to_pair(name0, name1), False
        if pair not in file:
            pair, reverse = hloc_names_to_pair(name1, name0), True
        matches = file[pair]["matches0"].__array__()
        scores = file[pair]["matching_scores0"].__array__()
    index = np.where(matches != -1)[0]
    pairs = np.stack([index, matches[index]], -1)
    return (np.flip(pairs, -1) if reverse else pairs), scores[index]


_segments = st.text("ab1 -_.äß東", min_size=1, max_size=5).filter(lambda text: not text.startswith("."))
_photo_names = st.lists(
    st.lists(_segments, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".jpg"),
    min_size=1,
    max_size=6,
    unique_by=lambda name: name.replace("/", "-"),
)


@settings(max_examples=40, deadline=None)
@given(names=_photo_names, counts=st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_hloc_finds_exactly_the_photos_and_their_features(
    names: list[str], counts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("hloc") / "features.h5"
    entries = {name: Entry.random(seed, counts[seed], affine=seed % 2 == 1) for seed, name in enumerate(names)}
    with StoreWriter(path, FEATURES) as writer:
        for name, entry in entries.items():
            entry.put(writer, name)
        writer.commit(names, {"names": names})
    assert hloc_names(path) == set(names)
    with h5py.File(path, "r", libver="latest") as file:
        for name, entry in entries.items():
            np.testing.assert_array_equal(file[name]["keypoints"].__array__(), entry.keypoints.xy)
            np.testing.assert_array_equal(file[name]["descriptors"].__array__(), entry.descriptors.T)
            np.testing.assert_array_equal(file[name]["scores"].__array__(), entry.keypoints.scores)
            assert tuple(file[name]["image_size"].__array__()) == entry.size


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(
        st.lists(_segments, min_size=1, max_size=2).map(lambda parts: "/".join(parts) + ".jpg"),
        min_size=2,
        max_size=4,
        unique_by=lambda name: name.replace("/", "-"),
    ),
    data=st.data(),
)
def test_hloc_finds_every_match_in_either_order_of_the_names(
    names: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("hloc") / "matches.h5"
    of_pair: dict[tuple[str, str], tuple[NDArray[np.int32], NDArray[np.float32]]] = {}
    with StoreWriter(path, MATCHES) as writer:
        for name0, name1 in pairwise(names):
            rows = sorted(data.draw(st.sets(st.integers(0, 9), max_size=6)))
            others = data.draw(st.permutations(range(20)))[: len(rows)]
            pairs = np.array([*zip(rows, others, strict=True)], np.int32).reshape(-1, 2)
            scores = (np.arange(len(rows)) / 16 + 0.5).astype(np.float32)
            of_pair[name0, name1] = pairs, scores
            facts: dict[str, str | int] = {"name0": name0, "name1": name1, "matches": len(pairs)}
            writer.put(pair_key(name0, name1), "f", match_arrays(Matches(pairs, scores), 10), facts)
        writer.commit([pair_key(*pair) for pair in of_pair], {"options": {}})
    with MatchStore(path) as store:
        assert set(store.pairs()) == set(of_pair)
        assert store.total() == sum(len(pairs) for pairs, _ in of_pair.values())
        for (name0, name1), (pairs, scores) in of_pair.items():
            for first, second, expected in ((name0, name1, pairs), (name1, name0, pairs[:, ::-1])):
                found, found_scores = hloc_matches(path, first, second)
                np.testing.assert_array_equal(found, expected)
                np.testing.assert_array_equal(found_scores, scores)
            np.testing.assert_array_equal(store.matches(name0, name1).pairs, pairs)
            np.testing.assert_array_equal(store.matches(name0, name1).scores, scores)


def test_features_have_the_documented_types_and_shapes(tmp_path: Path) -> None:
    entry = Entry.random(0, count=7, dimension=64, affine=True)
    with StoreWriter(tmp_path / "features.h5", FEATURES) as writer:
        entry.put(writer, "a/b.jpg")
        writer.commit(["a/b.jpg"], {"names": ["a/b.jpg"]})
    with h5py.File(tmp_path / "features.h5", "r") as file:
        found = {name: (str(item.dtype), item.shape) for name, item in file["a/b.jpg"].items()}
    assert found == {
        "keypoints": ("float32", (7, 2)),
        "descriptors": ("float16", (64, 7)),
        "scores": ("float32", (7,)),
        "scales": ("float32", (7,)),
        "oris": ("float32", (7,)),
        "affines": ("float32", (7, 2, 2)),
        "image_size": ("int64", (2,)),
    }


def test_matches_have_the_documented_types_and_shapes(tmp_path: Path) -> None:
    matches = Matches(np.array([[1, 8000]], np.int32), np.array([0.875], np.float32))
    with StoreWriter(tmp_path / "matches.h5", MATCHES) as writer:
        writer.put("a-b.jpg/c.jpg", "f", match_arrays(matches, 3), {"name0": "a/b.jpg", "name1": "c.jpg", "matches": 1})
        writer.commit(["a-b.jpg/c.jpg"], {"options": {}})
    with h5py.File(tmp_path / "matches.h5", "r") as file:
        of_first, scores = (file["a-b.jpg"]["c.jpg"][name][()] for name in ("matches0", "matching_scores0"))
    assert (of_first.dtype, of_first.tolist()) == (np.int32, [-1, 8000, -1])
    assert (scores.dtype, scores.tolist()) == (np.float16, [0, 0.875, 0])


def test_what_is_put_comes_back_bit_for_bit(tmp_path: Path) -> None:
    entries = {"a.jpg": Entry.random(1), "b/c d.jpg": Entry.random(2, affine=True), "ä.jpg": Entry.random(3, count=0)}
    with StoreWriter(tmp_path / "features.h5", FEATURES) as writer:
        for name, entry in entries.items():
            entry.put(writer, name)
        writer.commit([*entries], {"names": [*entries], "options": {"x": 1}})
    with FeatureStore(tmp_path / "features.h5") as store:
        assert store.names() == [*entries]
        assert store.header["options"] == {"x": 1}
        assert store.counts() == {name: len(entry.keypoints) for name, entry in entries.items()}
        for name, entry in entries.items():
            found = store.keypoints(name)
            for field in ("xy", "scales", "oris", "scores"):
                np.testing.assert_array_equal(getattr(found, field), getattr(entry.keypoints, field))
            if entry.keypoints.affines is None:
                assert found.affines is None
            else:
                np.testing.assert_array_equal(found.affines, entry.keypoints.affines)
            np.testing.assert_array_equal(store.descriptors(name), entry.descriptors)
            assert (store.size(name), store.orientation(name)) == (entry.size, 6)


@settings(max_examples=30, deadline=None)
@given(xy=st.lists(st.tuples(*[st.floats(0, 60000, width=32)] * 2), min_size=1, max_size=5))
def test_large_coordinates_survive(xy: list[tuple[float, float]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """hloc's own float16 keeps only whole pixels beyond 1024 and every second beyond 2048."""
    points = np.array([(7999.25, 5999.75), *xy], np.float32)
    ones = np.ones(len(points), np.float32)
    path = tmp_path_factory.mktemp("large") / "features.h5"
    with StoreWriter(path, FEATURES) as writer:
        entry = Entry(Keypoints(points, ones, ones, ones), np.zeros((len(points), 2), np.float16), (60000, 60000))
        entry.put(writer, "a.jpg")
        writer.commit(["a.jpg"], {"names": ["a.jpg"]})
    with FeatureStore(path) as store:
        np.testing.assert_array_equal(store.keypoints("a.jpg").xy, points)
    assert points[0].tolist() == [7999.25, 5999.75]


def test_a_header_may_be_larger_than_64_kib(tmp_path: Path) -> None:
    """HDF5 before 1.10 limits attributes to 64 KiB; 10000 photos need more."""
    names = [f"{'long folder name ' * 3}/IMG_{number:05}.jpg" for number in range(3000)]
    header = {"names": names, "options": {}}
    path = tmp_path / "features.h5"
    with StoreWriter(path, FEATURES) as writer:
        Entry.random(0).put(writer, names[0])
        writer.commit([names[0]], header)
    assert len(json.dumps(header)) > 2**17
    with FeatureStore(path) as store:
        assert store.header == header
    assert hloc_names(path) == {names[0]}


def test_a_long_index_is_compressed(tmp_path: Path) -> None:
    path, keys = tmp_path / "matches.h5", [f"a.jpg/{number:04}.jpg" for number in range(600)]
    arrays = match_arrays(Matches(np.zeros((1, 2), np.int32), np.ones(1, np.float32)), 2)
    for count in (10, 600):
        with StoreWriter(path, MATCHES) as writer:
            for key in keys[:count]:
                if key not in writer.facts:
                    facts: dict[str, str | int] = {"name0": "a.jpg", "name1": key[6:], "matches": 1}
                    writer.put(key, hashlib.sha256(key.encode()).hexdigest()[:32], arrays, facts)
            writer.commit(keys[:count], {"options": {}})
        with MatchStore(path) as store:
            assert store.pairs() == [("a.jpg", key[6:]) for key in keys[:count]]
            expected = json.dumps(store.index)
        with h5py.File(path) as file:
            written = str(file.attrs["index"])
        assert (written == expected) == (count == 10)
    assert json.loads(zlib.decompress(b64decode(written))) == json.loads(expected)
    assert len(written) < len(expected) / 2


@pytest.mark.parametrize(
    "names",
    [
        ["a-b/c.jpg", "a/b-c.jpg"],
        ["x.jpg", "a/b.jpg", "y.jpg", "a-b.jpg"],
        ["a/b/c.jpg", "a-b/c.jpg"],
    ],
)
def test_names_with_the_same_key_are_refused(names: list[str]) -> None:
    clashing = [name for name in names if len({n for n in names if n.replace("/", "-") == name.replace("/", "-")}) > 1]
    assert hloc_names_to_pair(clashing[0], "z") == hloc_names_to_pair(clashing[1], "z")
    with pytest.raises(HardnetSfmError) as raised:
        check_names_apart(names)
    assert all(name in raised.value.message for name in clashing)


def test_names_with_different_keys_are_accepted() -> None:
    check_names_apart(["a/b.jpg", "a_b.jpg", "b/a.jpg", "a/b.jpeg", "A-b.jpg"])


def test_keys_are_those_of_hloc() -> None:
    for pair in (("a.jpg", "b.jpg"), ("a/b c.jpg", "d/e/f.jpg"), ("a-b.jpg", "ü.jpg")):
        assert pair_key(*pair) == hloc_names_to_pair(*pair)


def _not_a_store(path: Path, what: str) -> None:
    with h5py.File(path, "w") as file:
        match what:
            case "made by hloc":
                file.create_dataset("a.jpg/keypoints", data=np.zeros((5, 2), np.float16))
            case "of the other kind":
                file.attrs.update({"format": MATCHES.format, "version": 1, "header": "{}", "index": "{}"})
            case "of another version":
                file.attrs.update({"format": FEATURES.format, "version": 99, "header": "{}", "index": "{}"})
            case "without header":
                file.attrs.update({"format": FEATURES.format, "version": 1})
            case "with a damaged header":
                file.attrs.update({"format": FEATURES.format, "version": 1, "header": '{"na', "index": "{}"})


@pytest.mark.parametrize(
    "what", ["made by hloc", "of the other kind", "of another version", "without header", "with a damaged header"]
)
def test_foreign_hdf5_is_refused_and_left_alone(what: str, tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    _not_a_store(path, what)
    _assert_refused(path)


@pytest.mark.parametrize("content", [b"", b"x", b"keypoints\n" * 1000, bytes(4096), b"\x89HDF\r\n\x1a\n" + bytes(4096)])
def test_what_is_not_hdf5_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    path.write_bytes(content)
    _assert_refused(path)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_store_is_refused_and_left_alone(share: float, tmp_path: Path) -> None:
    path = made(tmp_path / "features.h5", NAMES[:4])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    _assert_refused(path)


def _assert_refused(path: Path) -> None:
    before = path.read_bytes()
    for attempt in (lambda: FeatureStore(path), lambda: StoreWriter(path, FEATURES)):
        with pytest.raises(HardnetSfmError) as raised:
            attempt()
        assert str(path) in raised.value.message
        assert "hardnet-sfm extract" in raised.value.hint
    assert path.read_bytes() == before


def test_a_missing_store_says_which_command_makes_it(tmp_path: Path) -> None:
    for reader, verb in ((FeatureStore, "extract"), (MatchStore, "match")):
        with pytest.raises(HardnetSfmError) as raised:
            reader(tmp_path / "store.h5")
        assert str(tmp_path / "store.h5") in raised.value.message
        assert f"hardnet-sfm {verb}" in raised.value.hint


def test_damage_anywhere_in_a_store_is_harmless_or_a_clear_error(tmp_path: Path) -> None:
    """A bad sector: 64 bytes are zero. Numbers may change unnoticed, but nothing ends in a traceback."""
    path = made(tmp_path / "features.h5", NAMES[:3])
    content = path.read_bytes()
    for start in np.random.default_rng(0).integers(0, len(content) - 64, 40):
        path.write_bytes(content[:start] + bytes(64) + content[start + 64 :])
        for attempt in (_read_everything, _rewrite_with_one_more):
            try:
                attempt(path)
            except HardnetSfmError as error:
                assert str(path.parent) in error.message


def _read_everything(path: Path) -> None:
    with FeatureStore(path) as store:
        for name in store.fingerprints():
            store.keypoints(name), store.descriptors(name), store.size(name)


def _rewrite_with_one_more(path: Path) -> None:
    with StoreWriter(path, FEATURES) as writer:
        Entry.random(9).put(writer, "more.jpg")
        writer.commit([*NAMES[:3], "more.jpg"], HEADER)


def test_commit_adds_keeps_replaces_and_drops(tmp_path: Path) -> None:
    path = made(tmp_path / "features.h5", NAMES[:4])
    before = contents(path)
    with StoreWriter(path, FEATURES) as writer:
        assert writer.fingerprints == dict.fromkeys(NAMES[:4], "f")
        Entry.random(77).put(writer, NAMES[1], "changed")
        Entry.random(4).put(writer, NAMES[4])
        Entry.random(5).put(writer, NAMES[5])  # put, but not wanted in the end
        wanted = [NAMES[0], NAMES[1], NAMES[3], NAMES[4]]  # NAMES[2] goes
        writer.commit(wanted, {"names": wanted})
    after = contents(path)
    for name in (NAMES[0], NAMES[3]):
        assert arrays_of(after, name) == arrays_of(before, name)
    assert arrays_of(after, NAMES[4]) == arrays_of(contents(made(tmp_path / "other" / "features.h5")), NAMES[4])
    assert hloc_names(path) == set(wanted)
    with FeatureStore(path) as store:
        assert store.fingerprints() == {NAMES[0]: "f", NAMES[1]: "changed", NAMES[3]: "f", NAMES[4]: "f"}
        assert store.header == {"names": wanted}
        np.testing.assert_array_equal(store.descriptors(NAMES[1]), Entry.random(77).descriptors)
    assert [item.name for item in tmp_path.iterdir() if item.is_file()] == ["features.h5"]


def test_the_history_of_a_store_does_not_show_in_it(tmp_path: Path) -> None:
    at_once = contents(made(tmp_path / "at once" / "features.h5"))
    path = made(tmp_path / "in parts" / "features.h5", NAMES[5:9])
    made(path, NAMES[:14])
    made(path, NAMES[12:])
    assert contents(made(path)) == at_once


def test_commit_without_changes_leaves_the_file_alone(tmp_path: Path) -> None:
    path = made(tmp_path / "features.h5")
    before = path.stat().st_mtime_ns, path.stat().st_ino
    made(path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert [*tmp_path.iterdir()] == [path]


def test_a_changed_header_alone_is_written(tmp_path: Path) -> None:
    path = made(tmp_path / "features.h5")
    before = contents(path)
    with StoreWriter(path, FEATURES) as writer:
        writer.commit(NAMES, {**HEADER, "options": {"max_keypoints": 5}})
    with FeatureStore(path) as store:
        assert store.header["options"] == {"max_keypoints": 5}
    after = contents(path)
    assert {key for key in before | after if before.get(key) != after.get(key)} == {"@header"}


def test_entries_put_without_commit_are_found_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with StoreWriter(path, FEATURES) as writer:
        Entry.random(0).put(writer, NAMES[0], "first")
        Entry.random(0).put(writer, NAMES[0], "second")
        Entry.random(1).put(writer, NAMES[1])
    assert not path.exists()
    with StoreWriter(path, FEATURES) as writer:
        assert writer.fingerprints == {NAMES[0]: "second", NAMES[1]: "f"}


def test_a_journal_from_before_replaces_what_the_store_has(tmp_path: Path) -> None:
    path = made(tmp_path / "features.h5", NAMES[:2])
    with StoreWriter(path, FEATURES) as writer:
        Entry.random(50).put(writer, NAMES[0], "new")
    with StoreWriter(path, FEATURES) as writer:
        assert writer.fingerprints == {NAMES[0]: "new", NAMES[1]: "f"}
        writer.commit(NAMES[:2], HEADER)
    with FeatureStore(path) as store:
        np.testing.assert_array_equal(store.descriptors(NAMES[0]), Entry.random(50).descriptors)
        np.testing.assert_array_equal(store.descriptors(NAMES[1]), Entry.random(1).descriptors)


def _journal_of_a_killed_run(path: Path) -> Path:
    with StoreWriter(path, FEATURES) as writer:
        put_all(writer, NAMES[:4])
    return path.with_name(".features.h5.journal")


@pytest.mark.parametrize("damage", ["text", "truncated", "beheaded", "a folder"])
def test_a_journal_that_cannot_be_opened_is_a_clear_error(damage: str, tmp_path: Path) -> None:
    path = made(tmp_path / "features.h5", NAMES[:1])
    journal = _journal_of_a_killed_run(path)
    content = journal.read_bytes()
    journal.unlink()
    if damage == "a folder":
        journal.mkdir()
    else:
        broken = {"text": b"hello " * 9999, "truncated": content[: len(content) // 2], "beheaded": content[100:]}
        journal.write_bytes(broken[damage])
    with pytest.raises(HardnetSfmError) as raised:
        StoreWriter(path, FEATURES)
    assert str(journal) in raised.value.message
    advice = "Check that it is a file" if damage == "a folder" else "Move it away"
    assert advice in raised.value.hint and "elete" not in raised.value.hint


@pytest.mark.parametrize("width", [1, 64, 4096])
def test_damage_anywhere_in_a_journal_is_harmless_or_a_clear_error(width: int, tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    journal = _journal_of_a_killed_run(path)
    content = journal.read_bytes()
    expected = contents(made(tmp_path / "whole" / "features.h5", NAMES[:4]))
    for start in np.random.default_rng(width).integers(0, len(content) - width, 25):
        for leftover in tmp_path.glob("*features.h5*"):
            leftover.unlink()
        flipped = bytes(byte ^ 0x55 for byte in content[start : start + width])
        journal.write_bytes(content[:start] + flipped + content[start + width :])
        try:
            with StoreWriter(path, FEATURES) as writer:
                if writer.fingerprints != dict.fromkeys(NAMES[:4], "f"):
                    continue  # lost or renamed entries are computed again
                writer.commit(NAMES[:4], HEADER)
        except HardnetSfmError as error:
            assert str(tmp_path) in error.message
        else:
            found = contents(path)
            assert [arrays_of(found, name) for name in NAMES[:4]] == [arrays_of(expected, name) for name in NAMES[:4]]


def _on_a_full_disk(path: Path, names: tuple[str, ...], limit: int, pipe: Connection) -> None:
    """Puts and commits where no file can grow beyond `limit` bytes; tells every finished entry and the end."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        with StoreWriter(path, FEATURES) as writer:
            for name in names:
                Entry.random(NAMES.index(name)).put(writer, name)
                pipe.send(name)
            pipe.send("commit")
            writer.commit(NAMES, HEADER)
        pipe.send("done")
    except HardnetSfmError as error:
        pipe.send(f"error: {error}")
    except Exception as error:
        pipe.send(f"traceback: {error!r}")


@pytest.mark.parametrize("limit", [10_000, 100_000, 200_000, 300_000])
def test_a_disk_that_fills_up_keeps_what_was_put_and_the_old_store(limit: int, tmp_path: Path) -> None:
    complete = contents(made(tmp_path / "complete" / "features.h5"))
    path = made(tmp_path / "work" / "features.h5", NAMES[:4])
    old = path.read_bytes()
    with running(_on_a_full_disk, path, NAMES[4:], limit) as (_, pipe):
        *put, end = last_words(pipe)
    assert len(put) < 20
    assert end.startswith("error: "), end
    assert str(path.parent) in end
    assert "Make room" in end
    assert path.read_bytes() == old
    after = kept(path, tmp_path / "scratch")
    assert hloc_names(tmp_path / "scratch" / "features.h5") == {*NAMES[:4], *put}
    assert all(arrays_of(after, name) == arrays_of(complete, name) for name in (*NAMES[:4], *put))
    assert contents(made(path)) == complete


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_a_disk_that_fills_up_at_the_end_keeps_what_was_put_and_the_old_store(share: float, tmp_path: Path) -> None:
    complete = contents(made(tmp_path / "complete" / "features.h5"))
    path = made(tmp_path / "work" / "features.h5", NAMES[1:])
    old = path.read_bytes()
    with running(_on_a_full_disk, path, NAMES[:1], int(share * len(old))) as (_, pipe):
        *put, end = last_words(pipe)
    assert put == [NAMES[0], "commit"] or share < 0.1
    assert end.startswith("error: "), end
    assert "Make room" in end
    assert path.read_bytes() == old
    assert not [*path.parent.glob("*.tmp")]
    with StoreWriter(path, FEATURES) as writer:
        assert NAMES[0] in writer.fingerprints or share < 0.1
    assert contents(made(path)) == complete


def _put_and_commit(path: Path, pipe: Connection) -> None:
    with StoreWriter(path, FEATURES) as writer:
        pipe.send("open")
        for name in NAMES:
            if name not in writer.fingerprints:
                Entry.random(NAMES.index(name)).put(writer, name)
                pipe.send(name)
        pipe.send("commit")
        writer.commit(NAMES, HEADER)
    pipe.send("done")


@pytest.mark.parametrize("seed", range(4))
def test_kill_while_entries_are_put_keeps_all_that_were_finished(seed: int, tmp_path: Path) -> None:
    """Each of four kills comes a random moment after a random number of entries."""
    complete = contents(made(tmp_path / "complete" / "features.h5"))
    path = tmp_path / "work" / "features.h5"
    path.parent.mkdir()
    rng = np.random.default_rng(seed)
    finished: set[str] = set()
    for _ in range(4):
        with running(_put_and_commit, path) as (process, pipe):
            said = last_words(pipe, 1 + rng.integers(0, 6))
            time.sleep(rng.uniform(0, 0.003))
            process.kill()
            finished |= {*said, *last_words(pipe)} & set(NAMES)
        after = kept(path, tmp_path / "scratch")
        names = hloc_names(tmp_path / "scratch" / "features.h5")
        assert finished <= names
        assert len(names) <= len(finished) + 1  # the one in flight may have made it
        assert all(arrays_of(after, name) == arrays_of(complete, name) for name in names)
        finished = names
    with running(_put_and_commit, path) as (_, pipe):
        said = last_words(pipe)
    assert said == ["open", *(name for name in NAMES if name not in finished), "commit", "done"]
    assert contents(path) == complete
    assert [*path.parent.iterdir()] == [path]


def test_kill_while_the_store_is_replaced_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    complete = contents(made(tmp_path / "complete" / "features.h5"))
    start = made(tmp_path / "start" / "features.h5", NAMES[:12])
    old = contents(start)
    with StoreWriter(start, FEATURES) as writer:
        put_all(writer)
    rng = np.random.default_rng(0)
    path = tmp_path / "work" / "features.h5"
    duration = 0.02
    for attempt in range(12):
        shutil.rmtree(path.parent, ignore_errors=True)
        shutil.copytree(start.parent, path.parent)
        with running(_put_and_commit, path) as (process, pipe):
            assert [pipe.recv(), pipe.recv()] == ["open", "commit"]
            began = time.monotonic()
            if attempt == 0:
                assert last_words(pipe) == ["done"]
                duration = time.monotonic() - began
            time.sleep(rng.uniform(0, duration))
            process.kill()
        try:
            assert contents(path) in (old, complete)
        except OSError as error:  # killed within the milliseconds of the change
            assert "already open for write" in str(error)
            assert path.with_name(".features.h5.redo").exists()
        with FeatureStore(path):
            pass  # a reader of ours completes the change
        assert contents(path) in (old, complete)
        with StoreWriter(path, FEATURES) as writer:
            assert writer.fingerprints == dict.fromkeys(NAMES, "f")
            writer.commit(NAMES, HEADER)
        assert contents(path) == complete
        assert [*path.parent.iterdir()] == [path]


def _put_part(path: Path, part: str, names: tuple[str, ...], pipe: Connection) -> None:
    with StoreWriter(path, FEATURES, part) as writer:
        pipe.send(sorted(writer.fingerprints))
        for name in names:
            Entry.random(NAMES.index(name)).put(writer, name)
        pipe.send("put")
        pipe.recv()
        Entry.random(NAMES.index(NAMES[-1])).put(writer, NAMES[-1])
        pipe.send("more")


def test_processes_with_a_part_each_fill_one_store(tmp_path: Path) -> None:
    complete = contents(made(tmp_path / "complete" / "features.h5"))
    path = made(tmp_path / "work" / "features.h5", NAMES[:4])
    with (
        running(_put_part, path, "a", NAMES[4:12]) as (_, one),
        running(_put_part, path, "b", NAMES[12:20]) as (_, two),
    ):
        for pipe in (one, two):
            assert set(pipe.recv()) >= {*NAMES[:4]}
            assert pipe.recv() == "put"
        with pytest.raises(HardnetSfmError, match="another hardnet-sfm run"):
            StoreWriter(path, FEATURES, "a")
        one.send("go on")
        assert last_words(one) == ["more"]
        with StoreWriter(path, FEATURES) as writer:
            assert set(writer.fingerprints) == {*NAMES[:20], NAMES[-1]}
            names = [name for name in NAMES if name in writer.fingerprints]
            writer.commit(names, {"names": names})
        assert hloc_names(path) == {*names}
        assert sorted(item.name for item in path.parent.glob(".*journal")) == [".features.h5.b.journal"]
        two.send("go on")
        assert two.recv() == "more"
    assert contents(made(path)) == complete
    assert [*path.parent.iterdir()] == [path]


OPTIONS = ExtractOptions(max_keypoints=150)
RESOURCES = Resources(device="cpu", workers=2)


def _extract(images: Path, path: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    pipe.send("begun")
    pipe.send(extract(images, path, OPTIONS, RESOURCES).computed)


@pytest.mark.slow
def test_extract_killed_at_random_moments_ends_as_if_never_interrupted(
    small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    """Three runs, each killed five times at random moments and then let go."""
    names = small_scene[1].names[:4]
    images = tmp_path / "images"
    images.mkdir()
    for name in names:
        shutil.copy(small_scene[0] / name, images)
    reference = tmp_path / "reference" / "features.h5"
    with running(_extract, images, reference) as (_, pipe):
        assert pipe.recv() == "begun"
        began = time.monotonic()
        assert last_words(pipe) == [len(names)]
        duration = time.monotonic() - began
    expected = contents(reference)
    with FeatureStore(reference) as store:
        prints = store.fingerprints()
    rng = np.random.default_rng(0)
    for run in range(3):
        path = tmp_path / f"run {run}" / "features.h5"
        finished: dict[str, str] = {}
        for _ in range(5):
            with running(_extract, images, path) as (process, pipe):
                assert pipe.recv() == "begun"
                time.sleep(rng.uniform(0, 0.5 * duration))
                process.kill()
            path.parent.mkdir(exist_ok=True)
            with StoreWriter(path, FEATURES) as writer:
                assert finished.items() <= writer.fingerprints.items() <= prints.items()
                finished = writer.fingerprints
        scratch = shutil.copytree(path.parent, tmp_path / f"scratch {run}") / path.name
        with StoreWriter(scratch, FEATURES) as writer:
            writer.commit([*finished], {"names": [*finished]})
        halfway = contents(scratch)
        assert all(arrays_of(halfway, name) == arrays_of(expected, name) for name in finished)
        with running(_extract, images, path) as (_, pipe):
            assert last_words(pipe) == ["begun", len(names) - len(finished)]
        assert contents(path) == expected


def _hold(folder: Path, pipe: Connection, file: str = "") -> None:
    with locked(folder, file):
        pipe.send("locked")
        pipe.recv()


def test_a_second_process_in_the_same_workspace_gets_a_clear_error(
    small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    images, _ = small_scene
    path = tmp_path / "out" / "features.h5"
    with running(_hold, path.parent) as (process, pipe):
        assert pipe.recv() == "locked"
        before = sorted(path.parent.iterdir())
        with pytest.raises(HardnetSfmError, match="another hardnet-sfm run") as raised:
            extract(images, path, OPTIONS, RESOURCES)
        assert str(path.parent) in raised.value.message
        assert sorted(path.parent.iterdir()) == before
        process.kill()
        process.join()
        # A killed run holds nothing: the operating system has let go of its lock.
        with locked(path.parent):
            pass


def _hold_a(folder: Path, pipe: Connection) -> None:
    _hold(folder, pipe, "a.h5")


def test_files_of_one_folder_are_locked_one_by_one(tmp_path: Path) -> None:
    with running(_hold_a, tmp_path) as (_, pipe):
        assert pipe.recv() == "locked"
        with locked(tmp_path, "b.h5"), locked(tmp_path):
            pass
        with pytest.raises(HardnetSfmError) as raised, locked(tmp_path, "a.h5"):
            pass
        assert raised.value.message.endswith(f"is writing {tmp_path / 'a.h5'}")


def test_the_same_process_may_lock_a_workspace_twice(tmp_path: Path) -> None:
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        with running(_hold, tmp_path) as (_, pipe):
            assert last_words(pipe) == []  # it could not lock: the outer lock still holds
    with running(_hold, tmp_path) as (_, pipe):
        assert pipe.recv() == "locked"


@pytest.mark.parametrize("kind", [FEATURES, MATCHES])
def test_the_file_says_what_it_is(kind: Kind, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store.h5", kind) as writer:
        writer.commit([], {"options": {}})
    with h5py.File(tmp_path / "store.h5", "r") as file:
        assert (file.attrs["format"], file.attrs["version"]) == (kind.format, 1)


def test_an_entry_is_found_by_any_spelling_of_its_name(tmp_path: Path) -> None:
    """A Mac writes the accent of a file name as a letter of its own."""
    decomposed, composed = "cafe\u0301.jpg", "caf\u00e9.jpg"
    with StoreWriter(tmp_path / "features.h5", FEATURES) as writer:
        Entry.random(0).put(writer, decomposed)
        writer.commit([decomposed], {**HEADER, "names": [decomposed]})
    with FeatureStore(tmp_path / "features.h5") as store:
        assert store.keypoints(composed).xy.tolist() == store.keypoints(decomposed).xy.tolist()
        assert store.orientation(composed) == store.orientation(decomposed)
        with pytest.raises(HardnetSfmError, match=r"no features of cafe\.jpg"):
            store.keypoints("cafe.jpg")


@pytest.mark.parametrize("texts", [(), ("a",), ("0f" * 16, "f0" * 16), ('quote " and é', "\\", "\n")])
def test_a_digest_after_a_head_is_the_digest_of_all(texts: tuple[str, ...]) -> None:
    """Stores of earlier versions hold fingerprints that were computed at once."""
    head = ("matches", 1, {"b": [0.9, None], "a": "é"})
    assert digest_after(*head)(*texts) == digest(*head, *texts)
