"""Cameras of the photos, from the EXIF data that COLMAP reads and from the user's options."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pycolmap
from PIL import Image

from hardnet_sfm.colmap.database import explain_failures, open_database
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.photo_decoding import open_image
from hardnet_sfm.files.photo_files import is_plausible, read_as_stored, stored_size_of
from hardnet_sfm.files.truncated_photos import is_truncated

CameraMode = Literal["auto", "single", "per-folder", "per-image"]
# Formats that COLMAP's wheel reads, by Pillow's names, and kinds of pixels that COLMAP shows too dark or too bright.
_KNOWN_TO_COLMAP = ("JPEG", "MPO", "PNG", "TIFF", "BMP", "DIB", "PPM")
_TOO_DEEP = ("I", "F")
_PIXELS = "Parameters are in pixels, in COLMAP's order for the camera model. Leave them out if they are unknown."


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
        """Checks the model and its parameters.

        Raises:
            UsageError: COLMAP has no such model, the model has another number of parameters, a parameter is not a
                finite number, or a focal length is not positive.
        """
        models = sorted(name for name in pycolmap.CameraModelId.__members__ if name != "INVALID")
        if self.model not in models:
            raise UsageError(f"unknown camera model: {self.model}", f"There are: {', '.join(models)}.")
        example = pycolmap.Camera.create_from_model_name(1, self.model, 1.0, 2, 2)
        if self.params and len(self.params) != len(example.params):
            raise UsageError(
                f"--camera-params: {self.model} takes {len(example.params)} parameters ({example.params_info}), "
                f"not {len(self.params)}"
            )
        if not all(map(math.isfinite, self.params)):
            raise UsageError(f"--camera-params: not finite: {', '.join(map(str, self.params))}", _PIXELS)
        focal_lengths = [self.params[at] for at in example.focal_length_idxs()] if self.params else []
        if any(value <= 0 for value in focal_lengths):
            raise UsageError(f"--camera-params: a focal length of {min(focal_lengths):g} is not positive", _PIXELS)

    def misfit(self, size: tuple[int, int]) -> str:
        """Says why the parameters cannot belong to photos of a width and height; empty if they can.

        COLMAP's mappers reject cameras whose focal length is below a tenth or above ten times the longer side.
        """
        example = pycolmap.Camera.create_from_model_name(1, self.model, 1.0, 2, 2)
        centre = [self.params[at] for at in example.principal_point_idxs()]  # panoramas have none
        if any(not 0 <= at <= side for at, side in zip(centre, size, strict=False)):
            return f"the principal point ({centre[0]:g}, {centre[1]:g}) lies outside"
        limits = pycolmap.IncrementalMapperOptions()
        for focal_length in (self.params[at] for at in example.focal_length_idxs()):
            if not limits.min_focal_length_ratio <= focal_length / max(size) <= limits.max_focal_length_ratio:
                return f"the focal length {focal_length:g} is too {'short' if focal_length < max(size) else 'long'} for"
        return ""

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
        HardnetSfmError: the folder or a photo is missing, COLMAP cannot read a photo, or the database is damaged or
            cannot be written.
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
            _import(database, folder, mode, some, options)
        alone = {name: None for name in alone if name not in some}
    options.existing_camera_id = -1
    if alone:
        mode = pycolmap.CameraMode.AUTO if shared is None and setup.mode == "auto" else pycolmap.CameraMode.PER_IMAGE
        _import(database, folder, mode, list(alone), options)
    if not setup.params:
        _forget_nonsense(database)
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


def _import(
    database: Path, folder: Path, mode: pycolmap.CameraMode, names: list[str], options: pycolmap.ImageReaderOptions
) -> None:
    """Lets COLMAP write photos with their cameras into a database."""
    try:
        with explain_failures(database):
            pycolmap.import_images(database, folder, camera_mode=mode, image_names=names, options=options)
    except HardnetSfmError as error:
        if folder.is_dir():
            raise
        raise HardnetSfmError(f"{folder}: the folder of the photos is missing", "Put it back and run again.") from error


def _cameras_in(database: Path) -> dict[str, int]:
    """Returns the number of each photo's camera by the photo's name; makes the database if it is missing."""
    with open_database(database) as opened:
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
        with contextlib.suppress(HardnetSfmError):
            size = stored_size_of(folder / name)
            sizes.setdefault(Path(name).parent if mode == "per-folder" else folder, set()).add(size)
    return any(len(found) > 1 for found in sizes.values())


def _forget_nonsense(database: Path) -> None:
    """Replaces focal lengths that no lens has, which COLMAP computes from nonsense in EXIF, by its default."""
    factor = pycolmap.ImageReaderOptions().default_focal_length_factor
    with open_database(database) as opened:
        for camera in opened.read_all_cameras():
            longest, focal = max(camera.width, camera.height), camera.focal_length_idxs()
            if focal and not all(is_plausible(camera.params[row], (camera.width, camera.height)) for row in focal):
                guess = (camera.model_name, factor * longest, camera.width, camera.height)
                opened.update_camera(pycolmap.Camera.create_from_model_name(camera.camera_id, *guess))


def readable_folder(images: Path, names: list[str], scratch: Path) -> Path:
    """Returns a folder in which COLMAP can read all photos.

    It is the image folder itself if COLMAP can read all of its photos. Otherwise it is a folder of links to the photos,
    with copies of those that COLMAP cannot read. The copies have the same names, pixels and EXIF data. They are PNG
    files, as COLMAP recognises a format by its content.

    Raises:
        HardnetSfmError: a photo that COLMAP cannot read is damaged.
    """
    strange = [name for name in names if not _is_known_to_colmap(images / name)]
    if not strange:
        return images
    shutil.rmtree(scratch, ignore_errors=True)
    for name in names:
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in strange:
            _copy_as_png(images / name, target)
        else:
            target.symlink_to((images / name).resolve())
    return scratch


def _is_known_to_colmap(photo: Path) -> bool:
    """Says whether COLMAP reads a photo. It is left to COLMAP if the head of the file cannot be read."""
    image = open_image(photo)
    if image is None:
        return True
    with image:
        known = image.format in _KNOWN_TO_COLMAP and image.mode not in _TOO_DEEP
        return known and (image.format in ("JPEG", "MPO") or not is_truncated(photo))


def _copy_as_png(photo: Path, target: Path) -> None:
    exif = Image.Exif()
    image = open_image(photo)
    if image is not None:
        with image, contextlib.suppress(Exception):  # Pillow raises nearly everything for damaged tags
            exif = image.getexif()
    content = io.BytesIO()
    pixels = Image.fromarray(read_as_stored(photo))
    try:
        pixels.save(content, "PNG", exif=exif)
    except Exception:  # some tags can be read, but not written
        pixels.save(content, "PNG")
    target.write_bytes(content.getvalue())
