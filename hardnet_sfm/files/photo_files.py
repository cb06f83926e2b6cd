"""Photos on disk: listing, decoding, EXIF orientation and fingerprints. This module never writes to a photo."""

from __future__ import annotations

import hashlib
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hardnet_sfm.errors import HardnetSfmError, file_error
from hardnet_sfm.photo_names import as_on_disk

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".webp")
_EXIF_ORIENTATION = 0x0112
_EXIF_MAKE, _EXIF_MODEL, _EXIF_DETAILS = 0x010F, 0x0110, 0x8769
_EXIF_FOCAL_LENGTH, _EXIF_FOCAL_LENGTH_35MM, _EXIF_DIGITAL_ZOOM, _EXIF_LENS = 0x920A, 0xA405, 0xA404, 0xA434

Affine2 = NDArray[np.float64]


@dataclass(frozen=True)
class Photo:
    """A decoded photo.

    Attributes:
        grey: (H, W) uint8, upright: EXIF orientation applied.
        orientation: the EXIF orientation tag, 1 to 8, that was applied.
        sha256: sha256 of the file's bytes.
    """

    grey: NDArray[np.uint8]
    orientation: int
    sha256: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright photo in pixels."""
        return self.grey.shape[1], self.grey.shape[0]


@dataclass(frozen=True)
class Lens:
    """The camera data in a photo file. Missing and invalid values are "" and 0.

    Attributes:
        make, model, lens: names of the manufacturer, the camera and the lens.
        focal_length: mm.
        focal_length_35mm: focal length that gives the same field of view on 35 mm film, mm.
        zoom: digital zoom.
    """

    make: str = ""
    model: str = ""
    lens: str = ""
    focal_length: float = 0.0
    focal_length_35mm: float = 0.0
    zoom: float = 0.0

    @property
    def knows_focal_length(self) -> bool:
        """Whether the file states a focal length."""
        return max(self.focal_length, self.focal_length_35mm) > 0


def list_photos(folder: Path) -> list[str]:
    """Lists the names of all photos below a folder: POSIX paths relative to it.

    The order is natural (img2 before img10). Files and folders whose name starts with a dot are skipped.

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
    return any(part.startswith(".") for part in path.parts)


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
        data = as_on_disk(path).read_bytes()
    except OSError as error:
        raise file_error(path, error, "a photo") from error
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


def upright(sensor: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Applies an EXIF orientation to the pixels as stored, (H, W) or (H, W, C)."""
    match orientation:
        case 2:
            turned = sensor[:, ::-1]
        case 3:
            turned = sensor[::-1, ::-1]
        case 4:
            turned = sensor[::-1]
        case 5:
            turned = sensor.swapaxes(0, 1)
        case 6:
            turned = sensor[::-1].swapaxes(0, 1)
        case 7:
            turned = sensor[::-1, ::-1].swapaxes(0, 1)
        case 8:
            turned = sensor[:, ::-1].swapaxes(0, 1)
        case _:
            turned = sensor
    return np.ascontiguousarray(turned)


def sensor_from_upright(orientation: int, size: tuple[int, int]) -> Affine2:
    """Returns the (2, 3) affine map from upright pixels to the pixels as stored in the file, centres at whole numbers.

    COLMAP reads the pixels as stored and ignores the EXIF orientation, so that portrait and landscape photos share one
    camera. Keypoints pass through this map on their way into a database.

    Args:
        orientation: EXIF orientation, 1 to 8.
        size: (width, height) of the upright photo, pixels.
    """
    right, bottom = size[0] - 1, size[1] - 1
    rows: dict[int, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
        1: ((1, 0, 0), (0, 1, 0)),
        2: ((-1, 0, right), (0, 1, 0)),
        3: ((-1, 0, right), (0, -1, bottom)),
        4: ((1, 0, 0), (0, -1, bottom)),
        5: ((0, 1, 0), (1, 0, 0)),
        6: ((0, 1, 0), (-1, 0, right)),
        7: ((0, -1, bottom), (-1, 0, right)),
        8: ((0, -1, bottom), (1, 0, 0)),
    }
    return np.array(rows[orientation], np.float64)


def resize_to_fit(grey: NDArray[np.uint8], longest_side: int) -> NDArray[np.uint8]:
    """Shrinks a photo by pixel-area averaging so that no side is longer than `longest_side` pixels.

    It never enlarges.
    """
    height, width = grey.shape[:2]
    factor = longest_side / max(height, width)
    if factor >= 1:
        return grey
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def sha256_of(path: Path) -> str:
    """Returns the hex sha256 of a file's bytes. It reads the file in blocks."""
    with as_on_disk(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
