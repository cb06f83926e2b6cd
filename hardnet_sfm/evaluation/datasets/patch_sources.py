"""Reads training patches in any supported layout."""

from __future__ import annotations

from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.brown import read_brown
from hardnet_sfm.evaluation.datasets.hpatches import read_hpatches
from hardnet_sfm.files.clutter import find_files
from hardnet_sfm.files.patch_sets import read_patches
from hardnet_sfm.patch_set import PatchSet


def read_any_patches(path: Path) -> PatchSet:
    """Reads patches from a patches.h5 file, or from a folder in Brown's or HPatches' layout.

    Raises:
        HardnetSfmError: the path has none of these layouts, or is damaged.
    """
    if not path.is_dir():
        return read_patches(path)
    if (path / "info.txt").is_file():
        return read_brown(path)
    if not find_files(path, "[iv]_*"):
        raise HardnetSfmError(
            f"{path}: no patches in this folder: neither info.txt, as in Brown's, nor i_* and v_*, as in HPatches'",
            "`hardnet-sfm mine` makes a patches.h5 from a model and its photos.",
        )
    return read_hpatches(path)
