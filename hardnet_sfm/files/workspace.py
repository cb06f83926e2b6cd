"""Where a run keeps its things: the workspace folder, its lock, fingerprints and atomically replaced files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hardnet_sfm.errors import HardnetSfmError, UsageError

DEFAULT = Path("hardnet-sfm-out")
# What folders below it say of themselves: a vocabulary, an index, and each segment of one.
CARD = "card.json"
MANIFEST = "manifest.json"
PHOTOS = "photos.json"


@dataclass(frozen=True)
class Workspace:
    """The files of one run, all below one folder shared by every subcommand."""

    root: Path = DEFAULT

    def check_apart(self, images: Path) -> None:
        """Raises UsageError if it is the folder of the photos, which is never written to; one within that will do."""
        if self.root.resolve() == images.resolve():
            raise UsageError("the workspace cannot be the folder of the photos", "Choose another --workspace.")

    @property
    def features(self) -> Path:
        return self.root / "features.h5"

    @property
    def pairs(self) -> Path:
        return self.root / "pairs.txt"

    @property
    def matches(self) -> Path:
        return self.root / "matches.h5"

    @property
    def again(self) -> Path:
        """Pairs that are matched for photos which the model left out."""
        return self.root / "again.json"

    @property
    def view_keypoints(self) -> Path:
        """What matches refer to that were found with view synthesis: keypoints of photos and of their views."""
        return self.root / "keypoints-views.h5"

    @property
    def views(self) -> Path:
        """Descriptions of synthetic views, a file for each photo and step; what is deleted is described again."""
        return self.root / ".views"

    @property
    def vocabulary(self) -> Path:
        return self.root / "vocabulary"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def proposed(self) -> Path:
        """Pairs of photos that look alike, by the index."""
        return self.root / "proposed.txt"

    @property
    def database(self) -> Path:
        return self.root / "database.db"

    @property
    def sparse(self) -> Path:
        return self.root / "sparse"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.root / "report.html"

    @property
    def logs(self) -> Path:
        """What native libraries say."""
        return self.root / "logs"

    @property
    def trial(self) -> Path:
        """While it is decided which photos share a camera: the databases of a trial."""
        return self.root / ".cameras.tmp"

    @property
    def readable(self) -> Path:
        """While mapping: links to the photos and copies of those that COLMAP cannot read."""
        return self.root / ".readable"


def prepare_folder(folder: Path) -> None:
    """Makes a folder for outputs if it is missing.

    Raises:
        HardnetSfmError: it is a file, or cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise HardnetSfmError(f"{folder} is a file, a folder is needed", "Choose another place to write to.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, NotADirectoryError) as error:
        raise HardnetSfmError(f"cannot make {folder}: {error.strerror}", "Choose another place to write to.") from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise HardnetSfmError(f"{folder}: no permission to read and write", "Choose another place to write to.")


@contextmanager
def locked(folder: Path, file: str = "") -> Iterator[None]:
    """Keeps other processes from writing into the same workspace while the block runs.

    Args:
        folder: the workspace.
        file: to keep them from writing this file in it alone.

    The operating system lets the lock go when the process ends, however it ends. The same process may enter twice, so
    that a chain of stages holds the lock from its first stage to its last.

    Raises:
        HardnetSfmError: another process holds it, or the folder cannot be written to.
    """
    prepare_folder(folder)
    lock = FileLock(folder / f".{file}.lock" if file else folder / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise HardnetSfmError(
            f"another hardnet-sfm run is writing {folder / file}"
            if file
            else f"another hardnet-sfm run is working in {folder}",
            "Wait for it to end, or let this run write elsewhere.",
        ) from error
    except OSError as error:
        raise HardnetSfmError(f"cannot lock {folder}: {error.strerror}", "Choose another place to write to.") from error
    try:
        yield
    finally:
        lock.release()


def digest(*parts: object) -> str:
    """A short fingerprint (32 hex digits of a sha256) of anything that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Gives a path beside `target` to write to; it takes the target's place when the block ends well, else it goes."""
    beside = target.with_name(f".{target.name}.tmp")
    beside.unlink(missing_ok=True)
    try:
        yield beside
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, complete or not at all."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        HardnetSfmError: the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise HardnetSfmError(f"no such file: {path}", "Run the command that makes it again.") from error
    except (OSError, ValueError) as error:
        raise HardnetSfmError(f"{path}: cannot be read: {error}", "Delete it and run the command again.") from error
    if not isinstance(content, dict):
        raise HardnetSfmError(f"{path}: not a JSON object", "Delete it and run the command again.")
    return content
