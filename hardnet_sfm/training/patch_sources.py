"""Patches to train on, in any of the layouts there are."""

from __future__ import annotations

from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.patch_sets import PatchSet, read_patches
from hardnet_sfm.training.brown_sets import read_brown
from hardnet_sfm.training.hpatches_sets import read_hpatches


def read_any_patches(path: Path) -> PatchSet:
    """Patches in any of the layouts there are.

    Raises:
        HardnetSfmError: it is none of them, or damaged.
    """
    if not path.is_dir():
        return read_patches(path)
    if (path / "info.txt").is_file():
        return read_brown(path)
    if not any(path.glob("[iv]_*")):
        raise HardnetSfmError(
            f"{path}: a folder with no patches in it: neither info.txt, as Brown's have, nor i_* and v_*, as HPatches'",
            "`hardnet-sfm mine` makes a patches.h5 of a model and its photos.",
        )
    return read_hpatches(path)
