"""Photos on disk: listing, decoding, EXIF orientation and fingerprints. This module never writes to a photo."""

from __future__ import annotations

import hashlib
import io
import math
import re
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.clutter import is_clutter
from hardnet_sfm.photos import Lens, Photo, resize_to_fit, upright

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".webp")
_EXIF_ORIENTATION = 0x0112
_EXIF_MAKE, _EXIF_MODEL, _EXIF_DETAILS = 0x010F, 0x0110, 0x8769
_EXIF_FOCAL_LENGTH, _EXIF_FOCAL_LENGTH_35MM, _EXIF_DIGITAL_ZOOM, _EXIF_LENS = 0x920A, 0xA405, 0xA404, 0xA434


def list_photos(folder: Path) -> list[str]:
    """Lists the names of all photos below a folder: POSIX paths relative to it.

    The order is natural (img2 before img10). Hidden files and what a Mac or a NAS leaves are skipped.

    Raises:
        HardnetSfmError: the folder is missing, is a file, cannot be read or holds no photo.
    """
    if not folder.exists():
        raise HardnetSfmError(f"no such folder: {folder}", "Give the folder that holds your photos.")
    if not folder.is_dir():
        raise HardnetSfmError(f"{folder} is a file, not a folder", "Give the folder that holds your photos.")
    try:
        names = [
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.suffix.lower() in EXTENSIONS and path.is_file() and not _hidden(path.relative_to(folder))
        ]
        has_files = any(folder.iterdir())
    except PermissionError as error:
        raise HardnetSfmError(
            f"cannot read {error.filename or folder}: permission denied", "Make it readable, or give another folder."
        ) from error
    if not names:
        what = "no photos in it" if has_files else "it is empty"
        raise HardnetSfmError(f"{folder}: {what}", f"Photos are files that end in {', '.join(EXTENSIONS)}.")
    return sorted(names, key=_natural_order)


def _hidden(path: Path) -> bool:
    return any(map(is_clutter, path.parts))


def _natural_order(name: str) -> tuple[list[tuple[int, int | str]], str]:
    # The name itself breaks ties such as "1.jpg" and "01.jpg", so that the order never depends on the file system.
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name.casefold())], name


def read_photo(path: Path) -> Photo:
    """Decodes a photo of any supported format and depth to upright 8-bit grey.

    16-bit photos keep their upper 8 bits. Transparency is dropped.

    Raises:
        HardnetSfmError: the file is missing, empty, truncated at its head or not a photo.
    """
    data = _read(path)
    orientation = exif_orientation(data)
    return Photo(_decode(path, data, orientation, "L"), orientation, hashlib.sha256(data).hexdigest())


def read_colours(path: Path) -> NDArray[np.uint8]:
    """Decodes a photo to upright (H, W, 3) uint8 RGB for display, otherwise like `read_photo`.

    Raises:
        HardnetSfmError: the file is missing, empty, truncated at its head or not a photo.
    """
    data = _read(path)
    return _decode(path, data, exif_orientation(data), "RGB")


def read_small(path: Path, longest_side: int) -> NDArray[np.uint8]:
    """Decodes a photo like `read_colours`, shrunk so that no side is longer than `longest_side` pixels.

    A large JPEG is decoded at a half, a quarter or an eighth of its size, which takes a similar fraction of the time.

    Raises:
        HardnetSfmError: the file is missing, empty, truncated at its head or not a photo.
    """
    data = _read(path)
    orientation = exif_orientation(data)
    sensor = _decode_reduced(data, longest_side)
    photo = _decode(path, data, orientation, "RGB") if sensor is None else upright(sensor, orientation)
    return resize_to_fit(photo, longest_side)


def size_of(path: Path) -> tuple[int, int]:
    """Returns width and height of the upright photo. Most formats need no decoding of pixels for it.

    Raises:
        HardnetSfmError: the file is missing, empty or not a photo.
    """
    data = _read(path)
    try:
        image = Image.open(io.BytesIO(data))
        if image.format == "TIFF":
            image.load()  # loading turns it upright; some versions of Pillow do so earlier
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _undecodable(path) from error
    width, height = image.size
    turned = image.format != "TIFF" and exif_orientation(data) >= 5
    return (height, width) if turned else (width, height)


def read_lens(path: Path) -> Lens:
    """Reads the camera data of a photo file, without its pixels. An unreadable file gives empty data."""
    try:
        with Image.open(path) as image:
            tags = image.getexif()
            details = tags.get_ifd(_EXIF_DETAILS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Lens()
    return Lens(
        _exif_text(tags.get(_EXIF_MAKE)),
        _exif_text(tags.get(_EXIF_MODEL)),
        _exif_text(details.get(_EXIF_LENS)),
        _exif_number(details.get(_EXIF_FOCAL_LENGTH)),
        _exif_number(details.get(_EXIF_FOCAL_LENGTH_35MM)),
        _exif_number(details.get(_EXIF_DIGITAL_ZOOM)),
    )


def _exif_text(value: object) -> str:
    return value.strip(" \0") if isinstance(value, str) else ""


def _exif_number(value: Any) -> float:
    """Returns a positive number, or 0 for any other value such as 0/0."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if 0 < number < math.inf else 0.0


def _decode_reduced(data: bytes, longest_side: int) -> NDArray[np.uint8] | None:
    """Decodes a JPEG as stored, at the smallest decoder size that is large enough; None for other files."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format != "JPEG" or image.mode not in ("L", "RGB"):
                return None
            image.draft("RGB", (longest_side, longest_side))  # keeps the aspect ratio and at least this size
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HardnetSfmError(f"{path}: {error.strerror or error}", "Check its name and its permissions.") from error
    if not data:
        raise HardnetSfmError(f"{path}: the file is empty", "Copy it again, or take it out of the folder.")
    return data


def _decode(path: Path, data: bytes, orientation: int, mode: Literal["L", "RGB"]) -> NDArray[np.uint8]:
    if data[:4] in (b"II*\0", b"MM\0*"):
        turned_or_transparent = _decode_tiff(data, mode)
        if turned_or_transparent is not None:
            return turned_or_transparent
    flags = cv2.IMREAD_GRAYSCALE if mode == "L" else cv2.IMREAD_COLOR_RGB
    try:
        sensor = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        sensor = None
    if sensor is None:
        raise _undecodable(path)
    return upright(np.asarray(sensor, np.uint8), orientation)


def _undecodable(path: Path) -> HardnetSfmError:
    return HardnetSfmError(
        f"{path}: not a photo that can be decoded, or damaged",
        "Convert it to JPEG or PNG, or take it out of the folder.",
    )


def _decode_tiff(data: bytes, mode: Literal["L", "RGB"]) -> NDArray[np.uint8] | None:
    """Decodes a TIFF with an orientation or with alpha; None for other TIFFs.

    OpenCV 5.0 fails on a TIFF with an orientation. It multiplies the colours by alpha.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.getexif().get(_EXIF_ORIENTATION, 1) == 1 and "A" not in image.getbands():
            return None
        image.load()  # Pillow turns a TIFF upright itself
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image.convert(mode))


def exif_orientation(data: bytes) -> int:
    """Reads the EXIF orientation tag from the bytes of a photo file; 1 (as stored) if it is missing or invalid."""
    try:
        value = Image.open(io.BytesIO(data)).getexif().get(_EXIF_ORIENTATION, 1)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1
    return int(value) if value in range(1, 9) else 1


def sha256_of(path: Path) -> str:
    """Returns the hex sha256 of a file's bytes. It reads the file in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
