"""Checks that photos are still there, and still those that features were extracted from or a model was made from."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from rich.markup import escape

from hardnet_sfm.errors import HardnetSfmError, list_some
from hardnet_sfm.files.journal import Facts
from hardnet_sfm.files.photo_files import stored_size_of
from hardnet_sfm.files.photo_hashes import PhotoHashes
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.photos import Size
from hardnet_sfm.progress import console

_LARGE = 10  # a loss is large if it is one photo in this many, or more


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


def check_losses(
    store: Path,
    header: Mapping[str, Any],
    facts: Mapping[str, Facts],
    hashes: PhotoHashes,
    names: Collection[str],
    *,
    prune: bool,
) -> int:
    """Counts and names the photos that have features but are not in the folder any more.

    A photo counts as lost if its file is missing or cannot be opened. A photo with another name is not lost. If
    the folder is another one than before, and has not half of the photos, all photos with other content count as lost:
    cameras give the same names again.

    Args:
        store: path of the store of features.
        header: header of the store, empty for a new one.
        facts: facts of each photo in the store.
        hashes: gives the content of the photos in the folder.
        names: names of the photos that are there.
        prune: whether a large loss is wanted.

    Returns:
        The number of photos whose features will be dropped.

    Raises:
        HardnetSfmError: a tenth of the photos or more, or all photos of a folder, are lost, and `prune` is not set.
    """
    before = [name for name in header.get("names", ()) if name in facts]
    images = hashes.images
    old = Path(header.get("images", images))
    moved = old != images
    there = set(names)
    kept = {name for name in before if name in there and _is_readable(images / name)}
    if moved:
        same = {name for name in kept if _sha256(hashes, name) == facts[name].get("photo_sha256")}
        kept = same if 2 * len(same) < len(before) else kept
    gone = [name for name in before if name not in kept]
    if gone:
        renamed = {_sha256(hashes, name) for name in there.difference(before)}
        gone = [name for name in gone if facts[name].get("photo_sha256") not in renamed]
    if not gone:
        return 0
    what = f"{len(gone)} of {len(before)} photos ({list_some(gone)})"
    folders = {PurePosixPath(name).parent for name in gone}
    folders -= {PurePosixPath(name).parent for name in before if name not in set(gone)}
    if not prune and (len(gone) * _LARGE >= len(before) or folders):
        if moved and old.is_dir():
            raise HardnetSfmError(
                f"{store} has features of the photos in {old}, and {what} are not in {images} or differ there",
                "A workspace holds the photos of one folder. To add photos, copy them into that folder, or give a "
                "folder that contains both. For a separate model, choose another --workspace. To drop what is not in "
                "the new folder, add --prune.",
            )
        raise HardnetSfmError(
            f"{images}: {what} are missing or cannot be read, but {store} has their features",
            "If they are only unreachable for now, make them reachable and run again: nothing is lost. To drop their "
            "features, matches and places in the model, add --prune.",
        )
    console.print(
        f"[yellow]gone:[/] {escape(what)}. Their features, matches and places in the model and the index are dropped.",
    )
    return len(gone)


def _is_readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _sha256(hashes: PhotoHashes, name: str) -> str:
    """Returns the sha256 of a photo; empty if it cannot be read."""
    try:
        return hashes.sha256(name)
    except OSError:
        return ""
