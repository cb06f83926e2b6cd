"""HPatches: its task files, and its three measures against loops over ranked lists."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation import hpatches_tasks
from hardnet_sfm.evaluation.datasets.hpatches import COLUMNS, LEVELS, Tasks, column_of, find_sequences, read_tasks
from hardnet_sfm.evaluation.hpatches_tasks import match_sequence, pair_distances, retrieve, verify

COUNTS = {"i_ski": 2, "v_cat": 3, "v_wall": 4}


def area_by_hand(labels: list[bool], positives: int) -> float:
    """Under the straight lines between the points of precision over recall, which begin at recall 0, precision 1."""
    points, found = [(0.0, 1.0)], 0
    for rank, label in enumerate(labels, 1):
        found += label
        points.append((found / positives, found / rank))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


def ranked(entries: list[tuple[float, bool]]) -> list[bool]:
    return [label for _, label in sorted(entries, key=lambda entry: entry[0])]  # keeps the order of equal ones


def distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(sum((float(a) - float(b)) ** 2 for a, b in zip(first, second, strict=True)))


def some_descriptors(points: int, seed: int) -> NDArray[np.float16]:
    """(P, 16, 4) of few distinct values, so that many distances are equal; a point's are alike."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 3, (points, 1, 4))
    return (base + (rng.random((points, 16, 4)) < 0.3)).astype(np.float16)


def some_tasks(seed: int, pairs: int = 60) -> Tasks:
    rng = np.random.default_rng(seed)
    counts = (5, 9, 7)

    def drawn() -> NDArray[np.int64]:
        return np.stack([rng.integers(0, sum(counts), (pairs, 2)), rng.integers(0, 6, (pairs, 2))], 2)

    points = rng.permutation(sum(counts))
    negatives = {"intra": drawn(), "inter": drawn()}
    return Tasks("full", ("i_a", "i_b", "v_c"), counts, drawn(), negatives, points[:8], points[8:])


def test_columns_are_numbered_as_they_are_named() -> None:
    for level in LEVELS:
        for photo in range(6):
            name = f"{level[0]}{photo}" if photo else "ref"
            assert COLUMNS[int(column_of(level, photo))] == name
    np.testing.assert_array_equal(column_of("tough", np.array([0, 1, 5])), [0, 11, 15])


@pytest.mark.parametrize("seed", range(3))
def test_verification_is_that_of_a_loop_over_the_authors_lists(seed: int) -> None:
    tasks, told = some_tasks(seed), []
    descriptors = some_descriptors(sum(tasks.counts), seed)
    scores = verify(lambda level: pair_distances(descriptors, tasks, level, told.append), tasks)
    assert sum(told) == 3 * len(tasks.pairs) == 3 * 3 * 60
    for level in LEVELS:
        for kind in ("intra", "inter"):
            lists = []
            for pairs in (tasks.negatives[kind], tasks.positives):
                ends = [[descriptors[p, int(column_of(level, int(t)))] for p, t in pair] for pair in pairs]
                lists.append([distance(*pair) for pair in ends])
            negatives, positives = lists
            few = positives[:12]  # of 60 a fifth
            labels = ranked([(d, False) for d in negatives] + [(d, True) for d in few])
            nearer = np.mean([[p < n for p in positives] for n in negatives])
            assert scores[level, kind].average_precision == pytest.approx(area_by_hand(labels, len(few)))
            assert scores[level, kind].area == pytest.approx(nearer)


@pytest.mark.parametrize("seed", range(3))
def test_matching_is_that_of_a_loop_over_reference_patches(seed: int) -> None:
    descriptors = some_descriptors(11, seed)
    scores = match_sequence(descriptors)
    for level in LEVELS:
        areas = []
        for photo in range(1, 6):
            others, entries = descriptors[:, int(column_of(level, photo))], []
            for number, reference in enumerate(descriptors[:, 0]):
                distances = [distance(reference, other) for other in others]
                entries.append((min(distances), distances.index(min(distances)) == number))
            areas.append(area_by_hand(ranked(entries), 11))
        assert scores[level] == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("seed", range(3))
