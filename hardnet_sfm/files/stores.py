"""features.h5 and matches.h5: HDF5 files in hloc's layout, written through a journal that survives a kill.

A running stage appends finished entries to a journal, with one transaction for each entry. The journal is a SQLite file
next to the store (`.features.h5.journal`). A killed run loses only the entry that it was writing. When the stage ends,
new entries are appended to the HDF5 file in a way that survives a kill (`hardnet_sfm.files.in_place`). Adding entries
therefore costs as much as they do, however large the store is. The space of removed entries stays empty. A store of
which a third is empty is written anew.

Arrays are data sets in the group of their entry. Facts about all entries are in one attribute of the file, `index`, a
JSON object, which is compressed if it is long. So the content of a store of ten thousand pairs is known in
milliseconds, while visiting its groups takes seconds.
"""

from __future__ import annotations

import json
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError, file_error, write_error
from hardnet_sfm.files.hdf5_files import open_hdf5, read_array, read_attributes
from hardnet_sfm.files.in_place import FORMAT, change_in_place
from hardnet_sfm.files.journal import Arrays, Facts, Journal
from hardnet_sfm.files.store_checks import check_facts, check_keypoints, check_matches, check_numbers
from hardnet_sfm.files.workspace import locked, replacing
from hardnet_sfm.keypoints import LOWES_RATIO, Keypoints, Matches
from hardnet_sfm.photo_names import KnownNames
from hardnet_sfm.progress import console

VERSION = 1
# Attribute that counts the bytes of the file that removed entries have left empty. It is missing if there are none.
_EMPTY = "empty"
# About what the groups and descriptions of an entry's arrays take in the file, bytes.
_ENTRY_BYTES = 2048
# An index of more than this many letters is compressed. Each commit leaves the old index as empty space, and that of
# 20 000 pairs has 3.6 MB.
_LONG_INDEX = 2**16
# A store is written anew if more than this share of it is empty.
_MOST_EMPTY = 1 / 3


@dataclass(frozen=True)
class Kind:
    """A kind of store: its name in the file, the stage that makes it, and whether its arrays are compressed.

    Most pairs of photos have few matches, so arrays of matches are nearly all -1 and shrink to a tenth.
    """

    name: str
    stage: str
    packed: bool

    @property
    def format(self) -> str:
        """The text that identifies the format in a file."""
        return f"hardnet-sfm {self.name}"


FEATURES = Kind("features", "extract", packed=False)
MATCHES = Kind("matches", "match", packed=True)
KEYPOINTS = Kind("keypoints", "match --view-synthesis", packed=False)


