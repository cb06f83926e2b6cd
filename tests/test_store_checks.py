"""Stores that hold what no stage writes are refused where they are read, and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FEATURES, MATCHES, FeatureStore, MatchStore, feature_arrays
from hardnet_sfm.files.stores import match_arrays as arrays_of_matches
from hardnet_sfm.keypoints import Keypoints, Matches

NAME = "a.jpg"


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A store of one photo with four keypoints."""
    xy = np.arange(8, dtype=np.float32).reshape(4, 2)
    keypoints = Keypoints(xy, *(np.full(4, value, np.float32) for value in (2, 90, 0.5)))
    path = tmp_path / "features.h5"
    with StoreWriter(path, FEATURES) as writer:
        arrays = feature_arrays(keypoints, np.full((4, 128), 0.1, np.float16), (640, 480))
        writer.put(NAME, "f", arrays, {"photo_sha256": "00", "exif_orientation": 1, "keypoints": 4, "turn": 0})
        writer.commit([NAME], {"names": [NAME], "options": {}})
    return path


@pytest.fixture
def matches(tmp_path: Path) -> Path:
    """A store of one pair with two matches."""
    path = tmp_path / "matches.h5"
    with StoreWriter(path, MATCHES) as writer:
        found = Matches(np.array([[0, 1], [2, 0]], np.int32), np.array([0.9, 0.8], np.float32))
        facts: dict[str, str | int] = {"name0": "a.jpg", "name1": "b.jpg", "matches": 2}
        writer.put("a.jpg/b.jpg", "f", arrays_of_matches(found, 4), facts)
        writer.commit(["a.jpg/b.jpg"], {"options": {}})
    return path


def replace(path: Path, name: str, array: Any) -> None:
    with h5py.File(path, "r+") as store:
        del store[name]
        store[name] = array


def read(path: Path) -> None:
    """Reads all that a store of features has about its photo."""
    with FeatureStore(path) as store:
        store.names(), store.counts(), store.orientation(NAME), store.turn(NAME), store.size(NAME)
        store.keypoints(NAME), store.descriptors(NAME)


def test_sound_stores_are_read(features: Path, matches: Path) -> None:
    read(features)
    with MatchStore(matches) as store:
        assert store.matches("a.jpg", "b.jpg").pairs.tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        *(("keypoints", wrong) for wrong in ("", -1, None, 4.0, [], True)),
        *(("exif_orientation", wrong) for wrong in (0, 9, "1", None)),
        *(("turn", wrong) for wrong in (45, "0", None)),
        *(("fingerprint", wrong) for wrong in (None, 1, {})),
    ],
)
def test_wrong_facts_about_a_photo_are_damage(features: Path, fact: str, value: Any) -> None:
    with h5py.File(features, "r+") as store:
        index = json.loads(store.attrs["index"])
        index[NAME][fact] = value
        store.attrs["index"] = json.dumps(index)
    with pytest.raises(HardnetSfmError, match=rf"features\.h5.*{fact}"):
        read(features)


@pytest.mark.parametrize("missing", ["keypoints", "exif_orientation", "fingerprint"])
def test_missing_facts_are_damage(features: Path, missing: str) -> None:
    with h5py.File(features, "r+") as store:
        index = json.loads(store.attrs["index"])
        del index[NAME][missing]
        store.attrs["index"] = json.dumps(index)
    with pytest.raises(HardnetSfmError, match=rf"features\.h5.*{missing}"):
        read(features)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("index", "[]"), ("index", -1), ("index", '{"a.jpg": 3}'), ("header", "3"), ("header", 3), ("header", "[]")]
    + [("header", json.dumps({"names": names})) for names in (NAME, [1], None)]
    + [("header", json.dumps({"names": [NAME], "options": []}))],
)
def test_facts_of_another_shape_are_damage(features: Path, attribute: str, value: Any) -> None:
    with h5py.File(features, "r+") as store:
        store.attrs[attribute] = value
    with pytest.raises(HardnetSfmError, match=r"features\.h5"):
        read(features)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("keypoints", np.full((4, 2), np.nan, np.float32)),
        ("keypoints", np.zeros((3, 2), np.float32)),
        ("keypoints", np.zeros((4, 3), np.float32)),
        ("scales", np.array([1, 2, -8e-30, 1], np.float32)),
        ("scales", np.zeros(5, np.float32)),
        ("oris", np.array([1, 2, np.inf, 1], np.float32)),
        ("scores", np.zeros(4, np.int32)),
        ("descriptors", np.full((128, 4), np.nan, np.float16)),
        ("descriptors", np.zeros((128, 3), np.float16)),
        ("descriptors", np.zeros(4, np.float16)),
        ("image_size", np.array([0, 480])),
        ("image_size", np.array([640])),
    ],
)
def test_wrong_numbers_of_a_photo_are_damage(features: Path, name: str, array: Any) -> None:
    replace(features, f"{NAME}/{name}", array)
    with pytest.raises(HardnetSfmError, match=r"features\.h5"):
        read(features)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("matches0", np.array([1, -2, 0, -1], np.int32)),
        ("matches0", np.array([1, -1, -1, -1], np.int32)),
        ("matches0", np.array([1, -1, 0], np.int32)),
        ("matches0", np.array([1, -1, 0, -1], np.float32)),
        ("matching_scores0", np.full(4, np.nan, np.float16)),
        ("matching_scores0", np.zeros(3, np.float16)),
    ],
)
def test_wrong_numbers_of_a_pair_are_damage(matches: Path, name: str, array: Any) -> None:
    replace(matches, f"a.jpg/b.jpg/{name}", array)
    with MatchStore(matches) as store, pytest.raises(HardnetSfmError, match=r"matches\.h5"):
        store.matches("a.jpg", "b.jpg")


@pytest.mark.parametrize("name", ["keypoints", "descriptors", "scales"])
def test_arrays_that_claim_to_be_huge_are_damage(features: Path, name: str) -> None:
    with h5py.File(features, "r+") as store:
        del store[f"{NAME}/{name}"]
        store.create_dataset(f"{NAME}/{name}", shape=(1 << 38,), chunks=(1 << 16,), dtype=np.float32)
    with pytest.raises(HardnetSfmError, match=r"features\.h5.*claims 1099511627776 bytes, but 0 are stored"):
        read(features)


def test_compressed_arrays_of_one_value_are_no_claim(matches: Path) -> None:
    with h5py.File(matches, "r+") as store:
        for name, array in {
            "matches0": np.full(100_000, -1),
            "matching_scores0": np.zeros(100_000, np.float16),
        }.items():
            del store[f"a.jpg/b.jpg/{name}"]
            store.create_dataset(f"a.jpg/b.jpg/{name}", data=array, compression="gzip", shuffle=True)
        index = json.loads(store.attrs["index"])
        index["a.jpg/b.jpg"]["matches"] = 0
        store.attrs["index"] = json.dumps(index)
    with MatchStore(matches) as store:
        assert len(store.matches("a.jpg", "b.jpg")) == 0
