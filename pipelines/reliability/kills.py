"""Kills every verb that writes at random moments, runs it again, and compares with an undisturbed run.

    python pipelines/reliability/kills.py --workspace DIR --kills 300

A case starts from the files before a step of the chain (steps.py), kills the step's command one to three times and then
lets it end. A kill comes at a uniformly random time, before a random file operation, or up to 20 ms after one. After
each kill, every result must be the one before the step or the one after it, and `info` must work. At the end, all
results must equal those of the undisturbed run, and nothing may be left behind except temporary files of results. A
line is printed for each fault; `--only CASE` runs that case again and shows what the command printed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import forked
import numpy as np
import tyro
from cases import Case, report_cases
from steps import CHAIN, copy_state, results
from undisturbed import CASE, Stage, run_undisturbed

from hardnet_sfm.errors import check_least

_KILLED = (-signal.SIGKILL, -signal.SIGALRM)
_LONGEST_DELAY = 0.02  # seconds after a file operation


@dataclass(frozen=True)
class Options:
    """Kills of every verb that writes, at random moments."""

    workspace: Path
    """Folder for the states and cases. Its content is replaced."""
    kills: int = 300
    """Number of kills."""
    photos: Path | None = None
    """Folder with six or more photos of one place. Default: render them."""
    steps: int = len(CHAIN)
    """Number of steps of the chain to kill, from the first."""
    seed: int = 0
    """Seed of all moments."""
    minutes: float | None = None
    """Begin no other case after this time."""
    only: int | None = None
    """Run only the case with this number, and show what its commands print."""


def kill_once(stage: Stage, case: Path, rng: np.random.Generator) -> tuple[str, forked.Outcome]:
    """Runs the command of a stage and kills it at a random moment, which is described."""
    kind = rng.choice(["time", "operation", "after operation"])
    operations = stage.outcome.operations
    if kind == "time" or not operations:
        seconds = float(rng.uniform(0, stage.outcome.seconds))
        return f"after {seconds:.3f} s", forked.run(stage.step.command, case, kill_after=seconds)
    number = int(rng.integers(1, operations + 1))
    if kind == "operation":
        watch = forked.Watch(lambda _: os.kill(os.getpid(), signal.SIGKILL), number)
        return f"before file operation {number}", forked.run(stage.step.command, case, watch=watch)
    delay = float(rng.uniform(1e-4, _LONGEST_DELAY))

    # SIGALRM ends a process at once, like SIGKILL, even in the middle of a library's function.
    def set_alarm(_: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, delay)

    watch = forked.Watch(set_alarm, number)
    return f"{delay * 1000:.1f} ms after file operation {number}", forked.run(stage.step.command, case, watch=watch)


def run_case(stages: list[Stage], number: int, seed: int, case: Path, *, show: bool = False) -> Case:
    """Runs one case: some kills of the command of one stage, and then the whole command. Kills are counted if they came
    before the command ended.
    """
    rng = np.random.default_rng([seed, number])
    stage = stages[number % len(stages)]
    copy_state(stage.before, case)
    kills, faults, moments = 0, [], []
    for _ in range(int(rng.integers(1, 4))):
        moment, outcome = kill_once(stage, case, rng)
        if show:
            print(f"$ {stage.step.command}  # killed {moment}: status {outcome.status}\n{outcome.text}")
        if outcome.status not in _KILLED:
            faults += [f"{moment}: {outcome.fault}"] if outcome.fault else []
            break
        kills += 1
        moments.append(moment)
        faults += _check_info(case, moment)  # opening a store completes a change that the kill interrupted
        faults += [f"{moment}: {loss}" for loss in stage.describe_losses(results(case))]
    outcome = stage.run_to_end(case)
    if show:
        print(f"$ {stage.step.command}  # to the end: status {outcome.status}\n{outcome.text}")
    told = f"killed {', '.join(moments) or 'never'}, then run to the end"
    if outcome.status or outcome.fault:
        faults.append(f"{told}: exit status {outcome.status}: {outcome.fault or outcome.last_line}")
    else:
        faults += [f"{told}: {difference}" for difference in stage.describe_differences(case)]
    named = [f"{stage.step.name}, {fault}" for fault in faults]
    return Case(number, stage.step.verb, named, {"kills": kills})


def run_cases(stages: list[Stage], options: Options) -> Iterator[Case]:
    """Runs cases until there are enough kills."""
    kills, number = 0, 0
    while kills < options.kills:
        killed = run_case(stages, number, options.seed, options.workspace / CASE)
        kills, number = kills + killed.counts["kills"], number + 1
        yield killed


def _check_info(case: Path, moment: str) -> list[str]:
    """`info` must work on what a killed run left, or explain what is wrong."""
    faults = []
    for workspace in ("out", "second"):
        if (case / workspace / "features.h5").is_file():
            outcome = forked.run(f"info {workspace}", case)
            if outcome.status or outcome.fault:
                faults.append(f"{moment}: info {workspace}: {outcome.fault or outcome.last_line}")
    return faults


def main() -> int:
    options = tyro.cli(Options)
    check_least(options, kills=1, steps=1)
    steps = CHAIN[: options.steps]
    forked.warm_up(training=any(step.verb == "train" for step in steps))
    stages = run_undisturbed(options.workspace, options.photos, steps=steps)
    varying = sorted(set().union(*(stage.varying for stage in stages)))
    print(f"differ between undisturbed runs, so only their presence counts: {', '.join(varying) or 'none'}")
    if options.only is not None:
        only = run_case(stages, options.only, options.seed, options.workspace / CASE, show=True)
        return report_cases([only], options.seed)
    return report_cases(run_cases(stages, options), options.seed, options.minutes)


if __name__ == "__main__":
    sys.exit(main())
