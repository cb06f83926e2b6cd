"""pairs.txt: the list of photo pairs to match, two names on each line, as hloc and COLMAP write them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError, file_error, list_some
from hardnet_sfm.files.workspace import replacing
from hardnet_sfm.keypoints import PhotoPair
from hardnet_sfm.photo_names import KnownNames

_FORMAT = "It must be a text file with the names of two photos in each line, separated by a space or a tab."


def write_pairs(path: Path, pairs: Iterable[PhotoPair]) -> Path:
    """Writes a list of pairs, with a tab between names that contain a space. An unchanged list keeps its file.

    Returns:
        The path of the list.
    """
    pairs = list(pairs)
    # The file's modification time tells the user when the list was made.
    if not lists(path, pairs):
        with replacing(path) as beside:
            beside.write_text(_text(pairs), encoding="utf-8")
    return path


def lists(path: Path, pairs: Iterable[PhotoPair]) -> bool:
    """Says whether a file is what `write_pairs` would write."""
    return path.is_file() and path.read_bytes() == _text(pairs).encode()


@dataclass(frozen=True)
class PairList:
    """Pairs from a file.

    Attributes:
        path: path of the file.
        pairs: pairs of known photos, in the spelling of the known names.
        bad_lines: by number, the lines that do not name two different known photos.
    """

    path: Path
    pairs: list[PhotoPair]
    bad_lines: dict[int, str]

    def skipped(self) -> dict[str, str]:
        """Returns what was left out and why, for messages: by path of the file, empty if nothing was."""
        if not self.bad_lines:
            return {}
        count, total = len(self.bad_lines), len(self.bad_lines) + len(self.pairs)
        named = list_some([f"line {number}: {line}" for number, line in self.bad_lines.items()], "; ")
        lines = f"{count} of {total} lines do" if count > 1 else f"1 of {total} lines does"
        why = f"{lines} not name two different photos that have features ({named})"
        return {str(self.path): f"{self.path}: {why}"}


def read_pairs(path: Path, names: list[str]) -> PairList:
    """Reads a list of pairs. It skips empty lines, lines that start with #, and repeated pairs in either order.

    Lower bound: the file is read as a whole, some microseconds a line.

    A line with an unknown name is left out and noted. Composed and decomposed spellings of a name are the same.

    Args:
        path: text file with two names on each line, separated by a tab or a space.
        names: names of the photos that have features.

    Raises:
        HardnetSfmError: the file is missing or unreadable, or no line names two different known photos.
    """
    try:
        # `splitlines` would also split at characters that a file name may contain.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        hint = "Run `hardnet-sfm pair` first, or check --pairs-file."
        raise HardnetSfmError(f"cannot read the pairs file {path}: it does not exist", hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise file_error(path, error, "a text file in UTF-8", _FORMAT) from error
    known = KnownNames(names)
    pairs: dict[frozenset[str], PhotoPair] = {}
    bad_lines: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        pair = _parse(line.rstrip("\r"), known)
        if pair is not None:
            pairs.setdefault(frozenset(pair), pair)
        elif line.strip() and not line.startswith("#"):
            bad_lines[number] = line.strip()
    found = PairList(path, list(pairs.values()), bad_lines)
    if not pairs and bad_lines:
        raise HardnetSfmError(found.skipped()[str(path)], "Names are relative to the image folder.")
    if not pairs:
        raise HardnetSfmError(f"{path}: no pairs in it", _FORMAT)
    return found


def _text(pairs: Iterable[PhotoPair]) -> str:
    return "".join(f"{_line(pair)}\n" for pair in pairs)


def _line(pair: PhotoPair) -> str:
    return ("\t" if any(mark in name for name in pair for mark in " \t") else " ").join(pair)


def _parse(line: str, known: KnownNames) -> PhotoPair | None:
    separator = "\t" if "\t" in line else " "
    words = line.split(separator)
    if len(words) == 2 and words[0] in known and words[1] in known and words[0] != words[1]:  # nearly all lines
        return words[0], words[1]
    # If names contain the separator, split at the one that leaves two known names.
    for cut in range(1, len(words)):
        first, second = separator.join(words[:cut]), separator.join(words[cut:])
        for one, other in ((first, second), (first.strip(), second.strip())):
            pair = known.find(one), known.find(other)
            if pair[0] is not None and pair[1] is not None and pair[0] != pair[1]:
                return pair[0], pair[1]
    return None