def test_retrieval_is_that_of_a_loop_over_the_pool(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of which one cuts the distractors, one has them all and one would have more."""
    monkeypatch.setattr(hpatches_tasks, "POOLS", (7, 12, 1000))
    monkeypatch.setattr(hpatches_tasks, "_QUERIES", 3)
    tasks = some_tasks(seed)
    descriptors = some_descriptors(sum(tasks.counts), seed)
    scores = retrieve(descriptors, tasks)
    of = tasks.sequence_of
    for level in LEVELS:
        for pool in (7, 12, 1000):
            areas = []
            for query in tasks.queries:
                own = [
                    (distance(descriptors[query, 0], descriptors[query, int(column_of(level, k))]), True)
                    for k in range(1, 6)
                ]
                others = [
                    (distance(descriptors[query, 0], descriptors[other, 0]), False)
                    for other in tasks.distractors
                    if of[other] != of[query]
                ]
                areas.append(area_by_hand(ranked((own + others)[:pool]), 5))
            assert scores[level, pool] == pytest.approx(np.mean(areas))


def test_what_tells_all_apart_scores_one() -> None:
    tasks = some_tasks(0)
    same = np.stack([np.arange(21), np.arange(21)], 1)
    photos = np.tile([0, 3], (21, 1))
    positives = np.stack([same, photos], 2)
    negatives = np.stack([np.stack([np.arange(21), (np.arange(21) + 1) % 21], 1), photos], 2)
    tasks = Tasks(
        "full", tasks.sequences, tasks.counts, positives, {"intra": negatives}, tasks.queries, tasks.distractors
    )
    descriptors = np.repeat(np.eye(21, dtype=np.float16)[:, None], 16, 1)
    assert set(verify(lambda level: pair_distances(descriptors, tasks, level), tasks).values()) == {(1.0, 1.0)}
    assert match_sequence(descriptors) == dict.fromkeys(LEVELS, 1.0)
    assert set(retrieve(descriptors, tasks).values()) == {1.0}


def release(folder: Path) -> Path:
    """Sequences of a few patches, and tasks of a split of two of them."""
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (folder / name).mkdir(parents=True)
        for column in COLUMNS:
            Image.fromarray(rng.integers(0, 256, (count * 65, 65), np.uint8)).save(folder / name / f"{column}.png")
    tasks = folder / "tasks"
    tasks.mkdir()
    splits = {"b": {"name": "b", "test": ["v_wall", "i_ski"], "train": ["v_cat"]}, "x": {"test": ["v_gone", "i_ski"]}}
    (tasks / "splits.json").write_text(json.dumps(splits))
    verification = "s1,t1,idx1,s2,t2,idx2\n"
    (tasks / "verif_pos_split-b.csv").write_text(verification + "v_wall,0,3,v_wall,2,3\ni_ski,4,1,i_ski,0,1\n")
    (tasks / "verif_neg_intra_split-b.csv").write_text(verification + "v_wall,1,0,v_wall,2,1\n")
    (tasks / "verif_neg_inter_split-b.csv").write_text(verification + "i_ski,5,0,v_wall,3,2\n")
    (tasks / "retr_queries_split-b.csv").write_text("s,idx\ni_ski,1\n")
    (tasks / "retr_distractors_split-b.csv").write_text("s,idx\nv_wall,0\nv_wall,2\ni_ski,0\n")
    return folder


def test_tasks_number_points_through_the_sequences_of_the_split(tmp_path: Path) -> None:
    folder = release(tmp_path)
    tasks = read_tasks(folder / "tasks", "b", find_sequences(folder))
    assert (tasks.sequences, tasks.counts) == (("v_wall", "i_ski"), (4, 2))
    assert tasks.starts.tolist() == [0, 4]
    assert tasks.sequence_of.tolist() == [0, 0, 0, 0, 1, 1]
    assert tasks.positives.tolist() == [[[3, 0], [3, 2]], [[5, 4], [5, 0]]]
    assert tasks.negatives["intra"].tolist() == [[[0, 1], [1, 2]]]
    assert tasks.negatives["inter"].tolist() == [[[4, 5], [2, 3]]]
    assert tasks.queries.tolist() == [5]
    assert tasks.distractors.tolist() == [0, 2, 4]


def test_splits_may_lie_in_a_folder_as_in_the_authors_repository(tmp_path: Path) -> None:
    folder = release(tmp_path)
    (folder / "tasks/splits").mkdir()
    (folder / "tasks/splits.json").rename(folder / "tasks/splits/splits.json")
    assert read_tasks(folder / "tasks", "b", find_sequences(folder)).sequences == ("v_wall", "i_ski")


def _append(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return change


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)  # type: ignore[return-value]


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no splits": (lambda folder: (folder / "splits.json").unlink(), r"no splits\.json"),
    "broken splits": (_write("splits.json", "{"), "splits.json: not splits"),
    "a list of splits": (_write("splits.json", '["b"]'), "splits.json: not splits"),
    "split without test": (_write("splits.json", '{"b": {"train": []}}'), "splits.json: not splits"),
    "empty split": (_write("splits.json", '{"b": {"test": []}}'), "no sequences to test"),
    "no file": (lambda folder: (folder / "verif_neg_inter_split-b.csv").unlink(), "no such file: .*neg_inter"),
    "unknown sequence": (_append("retr_queries_split-b.csv", "v_cat,0\n"), "v_cat is no sequence of split b"),
    "unknown patch": (_append("retr_queries_split-b.csv", "v_wall,4\n"), "patch 4 of v_wall, which has only 4"),
    "unknown photo": (_append("verif_pos_split-b.csv", "v_wall,6,1,v_wall,0,1\n"), "not from 0 to 5"),
    "truncated": (_append("verif_pos_split-b.csv", "v_wall,1,1,v_wa"), "verif_pos.*line .*: truncated"),
    "words": (_append("retr_distractors_split-b.csv", "v_wall,one\n"), "retr_distractors.*line .*invalid literal"),
    "another header": (_write("retr_queries_split-b.csv", "idx,s\n0,v_wall\n"), "its first line is 'idx,s'"),
    "header alone": (_write("retr_queries_split-b.csv", "s,idx\n"), "retr_queries.*not a task"),
    "other columns": (_write("retr_queries_split-b.csv", "s,idx\nv_wall,0,1\n"), "retr_queries.*not a task"),
}


BAD_LINES = ("unknown sequence", "unknown patch", "unknown photo", "truncated", "words")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("error")
def test_bad_lines_are_left_out_and_named_and_bad_files_are_a_clear_error(damage: str, tmp_path: Path) -> None:
    folder = release(tmp_path)
    change, message = DAMAGES[damage]
    change(folder / "tasks")
    if damage in BAD_LINES:
        whole = read_tasks(release(tmp_path / "whole") / "tasks", "b", find_sequences(folder))
        tasks = read_tasks(folder / "tasks", "b", find_sequences(folder))
        for name in ("pairs", "queries", "distractors"):
            np.testing.assert_array_equal(getattr(tasks, name), getattr(whole, name))
        (error,) = tasks.left_out.values()
        assert re.search(message, error.message)
        return
    with pytest.raises(HardnetSfmError, match=message) as raised:
        read_tasks(folder / "tasks", "b", find_sequences(folder))
    assert raised.value.hint


def test_an_unknown_split_and_one_of_which_sequences_are_missing(tmp_path: Path) -> None:
    folder = release(tmp_path)
    with pytest.raises(UsageError, match=r"no split c") as refused:
        read_tasks(folder / "tasks", "c", find_sequences(folder))
    assert refused.value.hint == "There are: b, x."
    with pytest.raises(HardnetSfmError, match="sequences of split x are missing: v_gone"):
        read_tasks(folder / "tasks", "x", find_sequences(folder))
