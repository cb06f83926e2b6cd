"""Reads the layout of HPatches (Balntas, Lenc, Vedaldi, Mikolajczyk, CVPR 2017): patches, tasks and splits.

Each sequence has a folder `i_NAME` (illumination changes) or `v_NAME` (viewpoint changes). It holds sixteen columns of
65x65 patches. `ref.png` has the patches of the reference photo. `e1.png` to `t5.png` have the same patches in five
other photos, cut with easy, hard and tough errors of the frame. The authors' benchmark lists its splits of the
sequences in `splits.json`. For each split it has text files of the patches to verify and to retrieve.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hardnet_sfm.arrays import Grey, Ints
from hardnet_sfm.errors import HardnetSfmError, UsageError, list_some
from hardnet_sfm.evaluation.datasets.columns import read_column
from hardnet_sfm.evaluation.datasets.parts import LeftOut, check_any, read_rows
from hardnet_sfm.files.clutter import find_files
from hardnet_sfm.patch_set import PATCH_SIZE, PatchSet
from hardnet_sfm.patches import resize_patches

Level = Literal["easy", "hard", "tough"]
LEVELS: tuple[Level, ...] = ("easy", "hard", "tough")
PHOTOS = 5
COLUMNS = ("ref", *(f"{level[0]}{photo}" for level in LEVELS for photo in range(1, PHOTOS + 1)))
SIDE = 65
MEASUREMENT_SIZE = 10.0  # the authors cut a region of five times the detected scale to each side
VERIFICATION_HEADER = "s1,t1,idx1,s2,t2,idx2"
RETRIEVAL_HEADER = "s,idx"
_RELEASE = "Give the folder `hpatches-release`."
_TASKS = "The task files are in the folder `tasks` of the authors' repository hpatches-benchmark: give it with --tasks."


def find_column(level: Level, photo: int | Ints) -> Any:
    """Returns the number in `COLUMNS` of a photo, 0 to 5, at a level. Photo 0 is the reference of all levels."""
    return np.where(np.asarray(photo) == 0, 0, PHOTOS * LEVELS.index(level) + photo)


@dataclass(frozen=True)
class PatchSequence:
    """Patches of N points in six photos.

    Attributes:
        path: path of the folder.
        count: number of points, N.
    """

    path: Path
    count: int

    @property
    def name(self) -> str:
        return self.path.name

    def column(self, name: str) -> Grey:
        """Reads the (N, 65, 65) patches of one of `COLUMNS`.

        Raises:
            HardnetSfmError: the file is missing, is damaged or has another size.
        """
        return read_column(self.path / f"{name}.png", SIDE, self.count)


def find_sequences(folder: Path) -> list[PatchSequence]:
    """Finds the sequences of a folder, in the order of their names.

    Raises:
        HardnetSfmError: there are no sequences, or the `ref.png` of one is missing or damaged.
    """
    paths = [path for path in find_files(folder, "[iv]_*") if path.is_dir()]
    if not paths:
        raise HardnetSfmError(f"{folder}: no sequences i_* or v_* in it", _RELEASE)
    return [PatchSequence(path, len(read_column(path / "ref.png", SIDE))) for path in paths]


def read_hpatches(folder: Path) -> PatchSet:
    """Reads all sequences of a folder into memory, 4 KB a patch and so 64 KB a row of a sequence.

    Each row of a sequence is one point. Each column is one photo, named `v_NAME/e1`. Patches are resampled by pixel
    area from 65x65 to 64x64, which keeps their centre and extent. Cutting off a row and a column instead would move the
    centre by half a pixel.

    Raises:
        HardnetSfmError: the folder has no sequences, or a column is missing, is damaged, is not 65 pixels wide or has
            another length than the `ref.png` of its sequence.
    """
    sequences = find_sequences(folder)
    counts = [sequence.count for sequence in sequences]
    points = sum(counts)
    patches = np.empty((points, len(COLUMNS), PATCH_SIZE, PATCH_SIZE), np.uint8)
    start = 0
    for sequence in sequences:
        for number, column in enumerate(COLUMNS):
            patches[start : start + sequence.count, number] = resize_patches(sequence.column(column), PATCH_SIZE)
        start += sequence.count
    images = np.arange(len(sequences) * len(COLUMNS), dtype=np.int32).reshape(-1, len(COLUMNS))
    total = points * len(COLUMNS)
    return PatchSet(
        str(folder),
        "hpatches",
        MEASUREMENT_SIZE,
        tuple(f"{sequence.name}/{column}" for sequence in sequences for column in COLUMNS),
        patches.reshape(total, PATCH_SIZE, PATCH_SIZE),
        point=np.repeat(np.arange(points), len(COLUMNS)),
        image=np.repeat(images, counts, 0).reshape(-1),
        frame=np.full((total, 2, 3), np.nan, np.float32),
        angle=np.full(total, np.nan, np.float32),
        xyz=np.full((points, 3), np.nan, np.float32),
    ).check()


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks of a split. Points are numbered consecutively through its sequences.

    Attributes:
        split: name of the split.
        sequences: names of the sequences in its test part.
        counts: number of points of each sequence.
        positives: (M, 2, 2) pairs of (point, photo) that show the same point. A photo is 0 (reference) to 5.
        negatives: (M, 2, 2) pairs of different points, by kind: `intra` (within one sequence) and `inter`.
        queries: (Q,) points to retrieve by their reference patches.
        distractors: (K,) points whose reference patches are the wrong answers.
        left_out: reasons why lines of the task files are left out.
    """

    split: str
    sequences: tuple[str, ...]
    counts: tuple[int, ...]
    positives: Ints
    negatives: Mapping[str, Ints]
    queries: Ints
    distractors: Ints
    left_out: LeftOut = field(default_factory=dict)

    @property
    def starts(self) -> Ints:
        """(S,) the first point of each sequence."""
        return np.cumsum([0, *self.counts[:-1]])

    @cached_property
    def pairs(self) -> Ints:
        """(M, 2, 2) all pairs to verify: the positives, then the negatives by kind."""
        return np.concatenate([self.positives, *self.negatives.values()])

    @property
    def sequence_of(self) -> Ints:
        """(P,) the number of each point's sequence."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def read_split(folder: Path, split: str) -> tuple[str, ...]:
    """Reads the names of the sequences in the test part of a split.

    Raises:
        HardnetSfmError: splits.json is missing or damaged.
        UsageError: splits.json has no such split.
    """
    paths = (folder / "splits.json", folder / "splits" / "splits.json")
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise HardnetSfmError(f"{folder}: no splits.json", _TASKS)
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        if split not in splits:
            raise UsageError(f"{path}: no split {split}", f"There are: {', '.join(splits)}.")
        names = tuple(splits[split]["test"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HardnetSfmError(f"{path}: not splits of HPatches: {error!r}", "Get the file again.") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise HardnetSfmError(f"{path}: split {split} has no sequences to test", "Get the file again.")
    return names


def read_tasks(folder: Path, split: str, sequences: Iterable[PatchSequence]) -> Tasks:
    """Reads the six files of a split: splits.json and five task files. Bad lines of the task files are left out.

    Args:
        folder: folder with splits.json (or splits/splits.json), verif_*_split-NAME.csv and retr_*_split-NAME.csv.
        split: name of the split. The authors' splits are a, b, c, full, illum and view.
        sequences: available sequences.

    Raises:
        HardnetSfmError: a file is missing, has another header or no good line, or sequences of the split are missing.
        UsageError: there is no such split.
    """
    names, there = read_split(folder, split), {sequence.name: sequence.count for sequence in sequences}
    if missing := sorted(set(names) - there.keys()):
        raise HardnetSfmError(
            f"sequences of split {split} are missing: {list_some(missing)}",
            "Results on part of a split are not comparable. Unpack all sequences, or choose another --split.",
        )
    counts = tuple(there[name] for name in names)
    reader = _Reader(folder, split, dict(zip(names, np.cumsum([0, *counts[:-1]]).tolist(), strict=True)), there)
    return Tasks(
        split,
        names,
        counts,
        reader.pairs("verif_pos"),
        {kind: reader.pairs(f"verif_neg_{kind}") for kind in ("intra", "inter")},
        reader.points("retr_queries"),
        reader.points("retr_distractors"),
        reader.left_out,
    )


@dataclass(frozen=True)
class _Reader:
    """Reads the task files of a split, and numbers the points consecutively through its sequences."""

    folder: Path
    split: str
    starts: Mapping[str, int]
    counts: Mapping[str, int]
    left_out: LeftOut = field(default_factory=dict)

    def pairs(self, task: str) -> Ints:
        lines = self._lines(task, VERIFICATION_HEADER, (0, 3))
        points = [self._starts[lines[:, at]] + lines[:, at + 2] for at in (0, 3)]
        return np.stack([np.stack(points, 1), lines[:, [1, 4]]], 2)

    def points(self, task: str) -> Ints:
        lines = self._lines(task, RETRIEVAL_HEADER, (0,))
        return self._starts[lines[:, 0]] + lines[:, 1]

    @property
    def _starts(self) -> Ints:
        return np.array(list(self.starts.values()))

    def _lines(self, task: str, header: str, names: tuple[int, ...]) -> Ints:
        """Reads the good lines of a file as int64. Numbers in the split replace the names of sequences."""
        path, number = self.folder / f"{task}_split-{self.split}.csv", {n: k for k, n in enumerate(self.starts)}
        width, hint = header.count(",") + 1, "Get the file again."
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                first = file.readline().strip()
        except FileNotFoundError as error:
            raise HardnetSfmError(f"no such file: {path}", _TASKS) from error
        except OSError as error:
            raise HardnetSfmError(f"{path}: cannot be read: {error.strerror or error}", hint) from error
        if first != header:
            raise HardnetSfmError(f"{path}: not a task: its first line is {first!r}, not {header!r}", hint)
        rows, left_out = read_rows(path, lambda line: self._parse(line, width, number, names), hint, start=2)
        if not rows and not left_out:
            raise HardnetSfmError(f"{path}: not a task: it has no lines", hint)
        check_any(rows, left_out)
        self.left_out.update(left_out)
        return np.array(list(rows.values()), np.int64)

    def _parse(self, line: str, width: int, number: Mapping[str, int], names: tuple[int, ...]) -> list[int]:
        words = line.strip().split(",")
        if len(words) != width:
            raise ValueError(f"truncated, or not a task: {len(words)} columns instead of {width}")
        for at in names:
            if words[at] not in number:
                raise ValueError(f"{words[at]} is no sequence of split {self.split}")
        values = [number[word] if at in names else int(word) for at, word in enumerate(words)]
        for at in names:
            name, patch = words[at], values[at + 2 if len(names) > 1 else at + 1]
            if not 0 <= patch < self.counts[name]:
                raise ValueError(f"patch {patch} of {name}, which has only {self.counts[name]}")
            if len(names) > 1 and not 0 <= values[at + 1] <= PHOTOS:
                raise ValueError(f"photo {values[at + 1]}, which is not from 0 to {PHOTOS}")
        return values
