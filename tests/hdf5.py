"""What is in an HDF5 file, to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np


def contents(path: Path) -> dict[str, Any]:
    """Every data set and attribute of an HDF5 file, byte for byte, except `empty`, its number of unused bytes."""
    found: dict[str, Any] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found[name] = None
        if isinstance(item, h5py.Dataset):
            found[name] = str(item.dtype), item.shape, np.asarray(item[()]).tobytes()
        found.update({f"{name} @{key}": value for key, value in item.attrs.items()})

    with h5py.File(path, "r") as file:
        file.visititems(visit)
        found.update({f"@{key}": value for key, value in file.attrs.items() if key != "empty"})
    return found
