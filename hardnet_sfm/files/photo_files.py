"""Photos on disk: pixels, sizes, camera data and fingerprints. This module never writes to a photo."""

from __future__ import annotations

import contextlib
import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from hardnet_sfm.errors import HardnetSfmError, file_error
from hardnet_sfm.files.photo_decoding import (
    CAN_READ_HEIC,
    HEIC_BRANDS,
    HEIC_HINT,
    decode,
    exif_orientation,
    open_image,
)
from hardnet_sfm.files.truncated_photos import is_truncated
from hardnet_sfm.photo_names import as_on_disk
from hardnet_sfm.photos import Lens, Photo, resize_to_fit, upright

# Diagonal of 35 mm film, mm.
FILM_DIAGONAL = 43.27
_EXIF_MAKE, _EXIF_MODEL, _EXIF_DETAILS = 0x010F, 0x0110, 0x8769
_EXIF_FOCAL_LENGTH, _EXIF_FOCAL_LENGTH_35MM, _EXIF_DIGITAL_ZOOM, _EXIF_LENS = 0x920A, 0xA405, 0xA404, 0xA434
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
# Bounds of focal lengths: in mm, and as shares of the longer side of the photo.
_SHORTEST, _LONGEST = 0.5, 5000.0
_WIDEST, _NARROWEST = 0.15, 100.0


def read_photo(path: Path) -> Photo:
    """Decodes a photo of any supported format and depth to upright 8-bit grey, see `photo_decoding.decode`.

    Raises:
        HardnetSfmError: the file is missing, empty, truncated at its head or not a photo.
    """
    data = _read(path)
    orientation = exif_orientation(data)
    return Photo(upright(_decode(path, data, "L"), orientation), orientation, hashlib.sha256(data).hexdigest())


def read_colours(path: Path) -> NDArray[np.uint8]:
    """Decodes a photo to upright (H, W, 3) uint8 RGB for display, otherwise like `read_photo`.

    Raises:
        HardnetSfmError: the file is missing, empty, truncated at its head or not a photo.
    """
    data = _read(path)
    return upright(_decode(path, data, "RGB"), exif_orientation(data))


def read_as_stored(path: Path) -> NDArray[np.uint8]:
    """Decodes a photo to (H, W, 3) uint8 RGB without applying its EXIF orientation, otherwise like `read_colours`."""
    return _decode(path, _read(path), "RGB")


def read_small(path: Path, longest_side: int) -> NDArray[np.uint8]:
    """Decodes a photo like `read_colours`, shrunk so that no side is longer than `longest_side` pixels.

    A large JPEG is decoded at a half, a quarter or an eighth of its size, which takes a similar fraction of the time.

    Raises:
        HardnetSfmError: the file is missing, empty, truncated at its head or not a photo.
    """
    data = _read(path)
    sensor = _decode_reduced(data, longest_side)
    photo = upright(_decode(path, data, "RGB") if sensor is None else sensor, exif_orientation(data))
    return resize_to_fit(photo, longest_side)


def size_of(path: Path) -> tuple[int, int]:
    """Returns width and height of the upright photo. Most formats need no decoding of pixels for it.

    Raises:
        HardnetSfmError: the file is missing, empty or not a photo.
    """
    width, height = stored_size_of(path)
    return (height, width) if exif_orientation(path) >= 5 else (width, height)


def stored_size_of(path: Path) -> tuple[int, int]:
    """Returns width and height of the photo as stored, before EXIF orientation, otherwise like `size_of`.

    Raises:
        HardnetSfmError: the file is missing, empty or not a photo.
    """
    image = open_image(path)
    if image is None:
        pixels = _decode(path, _read(path), "L")
        return pixels.shape[1], pixels.shape[0]
    with image:
        if isinstance(image, TiffImageFile):  # Pillow states the size of the upright picture
            return int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
        return image.size


def read_lens(path: Path) -> Lens:
    """Reads the camera data of a photo file, without its pixels. An unreadable file gives empty data.

    A focal length that no lens has counts as missing.
    """
    image = open_image(path)
    if image is None:
        return Lens()
    with image, contextlib.suppress(Exception):  # Pillow raises nearly everything for damaged tags
        tags = image.getexif()
        details = tags.get_ifd(_EXIF_DETAILS)
        focal_length = _exif_number(details.get(_EXIF_FOCAL_LENGTH))
        on_film = _exif_number(details.get(_EXIF_FOCAL_LENGTH_35MM))
        return Lens(
            _exif_text(tags.get(_EXIF_MAKE)),
            _exif_text(tags.get(_EXIF_MODEL)),
            _exif_text(details.get(_EXIF_LENS)),
            focal_length if _SHORTEST <= focal_length <= _LONGEST else 0.0,
            on_film if is_plausible(on_film / FILM_DIAGONAL * math.hypot(*image.size), image.size) else 0.0,
            _exif_number(details.get(_EXIF_DIGITAL_ZOOM)),
        )
    return Lens()


def is_plausible(focal_length: float, size: tuple[int, int]) -> bool:
    """Says whether a lens can have this focal length in pixels, for photos of this width and height.

    The widest lens made, Nikon's fisheye of 6 mm with a view of 220 degrees, has a sixth of the longer side. Cameras
    with the longest zoom, 3000 mm on 35 mm film, have 83 times the longer side, which is a view of 0.7 degrees. Cameras
    state 0, 0/0 or 1 if they do not know.
    """
    return _WIDEST * max(size) <= focal_length <= _NARROWEST * max(size)


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
    image = open_image(data)
    if image is None or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    with contextlib.suppress(Exception):  # `decode` tries again at the full size
        image.draft("RGB", (longest_side, longest_side))  # keeps the aspect ratio and at least this size
        return np.array(image.convert("RGB"))
    return None


def _read(path: Path) -> bytes:
    try:
        data = as_on_disk(path).read_bytes()
    except OSError as error:
        raise file_error(path, error, "a photo") from error
    if not data:
        raise HardnetSfmError(f"{path}: the file is empty", "Copy it again, or take it out of the folder.")
    return data


def _decode(path: Path, data: bytes, mode: Literal["L", "RGB"]) -> NDArray[np.uint8]:
    try:
        pixels = decode(data, mode)
    except ValueError as error:
        raise HardnetSfmError(f"{path}: damaged: {error}", "Copy it again, or take it out of the folder.") from error
    except MemoryError as error:
        raise HardnetSfmError(
            f"{path}: not enough memory for its pixels", "Close other programs, or shrink the photo."
        ) from error
    if pixels is not None:
        return pixels
    if not CAN_READ_HEIC and data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        raise HardnetSfmError(f"{path}: a HEIC photo, which needs another package", HEIC_HINT)
    if is_truncated(data):
        what = "truncated or damaged: its end is missing, and it cannot be decoded without it"
        raise HardnetSfmError(f"{path}: {what}", "Copy it again, or take it out of the folder.")
    raise HardnetSfmError(
        f"{path}: not a photo that can be decoded, or damaged",
        "Convert it to JPEG or PNG, or take it out of the folder.",
    )


def sha256_of(path: Path) -> str:
    """Returns the hex sha256 of a file's bytes. It reads the file in blocks."""
    with as_on_disk(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
