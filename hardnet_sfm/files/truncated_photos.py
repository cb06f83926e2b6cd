"""Photos whose end is missing: recognises them, and completes those whose decoders want a whole file."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_TIFF = (b"II*\0", b"MM\0*")
_OFFSETS, _LENGTHS = (273, 324), (279, 325)  # TIFF's tags of strips and of tiles
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's kind of colour
# Where the seven passes of an interlaced PNG start, and their steps: x, y, x step, y step.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MOST_BYTES_A_PIXEL = 16
_BLOCK = 4096


def is_truncated(source: bytes | Path) -> bool:
    """Says whether the end of a JPEG, PNG, TIFF or WebP photo is missing.

    A file that cannot be read or has another format counts as whole.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError:
        return False
    if data.startswith(_JPEG):
        return _lacks_end_of_jpeg(data)
    if data.startswith(_PNG):
        return b"IEND" not in data
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return 8 + int.from_bytes(data[4:8], "little") > len(data)
    return data.startswith(_TIFF) and _end_of_tiff(data) > len(data)


def complete(data: bytes) -> bytes | None:
    """Completes a truncated photo so that it can be decoded. Pixels that are missing become black.

    An interrupted copy may end in zeros, which are not taken for pixels.

    Returns:
        The file with all pixels; None if the format allows none without its end. A WebP does not, nor does a TIFF that
        lists its pixels at its end. Compressed pixels of a TIFF may still fail to decode.
    """
    if data.startswith(_JPEG):
        return data.rstrip(b"\0") + b"\xff\xd9"
    with contextlib.suppress(OSError, struct.error, ValueError, KeyError):
        if data.startswith(_PNG):
            return _complete_png(data)
        if data.startswith(_TIFF):
            return _complete_tiff(data)
    return None


def _lacks_end_of_jpeg(data: bytes) -> bool:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        at += 1 if marker == 0xFF else 2 + length
        if marker == 0xDA:  # the start of the first scan; compressed data has no end marker in it
            return data.find(b"\xff\xd9", at) < 0
    return False


def _end_of_tiff(data: bytes) -> int:
    """Returns where the list of tags or the last strip or tile of the first picture ends; 0 if it cannot be told."""
    start = int.from_bytes(data[4:8], "little" if data.startswith(b"II") else "big")
    if start + 2 > len(data):
        return start + 2
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:  # damaged tags raise nearly everything
        if isinstance(image, TiffImageFile):
            tags = image.tag_v2
            starts, lengths = ([n for tag in of for n in tags.get(tag, ())] for of in (_OFFSETS, _LENGTHS))
            return max((begin + length for begin, length in zip(starts, lengths, strict=False)), default=0)
    return 0


def _complete_tiff(data: bytes) -> bytes | None:
    missing = _end_of_tiff(data) - len(data)
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    return data + bytes(missing) if missing <= _MOST_BYTES_A_PIXEL * width * height else None


def _complete_png(data: bytes) -> bytes:
    """Unpacks the pixels as far as they go, fills up with zeros, and packs them again."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, len(_PNG) + 8)
    size = _bytes_of_pixels(width, height, depth * _CHANNELS[colour], bool(interlaced))
    head, packed = [_PNG], []
    for kind, chunk, content in _chunks(data):
        if kind == b"IDAT":
            packed.append(content)
        elif not packed:
            head.append(chunk)
    stream, unpacker, pixels = b"".join(packed).rstrip(b"\0"), zlib.decompressobj(), bytearray()
    with contextlib.suppress(zlib.error):
        for at in range(0, len(stream), _BLOCK):
            pixels += unpacker.decompress(stream[at : at + _BLOCK], size - len(pixels) + 1)
            if len(pixels) >= size:
                break
    pixels = pixels[:size] + bytes(size - len(pixels[:size]))
    return b"".join([*head, _chunk(b"IDAT", zlib.compress(pixels, 1)), _chunk(b"IEND", b"")])


def _bytes_of_pixels(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Returns the length of a PNG's unpacked pixels. Each row of each pass begins with a byte that says its filter."""
    total = 0
    for x, y, right, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((x - width) // right), -((y - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yields the kind of each chunk of a PNG, the whole chunk and its content. The last one may be incomplete."""
    at = len(_PNG)
    while at + 8 < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        yield data[at + 4 : at + 8], data[at:end], data[at + 8 : end - 4 if end <= len(data) else len(data)]
        at = end


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
