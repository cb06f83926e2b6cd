"""Checks that the files of a binary COLMAP model are as long as their counts say.

COLMAP trusts the counts. On a damaged file it reads on behind its end, for hours or until memory is full.
The layout is that of COLMAP's `src/colmap/scene/reconstruction_io_binary.cc`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pycolmap

_POSE = 7 * 8  # a rotation as four and a translation as three float64
_SENSOR = 8  # type and number of a sensor


class _Cursor:
    """A position in the bytes of a file."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def skip(self, count: int) -> None:
        """Moves on by a number of bytes.

        Raises:
            ValueError: the file ends before.
        """
        self._at += count
        if not 0 <= self._at <= len(self._data):
            raise ValueError("it ends before all that it counts")

    def take(self, kind: str) -> int:
        """Reads a number, `I` (4 bytes) or `Q` (8 bytes)."""
        start = self._at
        self.skip(struct.calcsize(f"<{kind}"))
        return int(struct.unpack_from(f"<{kind}", self._data, start)[0])

    def skip_text(self) -> None:
        """Moves behind a text that ends with a zero."""
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise ValueError("a name has no end")
        self._at = end + 1


def _skip_camera(file: _Cursor) -> None:
    file.skip(4)
    model = pycolmap.CameraModelId(file.take("I"))
    file.skip(16)
    file.skip(8 * len(pycolmap.Camera.create_from_model_id(0, model, 1.0, 1, 1).params))


def _skip_rig(file: _Cursor) -> None:
    file.skip(4)
    sensors = file.take("I")
    file.skip(_SENSOR * min(sensors, 1))  # the first has the pose of the rig
    for _ in range(sensors - 1):
        file.skip(_SENSOR)
        has_pose = file.take("B")
        file.skip(_POSE * bool(has_pose))


def _skip_frame(file: _Cursor) -> None:
    file.skip(8 + _POSE)
    file.skip((_SENSOR + 8) * file.take("I"))


def _skip_image(file: _Cursor) -> None:
    file.skip(4 + _POSE + 4)
    file.skip_text()
    file.skip(24 * file.take("Q"))


def _skip_point(file: _Cursor) -> None:
    file.skip(8 + 3 * 8 + 3 + 8)
    file.skip(8 * file.take("Q"))


_ENTRIES: dict[str, Callable[[_Cursor], None]] = {
    "cameras.bin": _skip_camera,
    "rigs.bin": _skip_rig,
    "frames.bin": _skip_frame,
    "images.bin": _skip_image,
    "points3D.bin": _skip_point,
}


def check_binary_model(folder: Path) -> None:
    """Checks the counts in the binary files of a model. Files that are missing are not checked.

    Raises:
        ValueError: a file is shorter than its counts say.
        OSError: a file cannot be read.
    """
    for name, skip in _ENTRIES.items():
        path = folder / name
        if not path.is_file():
            continue
        file = _Cursor(path.read_bytes())
        try:
            for _ in range(file.take("Q")):
                skip(file)
        except (ValueError, TypeError) as error:  # pycolmap raises TypeError for an unknown camera model
            raise ValueError(f"{name}: {error}") from error
