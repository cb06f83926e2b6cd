"""pairs.txt: the list of photo pairs to match, two names on each line, as hloc and COLMAP write them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.workspace import replacing
from hardnet_sfm.keypoints import PhotoPair


def write_pairs(path: Path, pairs: Iterable[PhotoPair]) -> None:
    """Writes a list of pairs, with a tab between names that contain a space. An unchanged list keeps its file."""
    pairs = list(pairs)
    # The file's modification time tells the user when the list was made.
    if not lists(path, pairs):
        with replacing(path) as beside:
            beside.write_text(_text(pairs), encoding="utf-8")


def lists(path: Path, pairs: Iterable[PhotoPair]) -> bool:
    """Says whether a file is what `write_pairs` would write."""
    return path.is_file() and path.read_bytes() == _text(pairs).encode()


def read_pairs(path: Path, names: list[str]) -> list[PhotoPair]:
    """Reads a list of pairs. It skips empty lines, lines that start with #, and repeated pairs in either order.

    Args:
        path: text file with two names on each line, separated by a tab or a space.
        names: names of the photos that have features.

    Raises:
        HardnetSfmError: the file is missing, holds no pair, or a line does not name two different known photos.
    """
    try:
        # `splitlines` would also split at characters that a file name may contain.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        hint = "Run `hardnet-sfm pair` first, or check --pairs-file."
        raise HardnetSfmError(f"cannot read the pairs file {path}: it does not exist", hint) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise HardnetSfmError(
            f"cannot read the pairs file {path}: {reason}",
            "It must be a text file with the names of two photos in each line, separated by a space.",
        ) from error
    known = set(names)
    pairs: dict[frozenset[str], PhotoPair] = {}
    for number, line in enumerate(lines, 1):
        pair = _parse(line.rstrip("\r"), known)
        if pair is not None:
            pairs.setdefault(frozenset(pair), pair)
        elif line.strip() and not line.startswith("#"):
            raise HardnetSfmError(
                f"{path}, line {number}: not the names of two different photos that have features: {line}",
                "Names are relative to the image folder.",
            )
    if not pairs:
        raise HardnetSfmError(
            f"{path}: no pairs in it", "Write the names of two photos in each line, separated by a space."
        )
    return list(pairs.values())


def _text(pairs: Iterable[PhotoPair]) -> str:
    return "".join(f"{_line(pair)}\n" for pair in pairs)


def _line(pair: PhotoPair) -> str:
    return ("\t" if {" ", "\t"} & set(pair[0] + pair[1]) else " ").join(pair)


def _parse(line: str, known: set[str]) -> PhotoPair | None:
    separator = "\t" if "\t" in line else " "
    words = line.split(separator)
    # If names contain the separator, split at the one that leaves two known names.
    for cut in range(1, len(words)):
        first, second = separator.join(words[:cut]), separator.join(words[cut:])
        for pair in ((first, second), (first.strip(), second.strip())):
            if pair[0] in known and pair[1] in known and pair[0] != pair[1]:
                return pair
    return None
