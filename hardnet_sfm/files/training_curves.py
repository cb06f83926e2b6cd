"""The learning curves of `train`: NAME.training/curves.csv next to the weights.

Each row has a number of steps, and the values of some curves after them. The other fields of the row are empty. If
tensorboard is installed, the folder `curves` next to the file has the same values for it.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hardnet_sfm.errors import file_error, write_error

_MOST_STEPS = 600  # most steps in a curve
_STEPS = "steps"
CURVES = ("loss", "fpr95", "map", "learning rate")


def curves_file(weights: Path) -> Path:
    """Returns the file with the curves of a training that writes, or will write, these weights."""
    return weights.with_name(f"{weights.stem}.training") / "curves.csv"


class CurveWriter:
    """Writes curves, row by row. A killed run loses no row.

    Args:
        path: path of the file.
        steps: number of steps of the run so far. Only the rows up to there are kept, so none of another run if it is 0.

    Raises:
        HardnetSfmError: any method raises it if the disk is full or the file cannot be written.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self._path = path
        kept = [row for row in _read_rows(path) if int(row[_STEPS]) <= steps] if steps else []
        path.unlink(missing_ok=True)
        self._append([{name: name for name in (_STEPS, *CURVES)}, *kept])
        if not steps:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        self._events = _open_events(path.with_suffix(""), steps)

    def add(self, steps: int, values: Mapping[str, float]) -> None:
        """Adds the values of curves after a number of steps, by name."""
        self._append([{_STEPS: steps} | {name: f"{value:.6g}" for name, value in values.items()}])
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, steps)
            self._events.flush()

    def close(self) -> None:
        """Ends the curves."""
        if self._events is not None:
            self._events.close()

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, (_STEPS, *CURVES)).writerows(rows)
        except OSError as error:
            raise write_error(self._path, error) from error


def _open_events(folder: Path, steps: int) -> Any:
    """Opens a writer of tensorboard that drops its later steps. Returns None if tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=steps + 1)


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a file of curves. The last one may be incomplete after a crash and is left out."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise file_error(path, error, "a table of learning curves") from error


def read_curves(path: Path) -> dict[str, dict[str, list[float]]]:
    """Reads steps and values of the curves by name. Long curves are thinned evenly.

    Raises:
        HardnetSfmError: the file is damaged or something else.
    """
    found: dict[str, dict[str, list[float]]] = {}
    rows = _read_rows(path)
    for name in CURVES:
        try:
            points = [(int(row[_STEPS]), float(row[name])) for row in rows if row[name]]
        except (KeyError, ValueError) as error:
            raise file_error(path, error, "a table of learning curves") from error
        points = [(steps, value) for steps, value in points if math.isfinite(value)]
        if points:
            chosen = np.unique(np.linspace(0, len(points) - 1, min(_MOST_STEPS, len(points))).round().astype(int))
            steps, values = zip(*(points[row] for row in chosen), strict=True)
            found[name] = {"step": list(steps), "value": list(values)}
    return found
