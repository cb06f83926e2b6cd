"""Checks that photos are still those that features were extracted from, or that a model was made from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError, list_some
from hardnet_sfm.files.photo_files import stored_size_of
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.photos import Size


def check_sizes(images: Path, sizes: Mapping[str, Size], owner: str) -> None:
    """Checks that photos have the sizes that they had. Photos that are missing or unreadable are passed over.

    It reads the heads of the files only.

    Args:
        images: folder of the photos.
        sizes: width and height of the photos as stored, before EXIF orientation, by name.
        owner: what has these sizes, for the message: "its camera" or "its features".

    Raises:
        HardnetSfmError: photos have other sizes. The message names up to five of them, with both sizes.
    """
    resized = []
    for name, (width, height) in sizes.items():
        with contextlib.suppress(HardnetSfmError):
            now = stored_size_of(images / name)
            if now != (width, height):
                resized.append(f"{name} {now[0]}x{now[1]}, {owner} {width}x{height}")
    if resized:
        raise HardnetSfmError(
            f"{images}: photos of another size than before: {list_some(resized, '; ')}",
            "Put the original photos back or give their folder. For the new ones, run `hardnet-sfm reconstruct` again.",
        )


def check_photos(images: Path, features: FeatureStore) -> None:
    """Checks that photos have the sizes at which their features were extracted, see `check_sizes`."""
    sizes = {name: features.stored_size(name) for name in features.names()}
    check_sizes(images, sizes, "its features")
