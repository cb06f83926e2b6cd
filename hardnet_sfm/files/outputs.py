"""Pages and pictures that a person asks for by name, and the mark in a page that tells what it was made from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hardnet_sfm.errors import UsageError
from hardnet_sfm.files.ownership import SOFTWARE, SOFTWARE_TAG, check_output
from hardnet_sfm.files.workspace import replacing

PAGES = (".html", ".htm")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_HEAD = 4096  # number of characters at the beginning of a page that contain its mark


def check_page(target: Path) -> None:
    """Checks that a page can be written.

    Raises:
        HardnetSfmError: a file is there that this package did not make.
        UsageError: its name is not that of a page, or its folder is missing.
    """
    if target.suffix.lower() not in PAGES:
        raise UsageError(f"{target}: not a page", "Give it a name that ends in .html.")
    check_target(target)


def check_picture(target: Path) -> None:
    """Checks that a picture can be written.

    Raises:
        HardnetSfmError: a file is there that this package did not make.
        UsageError: its format is unknown, or its folder is missing.
    """
    if target.suffix.lower() not in PICTURES:
        raise UsageError(
            f"{target}: not a picture format that can be written",
            f"Its name must end in one of {', '.join(PICTURES)}.",
        )
    check_target(target)


def check_target(target: Path) -> None:
    """Checks that a file can be written.

    Raises:
        UsageError: its folder does not exist, or it is itself a folder.
        HardnetSfmError: a file of this name is there, and this package did not make it.
    """
    if target.is_dir():
        raise UsageError(f"{target} is a folder", "Give the name of a file.")
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {target}: no such folder: {target.parent}", "Make the folder first.")
    check_output(target)


def write_page(target: Path, html: str) -> None:
    """Writes a page, complete or not at all.

    Raises:
        HardnetSfmError: the file cannot be written, or a file is there that this package did not make.
    """
    _write(target, html.encode("utf-8"))


def write_picture(target: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes a picture of (H, W) grey or (H, W, 3) RGB pixels, complete or not at all.

    Raises:
        HardnetSfmError: the file cannot be written, or a file is there that this package did not make.
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if target.suffix.lower() in (".jpg", ".jpeg") else []
    stored = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _write(target, _encode_picture(target.suffix, stored, quality))


def _encode_picture(suffix: str, pixels: NDArray[Any], parameters: list[int]) -> bytes:
    """Encodes a picture, (H, W) grey or (H, W, 3) BGR uint8, with a mark by which `check_output` recognises it.

    Args:
        suffix: .png, .jpg, .jpeg or .webp.
        pixels: the picture.
        parameters: parameters of OpenCV's encoder.
    """
    tags = Image.Exif()
    tags[SOFTWARE_TAG] = SOFTWARE
    exif = np.frombuffer(tags.tobytes(), np.uint8)
    _, packed = cv2.imencodeWithMetadata(suffix, pixels, [cv2.IMAGE_METADATA_EXIF], [exif], parameters)
    return packed.tobytes()


def _write(target: Path, content: bytes) -> None:
    check_output(target)
    with replacing(target) as beside:
        beside.write_bytes(content)


def read_mark(path: Path) -> str:
    """Returns the mark of a page, or an empty text if there is no page or it has no mark."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        found = re.search(r'<meta name="made-of" content="([0-9a-f]+)">', file.read(_HEAD))
    return found[1] if found else ""
