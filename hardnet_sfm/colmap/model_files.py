"""Finds what is wrong with the files of a COLMAP model that COLMAP cannot read. COLMAP names numbers, not files.

COLMAP trusts the counts in binary files. On a damaged file it reads on behind its end, for hours or until memory is
full. The layout is that of COLMAP's `src/colmap/scene/reconstruction_io_binary.cc`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pycolmap

_PARTS = ("cameras", "images", "points3D")
_ADDED = ("rigs", "frames")  # since COLMAP 3.12
_NAME = 9  # position of the name in the line of a photo
_POSE = 7 * 8  # a rotation as four and a translation as three float64
_SENSOR = 8  # type and number of a sensor


def find_damage(folder: Path) -> str:
    """Says in which file of a model what is wrong; empty if nothing is found.

    It finds missing and empty files, and in text models photos of a camera that is missing.

    Raises:
        OSError: a file may not be read.
    """
    suffix = ".bin" if (folder / "cameras.bin").is_file() else ".txt"
    for part in (*_PARTS, *_ADDED):
        path = folder / f"{part}{suffix}"
        if path.is_file():
            with path.open("rb") as file:  # raises an error if the file may not be read
                if not file.read(1) and suffix == ".bin":  # an empty points3D.txt means no points
                    return f"{path.name} is empty"
        elif part in _PARTS:
            return f"{path.name} is missing"
    return "" if suffix == ".bin" else _damage_of_text(folder)


def _damage_of_text(folder: Path) -> str:
    known = {line.split()[0] for line in _lines(folder / "cameras.txt")}
    lost: dict[str, list[str]] = {}
    for words in map(str.split, _lines(folder / "images.txt")):
        if _is_photo(words) and words[_NAME - 1] not in known:
            lost.setdefault(words[_NAME - 1], []).append(" ".join(words[_NAME:]))
    return "; ".join(
        f"camera {number} is missing in cameras.txt ({len(names)} photos use it, such as {names[0]})"
        for number, names in lost.items()
    )


def full_names(folder: Path) -> dict[int, str]:
    """Returns the name by number of each photo of a text model that has a space in its name; COLMAP cuts it there."""
    if (folder / "images.bin").is_file():
        return {}
    named = ((line.split(None, _NAME), line) for line in _lines(folder / "images.txt") if line.count(" ") > _NAME)
    return {int(words[0]): line.rstrip("\r\n").split(" ", _NAME)[_NAME] for words, line in named if _is_photo(words)}


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (line for line in file if line.strip() and not line.startswith("#"))


def _is_photo(words: list[str]) -> bool:
    """Says whether a line of images.txt describes a photo: number, 4 + 3 numbers of the pose, camera, name."""
    if len(words) <= _NAME or not (words[0].isdecimal() and words[_NAME - 1].isdecimal()):
        return False
    # A line of keypoints, x y point, has a number in the place of the name.
    return all(map(_is_number, words[1:_NAME])) and not _is_number(words[_NAME])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


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
