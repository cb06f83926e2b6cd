"""A crash-safe journal of arrays. It records what a stage has finished, with one transaction for each entry."""

from __future__ import annotations

import io
import json
import sqlite3
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import file_error

# NumPy raises these for a damaged archive or a damaged header of an array.
_DAMAGED_ARRAYS = (zipfile.BadZipFile, zlib.error, SyntaxError, TokenError, EOFError, NotImplementedError)
Arrays = Mapping[str, NDArray[Any]]
Facts = Mapping[str, str | int]


class Journal:
    """Stores arrays and facts by key in a SQLite file. A killed process loses only the entry that it was writing.

    Args:
        path: path of the file; made if missing.

    Attributes:
        path: the same path.

    Raises:
        HardnetSfmError: any method raises it if the disk is full or the file is damaged. The content stays as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained():
            # No implicit transactions: each statement is its own transaction.
            self._opened = sqlite3.connect(path, isolation_level=None)
            self._opened.execute("PRAGMA journal_mode=WAL")
            self._opened.execute("CREATE TABLE IF NOT EXISTS entry (key TEXT PRIMARY KEY, facts TEXT, arrays BLOB)")
            self._put = self._opened.execute("SELECT 1 FROM entry LIMIT 1").fetchone() is not None

    def facts(self) -> dict[str, Facts]:
        """Returns the facts of all entries by key."""
        with self._explained():
            rows = self._opened.execute("SELECT key, facts FROM entry").fetchall()
            found: dict[str, Facts] = {key: json.loads(facts) for key, facts in rows}
            if not all(isinstance(facts, dict) and "fingerprint" in facts for facts in found.values()):
                raise ValueError("an entry without a fingerprint")
        return found

    def arrays(self, key: str) -> dict[str, NDArray[Any]]:
        """Returns the arrays of one entry."""
        with self._explained():
            (packed,) = self._opened.execute("SELECT arrays FROM entry WHERE key = ?", (key,)).fetchone()
            with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}

    def put(self, key: str, facts: Facts, arrays: Arrays, *, packed: bool) -> None:
        """Adds or replaces one entry. The entry is safe on disk when this returns."""
        buffer = io.BytesIO()
        (np.savez_compressed if packed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
        row = (key, json.dumps(facts), buffer.getvalue())
        with self._explained():
            self._opened.execute("INSERT OR REPLACE INTO entry VALUES (?, ?, ?)", row)
            self._put = True

    def close(self) -> None:
        """Closes the journal, and removes it if it has no entries."""
        if self._put:
            self._opened.close()
        else:
            self.drop()

    def leave(self) -> None:
        """Closes the journal and keeps it, because it belongs to another process."""
        self._opened.close()

    def drop(self) -> None:
        """Closes and removes the journal."""
        self._put = True  # closing again must not remove a file that another process has made since
        self._opened.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, *_DAMAGED_ARRAYS, OSError, ValueError, KeyError, TypeError) as error:
            remedy = "Move it away and run the same command again: it computes what the journal held."
            raise file_error(self.path, error, "a journal of hardnet-sfm", remedy) from error
