"""The checkpoint of a training run, in NAME.training next to the weights."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hardnet_sfm.errors import HardnetSfmError, write_error
from hardnet_sfm.files.weight_files import load_tensors
from hardnet_sfm.files.workspace import replacing

_ANOTHER = "To start a new run, choose another --output or move the folder away."
_PARTS = {"step", "seconds", "network", "optimizer", "average", "recipe"}


def write_checkpoint(path: Path, state: Mapping[str, Any], recipe: str) -> None:
    """Writes the state of a run, complete or not at all. The recipe is the fingerprint of what must not change.

    Raises:
        HardnetSfmError: the disk is full or cannot be written. The previous checkpoint stays.
    """
    buffer = io.BytesIO()  # torch hides the cause if it cannot write to a file
    torch.save({**state, "recipe": recipe}, buffer)
    try:
        with replacing(path) as beside, beside.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error


def read_checkpoint(path: Path, recipe: str) -> dict[str, Any]:
    """Reads the state of a run without running code that may be hidden in the file.

    Raises:
        HardnetSfmError: the checkpoint is missing or damaged, belongs to a run with another recipe or to an earlier
            version, or the file is something else.
    """
    if not path.is_file():
        raise HardnetSfmError(f"no checkpoint at {path}", "Leave out --resume to start a new run.")
    loaded = load_tensors(path, _ANOTHER)
    if zipfile.is_zipfile(path):  # torch's reader does not check the checksums
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise HardnetSfmError(f"{path}: damaged: the checksum of {damaged} in it differs", _ANOTHER)
    if isinstance(loaded, dict) and "pytorch-lightning_version" in loaded:
        raise HardnetSfmError(f"{path}: a checkpoint of an earlier version, which this version cannot resume", _ANOTHER)
    if not isinstance(loaded, dict) or not loaded.keys() >= _PARTS:
        raise HardnetSfmError(f"{path}: not a checkpoint of `train`", _ANOTHER)
    if loaded["recipe"] != recipe:
        raise HardnetSfmError(
            f"{path} is of a run on other patches or with other options",
            "Use the same. Only --minutes, --steps, --validate-every, --learning-rate and --licence may change.",
        )
    return loaded
