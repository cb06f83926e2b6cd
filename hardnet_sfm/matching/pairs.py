"""Which photos are matched with which: the stage `pair`, and pairs.txt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from hardnet_sfm.errors import HardnetSfmError, UsageError, check_choice
from hardnet_sfm.stores import FeatureStore
from hardnet_sfm.workspace import locked, replacing

Pair = tuple[str, str]
Pairing = Literal["auto", "exhaustive", "retrieval", "sequential", "file"]
AUTO_EXHAUSTIVE_PHOTOS = 200
NEIGHBOURS = 20
_WINDOW = 10
_LOOP_INTERVAL = 10


@dataclass(frozen=True)
class PairOptions:
    """Which photos are matched with which."""

    pairing: Pairing = "auto"
    """exhaustive: all with all. retrieval: each with those that look most alike. sequential: each with those that
    follow it in the order of their names. file: those of --pairs-file. auto: exhaustive up to 200 photos, beyond that
    retrieval."""
    retrieval: int | None = None
    """With how many of the photos that look most alike each is matched. Implies --pairing retrieval. Default 20."""
    window: int | None = None
    """sequential: how many of the following photos each is matched with. Default 10."""
    loop_interval: int | None = None
    """sequential: every so many photos one is matched with all others of that interval, to close loops. 0: none.
    Default 10."""
    pairs_file: Path | None = None
    """Names of two photos a line, as hloc and COLMAP write them. Implies --pairing file."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense or has no effect."""
        check_choice("pairing", self.pairing, Pairing)
        if self.pairing == "file" and self.pairs_file is None:
            raise UsageError("--pairing file needs --pairs-file FILE", "It has two names of photos a line.")
        if self.pairs_file is not None and self.pairing not in ("auto", "file"):
            raise UsageError(
                f"--pairs-file has no effect with --pairing {self.pairing}",
                "Say --pairing file to match the pairs of a file.",
            )
        if self.retrieval is not None and (self.pairing not in ("auto", "retrieval") or self.pairs_file is not None):
            raise UsageError(
                "--retrieval has no effect without --pairing retrieval",
                "Leave out --pairing and --pairs-file, or --retrieval.",
            )
        if self.retrieval is not None and self.retrieval < 1:
            raise UsageError("--retrieval must be at least 1")
        for name, value, least in (("window", self.window, 1), ("loop-interval", self.loop_interval, 0)):
            if value is not None and (self.pairing != "sequential" or self.pairs_file is not None):
                raise UsageError(
                    f"--{name} has no effect without --pairing sequential", "Add --pairing sequential, or leave it out."
                )
            if value is not None and value < least:
                raise UsageError(f"--{name} must be at least {least}")

    def how(self, photos: int) -> Pairing:
        """Which pairing these options mean for a number of photos; never auto."""
        if self.pairs_file is not None:
            return "file"
        if self.retrieval is not None:
            return "retrieval"
        if self.pairing == "auto":
            return "exhaustive" if photos <= AUTO_EXHAUSTIVE_PHOTOS else "retrieval"
        return self.pairing


@dataclass(frozen=True)
class PairReport:
    """What the stage did.

    Attributes:
        pairs: number of pairs in pairs.txt.
        photos: number of photos in the store.
        how: "exhaustive", "retrieval", "sequential" or "file".
    """

    pairs: int
    photos: int
    how: str


def pair(
    features: Path | str, pairs: Path | str, options: PairOptions | None = None, proposed: Path | str | None = None
) -> PairReport:
    """Writes the list of pairs to match.

    Args:
        features: store of the photos.
        pairs: text file to make: two names a line, separated by a space, or by a tab where a name has a space in it.
        options: which.
        proposed: pairs of photos that look alike, as `retrieval.neighbours.propose` writes them.

    Raises:
        HardnetSfmError: fewer than two photos have features; the pairs file is missing, empty or names unknown photos.
        UsageError: contradictory options.
    """
    options = options or PairOptions()
    options.check()
    features, pairs = Path(features), Path(pairs)
    with FeatureStore(features) as store:
        names = store.names()
    if len(names) < 2:
        raise HardnetSfmError(
            f"{features}: features of {len(names)} photo only, and a pair takes two", "Add more photos and run again."
        )
    how = options.how(len(names))
    if how == "file":
        assert options.pairs_file is not None
        chosen = read_pairs(options.pairs_file, names)
    elif how == "retrieval":
        if proposed is None:
            raise UsageError(
                f"{len(names)} photos are paired by retrieval, which takes proposed pairs",
                "Use `hardnet-sfm pair` or `reconstruct`, which make them, or --pairing sequential.",
            )
        chosen = read_pairs(Path(proposed), names)
    elif how == "sequential":
        window = _WINDOW if options.window is None else options.window
        loop = _LOOP_INTERVAL if options.loop_interval is None else options.loop_interval
        chosen = list(sequential(names, window, loop))
    else:
        chosen = list(combinations(names, 2))
    with locked(pairs.parent):
        text = "".join(f"{_line(pair)}\n" for pair in chosen)
        # An unchanged list keeps its file, whose time tells people when it was made.
        if not pairs.is_file() or pairs.read_text(encoding="utf-8") != text:
            with replacing(pairs) as beside:
                beside.write_text(text, encoding="utf-8")
    return PairReport(len(chosen), len(names), how)


def sequential(names: list[str], window: int, loop_interval: int) -> Iterator[Pair]:
    """Each photo with the `window` that follow it; then the pairs of every `loop_interval`-th."""
    for number, name in enumerate(names):
        for other in names[number + 1 : number + 1 + window]:
            yield name, other
    if loop_interval:
        for first, second in combinations(range(0, len(names), loop_interval), 2):
            if second - first > window:
                yield names[first], names[second]


def read_pairs(path: Path, names: list[str]) -> list[Pair]:
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
    pairs: dict[frozenset[str], Pair] = {}
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


def _line(pair: Pair) -> str:
    return ("\t" if {" ", "\t"} & set(pair[0] + pair[1]) else " ").join(pair)


def _parse(line: str, known: set[str]) -> Pair | None:
    separator = "\t" if "\t" in line else " "
    words = line.split(separator)
    # Where names have the separator in them, the separating one is that which leaves two known names.
    for cut in range(1, len(words)):
        first, second = separator.join(words[:cut]), separator.join(words[cut:])
        for pair in ((first, second), (first.strip(), second.strip())):
            if pair[0] in known and pair[1] in known and pair[0] != pair[1]:
                return pair
    return None
