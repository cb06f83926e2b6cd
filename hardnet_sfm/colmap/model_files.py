"""Finds what is wrong with the files of a COLMAP model that COLMAP cannot read. COLMAP names numbers, not files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_PARTS = ("cameras", "images", "points3D")
_ADDED = ("rigs", "frames")  # since COLMAP 3.12
_NAME = 9  # position of the name in the line of a photo


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
