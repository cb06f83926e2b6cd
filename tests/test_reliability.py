"""The campaigns of pipelines/reliability in a short form, and that they would notice faults."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from hardnet_sfm.scene import Scene

CAMPAIGNS = Path(__file__).parents[1] / "pipelines" / "reliability"
sys.path.insert(0, str(CAMPAIGNS))  # the scripts of a campaign import each other

import mutators  # noqa: E402
import steps  # noqa: E402
from forked import Outcome  # noqa: E402
from undisturbed import Stage  # noqa: E402

Small = tuple[Path, Scene]


def campaign(script: str, photos: Path, workspace: Path, *args: str) -> str:
    """What a campaign prints that finds no fault."""
    line = [sys.executable, str(CAMPAIGNS / script), "--photos", str(photos), "--workspace", str(workspace), *args]
    run = subprocess.run(line, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_killed_commands_lose_nothing_and_end_as_if_undisturbed(small_scene: Small, tmp_path: Path) -> None:
    printed = campaign("kills.py", small_scene[0], tmp_path, "--steps", "4", "--kills", "6")
    verbs = ("extract", "map", "match", "pair")
    assert [line.split(":")[0] for line in printed.splitlines()[-5:-1]] == list(verbs)
    assert printed.count(", 0 with a fault") == 5 and " kills, 0 with a fault; at most " in printed


def test_damaged_inputs_give_an_error_or_a_result(small_scene: Small, tmp_path: Path) -> None:
    kinds = ("features", "pairs", "pickle")
    printed = campaign("mutations.py", small_scene[0], tmp_path, "--steps", "4", "--count", "15", "--kinds", *kinds)
    assert "all (seed 0, the last one 14): 15 cases, " in printed
    assert all(f"{kind}: 5 cases, " in printed for kind in kinds) and printed.count(", 0 with a fault") == 4


def test_commands_survive_what_fails_around_them(small_scene: Small, tmp_path: Path) -> None:
    checks = ("full disk", "at once", "clock", "read-only", "moved", "photos gone")
    printed = campaign("surroundings.py", small_scene[0], tmp_path, "--steps", "3", "--count", "2", "--checks", *checks)
    assert [line.split(":")[0] for line in printed.splitlines()[:-1]] == sorted(checks)
    assert printed.count(": 2 cases, 0 with a fault") == len(checks)


@pytest.mark.parametrize(
    ("status", "text", "hung", "fault"),
    [
        (0, "done", False, ""),
        (1, "error: x.h5: damaged", False, ""),
        (2, "error: --words must be at least 1", False, ""),
        (1, "nothing", False, "exit status 1 without a message"),
        (3, "error: x", False, "exit status 3: error: x"),
        (-11, "", False, "crashed by SIGSEGV"),
        (-9, "", True, "hung for 30 s"),
        (0, "Traceback (most recent call last):\nValueError: x", False, "traceback: ValueError: x"),
        (1, "error: this is a fault of hardnet-sfm: x", False, "a fault by its own account"),
    ],
)
def test_what_counts_as_a_fault(status: int, text: str, hung: bool, fault: str) -> None:
    found = Outcome(status, text, 30.0, 0, 0, hung).fault
    assert found.startswith(fault) and bool(found) == bool(fault)


@pytest.fixture
def stage(tmp_path: Path) -> tuple[Stage, Path]:
    """A step that changes one result and makes another, and the state after it."""
    state = tmp_path / "case"
    (state / "out").mkdir(parents=True)
    for name, text in {"kept.json": "1", "changed.json": "old"}.items():
        (state / "out" / name).write_text(text)
    before = steps.results(state)
    (state / "out" / "changed.json").write_text("new")
    with h5py.File(state / "out" / "made.h5", "w") as store:
        store.update({"a": np.arange(3), "b": np.arange(4)})
    undisturbed = Outcome(0, "", 1.0, 0, 3, False)
    after, step = steps.results(state), steps.Step("extract", "extract")
    return Stage(step, tmp_path / "unused", before, after, frozenset(), frozenset(), undisturbed), state


def test_results_of_before_and_after_are_no_loss(stage: tuple[Stage, Path]) -> None:
    made, state = stage
    assert made.describe_losses(steps.results(state)) == made.describe_losses(made.results_before) == []
    assert made.describe_differences(state) == []
    with h5py.File(state / "out" / "made.h5", "r+") as store:  # a part of a store is finished work, too
        del store["b"]
    assert made.describe_losses(steps.results(state)) == []
    assert made.describe_differences(state) == ["out/made.h5:b is missing"]


def test_losses_and_differences_are_named(stage: tuple[Stage, Path]) -> None:
    made, state = stage
    (state / "out" / "kept.json").unlink()
    (state / "out" / "changed.json").write_text("half")
    (state / "out" / "made.h5").write_bytes(b"no HDF5")
    (state / "out" / ".made.h5.journal").touch()
    losses = made.describe_losses(steps.results(state))
    assert "out/kept.json is lost" in losses and "out/changed.json is neither the old nor the new result" in losses
    assert any(loss.startswith("out/made.h5 is unreadable") for loss in losses)
    differences = made.describe_differences(state)
    assert {"out/kept.json is missing", "out/changed.json differs from the undisturbed result"} <= set(differences)
    assert "out/.made.h5.journal is left behind" in differences


def test_databases_are_compared_by_rows_and_left_as_they_are(tmp_path: Path) -> None:
    hashes = []
    for name, rows in {"one": (1, 2), "two": (2, 1), "three": (1, 3)}.items():
        path = tmp_path / f"{name}.db"
        opened = sqlite3.connect(path)
        opened.execute("PRAGMA journal_mode=WAL")
        opened.execute("CREATE TABLE t (x)")
        opened.executemany("INSERT INTO t VALUES (?)", [(row,) for row in rows])
        opened.commit()
        hashes.append(steps.results(tmp_path)[path.name])  # while the rows are in the write-ahead log
        opened.close()
    assert hashes[0] == hashes[1] != hashes[2]
    before = {path.name for path in tmp_path.iterdir()}
    steps.results(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("suffix", [".json", ".h5", ".npy", ".txt", ".bin"])
def test_every_damage_is_repeated_by_its_seed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    if suffix == ".h5":
        with h5py.File(path, "w") as store:
            store.attrs.update({"version": 1, "index": '{"a": 1}'})
            store["numbers"] = np.linspace(0, 1, 100)
    elif suffix == ".npy":
        np.save(path, np.arange(100))
    else:
        path.write_text('{"a": [1, 2.5, "x"], "b": null}\n' * (1 if suffix == ".json" else 20))
    sound = path.read_bytes()
    ways = mutators.mutators_for(path)
    names = {way.name for way in ways}
    assert {"truncated", "zeroed", "bits flipped"} < names and ("JSON" in names) == (suffix == ".json")
    changed = 0
    for number, way in enumerate(ways):
        damaged = []
        for _ in range(2):
            path.write_bytes(sound)
            told = way(path, np.random.default_rng(number))
            damaged.append((told, path.read_bytes()))
        assert damaged[0] == damaged[1] or suffix == ".h5"  # HDF5 writes the time into some files
        changed += damaged[0][1] != sound
    assert changed >= len(ways) - 2  # a range may be moved onto itself


@pytest.mark.parametrize("suffix", [".pkl", ".npy", ".pth"])
def test_hidden_code_would_be_noticed(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that trust the file run the code, so a campaign that finds nothing shows that ours do not."""
    path = tmp_path / f"file{suffix}"
    path.touch()
    way = next(way for way in mutators.mutators_for(path) if way.name == "hidden code")
    way(path, np.random.default_rng(0))
    monkeypatch.chdir(tmp_path)
    assert not mutators.was_run(tmp_path)
    if suffix == ".npy":
        np.load(path, allow_pickle=True)
    elif suffix == ".pth":
        with zipfile.ZipFile(path) as archive:
            pickle.loads(archive.read("archive/data.pkl"))
    else:
        pickle.loads(path.read_bytes())
    assert mutators.was_run(tmp_path)
