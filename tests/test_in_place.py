"""Stores are changed in place: no kill, reader or full disk gets anything but the old or the new content."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5 import contents
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stores import Entry, hloc_names

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files import in_place
from hardnet_sfm.files.in_place import PendingFile, change_in_place, lookup3
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FEATURES, FeatureStore

NAMES = [f"day {number % 3}/{number:02}.jpg" for number in range(12)]
PWRITE = os.pwrite
STEPS = ("pwrite", "ftruncate", "fsync", "replace", "unlink")


def commit(path: Path, names: list[str], changed: dict[str, int] | None = None) -> None:
    """Commits exactly these photos; `changed` gives the seeds of those that are put again."""
    seeds = {name: number for number, name in enumerate(NAMES)} | (changed or {})
    with StoreWriter(path, FEATURES) as writer:
        for name in names:
            if writer.fingerprints.get(name) != str(seeds[name]):
                Entry.random(seeds[name], 20).put(writer, name, str(seeds[name]))
        writer.commit(names, {"names": names})


def store(path: Path, names: list[str], changed: dict[str, int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    commit(path, names, changed)
    return path


class Dying:
    """Lets a number of calls of the operating system through. The next one is cut short, and later ones do nothing."""

    def __init__(self, steps: int, patched: pytest.MonkeyPatch) -> None:
        self.left = steps
        for name in STEPS:
            patched.setattr(os, name, self._mortal(getattr(os, name)))

    def _mortal(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **others: Any) -> Any:
            self.left -= 1
            if self.left == -1 and call is PWRITE:
                call(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
            if self.left < 0:
                raise OSError("dead")
            return call(*args, **others)

        return counted


def test_a_kill_at_each_step_leaves_the_old_or_the_new_store(tmp_path: Path) -> None:
    start = store(tmp_path / "start" / "features.h5", NAMES[:8])
    old = contents(start)
    with StoreWriter(start, FEATURES) as writer:  # put, not committed
        Entry.random(50, 20).put(writer, NAMES[1], "50")
        Entry.random(8, 20).put(writer, NAMES[8], "8")
    new = contents(store(tmp_path / "new" / "features.h5", NAMES[:9], {NAMES[1]: 50}))
    path = tmp_path / "work" / "features.h5"
    found, refused = [], 0
    for steps in range(1000):
        shutil.rmtree(path.parent, ignore_errors=True)
        shutil.copytree(start.parent, path.parent)
        with pytest.MonkeyPatch.context() as patched:
            dying = Dying(steps, patched)
            with contextlib.suppress(OSError, HardnetSfmError):
                commit(path, NAMES[:9], {NAMES[1]: 50})
        if dying.left >= 0:
            break
        try:
            assert contents(path) in (old, new)
        except OSError as error:  # what hloc would see: no half of a change
            assert "already open for write" in str(error) or "checksum" in str(error)
            refused += 1
        with FeatureStore(path) as reader:
            found.append(len(reader.index))
        assert contents(path) == (old if found[-1] == 8 else new)
        commit(path, NAMES[:9], {NAMES[1]: 50})
        assert contents(path) == new
        assert [*path.parent.iterdir()] == [path]
    assert contents(path) == new
    assert found == sorted(found) and {*found} == {8, 9}, "from one step on, the change is made"
    assert refused >= 3


def test_what_a_killed_run_appended_is_overwritten(tmp_path: Path) -> None:
    path, reference = (store(tmp_path / name / "features.h5", NAMES[:8]) for name in ("killed", "whole"))
    with path.open("ab") as file:
        file.write(b"appended" * 9999)
    assert contents(path) == contents(reference)
    for one in (path, reference):
        commit(one, NAMES)
    assert contents(path) == contents(reference)
    assert path.stat().st_size == reference.stat().st_size


def test_a_redo_file_changes_no_other_store(tmp_path: Path) -> None:
    path = store(tmp_path / "features.h5", NAMES[:8])
    redo, shorter = tmp_path / ".features.h5.redo", tmp_path / "shorter" / "features.h5"
    write = in_place._write_durably
    kept: list[bytes] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(in_place, "_write_durably", lambda at, content: (kept.append(content), write(at, content)))
        commit(path, NAMES)
    before = store(shorter, NAMES[:3]).read_bytes()
    for content in (kept[0], kept[0][:-1], b"", b"hello"):
        shutil.copy(shorter, path)
        redo.write_bytes(content)
        with FeatureStore(path) as reader:
            assert reader.names() == NAMES[:3]
        assert path.read_bytes() == before
        assert not redo.exists()


def test_a_reader_finds_the_old_content_until_the_change_is_made(tmp_path: Path) -> None:
    path = store(tmp_path / "features.h5", NAMES[:8])
    old = contents(path)

    def change(file: h5py.File) -> None:
        del file[NAMES[0]]
        file[NAMES[1]]["keypoints"][:] = 7
        file.create_dataset("new.jpg/keypoints", data=np.ones((1000, 2)))
        file.flush()
        assert contents(path) == old

    assert change_in_place(path, change)
    assert hloc_names(path) == {*NAMES[1:8], "new.jpg"}
    with h5py.File(path) as file:
        assert (file[NAMES[1]]["keypoints"][()] == 7).all()


def test_a_store_that_someone_reads_is_replaced_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(tmp_path / "features.h5", NAMES[:8])
    monkeypatch.setattr(in_place, "PATIENCE", 0.1)
    old = path.stat().st_ino
    with h5py.File(path) as reader:
        commit(path, NAMES, {NAMES[1]: 50})
        np.testing.assert_array_equal(reader[NAMES[1]]["keypoints"][()], Entry.random(1, 20).keypoints.xy)
        assert {*reader} == {"day 0", "day 1", "day 2"} and NAMES[9] not in reader
    assert path.stat().st_ino != old
    assert contents(path) == contents(store(tmp_path / "new" / "features.h5", NAMES, {NAMES[1]: 50}))
    assert not [*tmp_path.glob(".*")]


def test_who_opens_a_store_that_is_being_changed_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(tmp_path / "features.h5", NAMES[:8])
    monkeypatch.setattr(in_place, "PATIENCE", 0.1)
    with path.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(HardnetSfmError, match="in use by another program") as raised:
            FeatureStore(path)
        assert str(path) in raised.value.message
        with pytest.raises(BlockingIOError):
            h5py.File(path)
    with FeatureStore(path) as reader:
        assert reader.names() == NAMES[:8]


def test_an_error_in_the_middle_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = store(tmp_path / "features.h5", NAMES[:8])
    before = path.read_bytes()

    def fail(file: h5py.File) -> None:
        file.create_dataset("new", data=np.ones(9999))
        del file[NAMES[0]]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change_in_place(path, fail)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_what_hdf5_writes_after_a_failure_goes_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 lets go of a file that it could not close much later. Another file may then have its descriptor."""
    path = store(tmp_path / "features.h5", NAMES[:8])
    before = path.read_bytes()
    objects: list[PendingFile] = []

    class Kept(PendingFile):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            objects.append(self)

    monkeypatch.setattr(in_place, "PendingFile", Kept)
    with pytest.raises(AttributeError):
        change_in_place(path, lambda file: file.no_such_attribute)
    with (tmp_path / "other").open("w+b") as other:
        other.write(b"precious")
        other.flush()
        (late,) = objects
        late._number = other.fileno()
        for place in (0, late.size):
            late.seek(place)
            assert late.write(memoryview(b"late")) == 4
        late.truncate(1)
        assert late.read(1) == b"\0"
    assert (tmp_path / "other").read_bytes() == b"precious" and path.read_bytes() == before


