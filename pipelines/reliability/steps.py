"""The commands that the campaigns run, on a few photos of one place, and hashes of what they make.

A state is a folder with everything that the commands so far have made: `photos/`, the workspace `out/`, exports,
patches and weights. The commands run in that folder with relative paths. States are copied, so that each case starts
from the same files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from hardnet_sfm.files.ledger import EXPORT, NAME
from hardnet_sfm.files.weight_files import find_weights, read_weights
from hardnet_sfm.scene import render

sys.path.insert(0, str(Path(__file__).parents[1]))
from hash_results import arrays_in, hash_array, hash_arrays, hash_text

_EXTRACT = "--descriptor rootsift --max-keypoints 400 --orientation upright"
_LEARN = "--steps 2 --batch-size 16 --seed 1"
_LATE = "late"
# They note how long each stage took and what was written.
_LEDGERS = (NAME, EXPORT)


@dataclass(frozen=True)
class Step:
    """One command of the chain.

    Attributes:
        name: name of the step; its first word is the verb.
        command: verb and arguments.
        arrives: whether the late photo is added to `photos/` before it.
    """

    name: str
    command: str
    arrives: bool = False

    @property
    def verb(self) -> str:
        return self.name.split()[0]


CHAIN = (
    Step("extract", f"extract photos --workspace out {_EXTRACT} --workers 1"),
    Step("pair", "pair --workspace out --workers 1"),
    Step("match", "match --workspace out --workers 1"),
    Step("map", "map --workspace out --workers 1"),
    Step("report", "report out --workers 1"),
    Step("export", "export out --to exported --forms binary text ply pairs database"),
    Step("vocabulary", f"vocabulary photos --workspace out {_EXTRACT} --words 64 --workers 1"),
    Step("index", f"index photos --workspace out {_EXTRACT} --checkpoint 2 --workers 1"),
    Step("retrieve", "retrieve --query photos/photo0.jpg --workspace out --report answers.html --workers 1"),
    Step("mine", "mine out --images photos -o patches.h5 --workers 1"),
    Step("warp", "warp photos -o warps.h5 --views 2 --max-keypoints 200 --points 60 --workers 1"),
    Step("train", f"train patches.h5 warps.h5 -o weights.safetensors {_LEARN} --workers 1"),
    Step("report of training", "report weights.safetensors --workers 1"),
    Step("weights", "weights convert checkpoint.pth -o converted.safetensors"),
    Step("evaluate", "evaluate w1bs w1bs --json scores.json --csv scores.csv --workers 1"),
    Step("reconstruct", f"reconstruct photos --workspace second {_EXTRACT} --workers 1"),
    Step("extract again", f"extract photos --workspace out {_EXTRACT} --workers 1", arrives=True),
    Step("pair again", "pair --workspace out --pairing sequential --window 3 --workers 1"),
    Step("match again", "match --workspace out --workers 1 --max-ratio 0.9"),
    Step("map again", "map --workspace out --workers 1 --camera-mode single"),
    Step("index again", f"index photos --workspace out {_EXTRACT} --checkpoint 2 --workers 1"),
    Step("mine again", "mine out --images photos -o patches.h5 --max-error 2 --workers 1"),
    Step("export again", "export out --to exported --forms binary text ply pairs database"),
    Step("reconstruct again", f"reconstruct photos --workspace second {_EXTRACT} --workers 1"),
)


def start_state(folder: Path, photos: Path | None = None) -> None:
    """Fills a folder with photos, of which one waits in `late/`, and with a small data set.

    Args:
        folder: folder to make.
        photos: folder with six or more photos of one place; by default they are rendered.
    """
    (folder / "photos").mkdir(parents=True)
    (folder / _LATE).mkdir()
    if photos is None:
        photos = folder.with_name("rendered")
        if not photos.is_dir():
            render(photos, photos=6, size=(480, 360))
    for number, path in enumerate(sorted(photos.glob("*.jpg"))[:6]):
        shutil.copy2(path, folder / ("photos" if number < 5 else _LATE) / f"photo{number}.jpg")
    _write_patch_columns(folder / "w1bs")
    tensors = read_weights(find_weights("hardnet-sfm")).tensors
    torch.save({"state_dict": tensors}, folder / "checkpoint.pth")


def _write_patch_columns(folder: Path) -> None:
    """Writes a data set in the layout of W1BS: 6 patches and noisy copies of them."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (6 * 8, 8), np.uint8).repeat(8, 0).repeat(8, 1)
    noisy = np.clip(patches + rng.normal(0, 20, patches.shape), 0, 255).astype(np.uint8)
    for side, column in (("1", patches), ("2", noisy)):
        (folder / "A" / side).mkdir(parents=True)
        cv2.imwrite(str(folder / "A" / side / "place.bmp"), column)


