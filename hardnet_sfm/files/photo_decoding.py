"""Decodes photo files to 8-bit pixels as stored. The format is what the content says, whatever the file's name."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from hardnet_sfm.files.truncated_photos import complete, is_truncated

try:
    import pillow_heif
except ModuleNotFoundError:
    CAN_READ_HEIC = False
else:
    pillow_heif.register_heif_opener()
    CAN_READ_HEIC = True
CAN_READ_AVIF = bool(features.check("avif"))
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIC_HINT = "To read HEIC photos, run `pip install pillow-heif`, or export them as JPEG."

Mode = Literal["L", "RGB"]
Decoder = Callable[[bytes, Mode], "NDArray[np.uint8] | None"]

# Pillow warns above 89 megapixels and refuses above 179. `check_size` replaces that limit by one that photos keep to.
Image.MAX_IMAGE_PIXELS = None
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # where OpenCV fails, Pillow may not
# Pillow's remarks on odd metadata, which nobody at a terminal can act on.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
_LARGE = 179_000_000  # pixels
# An evenly black JPEG has about 60 pixels a byte, and photos have fewer than 50.
_MOST_PIXELS_A_BYTE = 1000
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112
_SHORT = 3
# The formats of Pillow that OpenCV decodes as well. It is faster.
_OPENCV_FIRST = ("JPEG", "MPO", "PNG", "BMP", "DIB", "PPM", "WEBP", "TIFF")
_JPEGS = ("JPEG", "MPO")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def decode(data: bytes, mode: Mode) -> NDArray[np.uint8] | None:
    """Decodes a photo to its pixels as stored, before EXIF orientation; None if it cannot be decoded.

    A JPEG, PNG or TIFF without its end is decoded as far as it goes. The rest is even grey or black. Other formats
    cannot be decoded without their end, nor can a TIFF that lists its pixels at its end. Animations give their first
    picture. 16-bit photos keep their upper 8 bits. Transparency is dropped. Numbers of 32 or 64 bits are scaled to use
    the range from 0 to 255.

    Args:
        data: contents of the file.
        mode: "L" gives (H, W) grey, "RGB" gives (H, W, 3).

    Raises:
        ValueError: the size in the file cannot be true.
        MemoryError: there is not enough memory for the pixels.
    """
    image = open_image(data)
    kind = "" if image is None or image.format is None else image.format
    if image is not None:
        check_size(image.size, len(data))
    truncated = is_truncated(data)
    if truncated and kind not in _JPEGS:
        whole = complete(data)
        if whole is None:
            return None
        data = whole
    if kind == "TIFF":
        data = _with_orientation_1(data)
    opencv_first = kind in _OPENCV_FIRST and not (image and kind == "TIFF" and image.mode in (*_WITH_ALPHA, "LAB"))
    decoders: tuple[Decoder, Decoder] = (_by_opencv, _by_pillow) if opencv_first else (_by_pillow, _by_opencv)
    for decoder in decoders:
        try:
            pixels = decoder(data, mode)
        except MemoryError:
            raise
        except Exception:  # a damaged file makes the decoders raise nearly everything
            continue
        if pixels is not None:
            only_head = truncated and (pixels == pixels.flat[0]).all()
            return None if only_head else pixels
    return None


def open_image(source: bytes | Path) -> Image.Image | None:
    """Reads the head of a photo file by Pillow; None if Pillow does not know the format or the head is damaged."""
    with contextlib.suppress(Exception):
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    return None


def check_size(size: tuple[int, int], length: int) -> None:
    """Raises ValueError if no photo with this many pixels fits into this many bytes.

    A damaged or hostile file may state a size whose pixels would fill the memory.
    """
    pixels = math.prod(size)
    if pixels > max(_LARGE, _MOST_PIXELS_A_BYTE * length):
        raise ValueError(f"it states {size[0]}x{size[1]} pixels in {length} bytes, which cannot be true")


def exif_orientation(source: bytes | Path) -> int:
    """Reads the EXIF orientation tag of a photo file; 1 (as stored) if it is missing or invalid."""
    image = open_image(source)
    value: Any = 1
    if image is not None:
        with image, contextlib.suppress(Exception):
            value = image.getexif().get(_ORIENTATION, 1)
    return int(value) if value in range(1, 9) else 1


def _by_opencv(data: bytes, mode: Mode) -> NDArray[np.uint8] | None:
    flags = cv2.IMREAD_GRAYSCALE if mode == "L" else cv2.IMREAD_COLOR_RGB
    packed = np.frombuffer(data, np.uint8)
    pixels: NDArray[Any] | None = cv2.imdecode(packed, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None and data.startswith(_TIFF):
        pixels = cv2.imdecode(packed, cv2.IMREAD_UNCHANGED)  # numbers of 32 or 64 bits
        if pixels is not None:
            rgb = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0]]
            return _in_mode(Image.fromarray(_in_8_bits(rgb)), mode)
    return None if pixels is None else np.asarray(pixels, np.uint8)


def _by_pillow(data: bytes, mode: Mode) -> NDArray[np.uint8] | None:
    image: Image.Image = Image.open(io.BytesIO((is_truncated(data) and complete(data)) or data))
    if image.format in _JPEGS:
        image.draft(mode, None)  # grey as stored, without a detour by RGB
    elif image.format == "TIFF":
        image.getexif()[_ORIENTATION] = 1  # Pillow would turn it, also for an orientation that XMP data state
    return _in_mode(image, mode)


def _in_mode(image: Image.Image, mode: Mode) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_in_8_bits(np.asarray(image)))
    elif image.mode == "LAB":
        image = ImageCms.applyTransform(image, _lab_to_rgb()) or image
    return np.array(image.convert(mode))


@cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _in_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scales numbers of any range to 0 to 255. One in a thousand may be cut off at either end, as outliers.

    Values that are not numbers become 0.
    """
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = np.quantile(numbers[finite], (0.001, 0.999))
    if low == high:
        high = low + 1
    scaled = (np.where(finite, numbers, low) - low) * (255 / (high - low))
    return np.asarray(np.round(scaled).clip(0, 255), np.uint8)


def _with_orientation_1(data: bytes) -> bytes:
    """Returns a TIFF whose first picture has the orientation 1, so that every library decodes it as stored.

    OpenCV 5.0 fails on other orientations, and Pillow turns the picture.
    """
    order = "<" if data.startswith(b"II") else ">"
    offset, count, size, values = (4, "H", 12, 8) if data[2:4] in (b"*\0", b"\0*") else (8, "Q", 20, 12)
    try:
        (start,) = struct.unpack_from(order + ("I" if offset == 4 else "Q"), data, offset)
        (entries,) = struct.unpack_from(order + count, data, start)
        for at in range(start + struct.calcsize(count), len(data) - size + 1, size)[:entries]:
            tag, kind = struct.unpack_from(order + "HH", data, at)
            if tag == _ORIENTATION and kind == _SHORT:
                changed = bytearray(data)
                struct.pack_into(order + "H", changed, at + values, 1)
                return bytes(changed)
    except struct.error:
        pass
    return data
