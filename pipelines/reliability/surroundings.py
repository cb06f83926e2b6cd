"""Runs every verb that writes while something around it fails, and again when all is well.

    python pipelines/reliability/surroundings.py --workspace DIR --count 200

CHECKS has the failures: a full disk, two runs at once, a clock that jumps back, folders without permission to write, a
workspace that was moved, and a folder of photos that disappears. A command may fail only with a message. It must not
lose what was there. Run again, it must give the same result as an undisturbed run. A line is printed for each fault;
`--checks NAME --only CASE` runs a case again and shows what the commands printed.

A full disk and other users need root. Without it, those cases are left out and counted.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import forked
import numpy as np
import tyro
from cases import Case, report_cases
from steps import CHAIN, copy_state, results
from undisturbed import CASE, Stage, run_undisturbed

from hardnet_sfm.errors import check_least

Check = Literal["full disk", "small disk", "at once", "clock", "read-only", "unreadable", "moved", "photos gone"]
_NOBODY = 65534
_BUSY = "another hardnet-sfm run"
_DAY = 86400.0


@dataclass(frozen=True)
class Options:
    """Failures around every verb that writes."""

    workspace: Path
    """Folder for the states and cases. Its content is replaced."""
    count: int = 50
    """Number of cases of each check."""
    checks: tuple[Check, ...] = get_args(Check)
    """Checks to run."""
    photos: Path | None = None
    """Folder with six or more photos of one place. Default: render them."""
    steps: int = len(CHAIN)
    """Number of steps of the chain to run, from the first."""
    seed: int = 0
    """Seed of all moments."""
    first: int = 0
    """Number of the first case, to continue an earlier run."""
    minutes: float | None = None
    """Begin no other case after this time."""
    only: int | None = None
    """Run only the case with this number, and show what its commands print."""


class Impossible(Exception):
    """The case needs rights that this user does not have."""


class Trial:
    """A case: runs commands in its folder and collects what is wrong.

    Args:
        stage: stage that the case is about; its state has been copied to `case`.
        case: folder of the case.
        rng: random numbers of the case.
        show: print what the commands print.

    Attributes:
        faults: a line for each fault so far.
    """

    def __init__(self, stage: Stage, case: Path, rng: np.random.Generator, show: bool) -> None:
        self.stage, self.case, self.rng = stage, case, rng
        self.faults: list[str] = []
        self._show = show

    def run(self, told: str, folder: Path | None = None, **how: object) -> forked.Outcome:
        """Runs the command of the stage and notes a crash, a traceback or a failure without a message."""
        outcome = forked.run(self.stage.step.command, folder or self.case, **how)  # type: ignore[arg-type]
        self.show(told, outcome)
        if outcome.fault:
            self.faults.append(f"{told}: {outcome.fault}")
        return outcome

    def show(self, told: str, outcome: forked.Outcome) -> None:
        if self._show:
            print(f"$ {self.stage.step.command}  # {told}: status {outcome.status}\n{outcome.text}")

    def expect_kept(self, told: str, folder: Path | None = None) -> None:
        """Notes results that are lost or damaged."""
        now = results(folder or self.case)
        self.faults += [f"{told}: {loss}" for loss in self.stage.describe_losses(now)]

    def expect_finished(self, told: str) -> None:
        """Runs the command to the end and notes differences from the undisturbed run."""
        outcome = self.stage.run_to_end(self.case)
        self.show(f"{told}, then run again", outcome)
        if outcome.status or outcome.fault:
            self.faults.append(f"{told}, then run again: {outcome.fault or outcome.last_line}")
        else:
            differences = self.stage.describe_differences(self.case)
            self.faults += [f"{told}, then run again: {difference}" for difference in differences]


def full_disk(trial: Trial) -> None:
    """Every write fails from a random file operation on, as on a full disk."""
    number = int(trial.rng.integers(1, trial.stage.outcome.operations + 1))
    told = f"no space from file operation {number} on"
    trial.run(told, watch=forked.Watch(_fail_to_write, number, repeat=True))
    trial.expect_kept(told)
    trial.expect_finished(told)


def _fail_to_write(event: str) -> None:
    if event == "sqlite":
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error
    if event in ("open", "os.mkdir", "hdf5", "os.symlink"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def small_disk(trial: Trial) -> None:
    """The state lies on a file system that has a random share of the room that the command needs."""
    full = trial.case.with_name("full")
    copy_state(trial.case, full)
    needed = max(sum(path.stat().st_size for path in full.rglob("*") if path.is_file()) // 2, 1 << 20)
    room = int(2 ** trial.rng.uniform(12, np.log2(needed)))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_bytes_in(full) + (1 << 20)}", "none", str(trial.case)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        raise Impossible
    try:
        shutil.copytree(full, trial.case, dirs_exist_ok=True, symlinks=True)
        taken = os.statvfs(trial.case)
        size = (taken.f_blocks - taken.f_bfree) * taken.f_frsize + room
        _set_size(trial.case, size)
        told = f"{room} bytes free on the disk"
        trial.run(told)
        trial.expect_kept(told)
        _set_size(trial.case, size + (200 << 20))
        trial.expect_finished(told)
    finally:
        subprocess.run(["umount", str(trial.case)], check=True)


def _set_size(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True, capture_output=True)


def _bytes_in(folder: Path) -> int:
    """Disk space of a folder on a file system with blocks of 4 KiB."""
    return sum((path.stat().st_size // 4096 + 2) * 4096 for path in folder.rglob("*"))


def clock(trial: Trial) -> None:
    """All files are from tomorrow, and the clock jumps back while the command runs."""
    later = time.time() + _DAY
    for path in trial.case.rglob("*"):
        os.utime(path, (later, later))
    calls, jump, now = 0, int(trial.rng.integers(1, 20)), time.time

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return now() - _DAY * (calls >= jump)

    def set_clock() -> None:
        time.time = jumping

    told = f"the clock jumps back at call {jump}"
    outcome = trial.run(told, before=set_clock)
    if outcome.status:
        trial.faults.append(f"{told}: {outcome.last_line}")
    trial.expect_finished(told)


def read_only(trial: Trial) -> None:
    """Another user, who may not write, runs the command."""
    _run_as_nobody(trial, "no permission to write", 0o555, 0o444)


def unreadable(trial: Trial) -> None:
    """Another user, who may not read the files, runs the command."""
    _run_as_nobody(trial, "no permission to read", 0o555, 0o000)


def _run_as_nobody(trial: Trial, told: str, folders: int, files: int) -> None:
    if os.geteuid() != 0:
        raise Impossible
    _set_modes(trial.case, folders, files)
    before = results(trial.case)
    trial.run(told, before=_become_nobody)
    _set_modes(trial.case, 0o755, 0o644)
    if results(trial.case) != before:
        trial.faults.append(f"{told}: something was changed")
    trial.expect_finished(told)


def _become_nobody() -> None:
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)


def _set_modes(folder: Path, folders: int, files: int) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(folders if path.is_dir() else files)


def moved(trial: Trial) -> None:
    """The workspaces and photos are moved elsewhere and the command runs there."""
    folder = trial.case.with_name("elsewhere")
    copy_state(trial.case, folder)
    hidden = trial.case.with_name("hidden")
    trial.case.rename(hidden)
    try:
        outcome = trial.run("moved", folder)
        if outcome.status and "--images" not in outcome.text:
            trial.faults.append(f"moved: {outcome.last_line}")
        if not outcome.status:
            trial.faults += [f"moved: {difference}" for difference in trial.stage.describe_differences(folder)]
        trial.expect_kept("moved", folder)
    finally:
        hidden.rename(trial.case)


def photos_gone(trial: Trial) -> None:
    """The folder of photos disappears before a random file operation and comes back after the run."""
    photos, away = trial.case / "photos", trial.case / "late" / "away"
    number = int(trial.rng.integers(1, max(trial.stage.outcome.operations, 1) + 1))
    told = f"the photos disappear at file operation {number}"
    trial.run(told, watch=forked.Watch(lambda _: photos.rename(away), number))
    if away.is_dir():
        away.rename(photos)
    trial.expect_kept(told)
    trial.expect_finished(told)


def at_once(first: Trial, second: Trial) -> None:
    """Two commands start at nearly the same time in the same state, and then run one after the other.

    The reference is the state after both ran twice, one after the other. The second may change what the first reads.
    """
    pair = (first, second)
    told = f"together with {second.stage.step.name}"
    kept = results(first.case)
    for _ in range(2):
        expected = [forked.run(trial.stage.step.command, trial.case).status for trial in pair]
    reference = results(first.case)
    copy_state(_LATEST_OF[0].before, first.case)
    outputs = [first.case.with_name(f"output{number}") for number in (0, 1)]
    started = []
    for trial, output in zip(pair, outputs, strict=True):
        started.append(forked.start(trial.stage.step.command, trial.case, output))
        time.sleep(float(trial.rng.uniform(0, trial.stage.outcome.seconds / 2)))
    for trial, pid, output, status in zip(pair, started, outputs, expected, strict=True):
        outcome = forked.end(pid, output, 120)
        trial.show(told, outcome)
        if outcome.fault:
            first.faults.append(f"{told}: {trial.stage.step.name}: {outcome.fault}")
        elif outcome.status and not status and _BUSY not in outcome.text:
            first.faults.append(f"{told}: {trial.stage.step.name}: {outcome.last_line}")
    now = results(first.case)
    first.faults += [f"{told}: {name} is lost" for name in kept if name not in now and name in reference]
    first.faults += [f"{told}: {name} is {value}" for name, value in now.items() if value.startswith("unreadable")]
    again = [trial.run(f"{told}, then one after the other").status for trial in pair]
    if again != expected:
        first.faults.append(f"{told}, then one after the other: exit statuses {again}, expected {expected}")
    now = results(first.case)
    varying = first.stage.varying | second.stage.varying
    differ = sorted(name for name in now.keys() | reference.keys() if now.get(name) != reference.get(name))
    first.faults += [f"{told}, then one after the other: {name} differs" for name in differ if name not in varying]
    first.faults += second.faults


# The state in which pairs of commands run: everything is made, and a photo has arrived.
_LATEST_OF: list[Stage] = []

CHECKS: dict[Check, Callable[[Trial], None]] = {
    "full disk": full_disk,
    "small disk": small_disk,
    "clock": clock,
    "read-only": read_only,
    "unreadable": unreadable,
    "moved": moved,
    "photos gone": photos_gone,
}


def run_case(check: Check, stages: list[Stage], number: int, options: Options) -> Case:
    """Runs one case of a check.

    Raises:
        Impossible: the case needs rights that this user does not have.
    """
    case, show = options.workspace / CASE, options.only is not None
    rng = np.random.default_rng([options.seed, number])
    if check == "at once":
        latest = {stage.step.verb: stage for stage in stages}
        verbs = sorted(latest)
        pairs = [(a, b) for a in verbs for b in verbs]
        chosen = pairs[int(np.random.default_rng(options.seed).permutation(len(pairs))[number % len(pairs)])]
        _LATEST_OF[:] = [next((stage for stage in stages if stage.step.arrives), stages[-1])]
        copy_state(_LATEST_OF[0].before, case)
        first, second = (Trial(latest[verb], case, rng, show) for verb in chosen)
        at_once(first, second)
        name, faults = first.stage.step.name, first.faults
    else:
        stage = stages[number % len(stages)]
        copy_state(stage.before, case)
        trial = Trial(stage, case, rng, show)
        CHECKS[check](trial)
        name, faults = stage.step.name, trial.faults
    return Case(number, check, [f"{name}, {fault}" for fault in faults])


def run_cases(stages: list[Stage], options: Options) -> Iterator[Case]:
    """Runs all cases of all checks. It counts those that it has no right to run."""
    numbers = range(options.first, options.first + options.count) if options.only is None else [options.only]
    for check in options.checks:
        for number in numbers:
            try:
                yield run_case(check, stages, number, options)
            except Impossible:
                yield Case(number, check, [], {"left out because they need root": 1})


def main() -> int:
    options = tyro.cli(Options)
    check_least(options, count=1, steps=1)
    steps = CHAIN[: options.steps]
    forked.warm_up(training=any(step.verb == "train" for step in steps))
    stages = run_undisturbed(options.workspace, options.photos, steps=steps)
    return report_cases(run_cases(stages, options), options.seed, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
