"""Checks of the camera options against the sizes of the photos, before photos are matched."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath

from hardnet_sfm.errors import HardnetSfmError, UsageError, list_some
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.photos import Size
from hardnet_sfm.reconstruction.map_options import MapOptions


def check_cameras(options: MapOptions, features: FeatureStore) -> None:
    """Checks that photos that are to share a camera have one size, and that given parameters fit the photos.

    Raises:
        HardnetSfmError: photos of different sizes cannot share a camera. The message names them and their sizes.
        UsageError: the parameters belong to photos of another size.
    """
    setup, shares = options.camera_setup(), options.camera_mode in ("single", "per-folder")
    if not (shares or setup.params):
        return
    sizes = {name: features.stored_size(name) for name in features.names()}
    if shares:
        _check_shared(options.camera_mode, sizes)
    if not setup.params:
        return
    misfits = {name: problem for name, size in sizes.items() if (problem := setup.misfit(size))}
    if misfits:
        name, problem = next(iter(misfits.items()))
        more = f", and the same for {len(misfits) - 1} more photos" if len(misfits) > 1 else ""
        raise UsageError(
            f"--camera-params: {problem} the photo {name} of {_text(sizes[name])} pixels{more}",
            "The parameters must belong to photos of this size, before EXIF orientation. If the photos were scaled, "
            "multiply focal lengths and principal point by the same factor.",
        )


def _check_shared(mode: str, sizes: Mapping[str, Size]) -> None:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sizes:
        groups[str(PurePosixPath(name).parent) if mode == "per-folder" else ""].append(name)
    for names in groups.values():
        (usual, count), *others = Counter(sizes[name] for name in names).most_common()
        if others:
            odd = [f"{name} ({_text(sizes[name])})" for name in names if sizes[name] != usual]
            raise HardnetSfmError(
                f"--camera-mode {mode}: photos of different sizes cannot share a camera. {count} of {len(names)} "
                f"photos have {_text(usual)} pixels as stored. Other sizes: {list_some(odd)}",
                "Use --camera-mode auto or per-image, or take these photos out of the folder.",
            )


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
