"""Damages inputs of every kind and runs a command that reads them. Each gives a clear error or a result.

    python pipelines/reliability/mutations.py --workspace DIR --count 20000

A case damages one file of one kind (KINDS) and runs one of the commands that read it, in a forked child. A fault is a
crash, a traceback, a run over --limit seconds of the processor, memory above --memory, an exit status other than 0 to
2, an error that does not name the file, numbers that are not finite in a file that the command wrote, and hidden code
that was run. A line is printed for each fault; `--only CASE` runs that case again and shows what the command printed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import forked
import h5py
import numpy as np
import tyro
from cases import Case, report_cases
from inputs import add_exif, write_inputs
from mutators import mutators_for, was_run
from safetensors.numpy import load_file
from steps import CHAIN, start_state

from hardnet_sfm.errors import check_least

_EXTRACT = "--descriptor rootsift --max-keypoints 400 --orientation upright --workers 1"
_QUICK = "--descriptor rootsift --max-keypoints 60 --orientation upright --workers 1"
_TABLE = "--descriptor rootsift --workers 1"
_LANDMARKS = (
    f"{_TABLE} --max-keypoints 60 --words 16 --workspace landmarks --vocabulary formats/png --method bow hqe+ma"
)
_LEARN = "--steps 1 --batch-size 16 --workers 1"


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        files: patterns of its files in the state.
        commands: commands that read them. `{file}` is the damaged file and `{folder}` its folder.
        head: damage only so many bytes at the beginning of a file; 0: all.
    """

    files: tuple[str, ...]
    commands: tuple[str, ...]
    head: int = 0


KINDS = {
    "photo": Kind(
        ("formats/*/a.*",),
        (
            f"extract {{folder}} --workspace fresh {_QUICK}",
            "warp {folder} -o fresh.h5 --views 1 --max-keypoints 60 --points 20 --workers 1",
            "retrieve --query {file} --workspace out --workers 1",
        ),
    ),
    "EXIF": Kind(
        ("photos/photo1.jpg",),
        ("map --workspace out --camera-mode per-image --workers 1", f"extract photos --workspace out {_EXTRACT}"),
        head=220,
    ),
    "features": Kind(
        ("out/features.h5",),
        (
            "match --workspace out --max-ratio 0.7 --workers 1",
            "map --workspace out --camera-mode per-image --workers 1",
            f"extract photos --workspace out {_EXTRACT}",
            "mine out --images photos -o fresh.h5 --workers 1",
            "info out",
        ),
    ),
    "matches": Kind(
        ("out/matches.h5",),
        (
            "match --workspace out --workers 1",
            "map --workspace out --camera-mode per-image --workers 1",
            "info out",
            "report out --workers 1",
        ),
    ),
    "patches": Kind(
        ("patches.h5", "warps.h5"),
        (f"train {{file}} -o fresh.safetensors {_LEARN}", "report weights.safetensors --patches {file} --workers 1"),
    ),
    "weights": Kind(
        ("weights.safetensors",),
        (
            "weights show {file}",
            f"extract formats/png --workspace fresh --weights {{file}} {_QUICK.replace('rootsift', 'hardnet')}",
            "report {file} --workers 1",
            f"train warps.h5 -o fresh.safetensors --init {{file}} {_LEARN}",
        ),
    ),
    "checkpoint": Kind(("checkpoint.pth",), ("weights convert {file} -o fresh.safetensors",)),
    "index": Kind(
        ("out/index/*/*.npy", "out/index/*.json", "out/index/*/*.json"),
        (
            "retrieve --query photos/photo0.jpg --workspace out --workers 1",
            "retrieve --query photos/photo0.jpg --workspace out --method bow --workers 1",
            f"index photos --workspace out {_EXTRACT}",
            "info out",
        ),
    ),
    "vocabulary": Kind(
        ("out/vocabulary/*", "out/index/vocabulary*/*"),
        (
            "retrieve --query photos/photo0.jpg --workspace out --workers 1",
            f"index photos --workspace out {_EXTRACT}",
            f"vocabulary photos --workspace out {_EXTRACT} --words 64",
            f"index photos --workspace fresh --vocabulary {{folder}} {_EXTRACT}",
        ),
    ),
    "model": Kind(
        ("out/sparse/0/*.bin",),
        (
            "export out --to fresh --forms binary text ply pairs",
            "report out --workers 1",
            "mine out --images photos -o fresh.h5 --workers 1",
            "map --workspace out --workers 1",
            "info out",
        ),
    ),
    "model of others": Kind(
        ("exported/sparse/0/*.bin", "exported/text/0/*.txt"),
        ("mine {folder} --images photos -o fresh.h5 --keypoints exported/database.db --workers 1",),
    ),
    "database": Kind(
        ("out/database.db", "exported/database.db"),
        (
            "map --workspace out --workers 1",
            "export out --to fresh --forms database pairs",
            "mine exported/sparse/0 --images photos -o fresh.h5 --keypoints {file} --workers 1",
            "report out --workers 1",
            "info out",
        ),
    ),
    "pairs": Kind(
        ("out/pairs.txt",),
        (
            "match --workspace out --workers 1",
            "pair --workspace out --pairing file --pairs-file {file} --workers 1",
            "info out",
        ),
    ),
    "notes": Kind(
        ("out/*.json", "second/*.json"),
        (
            "info {folder}",
            "report {folder} --workers 1",
            "export {folder} --to fresh",
            f"reconstruct photos --workspace {{folder}} {_EXTRACT}",
        ),
    ),
    "scores": Kind(("scores.json",), ("report {file} --workers 1",)),
    "unfinished": Kind(("killed/.*",), (f"extract photos --workspace killed {_EXTRACT}",)),
    "pickle": Kind(("oxford/*.pkl",), (f"evaluate roxford5k oxford {_LANDMARKS}",)),
    "landmarks": Kind(("oxford/gt/*.txt",), (f"evaluate oxford5k oxford {_LANDMARKS}",)),
    "Brown": Kind(
        ("brown/liberty/*",), (f"evaluate brown brown {_TABLE}", f"train brown/liberty -o fresh.safetensors {_LEARN}")
    ),
    "HPatches": Kind(
        ("hpatches/*/*",),
        (f"evaluate hpatches hpatches --split b {_TABLE}", f"train hpatches -o fresh.safetensors {_LEARN}"),
    ),
    "W1BS": Kind(("w1bs/A/*/*",), (f"evaluate w1bs w1bs {_TABLE}",)),
    "sequences": Kind(("sequences/*/*",), (f"evaluate homography sequences {_TABLE}",)),
    "wide pairs": Kind(("evd/*/*", "wxbs/*/*/*"), ("evaluate pairs {top} --descriptor rootsift --workers 1",)),
}