def prepare(step: Step, state: Path) -> None:
    """Adds the late photo to a state if the step wants it."""
    if step.arrives:
        for path in (state / _LATE).glob("*.jpg"):
            path.rename(state / "photos" / path.name)


def copy_state(source: Path, target: Path) -> None:
    """Replaces a folder by a copy of a state."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def results(state: Path) -> dict[str, str]:
    """Hashes of all results in a state by path. Hidden files, logs and curves of training are not results.

    Weights, models and databases count by their content, and each array of an HDF5 file counts by itself. A file that
    cannot be read counts as `unreadable`.
    """
    # Some results contain the path of the case that made them. A state of `states/` is a copy of such a case.
    places = [bytes(place) for place in (state, state.parent / "case", state.parent.parent / "case")]
    found = {path.relative_to(state).as_posix(): _hash(path, places) for path in _files(state)}
    return {f"{name}{part}": value for name, parts in found.items() for part, value in parts}


def left_behind(state: Path) -> set[str]:
    """Hidden files and folders of a state that a finished command should have cleared away.

    Locks and caches do not count, nor do temporary files: the next change of the result replaces its temporary file.
    """
    ours = (".lock", ".tmp", ".json")
    paths = (path for path in state.rglob(".*") if not (path.is_file() and path.suffix in ours))
    return {path.relative_to(state).as_posix() for path in paths}


def _files(state: Path) -> Iterator[Path]:
    for path in sorted(state.rglob("*")):
        parts = path.relative_to(state).parts
        hidden = any(part.startswith(".") or part == "logs" or part.endswith(".training") for part in parts)
        if path.is_file() and not hidden and parts[0] not in ("w1bs", _LATE) and path.name not in _LEDGERS:
            yield path


def _hash(path: Path, places: list[bytes]) -> list[tuple[str, str]]:
    """Hashes of the parts of a file: of the arrays of an HDF5 file, of the whole of any other.

    In pages and JSON, the paths of places do not count.
    """
    try:
        if path.suffix == ".h5":
            return [(f":{name}", hash_array(name, array)) for name, array in arrays_in(path).items()]
        if path.suffix == ".txt":
            return [("", hash_text(path))]
        if path.suffix == ".db":
            return [("", _hash_rows(path))]
        if path.suffix in (".json", ".html"):
            content = path.read_bytes()
            if path.name == "summary.json":  # without a fingerprint it is as good, but the model is made again
                content = json.dumps({**json.loads(content), "fingerprint": ""}, indent=2).encode()
            for place in places:
                content = content.replace(place, b"STATE")
            return [("", hashlib.sha256(content).hexdigest()[:16])]
        return [("", hash_arrays(path))]
    except Exception as error:
        return [("", f"unreadable: {error}")]


def _hash_rows(path: Path) -> str:
    """Of all rows of a SQLite database; their order does not count. SQLite changes what it opens, so it gets a copy."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            part = path.with_name(path.name + suffix)
            if part.is_file():
                shutil.copyfile(part, Path(folder) / part.name)
        with closing(sqlite3.connect(Path(folder) / path.name)) as database:
            tables = [str(name) for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")]
            rows = sorted(f"{name} {row}" for name in tables for row in database.execute(f'SELECT * FROM "{name}"'))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
