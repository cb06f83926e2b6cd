"""Tells files that this package wrote from those of a user, so that only the former are replaced.

Most files of ours say in their content what they are. pairs.txt and COLMAP models cannot, so workspace.json keeps their
checksums. Workspaces of versions without a workspace.json are recognised by their content.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from hardnet_sfm.errors import HardnetSfmError, list_some
from hardnet_sfm.files.hdf5_files import read_attributes
from hardnet_sfm.files.ledger import EXPORT, Checksums, Ledger
from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.workspace import CARD, MANIFEST, locked, read_json

FACTS = "hardnet_sfm"
"""Name of the table that this package adds to COLMAP's database."""
SOFTWARE_TAG, SOFTWARE = 0x0131, "hardnet-sfm"
"""EXIF tag and its value in the pictures that this package makes."""
_HEAD = 4096  # bytes at the beginning of a page that contain its mark
_PAGE = b'<meta name="generator" content="hardnet-sfm">'
_TABLE = "data_set,"  # beginning of a table of `evaluate`
# Outputs in a workspace that show that a folder is one, or belongs to someone else.
_OUTPUTS = (
    *("features.h5", "pairs.txt", "proposed.txt", "matches.h5", "keypoints-views.h5", "again.json"),
    *("database.db", "sparse", "summary.json", "report.html", "vocabulary", "index"),
)
# Outputs of which only `replacing_output` takes note, as their content does not say who made it.
_SUMMED = ("pairs.txt", "sparse")
# Files that a killed run leaves in the folder of a vocabulary or an index before there is a card.
_LEFT = re.compile(
    r"\.?(words-[0-9a-f]{8}\.safetensors|unfinished\.(safetensors|json)|card\.json|manifest\.json)(\.tmp)?"
)
_ELSEWHERE = "Move it elsewhere, or write to another folder."


def check_workspace(root: Path, *names: str) -> None:
    """Raises HardnetSfmError if a folder is not a workspace, or an output in it is not ours.

    A missing folder can become a workspace, and so can a folder without files that are named like our outputs.

    Args:
        root: folder of the workspace.
        names: names of the outputs that the caller is about to replace.
    """
    ledger = Ledger(root)
    if not ledger.exists:
        there = {name: _is_ours(root, name) for name in _OUTPUTS if (root / name).exists()}
        if False in there.values() and True not in there.values():
            raise HardnetSfmError(
                f"{root}: hardnet-sfm did not make the files in this folder: {', '.join(there)}",
                f"They stay as they are. Choose another --workspace, such as {root / 'hardnet-sfm-out'}.",
            )
    check_outputs(ledger, *names)


def check_outputs(ledger: Ledger, *names: str) -> None:
    """Raises HardnetSfmError if the folder of a ledger has an output that is not ours."""
    written = ledger.written()
    for name in names:
        if (ledger.root / name).exists():
            _check(ledger, name, written)


def claim(root: Path, *names: str) -> None:
    """Makes a folder a workspace if it is none, and notes that the caller is about to write some outputs.

    Raises:
        HardnetSfmError: the folder belongs to someone else, or one of the outputs does, see `check_workspace`.
    """
    check_workspace(root, *names)
    with locked(root):
        ledger = Ledger(root)
        if not ledger.exists:
            ledger.start({name: None for name in _OUTPUTS if _is_ours(root, name)})
        for name in names:
            if name not in ledger.written() and name not in _SUMMED:
                ledger.note_written(name, None)


@contextmanager
def replacing_output(ledger: Ledger, name: str) -> Iterator[Path]:
    """Yields the path of an output that the block replaces, and notes the checksums of the new content.

    Raises:
        HardnetSfmError: the output that is there is not ours.
    """
    path = ledger.root / name
    if ledger.exists:
        check_outputs(ledger, name)
    ledger.note_written(name, None)  # if the block is killed, any content counts as ours
    try:
        yield path
    finally:
        ledger.note_written(name, _checksums(path))


def check_output(path: Path | None) -> None:
    """Raises HardnetSfmError if a file is there that this package did not make. None passes."""
    if path is not None and path.is_file() and not _is_our_file(path):
        raise HardnetSfmError(
            f"{path} is there already, and hardnet-sfm did not make it", "Choose another name, or move it elsewhere."
        )


