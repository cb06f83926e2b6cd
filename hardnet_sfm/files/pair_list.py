"""pairs.txt: which photos are matched with which, two names a line, as hloc and COLMAP write them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.workspace import replacing
from hardnet_sfm.keypoints import PhotoPair


def write_pairs(path: Path, pairs: Iterable[PhotoPair]) -> None:
    """Writes a list of pairs, with a tab between names that have a space in them. An unchanged list keeps its file."""
    text = "".join(f"{_line(pair)}\n" for pair in pairs)
    # The file's time tells people when the list was made.
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with replacing(path) as beside:
            beside.write_text(text, encoding="utf-8")


def read_pairs(path: Path, names: list[str]) -> list[PhotoPair]:
    """Reads a list of pairs; empty lines, lines that start with # and repetitions, in either order, are passed over.

    Args:
        path: text file, two names a line separated by a tab or a space.
        names: of the photos that there are.

    Raises:
        HardnetSfmError: the file is missing, holds no pair, or a line does not name two different known photos.
    """
    try:
        # Not `splitlines`, which also cuts at characters that a file name may have in it.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        hint = "Run `hardnet-sfm pair` first, or check --pairs-file."
        raise HardnetSfmError(f"cannot read the pairs file {path}: it does not exist", hint) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise HardnetSfmError(
            f"cannot read the pairs file {path}: {reason}",
            "It is a text: two names of photos a line, with a space between them.",
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
            f"{path}: no pairs in it", "It wants two names of photos a line, with a space between them."
        )
    return list(pairs.values())


def _line(pair: PhotoPair) -> str:
    return ("\t" if {" ", "\t"} & set(pair[0] + pair[1]) else " ").join(pair)


def _parse(line: str, known: set[str]) -> PhotoPair | None:
    separator = "\t" if "\t" in line else " "
    words = line.split(separator)
    # Where names have the separator in them, the separating one is that which leaves two known names.
    for cut in range(1, len(words)):
        first, second = separator.join(words[:cut]), separator.join(words[cut:])
        for pair in ((first, second), (first.strip(), second.strip())):
            if pair[0] in known and pair[1] in known and pair[0] != pair[1]:
                return pair
    return None