class Store:
    """A store that is open for reading. Use it as a context manager.

    Attributes:
        header: facts about the whole file: `options` (what made it) and other facts that its stage noted.
        index: facts about each entry by its key: its `fingerprint` and other facts that its stage noted.
        empty_bytes: bytes of the file that removed entries have left empty.

    Raises:
        HardnetSfmError: the file is missing, truncated, not HDF5, not a store of this kind, or just being written.
    """

    kind: Kind

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        if not path.is_file():
            raise HardnetSfmError(f"no {self.kind.name} at {path}", f"Run `hardnet-sfm {self.kind.stage}` first.")
        self.path = path
        self._file = open_hdf5(path, self._remedy)
        with self._explained():
            facts = read_attributes(path)
            ours = facts.get("format") == self.kind.format and facts.get("version") == VERSION
            self.header: dict[str, Any] = json.loads(facts["header"]) if ours else {}
            self.index: dict[str, dict[str, Any]] = json.loads(_unpack(facts["index"])) if ours else {}
            self.empty_bytes = int(facts.get(_EMPTY, 0))
            if ours:
                check_facts(self.header, self.index)
        if not ours:
            self._file.close()
            raise HardnetSfmError(
                f"{path}: an HDF5 file, but not {self.kind.name} of hardnet-sfm (version {VERSION})",
                f"Move it away and run `hardnet-sfm {self.kind.stage}` again.",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def fingerprints(self) -> dict[str, str]:
        """Returns the fingerprint of every entry by its key, in the store's order."""
        return {key: str(facts["fingerprint"]) for key, facts in self.index.items()}

    @cached_property
    def _keys(self) -> KnownNames:
        """Finds entries by their key in any Unicode spelling."""
        return KnownNames(self.index)

    def _facts(self, key: str) -> dict[str, Any]:
        """Returns the facts about one entry."""
        return self.index[self._keys.find(key) or key]

    def _read(self, key: str, name: str) -> NDArray[Any]:
        """Reads one array of one entry."""
        known = self._keys.find(key)
        if known is None:
            raise HardnetSfmError(
                f"{self.path}: no {self.kind.name} of {key} in it",
                "`hardnet-sfm info` says what is there; run the stage that makes it again.",
            )
        with self._explained():
            return read_array(self._file[known][name])

    def bytes_of(self, keys: Collection[str]) -> int:
        """Returns about how many bytes some entries take in the file."""
        with self._explained():
            arrays = sum(item.id.get_storage_size() for key in keys for item in self._file[key].values())
        return int(arrays) + _ENTRY_BYTES * len(keys)

    def copy_entry(self, key: str, target: h5py.File) -> None:
        """Copies an entry unchanged into another open file."""
        with self._explained():
            source = self._file[key]
        self._file.copy(source, target, name=key)

    @property
    def _remedy(self) -> str:
        """What to do about a damaged file. The journal next to it may hold finished work."""
        return (
            f"Copy it again if you have a copy. Otherwise move it away and run `hardnet-sfm {self.kind.stage}` again."
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, zlib.error) as error:
            raise file_error(self.path, error, remedy=self._remedy) from error


class KeypointStore(Store):
    """Keypoints of many photos.

    The photo's own keypoints precede those of its synthetic views. Keys are photo names.
    """

    kind = KEYPOINTS

    def keypoints(self, name: str) -> Keypoints:
        arrays = {of: self._read(name, of) for of in ("keypoints", "scales", "oris", "scores")}
        with self._explained():
            similar = "affines" not in self._file[self._keys.find(name) or name]
        affines = None if similar else self._read(name, "affines")
        with self._explained():
            check_keypoints(arrays if affines is None else {**arrays, "affines": affines}, self._facts(name))
        return Keypoints(arrays["keypoints"], arrays["scales"], arrays["oris"], arrays["scores"], affines)


class FeatureStore(KeypointStore):
    """Keypoints and descriptors of many photos. Keys are photo names."""

    kind = FEATURES

    def names(self) -> list[str]:
        """Returns the photo names in the order in which they were listed."""
        with self._explained():
            return [str(name) for name in self.header["names"]]

    def descriptors(self, name: str) -> NDArray[np.float16]:
        """Returns (N, D) float16 of unit length, a view of the (D, N) array in the file."""
        descriptors = self._read(name, "descriptors")
        with self._explained():
            check_numbers("descriptors", descriptors, (None, self._facts(name).get("keypoints")))
        return descriptors.astype(np.float16, copy=False).T

    def counts(self) -> dict[str, int]:
        """Returns the number of keypoints by photo name."""
        with self._explained():
            return {name: int(self.index[name]["keypoints"]) for name in self.names()}

    def size(self, name: str) -> tuple[int, int]:
        """Returns width and height of the upright photo, pixels."""
        size = self._read(name, "image_size")
        with self._explained():
            width, height = map(int, size)
            if not (width > 0 and height > 0):
                raise ValueError(f"image_size of {name} is {width} x {height}")
        return width, height

    def stored_size(self, name: str) -> tuple[int, int]:
        """Returns width and height of the photo as stored in its file, before EXIF orientation, pixels."""
        width, height = self.size(name)
        return (height, width) if self.orientation(name) >= 5 else (width, height)

    def shrunk(self, name: str) -> float:
        """Returns the size of a detection pixel, in pixels of the photo.

        It is 1 if the photo was not shrunk for detection. It is also 1 if the store does not tell, because `extract`
        did not make it.
        """
        longest = max(self.size(name))
        return max(1.0, longest / float(self.header.get("options", {}).get("max_image_size", longest)))

    def max_ratio(self) -> float:
        """Returns the largest ratio of the ratio test that the descriptor recommends.

        It is 0.8 if the store does not note it. Older versions and other programs do not note it.

        Raises:
            HardnetSfmError: the note is not a number above 0 and at most 1.
        """
        with self._explained():
            ratio = float(self.header.get("max_ratio", LOWES_RATIO))
            if not 0 < ratio <= 1:
                raise ValueError(f"max_ratio is {ratio}, not above 0 and at most 1")
        return ratio

    def orientation(self, name: str) -> int:
        """Returns the EXIF orientation of the photo, 1 to 8.

        Keypoints are upright; COLMAP reads the photo as stored.
        """
        with self._explained():
            return int(self._facts(name)["exif_orientation"])

    def turn(self, name: str) -> int:
        """Returns the direction that is upright in the photo, degrees as in `Keypoints.oris`: 0, 90, 180 or 270.

        It is 0 if the photo is not described upright.
        """
        return int(self._facts(name).get("turn", 0))


class MatchStore(Store):
    """Putative matches of many pairs of photos. Keys are `pair_key(name0, name1)`."""

    kind = MATCHES

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the names of all pairs in the store."""
        with self._explained():
            return [(str(facts["name0"]), str(facts["name1"])) for facts in self.index.values()]

    def total(self) -> int:
        """Returns the number of matches of all pairs together."""
        with self._explained():
            return sum(int(facts["matches"]) for facts in self.index.values())

    def count(self, name0: str, name1: str) -> int:
        """Returns the number of matches of one pair."""
        with self._explained():
            return int(self._facts(pair_key(name0, name1))["matches"])

    def matches(self, name0: str, name1: str) -> Matches:
        """Returns the matches of one pair, in the order of the first photo's keypoints."""
        key = pair_key(name0, name1)
        of_first, of_scores = self._read(key, "matches0"), self._read(key, "matching_scores0")
        with self._explained():
            check_matches(of_first, of_scores, self._facts(key))
        rows = np.flatnonzero(of_first >= 0).astype(np.int32)
        scores = of_scores.astype(np.float32)
        return Matches(np.stack([rows, of_first[rows]], 1), scores[rows])


def keypoint_arrays(keypoints: Keypoints, size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Returns the data sets of one photo's N keypoints. `size` is the width and height of the upright photo."""
    arrays: dict[str, NDArray[Any]] = {
        # float16, as in hloc, would move keypoints beyond pixel 2048 by whole pixels.
        "keypoints": keypoints.xy.astype(np.float32),
        "scores": keypoints.scores.astype(np.float32),
        "scales": keypoints.scales.astype(np.float32),
        "oris": keypoints.oris.astype(np.float32),
        "image_size": np.array(size, np.int64),
    }
    if keypoints.affines is not None:
        arrays["affines"] = keypoints.affines.astype(np.float32)
    return arrays


def feature_arrays(
    keypoints: Keypoints, descriptors: NDArray[np.float16], size: tuple[int, int]
) -> dict[str, NDArray[Any]]:
    """Returns the data sets of one photo.

    Args:
        keypoints: N keypoints.
        descriptors: (N, D) float16, unit length.
        size: width and height of the upright photo.
    """
    arrays = keypoint_arrays(keypoints, size)
    # This order keeps files identical, byte for byte, to those of earlier versions.
    return {"keypoints": arrays.pop("keypoints"), "descriptors": np.ascontiguousarray(descriptors.T), **arrays}


def match_arrays(matches: Matches, count0: int) -> dict[str, NDArray[Any]]:
    """Returns the data sets of one pair, whose first photo has `count0` keypoints."""
    of_first = np.full(count0, -1, np.int32)
    scores = np.zeros(count0, np.float16)
    of_first[matches.pairs[:, 0]] = matches.pairs[:, 1]
    scores[matches.pairs[:, 0]] = matches.scores
    return {"matches0": of_first, "matching_scores0": scores}


def pair_key(name0: str, name1: str) -> str:
    """Returns hloc's key of a pair: slashes in names become dashes."""
    return f"{name0.replace('/', '-')}/{name1.replace('/', '-')}"


def check_names_apart(names: Iterable[str]) -> None:
    """Rejects photo names that a store or a text file cannot hold.

    hloc's key rule cannot tell some names apart, such as `a-b/c.jpg` and `a/b-c.jpg`. A text file cannot hold names
    that are not Unicode text on one line.

    Raises:
        HardnetSfmError: there is such a name or such a pair of names; the message states the first.
    """
    seen: dict[str, str] = {}
    for name in names:
        if "\n" in name or any(0xD800 <= ord(letter) < 0xE000 for letter in name):
            raise HardnetSfmError(
                f"the name of the photo {os.fsencode(name)!r} is not Unicode text on one line", "Rename the photo."
            )
        other = seen.setdefault(name.replace("/", "-"), name)
        if other != name:
            raise HardnetSfmError(
                f"the photos {other} and {name} have the same key in a match store, where / is written as -",
                "Rename one of them or its folder.",
            )


class StoreWriter:
    """Adds entries to a store. Use it as a context manager, then `commit`.

    Several processes can add entries at the same time. Each names a part of its own, and puts entries into the journal
    of that part. One writer without a part then commits the entries of all.

    Args:
        path: path of the HDF5 store; it need not exist.
        kind: kind of the store.
        part: name of the part that this process owns; empty for the writer that commits.

    Attributes:
        facts: facts by key of the entries that already exist, in the store, in a killed run's journal or in other
            parts.
        fingerprints: fingerprints of the same entries by key.
        header: header of the existing store, empty for a new one.
    """

    def __init__(self, path: Path, kind: Kind, part: str = "") -> None:
        self.path, self.kind = path, kind
        self._held = ExitStack()
        name = f"{path.name}.{part}" if part else path.name
        if part:
            self._held.enter_context(locked(path.parent, name))
        self.header: dict[str, Any] = {}
        self._stored: dict[str, Facts] = {}
        self._empty = 0
        if path.exists():
            with _READERS[kind](path) as store:
                self.header, self._stored, self._empty = store.header, dict(store.index), store.empty_bytes
        self._journal = Journal(path.with_name(f".{name}.journal"))
        self._others: dict[str, Journal] = {}
        self.facts: dict[str, Facts] = {**self._stored, **self._journalled()[0]}
        self.fingerprints = {key: str(facts["fingerprint"]) for key, facts in self.facts.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()
        for other in self._others.values():
            other.leave()
        self._held.close()

    def put(self, key: str, fingerprint: str, arrays: Arrays, facts: Facts) -> None:
        """Adds or replaces one entry. The entry is safe on disk when this returns.

        Raises:
            HardnetSfmError: the disk is full or cannot be written. Earlier entries are kept.
        """
        facts = {**facts, "fingerprint": fingerprint}
        self._journal.put(key, facts, arrays, packed=self.kind.packed)
        self.facts[key], self.fingerprints[key] = facts, fingerprint

    def commit(self, keys: Collection[str], header: Mapping[str, Any]) -> None:
        """Gives the store exactly the entries `keys`. It does nothing if the store is already so.

        It appends new entries to the file. It writes a new file if removed entries would leave a third of the old one
        empty, or if another program has the old one open.

        Raises:
            HardnetSfmError: the disk is full or cannot be written. The old store and the journal are kept.
        """
        wanted, (journalled, holders) = set(keys), self._journalled()
        fresh = {
            key: holders[key]
            for key, facts in journalled.items()
            if key in wanted and facts != self._stored.get(key)  # equal facts: a killed run had stored the entry
        }
        if self.path.exists() and not fresh and self._stored.keys() == wanted and self.header == dict(header):
            self._drop_journals()
            return
        index = {key: journalled[key] if key in fresh else self._stored[key] for key in keys}
        texts = {"header": json.dumps(header), "index": _pack(json.dumps(index))}
        try:
            if not self._append(fresh, self._stored.keys() - (wanted - fresh.keys()), texts):
                with replacing(self.path) as beside:
                    self._write(beside, keys, fresh, texts)
        except (OSError, RuntimeError) as error:  # h5py raises RuntimeError if the disk is full
            raise write_error(self.path, error) from error
        self._drop_journals()

    def _journalled(self) -> tuple[dict[str, Facts], dict[str, Journal]]:
        """Returns facts and journal of each entry in the journals of all parts. The own journal takes precedence."""
        for path in self.path.parent.glob(f".{escape(self.path.name)}.*journal"):
            if path != self._journal.path and path.name not in self._others:
                self._others[path.name] = Journal(path)
        found: dict[str, Facts] = {}
        holders: dict[str, Journal] = {}
        for _, journal in (*sorted(self._others.items()), ("", self._journal)):
            facts = journal.facts()
            found.update(facts)
            holders.update(dict.fromkeys(facts, journal))
        return found, holders

    def _drop_journals(self) -> None:
        """Removes the journals of all processes that have ended."""
        self._journal.drop()
        for name, journal in self._others.items():
            of_part = name.removeprefix(".").removesuffix(".journal")
            with suppress(HardnetSfmError), locked(self.path.parent, of_part):
                journal.drop()
                self.path.with_name(f".{of_part}.lock").unlink(missing_ok=True)

    def _append(self, fresh: Mapping[str, Journal], removed: Collection[str], texts: Mapping[str, str]) -> bool:
        """Removes entries from the file and appends others; says whether it did.

        Args:
            fresh: journals of new and changed entries by key.
            removed: keys of stored entries that go, or that a new entry replaces.
            texts: new attributes of the file.
        """
        if not self.path.exists():
            return False
        empty = self._empty + sum(len(text) for text in texts.values())  # the old texts are about as long
        if removed:
            with _READERS[self.kind](self.path) as store:
                empty += store.bytes_of(removed)
        size = self.path.stat().st_size
        if empty > _MOST_EMPTY * size:
            if len(removed) < len(self._stored):
                share = f"{100 * empty / size:.0f} % of it would be empty"
                console.print(f"[dim]repack:[/] {self.path.name} is written anew: {share}")
            return False

        def change(file: h5py.File) -> None:
            # New arrays go to the end of the file, before removed ones leave space in it.
            groups = {key: file.create_group(None) for key in fresh}
            for key, group in groups.items():
                self._write_entry(group, fresh[key].arrays(key))
            for key in removed:
                _remove_entry(file, key)
            for key, group in groups.items():
                file[key] = group
            file.attrs.update({**texts, _EMPTY: empty})

        return change_in_place(self.path, change)

    def _write(
        self, target: Path, keys: Collection[str], fresh: Mapping[str, Journal], texts: Mapping[str, str]
    ) -> None:
        with h5py.File(target, "w", libver=FORMAT) as file:
            file.attrs.update({"format": self.kind.format, "version": VERSION, **texts})
            for key in fresh:
                self._write_entry(file.create_group(key), fresh[key].arrays(key))
            kept = [key for key in keys if key not in fresh]
            if kept:
                with _READERS[self.kind](self.path) as old:
                    for key in kept:
                        old.copy_entry(key, file)

    def _write_entry(self, group: h5py.Group, arrays: Arrays) -> None:
        packing = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if self.kind.packed else {}
        for name, array in arrays.items():
            # HDF5 cannot compress an array without elements.
            group.create_dataset(name, data=array, **(packing if array.size else {}))


_READERS: dict[Kind, type[Store]] = {FEATURES: FeatureStore, MATCHES: MatchStore, KEYPOINTS: KeypointStore}


def _pack(text: str) -> str:
    """Compresses a long JSON text: facts about photos to a half, about pairs to a quarter."""
    return text if len(text) <= _LONG_INDEX else b64encode(zlib.compress(text.encode(), 1)).decode()


def _unpack(text: str) -> str:
    """Returns the JSON object that `_pack` may have compressed."""
    return text if text.startswith("{") else zlib.decompress(b64decode(text)).decode()


def _remove_entry(file: h5py.File, key: str) -> None:
    """Removes the group of an entry, and the groups around it that are then without content."""
    parts = key.split("/")
    for length in range(len(parts), 0, -1):
        name = "/".join(parts[:length])
        if length < len(parts) and len(file[name]):
            break
        del file[name]