def _checksums(path: Path) -> Checksums:
    """Returns the checksums of a file or of all files in a folder; empty if there is neither."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path).as_posix(): sha256_of(file) for file in files}
    return {"": sha256_of(path)} if path.is_file() else {}


def _check(ledger: Ledger, name: str, written: Mapping[str, Checksums | None]) -> None:
    """Raises HardnetSfmError if an existing output is not ours."""
    path, noted, hint = ledger.root / name, written.get(name), _ELSEWHERE
    if name == "pairs.txt":
        hint = f"To match its pairs, add --pairs-file {path}. Otherwise move it elsewhere."
    if noted is None:
        if name in written and (name not in _BY_CONTENT or ledger.name == EXPORT):
            return
        foreign = name in _SUMMED and ledger.exists
        if foreign or _is_ours(ledger.root, name) is False:
            raise HardnetSfmError(f"{path}: hardnet-sfm did not make it, so it is not replaced", hint)
        return
    changed = [file for file, sha256 in _checksums(path).items() if noted.get(file) != sha256]
    if changed:
        which = list_some([str(path / file) for file in changed])
        raise HardnetSfmError(f"{which}: added or changed after hardnet-sfm wrote {name}, so it is not replaced", hint)


def _is_ours(root: Path, name: str) -> bool | None:
    """Says whether an output is ours, judged by its content or by its neighbours. None means that it cannot tell.

    The stages never replace a file that they cannot open, and say what is wrong with it.
    """
    path = root / name
    if not path.exists():
        return False
    if name in _BY_CONTENT:
        return _BY_CONTENT[name](path)
    if name == "sparse":
        return bool(_json(root / "summary.json").get("models"))
    if name == "summary.json":
        return _is_summary(path)
    if name in ("photos", "truth.json"):  # of `demo`
        return "cam_from_world" in _json(root / "truth.json")
    return _is_store(root / "features.h5") is True  # pairs.txt, proposed.txt, again.json, exports


def _is_store(path: Path) -> bool | None:
    """Says whether a file is one of our HDF5 files."""
    try:
        return str(read_attributes(path).get("format", "")).startswith("hardnet-sfm")
    except (OSError, RuntimeError, KeyError):
        return None


def _is_database(path: Path) -> bool | None:
    """Says whether a COLMAP database is ours."""
    # SQLite makes files next to a database that it opens, unless that is immutable.
    how = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True)) as opened:
            return bool(opened.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (FACTS,)).fetchone())
    except sqlite3.Error:
        return None


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return _PAGE in file.read(_HEAD)


def _json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; empty if there is none."""
    try:
        return read_json(path)
    except HardnetSfmError:
        return {}


def _is_summary(path: Path) -> bool:
    return {"fingerprint", "models"} <= _json(path).keys()


def _has_card(folder: Path) -> bool:
    """Says whether a folder has a card of ours, or only what a killed run left there."""
    if any(_is_card(folder / name) for name in (CARD, MANIFEST, "unfinished.json")):
        return True
    return folder.is_dir() and all(
        inner.name == ".draft" or (_has_card(inner) if inner.is_dir() else bool(_LEFT.fullmatch(inner.name)))
        for inner in folder.iterdir()
    )


def _is_card(path: Path) -> bool:
    return str(_json(path).get("format", "")).startswith("hardnet-sfm")


def _is_our_file(path: Path) -> bool:
    """Says whether a single output outside a workspace is ours."""
    match path.suffix.lower():
        case ".html" | ".htm":
            return _is_page(path)
        case ".json":
            return "data_set" in _json(path)
        case ".csv":
            with path.open(encoding="utf-8", errors="replace") as file:
                return file.read(len(_TABLE)) == _TABLE
        case ".png" | ".jpg" | ".jpeg" | ".webp":
            return _is_picture(path)
    return False


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return bool(picture.getexif().get(SOFTWARE_TAG) == SOFTWARE)
    except (OSError, ValueError, SyntaxError):
        return False


_BY_CONTENT: dict[str, Callable[[Path], bool | None]] = {
    "features.h5": _is_store,
    "matches.h5": _is_store,
    "keypoints-views.h5": _is_store,
    "database.db": _is_database,
    "report.html": _is_page,
    "vocabulary": _has_card,
    "index": _has_card,
}
