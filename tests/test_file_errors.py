"""Failed access to files: each cause has its own message, and nothing that may be sound is to be deleted."""

from __future__ import annotations

import errno
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from collections_of_features import Photos, store_of

from hardnet_sfm.errors import HardnetSfmError, file_error, find_cause
from hardnet_sfm.files.hdf5_files import open_hdf5, read_attributes
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.keypoints import Keypoints

PACKAGE = Path(__file__).parents[1] / "hardnet_sfm"
REMEDY = "Make it again."


def photos(count: int = 4) -> Photos:
    rng = np.random.default_rng(0)
    found: Photos = {}
    for number in range(count):
        xy, ones = rng.uniform(0, 99, (50, 2)).astype(np.float32), np.ones(50, np.float32)
        vectors = rng.normal(size=(50, 128))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found[f"{number}.jpg"] = Keypoints(xy, ones, ones, ones), vectors.astype(np.float16)
    return found


def test_no_text_of_the_package_advises_to_delete() -> None:
    advice = re.compile(r"\"[^\"\n]*\b[Dd]elete (it|them|the|this|that|\{)[^\"\n]*\"")
    found = [(path.name, hit[0]) for path in PACKAGE.rglob("*.py") for hit in advice.finditer(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "in use by another program"),
        (OSError("Unable to open file (unable to lock file, errno = 11, error message = '...')"), "in use by another"),
        (OSError("Unable to open file (unable to lock file, errno = 37, error message = '...')"), "cannot be locked"),
        (OSError("Unable to open file (file is already open for write)"), "open for writing"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError("Unable to open file (errno = 13, error message = 'Permission denied')"), "Permission denied"),
        (RuntimeError("Can't write data (errno = 28, error message = 'No space left on device')"), "No space left"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_what_is_not_the_fault_of_the_file_is_not_called_damage(error: Exception, says: str) -> None:
    made = file_error("features.h5", error, "a store", REMEDY)
    assert made.message.startswith("features.h5: ") and says in made.message
    assert "damaged" not in made.message and made.hint and made.hint != REMEDY


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError("Unable to open file (truncated file: eof = 20, stored_eof = 40)"), "truncated"),
        (OSError("Unable to open file (file signature not found)"), "not an HDF5 file"),
        (ValueError("no number"), "not a store, or damaged: no number"),
    ],
)
def test_damage_is_named_with_the_remedy(error: Exception, says: str) -> None:
    made = file_error("features.h5", error, "a store", REMEDY)
    assert says in made.message and made.hint == REMEDY


def test_what_is_missing_is_to_be_made_again() -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory")
    assert (
        str(file_error("features.h5", missing, "a store", REMEDY))
        == f"features.h5: No such file or directory\n{REMEDY}"
    )
    assert "spelling" in file_error("photo.jpg", missing).hint


def test_sqlite_states_its_cause(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as first:
        first.execute("CREATE TABLE one (two)")
    first.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError) as raised:
        sqlite3.connect(path, timeout=0).execute("SELECT * FROM one")
    first.close()
    assert "in use" in (find_cause(raised.value) or ("",))[0]
    path.write_bytes(b"letter " * 999)
    with pytest.raises(sqlite3.DatabaseError) as broken:
        sqlite3.connect(path).execute("SELECT * FROM one")
    assert find_cause(broken.value) is None


def test_a_store_that_another_program_writes_is_in_use(tmp_path: Path) -> None:
    path = store_of(tmp_path / "features.h5", photos())
    code = f"import h5py; f = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(HardnetSfmError, match="in use by another program, or cannot be locked") as raised:
            FeatureStore(path)
        other.communicate(b"\n")
    assert "HDF5_USE_FILE_LOCKING" in raised.value.hint and "not damaged" in raised.value.hint
    with FeatureStore(path) as store:
        assert len(store.names()) == 4


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    path.touch()
    with pytest.raises(HardnetSfmError, match="the file is empty"):
        open_hdf5(path, REMEDY)


@pytest.mark.parametrize("libver", [("earliest", "latest"), ("v110", "latest")])
def test_attributes_are_those_of_h5py(libver: tuple[str, str], tmp_path: Path) -> None:
    facts = {"text": "x" * 30, "long": "y" * 90_000 if libver[0] == "v110" else "y" * 9000, "number": 3}
    with h5py.File(tmp_path / "a.h5", "w", libver=libver) as file:
        file.attrs.update(facts)
    assert read_attributes(tmp_path / "a.h5") == facts


def test_zeroed_bytes_in_a_heap_are_damage_and_no_endless_loop(tmp_path: Path) -> None:
    """HDF5 2.0 does not return from the first one of these."""
    path = store_of(tmp_path / "features.h5", photos())
    content = path.read_bytes()
    heaps = [match.start() for match in re.finditer(b"GCOL", content)]
    assert heaps
    for start in heaps:
        for offset, count in ((16, 64), (0, 64), (8, 8), (24, 8)):
            at = start + offset
            path.write_bytes(content[:at] + bytes(count) + content[at + count :])
            with pytest.raises(HardnetSfmError, match=r"features\.h5"):
                FeatureStore(path)


def test_zeroed_blocks_anywhere_give_an_error_or_a_result(tmp_path: Path) -> None:
    path = store_of(tmp_path / "features.h5", photos())
    content, rng = path.read_bytes(), np.random.default_rng(1)
    for at in rng.integers(0, len(content), 150).tolist():
        path.write_bytes(content[:at] + bytes(256) + content[at + 256 :])
        try:
            with FeatureStore(path) as store:
                for name in store.names():
                    store.keypoints(name), store.descriptors(name)
        except HardnetSfmError as error:
            assert str(path) in error.message and error.hint


def test_a_reader_that_hides_a_missing_permission_does_not_make_it_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of safetensors says `No such file or directory` of a file that the user may not read."""

    def denied(path: Path, _: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "my.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(Path, "open", denied)
    made = file_error(tmp_path / "my.safetensors", RuntimeError("No such file or directory"), "weights", REMEDY)
    assert made.message == f"{tmp_path / 'my.safetensors'}: Permission denied" and "permissions" in made.hint
