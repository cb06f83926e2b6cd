"""Undisturbed runs of the chain of commands, to compare with: what each step starts from and what it makes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import forked
from steps import CHAIN, Step, copy_state, left_behind, prepare, results, start_state

CASE = "case"


class CampaignError(Exception):
    """The undisturbed run of a command failed, so there is nothing to compare with."""


@dataclass(frozen=True)
class Stage:
    """An undisturbed run of one step.

    Attributes:
        step: the step.
        before: folder with the state that the step starts from. It must not be written to.
        results_before, results_after: hashes of the results before and after it, see `steps.results`.
        varying: results whose hashes differ between two undisturbed runs, because they hold dates or durations.
        left: hidden files that it leaves behind.
        outcome: how it ended.
    """

    step: Step
    before: Path
    results_before: dict[str, str]
    results_after: dict[str, str]
    varying: frozenset[str]
    left: frozenset[str]
    outcome: forked.Outcome

    def describe_losses(self, now: dict[str, str]) -> list[str]:
        """Compares a state in the middle of the step with the states before and after it.

        Args:
            now: results of the interrupted run.

        Returns:
            A line for each result that is lost, unreadable or neither the one before nor the one after. A database may
            be neither, because it can hold the pairs that are finished.
        """
        lost = [f"{name} is lost" for name in self.results_before if name not in now and name in self.results_after]
        for name, value in now.items():
            known = {self.results_before.get(name), self.results_after.get(name)}
            if value.startswith("unreadable"):
                lost.append(f"{name} is {value}")
            elif value not in known and name not in self.varying and known != {None} and not name.endswith(".db"):
                lost.append(f"{name} is neither the old nor the new result")
        return lost

    def run_to_end(self, state: Path) -> forked.Outcome:
        """Runs the command on a state that an interrupted run left. `train` wants to be told to resume."""
        outcome = forked.run(self.step.command, state)
        if outcome.status and "--resume" in outcome.text:
            outcome = forked.run(f"{self.step.command} --resume", state)
        return outcome

    def describe_differences(self, state: Path) -> list[str]:
        """Compares a finished state with the undisturbed one; a line for each difference."""
        now = results(state)
        found = [f"{name} is missing" for name in self.results_after if name not in now]
        found += [f"{name} is not in the undisturbed result" for name in now if name not in self.results_after]
        found += [
            f"{name} differs from the undisturbed result"
            for name, value in self.results_after.items()
            if now.get(name, value) != value and name not in self.varying
        ]
        return found + [f"{name} is left behind" for name in sorted(left_behind(state) - self.left)]


def run_undisturbed(work: Path, photos: Path | None = None, *, steps: tuple[Step, ...] = CHAIN) -> list[Stage]:
    """Runs the chain once for its states, and each step a second time to find what varies between runs.

    Args:
        work: folder for the states and for the cases of a campaign. Its content is replaced.
        photos: folder of photos, see `steps.start_state`.
        steps: steps to run, in this order.

    Raises:
        CampaignError: a command failed.
    """
    shutil.rmtree(work / "states", ignore_errors=True)
    shutil.rmtree(work / CASE, ignore_errors=True)
    case = work / CASE
    start_state(case, photos)
    stages = []
    for number, step in enumerate(steps):
        prepare(step, case)
        before = work / "states" / f"{number:02d}"
        copy_state(case, before)
        seen = []
        for _ in range(2):
            copy_state(before, case)
            outcome = forked.run(step.command, case, watch=forked.Watch())
            if outcome.status or outcome.fault:
                raise CampaignError(f"`{step.command}` failed undisturbed: {outcome.text}")
            seen.append(results(case))
        varying = frozenset(name for name in seen[0].keys() | seen[1].keys() if seen[0].get(name) != seen[1].get(name))
        stages.append(Stage(step, before, results(before), seen[1], varying, frozenset(left_behind(case)), outcome))
    return stages
