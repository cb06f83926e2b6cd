"""The workspace folder of a run, its lock, fingerprints and atomically replaced files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hardnet_sfm.errors import HardnetSfmError, UsageError, file_error, write_error

DEFAULT = Path("hardnet-sfm-out")
# Files that describe a folder below the workspace: a vocabulary, an index, and each segment of an index.
CARD = "card.json"
MANIFEST = "manifest.json"
PHOTOS = "photos.json"


class _Inside:
    """The path of a file or folder in a workspace, as an attribute of the workspace."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, workspace: Workspace, _: object) -> Path:
        return workspace.root / self._name


@dataclass(frozen=True)
class Workspace:
    """The files of one run, all below one folder that every subcommand shares."""

    root: Path = DEFAULT

    features = _Inside("features.h5")
    pairs = _Inside("pairs.txt")
    matches = _Inside("matches.h5")
    again = _Inside("again.json")
    """Pairs that are matched to recover photos that the model left out."""
    view_keypoints = _Inside("keypoints-views.h5")
    """Keypoints of photos and of their views, which matches found with view synthesis refer to."""
    views = _Inside(".views")
    """Descriptions of synthetic views, a file for each photo and step. A deleted file is made again."""
    photo_hashes = _Inside(".photo-hashes.json")
    """Notes that save reading unchanged photos again. A deleted file is made again."""
    vocabulary = _Inside("vocabulary")
    index = _Inside("index")
    proposed = _Inside("proposed.txt")
    """Pairs of similar photos that the index proposes."""
    database = _Inside("database.db")
    sparse = _Inside("sparse")
    summary = _Inside("summary.json")
    report = _Inside("report.html")
    """The report, an HTML page."""
    logs = _Inside("logs")
    """Logs of native libraries."""
    trial = _Inside(".cameras.tmp")
    """Databases of the trials that decide which photos share a camera. They exist only meanwhile."""
    readable = _Inside(".readable")
    """Links to the photos, and copies of those that COLMAP cannot read. They exist only while mapping."""

    def check_apart(self, images: Path) -> None:
        """Raises UsageError if the workspace is the folder of the photos, which is never written to.

        A folder within the folder of the photos is allowed.
        """
        if self.root.resolve() == images.resolve():
            raise UsageError("the workspace cannot be the folder of the photos", "Choose another --workspace.")


def prepare_folder(folder: Path) -> None:
    """Makes a folder for outputs if it is missing.

    Raises:
        HardnetSfmError: the path is a file, or the folder cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise HardnetSfmError(f"{folder} is a file, but a folder is needed", "Choose another place to write to.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, NotADirectoryError) as error:
        raise write_error(folder, error) from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise HardnetSfmError(f"{folder}: no permission to read and write", "Choose another place to write to.")


@contextmanager
def locked(folder: Path, file: str = "") -> Iterator[None]:
    """Prevents other processes from writing into the same workspace while the block runs.

    The operating system releases the lock when the process ends in any way. The same process may enter twice, so that a
    chain of stages holds the lock from its first stage to its last.

    Args:
        folder: the workspace.
        file: a file in the workspace; with it, the lock covers this file only.

    Raises:
        HardnetSfmError: another process holds the lock, or the folder cannot be written to.
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
        raise file_error(lock.lock_file, error) from error
    try:
        yield
    finally:
        lock.release()


def digest(*parts: object) -> str:
    """Returns a short fingerprint (32 hex digits of a sha256) of anything that JSON can hold."""
    return hashlib.sha256(_as_json(parts).encode()).hexdigest()[:32]


def digest_after(*head: object) -> Callable[..., str]:
    """Returns a function that gives `digest(*head, *texts)` for texts. It hashes the head only once."""
    hashed = hashlib.sha256(_as_json(head)[:-1].encode())

    def finish(*texts: str) -> str:
        copy = hashed.copy()
        copy.update(f"{''.join(f',{encode_basestring_ascii(text)}' for text in texts)}]".encode())
        return copy.hexdigest()[:32]

    return finish


def _as_json(parts: object) -> str:
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a path next to `target` to write to, which replaces the target if the block succeeds.

    If the block fails, the new file is removed and the target stays.
    """
    beside = target.with_name(f".{target.name}.tmp")
    beside.unlink(missing_ok=True)
    try:
        yield beside
        beside.replace(target)
    except (OSError, RuntimeError) as error:  # h5py raises RuntimeError if the disk is full
        raise write_error(target, error) from error
    finally:
        beside.unlink(missing_ok=True)


def replace_folder(fresh: Path, target: Path) -> None:
    """Replaces a folder by another one next to it. `restore_folder` undoes the first half if the run is killed."""
    old = _set_aside(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Puts a folder back that `replace_folder` had set aside when the run was killed."""
    if _set_aside(target).exists() and not target.exists():
        _set_aside(target).rename(target)


def _set_aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, complete or not at all."""
    with replacing(path) as beside:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        # A path may have bytes that are no text. As codes of JSON they are read back as they were.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


_MOVE_AWAY = "Move it away and run the command that made it again."


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
        raise file_error(path, error, "a JSON file", _MOVE_AWAY) from error
    if not isinstance(content, dict):
        raise HardnetSfmError(f"{path}: not a JSON object", _MOVE_AWAY)
    return content
