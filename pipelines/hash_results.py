"""Hashes everything that the commands make from a few photos, to show whether a change to the code changed a result.

    python pipelines/hash_results.py PHOTOS --workspace DIR > before.txt
    # change the code
    python pipelines/hash_results.py PHOTOS --workspace OTHER > after.txt
    diff before.txt after.txt

PHOTOS is a folder of about eight photos of one place. The hashes cover only numbers: arrays of stores, models, words,
the index, rankings, patches and weights. They do not cover dates, versions and paths. They are comparable only on the
same machine and with the same number of threads. A second run in the same DIR shows that no work is repeated: each
stage says that it is up to date.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
import tyro
from safetensors.numpy import load_file

_TRAINED_STEPS = 20


@dataclass(frozen=True)
class Options:
    """Hashes of everything that the commands make of a few photos."""

    photos: Annotated[Path, tyro.conf.Positional]
    """Folder of a few photos of one place."""
    workspace: Path
    """Folder for what the commands make."""


def run(*args: object) -> str:
    """What one command prints; the words it says of its progress go to the terminal."""
    line = [sys.executable, "-m", "hardnet_sfm", *map(str, args)]
    if args[0] != "export":
        line += ["--workers", "1"]  # models are identical to the last bit only with one worker
    print("$", *line[2:], file=sys.stderr, flush=True)
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    """All arrays in an HDF5, NumPy or safetensors file by name; none for any other file."""
    arrays: dict[str, np.ndarray] = {}
    if path.suffix == ".h5":
        with h5py.File(path) as store:
            store.visititems(
                lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
    elif path.suffix == ".npz":
        arrays = dict(np.load(path))
    elif path.suffix == ".npy":
        arrays = {"": np.load(path)}
    elif path.suffix == ".safetensors":
        arrays = load_file(path)
    return arrays


def hash_arrays(path: Path) -> str:
    """Of all arrays in an HDF5, NumPy or safetensors file by name; of the bytes of any other file."""
    arrays = arrays_in(path)
    if not arrays and path.suffix not in (".h5", ".npz", ".npy", ".safetensors"):
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        _add(total, name, array)
    return total.hexdigest()[:16]


def hash_array(name: str, array: np.ndarray) -> str:
    """Of one array with its name, type and shape."""
    total = hashlib.sha256()
    _add(total, name, array)
    return total.hexdigest()[:16]


def _add(total: hashlib._Hash, name: str, array: np.ndarray) -> None:
    total.update(f"{name} {array.dtype} {array.shape}".encode())
    total.update(np.ascontiguousarray(array).tobytes())


def hash_text(path: Path) -> str:
    """Of the lines that are not comments."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def make_all(photos: Path, folder: Path) -> dict[str, str]:
    """Runs every command that makes something, and hashes what it made."""
    plain, wide, learnt = folder / "plain", folder / "views", folder / "learnt"
    learnt.mkdir(parents=True, exist_ok=True)
    hashes: dict[str, str] = {}

    def keep(path: Path) -> None:
        hashes[path.relative_to(folder).as_posix()] = hash_arrays(path)

    def keep_model(workspace: Path) -> None:
        exported = workspace / "exported"
        run("export", workspace, "--to", exported, "--forms", "text")
        for path in sorted(exported.rglob("*.txt")):
            hashes[path.relative_to(folder).as_posix()] = hash_text(path)

    print(run("extract", photos, "--workspace", plain), file=sys.stderr)
    print(run("pair", "--workspace", plain), file=sys.stderr)
    print(run("match", "--workspace", plain), file=sys.stderr)
    print(run("map", "--workspace", plain), file=sys.stderr)
    keep_model(plain)
    options = ("--max-keypoints", 1000, "--retrieval", 3, "--view-synthesis", "--orientation", "both")
    print(run("reconstruct", photos, "--workspace", wide, *options, "--guided-matching"), file=sys.stderr)
    keep_model(wide)
    print(run("index", photos, "--workspace", plain, "--words", 256), file=sys.stderr)
    queries = sorted(path for path in photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:2]
    for method in ("bow", "he", "hqe+ma", "hqe+ma+sv", "asmk"):
        found = "".join(
            run("retrieve", "--query", query, "--workspace", plain, "--method", method, "--json").split(":", 2)[2]
            for query in queries
        )
        hashes[f"retrieve {method}"] = hashlib.sha256(found.encode()).hexdigest()[:16]
    for name in ("features.h5", "pairs.txt", "matches.h5", "keypoints-views.h5", "again.json", "proposed.txt"):
        for path in (plain / name, wide / name):
            if path.is_file():
                keep(path)
    for part in ("vocabulary", "index"):
        for path in sorted((plain / part).rglob("*")):
            if path.is_file() and path.suffix in (".npy", ".npz", ".h5", ".faiss"):
                keep(path)
    steps = ("--steps", _TRAINED_STEPS, "--batch-size", 64)
    mined, warps, weights = learnt / "patches.h5", learnt / "warps.h5", learnt / "weights.safetensors"
    run("mine", plain, "--images", photos, "-o", mined)
    run("warp", photos, "-o", warps, "--views", 3)
    run("train", mined, warps, "-o", weights, *steps)
    for path in (mined, warps, weights):
        keep(path)
    convex = ("--pairs", 400, "--radii", 4, "--sigmas", 4, "--region-steps", 100, "--projection-steps", 50)
    for network, short in (("tfeat", steps), ("matchnet", steps), ("convexopt", convex)):
        other = learnt / f"{network}.safetensors"
        run("train", mined, "-o", other, "--network", network, *short)
        keep(other)
    return hashes


def main() -> None:
    options = tyro.cli(Options)
    for name, value in make_all(options.photos, options.workspace).items():
        print(f"{value}  {name}")


if __name__ == "__main__":
    main()
