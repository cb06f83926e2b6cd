"""Reads the layout of HPatches (Balntas, Lenc, Vedaldi, Mikolajczyk, CVPR 2017): patches, tasks and splits.

Each sequence has a folder `i_NAME` (illumination changes) or `v_NAME` (viewpoint changes). It holds sixteen columns of
65x65 patches. `ref.png` has the patches of the reference photo. `e1.png` to `t5.png` have the same patches in five
other photos, cut with easy, hard and tough errors of the frame. The authors' benchmark lists its splits of the
sequences in `splits.json`. For each split it has text files of the patches to verify and to retrieve.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hardnet_sfm.arrays import Grey, Ints
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.datasets.columns import read_column
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


def column_of(level: Level, photo: int | Ints) -> Any:
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
    """

    split: str
    sequences: tuple[str, ...]
    counts: tuple[int, ...]
    positives: Ints
    negatives: Mapping[str, Ints]
    queries: Ints
    distractors: Ints

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
    """Reads the six files of a split: splits.json and five task files.

    Args:
        folder: folder with splits.json (or splits/splits.json), verif_*_split-NAME.csv and retr_*_split-NAME.csv.
        split: name of the split. The authors' splits are a, b, c, full, illum and view.
        sequences: available sequences.

    Raises:
        HardnetSfmError: a file is missing or damaged, or names sequences or patches that are not available.
        UsageError: there is no such split.
    """
    names, there = read_split(folder, split), {sequence.name: sequence.count for sequence in sequences}
    if missing := sorted(set(names) - there.keys()):
        raise HardnetSfmError(
            f"sequences of split {split} are missing: {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
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
    )


@dataclass(frozen=True)
class _Reader:
    """Reads the task files of a split, and numbers the points consecutively through its sequences."""

    folder: Path
    split: str
    starts: Mapping[str, int]
    counts: Mapping[str, int]

    def pairs(self, task: str) -> Ints:
        path, lines = self._lines(task, VERIFICATION_HEADER, (0, 3))
        photos = lines[:, [1, 4]]
        if (photos < 0).any() or (photos > PHOTOS).any():
            raise HardnetSfmError(f"{path}: numbers of photos that are not from 0 to {PHOTOS}", "Get the file again.")
        points = [self._points(path, lines[:, at], lines[:, at + 2]) for at in (0, 3)]
        return np.stack([np.stack(points, 1), photos], 2)

    def points(self, task: str) -> Ints:
        path, lines = self._lines(task, RETRIEVAL_HEADER, (0,))
        return self._points(path, lines[:, 0], lines[:, 1])

    def _lines(self, task: str, header: str, names: tuple[int, ...]) -> tuple[Path, Ints]:
        """Reads all lines of a file as int64. Numbers in the split replace the names of sequences."""
        path, number = self.folder / f"{task}_split-{self.split}.csv", {n: k for k, n in enumerate(self.starts)}
        unknown: list[str] = []

        def sequence(name: str) -> int:
            if name not in number:
                unknown.append(name)
            return number.get(name, -1)

        try:
            with path.open(encoding="utf-8") as file, warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy only warns about an empty file
                first = file.readline().strip()
                if first != header:
                    raise ValueError(f"its first line is {first!r}, not {header!r}")
                lines = np.loadtxt(
                    file,
                    np.int64,
                    comments=None,
                    delimiter=",",
                    converters=dict.fromkeys(names, sequence),
                    ndmin=2,
                )
            if lines.shape[1] != header.count(",") + 1:
                raise ValueError(f"{lines.shape[1]} columns")
        except FileNotFoundError as error:
            raise HardnetSfmError(f"no such file: {path}", _TASKS) from error
        except (OSError, ValueError, UserWarning) as error:
            raise HardnetSfmError(f"{path}: truncated, or not a task: {error}", "Get the file again.") from error
        if unknown:
            raise HardnetSfmError(f"{path}: {unknown[0]} is no sequence of split {self.split}", "Get the file again.")
        return path, lines

    def _points(self, path: Path, sequence: Ints, index: Ints) -> Ints:
        counts = np.array([self.counts[name] for name in self.starts])
        if (bad := np.flatnonzero((index < 0) | (index >= counts[sequence]))).size:
            name = list(self.starts)[sequence[bad[0]]]
            raise HardnetSfmError(
                f"{path}: patch {index[bad[0]]} of {name}, which has only {self.counts[name]}",
                "The tasks are of another release of the patches.",
            )
        return np.array(list(self.starts.values()))[sequence] + index