def test_adding_a_photo_writes_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many photos the store has: all that grows is the index, 100 bytes a photo."""
    written, write = [0], os.pwrite

    def counted(number: int, data: Any, place: int) -> int:
        written[0] += len(data)
        return write(number, data, place)

    monkeypatch.setattr(os, "pwrite", counted)
    cost: dict[int, int] = {}
    for count in (10, 200):
        names = [f"{number:04}.jpg" for number in range(count)]
        path = tmp_path / str(count) / "features.h5"
        path.parent.mkdir()
        with StoreWriter(path, FEATURES) as writer:
            for name in names:
                Entry.random(0, 200).put(writer, name)
            writer.commit(names, {"names": names})
        inode, written[0] = path.stat().st_ino, 0
        with StoreWriter(path, FEATURES) as writer:
            Entry.random(1, 200).put(writer, "new.jpg")
            writer.commit([*names, "new.jpg"], {"names": [*names, "new.jpg"]})
        assert path.stat().st_ino == inode
        cost[count] = written[0]
    assert cost[10] > 200 * 256
    assert cost[200] - cost[10] < 190 * 250


def test_a_store_of_which_a_third_is_empty_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store(tmp_path / "features.h5", NAMES)
    inode, size, empty = path.stat().st_ino, path.stat().st_size, []
    for seed in range(50, 62):
        commit(path, NAMES, {NAMES[0]: seed})
        with FeatureStore(path) as reader:
            empty.append(reader.empty_bytes)
        if path.stat().st_ino != inode:
            break
    assert empty[:-1] == sorted(empty[:-1]) and empty[0] > 5000 and empty[-1] == 0
    assert len(empty) > 2
    assert path.stat().st_size < 1.02 * size
    assert "features.h5 is written anew" in capsys.readouterr().err
    assert contents(path) == contents(store(tmp_path / "new" / "features.h5", NAMES, {NAMES[0]: seed}))


@settings(max_examples=15, deadline=None)
@given(history=st.lists(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3)), max_size=9), min_size=1, max_size=6))
def test_any_history_of_commits_ends_as_one_commit(
    history: list[list[tuple[int, int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("history")
    for step in history:
        changed = {NAMES[number]: 20 * seed + number for number, seed in step}
        commit(folder / "features.h5", sorted(changed), changed)
    assert contents(folder / "features.h5") == contents(store(folder / "new" / "f.h5", sorted(changed), changed))


_contents = st.integers(1, 9000).map(lambda count: np.random.default_rng(count).bytes(count))
_calls = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 20000), _contents),
    st.tuples(st.just("truncate"), st.integers(0, 20000)),
    st.tuples(st.just("read"), st.integers(0, 20000), st.integers(0, 9000)),
)


@settings(max_examples=40, deadline=None)
@given(calls=st.lists(_calls, max_size=12), kept=st.integers(0, 12000))
def test_the_file_object_reads_what_was_written_and_leaves_the_old_part_alone(
    calls: list[tuple[Any, ...]], kept: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("object") / "file"
    old = np.random.default_rng(0).bytes(kept)
    path.write_bytes(old)
    expected = bytearray(old)
    with path.open("r+b", buffering=0) as file:
        pending = PendingFile(file, kept)
        for call, place, *rest in calls:
            if call == "truncate":
                size = max(place, kept)  # below, HDF5 writes before it reads
                pending.truncate(size)
                expected = expected[:size] + bytes(max(0, size - len(expected)))
                continue
            assert pending.seek(place) == pending.tell() == place
            if call == "write":
                assert pending.write(memoryview(rest[0])) == len(rest[0])
                expected += bytes(max(0, place - len(expected)))
                expected[place : place + len(rest[0])] = rest[0]
            elif place < len(expected):
                count = min(rest[0], len(expected) - place)
                assert pending.read(count) == expected[place : place + count]
            assert pending.size == len(expected) == pending.seek(0, os.SEEK_END)
        assert path.read_bytes()[:kept] == old


def test_the_checksum_is_that_of_hdf5(tmp_path: Path) -> None:
    superblock = store(tmp_path / "features.h5", NAMES[:2]).read_bytes()[:48]
    assert lookup3(superblock[:44]) == int.from_bytes(superblock[44:], "little")
    # From the comments of Bob Jenkins' lookup3.c.
    assert lookup3(b"Four score and seven years ago") == 0x17770551
