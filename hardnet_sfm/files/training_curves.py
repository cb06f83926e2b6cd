"""The learning curves that `train` logs for TensorBoard, in NAME.training/curves next to the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hardnet_sfm.errors import HardnetSfmError

_MOST_STEPS = 600  # most steps in a curve
_CURVES = ("loss", "fpr95", "map", "learning rate")


def curves_folder(weights: Path) -> Path:
    """Returns the folder with the curves of a training that writes, or will write, these weights."""
    return weights.with_name(f"{weights.stem}.training") / "curves"


def read_curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Reads steps and values of the curves logged for TensorBoard, by name. Long curves are thinned evenly.

    Raises:
        HardnetSfmError: tensorboard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise HardnetSfmError(
            f"learning curves need another package: {error}", "Install it: pip install hardnet-sfm[train]"
        ) from error
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[str, dict[str, list[float]]] = {}
    for name in _CURVES:
        if name in events.Tags()["scalars"]:
            logged = [one for one in events.Scalars(name) if np.isfinite(one.value)]
            rows = np.unique(np.linspace(0, len(logged) - 1, min(_MOST_STEPS, len(logged))).round().astype(int))
            found[name] = {
                "step": [int(logged[row].step) + 1 for row in rows],
                "value": [float(f"{logged[row].value:.6g}") for row in rows],
            }
    return found
