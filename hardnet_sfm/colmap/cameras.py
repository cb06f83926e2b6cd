"""Cameras of the photos, from the EXIF data that COLMAP reads and from the user's options."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pycolmap
from PIL import Image

from hardnet_sfm.errors import HardnetSfmError, UsageError

CameraMode = Literal["auto", "single", "per-folder", "per-image"]
# Formats that we can read and COLMAP's wheel cannot.
_UNKNOWN_TO_COLMAP = (".webp",)


@dataclass(frozen=True)
class CameraSetup:
    """Says which photos share a camera, and what is known of the cameras.

    Attributes:
        mode: rule for sharing cameras. auto: photos with the same EXIF camera model, focal length and size share one,
            as in COLMAP.
        model: COLMAP's name of a camera model.
        params: parameters of every camera, in COLMAP's order for the model. Pixels are COLMAP's: of photos as stored,
            before EXIF orientation, with the centre of the top-left pixel at (0.5, 0.5). If empty, the parameters come
            from EXIF or a guess.
    """

    mode: CameraMode
    model: str
    params: tuple[float, ...] = ()

    def check(self) -> None:
        """Raises UsageError if COLMAP has no such model, or if the model has another number of parameters."""
        models = sorted(name for name in pycolmap.CameraModelId.__members__ if name != "INVALID")
        if self.model not in models:
            raise UsageError(f"unknown camera model: {self.model}", f"There are: {', '.join(models)}.")
        example = pycolmap.Camera.create_from_model_name(1, self.model, 1.0, 2, 2)
        if self.params and len(self.params) != len(example.params):
            raise UsageError(
                f"--camera-params: {self.model} takes {len(example.params)} parameters ({example.params_info}), "
                f"not {len(self.params)}"
            )

    def has_focal_length(self) -> bool:
        """Says whether cameras of this model have a focal length."""
        return bool(pycolmap.Camera.create_from_model_name(1, self.model, 1.0, 2, 2).focal_length_idxs())


def import_photos(
    database: Path,
    images: Path,
    names: list[str],
    setup: CameraSetup,
    scratch: Path,
    shared: Sequence[Sequence[str]] | None = None,
) -> None:
    """Writes photos with their cameras, rigs and frames into a database. Photos that it already has stay as they are.

    A photo that shares a camera with photos in the database takes their camera.

    Args:
        database: path of the database; made if missing.
        images: folder of the photos.
        names: names of all photos that the database will have.
        setup: setup of their cameras.
        scratch: folder for photos in formats that COLMAP does not read. It is made here and kept for `readable_folder`.
        shared: groups of names of photos that share a camera, instead of the mode. Each other photo has its own camera.

    Raises:
        HardnetSfmError: a photo is missing, or COLMAP cannot read it.
    """
    options = pycolmap.ImageReaderOptions()
    options.camera_model = setup.model
    options.camera_params = ", ".join(map(repr, setup.params))
    known = _cameras_in(database)
    new = [name for name in names if name not in known]
    folder = readable_folder(images, new, scratch)
    alone = dict.fromkeys(new)
    for group in _sharing(names, setup.mode) if shared is None else shared:
        options.existing_camera_id = next((known[name] for name in group if name in known), -1)
        some = [name for name in group if name in alone]
        if some:  # COLMAP takes an empty list for all photos of the folder
            mode = pycolmap.CameraMode.SINGLE
            pycolmap.import_images(database, folder, camera_mode=mode, image_names=some, options=options)
        alone = {name: None for name in alone if name not in some}
    options.existing_camera_id = -1
    if alone:
        mode = pycolmap.CameraMode.AUTO if shared is None and setup.mode == "auto" else pycolmap.CameraMode.PER_IMAGE
        pycolmap.import_images(database, folder, camera_mode=mode, image_names=list(alone), options=options)
    lost = set(names) - _cameras_in(database).keys()
    if lost and setup.mode in ("single", "per-folder") and _sizes_differ(images, names, setup.mode):
        raise HardnetSfmError(
            f"--camera-mode {setup.mode}: photos of different sizes cannot share a camera ({images / min(lost)})",
            "Use --camera-mode auto or per-image.",
        )
    if lost:
        raise HardnetSfmError(
            f"{images / min(lost)}: missing, or in a format that COLMAP cannot read ({len(lost)} photos)",
            "Put the photos back, or run `hardnet-sfm extract` again.",
        )


def _cameras_in(database: Path) -> dict[str, int]:
    """Returns the number of each photo's camera by the photo's name; makes the database if it is missing."""
    with pycolmap.Database.open(database) as opened:
        return {image.name: image.camera_id for image in opened.read_all_images()}


def _sharing(names: list[str], mode: CameraMode) -> list[list[str]]:
    """Returns the groups of photos that share a camera in this mode."""
    if mode not in ("single", "per-folder"):
        return []
    groups: dict[Path, list[str]] = {}
    for name in names:
        groups.setdefault(Path(name).parent if mode == "per-folder" else Path(), []).append(name)
    return list(groups.values())


def _sizes_differ(folder: Path, names: list[str], mode: CameraMode) -> bool:
    """Says whether photos that should share a camera have different sizes. Unreadable photos are ignored."""
    sizes: dict[Path, set[tuple[int, int]]] = {}
    for name in names:
        with contextlib.suppress(OSError), Image.open(folder / name) as photo:
            sizes.setdefault(Path(name).parent if mode == "per-folder" else folder, set()).add(photo.size)
    return any(len(found) > 1 for found in sizes.values())


def readable_folder(images: Path, names: list[str], scratch: Path) -> Path:
    """Returns a folder in which COLMAP can read all photos.

    It is the image folder itself if COLMAP can read all of its photos. Otherwise it is a folder of links to the photos,
    with copies of those that COLMAP cannot read. The copies have the same names, pixels and EXIF data. They are PNG
    files, as COLMAP recognises a format by its content.
    """
    strange = [name for name in names if name.lower().endswith(_UNKNOWN_TO_COLMAP)]
    if not strange:
        return images
    shutil.rmtree(scratch, ignore_errors=True)
    for name in names:
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in strange:
            with Image.open(images / name) as photo:
                content = io.BytesIO()
                photo.convert("RGB").save(content, "PNG", exif=photo.getexif())
            target.write_bytes(content.getvalue())
        else:
            target.symlink_to((images / name).resolve())
    return scratch
