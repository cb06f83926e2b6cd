"""Writes features.h5 and matches.h5 through a journal that survives a kill.

A running stage appends finished entries to a journal, with one transaction for each entry. The journal is a SQLite file
next to the store (`.features.h5.journal`). A killed run loses only the entry that it was writing. When the stage ends,
new entries are appended to the HDF5 file in a way that survives a kill (`hardnet_sfm.files.in_place`). Adding entries
therefore costs as much as they do, however large the store is. The space of removed entries stays empty. A store of
which a third is empty is written anew.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py

from hardnet_sfm.errors import HardnetSfmError, write_error
from hardnet_sfm.files.in_place import FORMAT, change_in_place
from hardnet_sfm.files.journal import Arrays, Facts, Journal
from hardnet_sfm.files.stores import EMPTY, READERS, VERSION, Kind, encode_index
from hardnet_sfm.files.workspace import locked, replacing
from hardnet_sfm.progress import console

# A store is written anew if more than this share of it is empty.
_MOST_EMPTY = 1 / 3


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
            with READERS[kind](path) as store:
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
        texts = {"header": json.dumps(header), "index": encode_index(json.dumps(index))}
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
            with READERS[self.kind](self.path) as store:
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
            file.attrs.update({**texts, EMPTY: empty})

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
                with READERS[self.kind](self.path) as old:
                    for key in kept:
                        old.copy_entry(key, file)

    def _write_entry(self, group: h5py.Group, arrays: Arrays) -> None:
        packing = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if self.kind.packed else {}
        for name, array in arrays.items():
            # HDF5 cannot compress an array without elements.
            group.create_dataset(name, data=array, **(packing if array.size else {}))


def _remove_entry(file: h5py.File, key: str) -> None:
    """Removes the group of an entry, and the groups around it that are then without content."""
    parts = key.split("/")
    for length in range(len(parts), 0, -1):
        name = "/".join(parts[:length])
        if length < len(parts) and len(file[name]):
            break
        del file[name]
