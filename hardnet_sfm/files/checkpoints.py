"""Checkpoints of a training run, which Lightning writes."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.weight_files import load_tensors


def check_checkpoint(path: Path) -> None:
    """Raises HardnetSfmError if the checkpoint is missing or damaged, or if the file is something else."""
    hint = "Delete the folder to start a new run."
    if not path.is_file():
        raise HardnetSfmError(f"no checkpoint at {path}", "Leave out --resume to start a new run.")
    loaded = load_tensors(path, hint)
    if zipfile.is_zipfile(path):  # torch's reader does not check the checksums
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise HardnetSfmError(f"{path}: damaged: the checksum of {damaged} in it differs", hint)
    if not isinstance(loaded, dict) or not loaded.keys() >= {"state_dict", "optimizer_states", "loops", "recipe"}:
        raise HardnetSfmError(f"{path}: not a checkpoint of `train`", hint)
