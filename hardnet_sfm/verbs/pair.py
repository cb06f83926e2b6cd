"""The command `pair`: which photos are matched with which, into pairs.txt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError, check_choice
from hardnet_sfm.files.pair_list import read_pairs, write_pairs
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import Workspace, locked
from hardnet_sfm.keypoints import PhotoPair
from hardnet_sfm.resources import Resources
from hardnet_sfm.stages import OnStage
from hardnet_sfm.terminal import Common, print_result
from hardnet_sfm.verbs.extract import extract

Pairing = Literal["auto", "exhaustive", "retrieval", "sequential", "file"]
AUTO_EXHAUSTIVE_PHOTOS = 200
_NEIGHBOURS = 20
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

    @property
    def neighbours(self) -> int:
        """For how many photos the index is asked for each."""
        return self.retrieval or _NEIGHBOURS

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
class PairResult:
    """What the stage did.

    Attributes:
        pairs: number of pairs in pairs.txt.
        photos: number of photos in the store.
        how: "exhaustive", "retrieval", "sequential" or "file".
    """

    pairs: int
    photos: int
    how: str

    def summary(self) -> str:
        """One line: what there is now."""
        return f"{self.pairs} pairs of {self.photos} photos ({self.how})"


def pair(
    features: Path | str, pairs: Path | str, options: PairOptions | None = None, proposed: Path | str | None = None
) -> PairResult:
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
        write_pairs(pairs, chosen)
    return PairResult(len(chosen), len(names), how)


def sequential(names: list[str], window: int, loop_interval: int) -> Iterator[PhotoPair]:
    """Each photo with the `window` that follow it; then the pairs of every `loop_interval`-th."""
    for number, name in enumerate(names):
        for other in names[number + 1 : number + 1 + window]:
            yield name, other
    if loop_interval:
        for first, second in combinations(range(0, len(names), loop_interval), 2):
            if second - first > window:
                yield names[first], names[second]


def propose_where_needed(
    place: Workspace, options: PairOptions, resources: Resources, on_stage: OnStage | None
) -> Path | None:
    """Has the index propose pairs where the options mean that, and returns their file."""
    with FeatureStore(place.features) as store:
        photos = len(store.names())
    if options.how(photos) != "retrieval":
        return None
    from hardnet_sfm.retrieval.neighbours import propose
    from hardnet_sfm.verbs.index import update_index

    with locked(place.root):
        update_index(place, resources=resources, on_stage=on_stage)
        result = propose(place.index, place.proposed, options.neighbours, resources)
        if on_stage:
            on_stage("propose", result)
    return place.proposed


@dataclass(frozen=True)
class PairCommand:
    """Choose which photos to match, into pairs.txt."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm pair photos/ --retrieval 20",
        "hardnet-sfm pair --pairing sequential --window 5",
    )

    images: Annotated[Path | None, Positional, arg(metavar="IMAGES")] = None
    """Folder of photos to extract features of, where the workspace has none yet."""
    common: Common = field(default_factory=Common)
    pair: PairOptions = field(default_factory=PairOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        place = self.common.place
        self.pair.check()
        if self.images is not None:
            place.check_apart(self.images)
        if self.images is not None and not place.features.is_file():
            print_result("extract", extract(self.images, place.features, resources=self.resources))
        proposed = propose_where_needed(place, self.pair, self.resources, print_result)
        print_result("pair", pair(place.features, place.pairs, self.pair, proposed))