@dataclass(frozen=True)
class Options:
    """Damaged inputs of every kind."""

    workspace: Path
    """Folder for the states and cases. Its content is replaced."""
    count: int = 20000
    """Number of damaged inputs."""
    photos: Path | None = None
    """Folder with six or more photos of one place. Default: render them."""
    kinds: tuple[str, ...] = ()
    """Damage only these kinds of inputs. Default: all."""
    steps: int = len(CHAIN)
    """Number of steps of the chain whose results are damaged, from the first. Fewer are enough for some kinds."""
    seed: int = 0
    """Seed of all damage."""
    first: int = 0
    """Number of the first case, to continue an earlier run."""
    limit: float = 30.0
    """Most seconds of the processor that a command may take."""
    memory: float = 3.0
    """Most memory that a command may use, GB."""
    minutes: float | None = None
    """Begin no other case after this time."""
    only: int | None = None
    """Run only the case with this number, and show what its command prints."""


def make_state(folder: Path, photos: Path | None, steps: int) -> None:
    """Makes all inputs: everything that the chain of commands makes, an unfinished run, and data sets."""
    shutil.rmtree(folder, ignore_errors=True)
    start_state(folder, photos)
    add_exif(folder / "photos" / "photo1.jpg")
    write_inputs(folder, folder / "photos")
    for step in CHAIN[:steps]:
        if step.arrives:
            break
        outcome = forked.run(step.command, folder)
        if outcome.status:
            raise RuntimeError(f"`{step.command}` failed: {outcome.text}")
    command = f"extract photos --workspace killed {_EXTRACT}"
    watch = forked.Watch()
    total = forked.run(command, folder, watch=watch).operations
    shutil.rmtree(folder / "killed")
    forked.run(command, folder, watch=forked.Watch(_end, total * 2 // 3))
    for path in (folder / "killed").glob("*.lock"):
        path.unlink()


def list_broken(state: Path, case: Path, kinds: list[str], options: Options) -> list[str]:
    """Runs each command on sound inputs; a line for each that fails, because its cases would show nothing."""
    found = []
    for kind in kinds:
        pattern, commands = KINDS[kind].files[0], KINDS[kind].commands
        name = next(path for path in sorted(state.glob(pattern)) if path.is_file()).relative_to(state).as_posix()
        for command in commands:
            line = command.format(file=name, folder=str(Path(name).parent), top=name.split("/")[0])
            copy_needed(state, case, line, name)
            outcome = forked.run(line, case, limit=options.limit, memory=int(options.memory * 1e9))
            if outcome.status:
                found.append(f"{kind}: `{line}` fails on sound inputs: {outcome.last_line}")
    return found


def _end(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def copy_needed(state: Path, case: Path, command: str, damaged: str) -> None:
    """Replaces a folder by a copy of what a command names in the state, and of the file to damage."""
    shutil.rmtree(case, ignore_errors=True)
    case.mkdir()
    for top in {word.split("/")[0] for word in (*command.split(), damaged)}:
        if (state / top).is_dir():
            shutil.copytree(state / top, case / top)
        elif (state / top).is_file():
            shutil.copy2(state / top, case / top)


def damage(path: Path, head: int, rng: np.random.Generator) -> str:
    """Damages a file, or the first `head` bytes of it, and describes the damage."""
    ways = mutators_for(path)
    way = ways[int(rng.integers(len(ways)))]
    if not head:
        return way(path, rng)
    data = path.read_bytes()
    path.write_bytes(data[:head])
    told = way(path, rng)
    path.write_bytes(path.read_bytes() + data[head:])
    return told


def run_case(state: Path, case: Path, kinds: list[str], number: int, options: Options) -> Case:
    """Runs one case: damages one file and runs one command that reads it."""
    rng = np.random.default_rng([options.seed, number])
    kind = kinds[number % len(kinds)]
    patterns, commands = KINDS[kind].files, KINDS[kind].commands
    pattern = patterns[int(rng.integers(len(patterns)))]
    files = sorted(path for path in state.glob(pattern) if path.is_file() and path.stat().st_size)
    name = files[int(rng.integers(len(files)))].relative_to(state).as_posix()
    folder, top = str(Path(name).parent), name.split("/")[0]
    command = commands[int(rng.integers(len(commands)))].format(file=name, folder=folder, top=top)
    copy_needed(state, case, command, name)
    told = f"{name}, {damage(case / name, KINDS[kind].head, rng)}, `{command}`"
    before = {path: path.stat().st_mtime_ns for path in case.rglob("*") if path.is_file()}
    outcome = forked.run(command, case, limit=options.limit, memory=int(options.memory * 1e9))
    if options.only is not None:
        print(f"{told}: status {outcome.status}\n{outcome.text}")
    fault = find_fault(outcome, case, name, before)
    ended = {"errors": 0, "results": 0} | {"errors" if outcome.status else "results": int(not fault)}
    return Case(number, kind, [f"{told}: {fault}"] if fault else [], ended, outcome.peak)


def find_fault(outcome: forked.Outcome, case: Path, name: str, before: dict[Path, int]) -> str:
    """Says what is wrong with a run on a damaged file; empty if nothing is.

    Args:
        outcome: how the command ended.
        case: folder that it ran in.
        name: damaged file.
        before: modification times of the files before the run.
    """
    if was_run(case):
        return "hidden code was run"
    if outcome.fault:
        return outcome.fault
    # An error may name the folder of the file, or what it describes: house_1 of house_1_good.txt.
    named = (Path(name).stem.rpartition("_")[0], *Path(name).parts)
    if outcome.status and not any(part in outcome.text for part in named if part):
        return f"the error does not name the file: {outcome.last_line}"
    if outcome.status:
        return ""
    changed = [made for made in case.rglob("*") if made.is_file() and before.get(made) != made.stat().st_mtime_ns]
    for made in changed:
        if made != case / name and not _all_finite(made):
            return f"numbers in {made.relative_to(case)} are not finite"
    return ""


def _all_finite(path: Path) -> bool:
    """Whether all numbers are finite in a file; true for files other than stores, arrays and weights."""
    arrays: list[np.ndarray] = []

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        # Warped photos have no viewing angles, so `warp` writes NaN.
        if isinstance(item, h5py.Dataset) and name != "angle":
            arrays.append(item[()])

    if path.suffix == ".h5":
        with h5py.File(path) as store:
            store.visititems(add)
    elif path.suffix == ".npy":
        arrays.append(np.load(path))
    elif path.suffix == ".safetensors":
        arrays += load_file(path).values()
    return all(bool(np.isfinite(array).all()) for array in arrays if array.dtype.kind == "f")


def main() -> int:
    options = tyro.cli(Options)
    check_least(options, count=1, first=0)
    kinds = list(options.kinds or KINDS)
    forked.warm_up(training=any(command.startswith("train") for kind in kinds for command in KINDS[kind].commands))
    state, case = options.workspace / "state", options.workspace / "case"
    make_state(state, options.photos, options.steps)
    numbers = range(options.first, options.first + options.count) if options.only is None else [options.only]
    if options.only is None and (broken := list_broken(state, case, kinds, options)):
        print("\n".join(broken))
        return 1
    cases: Iterator[Case] = (run_case(state, case, kinds, number, options) for number in numbers)
    return report_cases(cases, options.seed, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
