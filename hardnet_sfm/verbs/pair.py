"""The command `pair` chooses which photos to match with each other and writes pairs.txt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError, check_choice, check_least, refuse_without
from hardnet_sfm.files.ledger import Ledger
from hardnet_sfm.files.ownership import claim, replacing_output
from hardnet_sfm.files.pair_list import lists, read_pairs, write_pairs
from hardnet_sfm.files.photo_folders import list_photos
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import Workspace, locked, replacing
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
    """Which photos are matched with each other."""

    pairing: Pairing = "auto"
    """How pairs are chosen. exhaustive: each photo with all others. retrieval: each photo with its most similar photos.
    sequential: each photo with the next ones in the order of their names. file: the pairs in --pairs-file. auto:
    exhaustive up to 200 photos, retrieval for more."""
    retrieval: int | None = None
    """Match each photo with this many of its most similar photos. Implies --pairing retrieval. Default 20."""
    window: int | None = None
    """With --pairing sequential: match each photo with this many of the next photos. Default 10."""
    loop_interval: int | None = None
    """With --pairing sequential: take one photo in this many, and match all of these with each other to close loops. 0
    does not close loops. Default 10."""
    pairs_file: Path | None = None
    """Text file with the names of two photos in each line, as hloc and COLMAP write it. Implies --pairing file."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid or has no effect."""
        check_choice("pairing", self.pairing, Pairing)
        if self.pairing == "file" and self.pairs_file is None:
            raise UsageError(
                "--pairing file needs --pairs-file FILE", "The file has the names of two photos in each line."
            )
        if self.pairs_file is not None and self.pairing not in ("auto", "file"):
            raise UsageError(
                f"--pairs-file has no effect with --pairing {self.pairing}",
                "Use --pairing file to match the pairs of a file.",
            )
        if self.retrieval is not None and (self.pairing not in ("auto", "retrieval") or self.pairs_file is not None):
            raise UsageError(
                "--retrieval has no effect without --pairing retrieval",
                "Leave out --pairing and --pairs-file, or --retrieval.",
            )
        if self.pairing != "sequential" or self.pairs_file is not None:
            refuse_without(self, ("window", "loop_interval"), "--pairing sequential")
        check_least(self, retrieval=1, window=1, loop_interval=0)

    @property
    def neighbours(self) -> int:
        """Number of similar photos that the index proposes for each photo."""
        return self.retrieval or _NEIGHBOURS

    def how(self, photos: int) -> Pairing:
        """Returns the pairing that these options mean for a number of photos. It is never auto."""
        if self.pairs_file is not None:
            return "file"
        if self.retrieval is not None:
            return "retrieval"
        if self.pairing == "auto":
            return "exhaustive" if photos <= AUTO_EXHAUSTIVE_PHOTOS else "retrieval"
        return self.pairing


@dataclass(frozen=True)
class PairResult:
    """Result of the stage.

    Attributes:
        pairs: number of pairs in pairs.txt.
        photos: number of photos in the store.
        how: how pairs were chosen: "exhaustive", "retrieval", "sequential" or "file".
        skipped: lines of the user's list that were left out, and why.
    """

    pairs: int
    photos: int
    how: str
    skipped: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line about the chosen pairs."""
        return f"{self.pairs} pairs of {self.photos} photos ({self.how})"


def pair(
    features: Path | str, pairs: Path | str, options: PairOptions | None = None, proposed: Path | str | None = None
) -> PairResult:
    """Writes the list of pairs to match.

    Args:
        features: store with the features of the photos.
        pairs: text file to create, with two names a line. A space separates the names, or a tab if a name contains a
            space.
        options: how to choose pairs. None means the options that the workspace remembers, or the defaults.
        proposed: file of pairs of similar photos, as `propose` writes it.

    Raises:
        HardnetSfmError: fewer than two photos have features, or the pairs file is missing, is empty or names only
            unknown photos.
        UsageError: the options contradict each other, or pairing by retrieval has no proposed pairs.
    """
    features, pairs = Path(features), Path(pairs)
    ledger = Ledger(pairs.parent)
    options = options or ledger.recall("pair", PairOptions) or PairOptions()
    options.check()
    with FeatureStore(features) as store:
        names = store.names()
    if len(names) < 2:
        raise HardnetSfmError(
            f"{features}: features of only {len(names)} photo, but a pair needs two", "Add more photos and run again."
        )
    how = options.how(len(names))
    skipped: dict[str, str] = {}
    if how == "file":
        assert options.pairs_file is not None
        listed = read_pairs(options.pairs_file, names)
        chosen, skipped = listed.pairs, listed.skipped()
    elif how == "retrieval":
        if proposed is None:
            raise UsageError(
                f"retrieval of pairs for {len(names)} photos needs proposed pairs",
                "Use `hardnet-sfm pair` or `reconstruct`, which make them, or --pairing sequential.",
            )
        chosen = read_pairs(Path(proposed), names).pairs
    elif how == "sequential":
        window = _WINDOW if options.window is None else options.window
        loop = _LOOP_INTERVAL if options.loop_interval is None else options.loop_interval
        chosen = list(sequential(names, window, loop))
    else:
        chosen = list(combinations(names, 2))
    with locked(pairs.parent):
        # A list in its own place is not written anew: it may have comments of its author.
        own = how == "file" and options.pairs_file is not None and options.pairs_file.resolve() == pairs.resolve()
        if not own and not lists(pairs, chosen):
            with replacing_output(ledger, pairs.name):
                write_pairs(pairs, chosen)
        ledger.remember("pair", options)
    return PairResult(len(chosen), len(names), how, skipped)


def sequential(names: list[str], window: int, loop_interval: int) -> Iterator[PhotoPair]:
    """Pairs each photo with the next `window` photos; then pairs every `loop_interval`-th photo with each other."""
    for number, name in enumerate(names):
        for other in names[number + 1 : number + 1 + window]:
            yield name, other
    if loop_interval:
        for first, second in combinations(range(0, len(names), loop_interval), 2):
            if second - first > window:
                yield names[first], names[second]


@dataclass(frozen=True)
class ProposeResult:
    """The result of the stage: the number of photos and of pairs."""

    photos: int
    pairs: int

    def summary(self) -> str:
        """Says in one line what was found."""
        return f"{self.pairs} pairs of {self.photos} photos look alike"


def propose(
    index: Path | str, output: Path | str, neighbours: int, resources: Resources | None = None
) -> ProposeResult:
    """Writes pairs of each photo and the photos that score best for it by Hamming embedding, each pair once.

    All n photos are searched for again, also if only k are new. A new photo may be among the most similar ones of any
    other photo, and it changes the weights of the words. So this stage takes n searches, each as long as one of
    `retrieve` without detection. Keeping earlier pairs would make them depend on the order in which photos came.

    Args:
        index: folder of the index.
        output: text file to make, with two names on each line, separated by a tab.
        neighbours: number of photos for each photo. It can get more partners, as other photos may choose it too.
        resources: how much of the machine to use.

    Raises:
        HardnetSfmError: the index is missing or damaged.
        UsageError: `neighbours` is less than 1.
    """
    from hardnet_sfm.index_folder import open_index
    from hardnet_sfm.retrieval.search import most_alike

    if neighbours < 1:
        raise UsageError("--retrieval must be at least 1")
    output, pairs, photos = Path(output), set[PhotoPair](), 0
    for name, others in most_alike(open_index(Path(index), resources).lists, None, neighbours):
        photos += 1
        pairs.update((min(name, other), max(name, other)) for other in others)
    with locked(output.parent), replacing(output) as beside:
        beside.write_text("".join(f"{first}\t{second}\n" for first, second in sorted(pairs)), encoding="utf-8")
    return ProposeResult(photos, len(pairs))


def propose_where_needed(
    place: Workspace, options: PairOptions, resources: Resources, on_stage: OnStage
) -> Path | None:
    """Lets the index propose pairs if the options choose pairing by retrieval, and returns the file of pairs."""
    with FeatureStore(place.features) as store:
        photos = len(store.names())
    if options.how(photos) != "retrieval":
        return None
    from hardnet_sfm.verbs.index import update_index

    claim(place.root, place.proposed.name)
    with locked(place.root):
        update_index(place, resources=resources, on_stage=on_stage)
        result = propose(place.index, place.proposed, options.neighbours, resources)
        on_stage("propose", result)
    return place.proposed


@dataclass(frozen=True)
class PairCommand:
    """Options of `hardnet-sfm pair`.

    Examples:
        hardnet-sfm pair photos/ --retrieval 20
        hardnet-sfm pair --pairing sequential --window 5
    """

    images: Annotated[Path | None, Positional, arg(metavar="IMAGES")] = None
    """Folder of photos to extract features from, if the workspace has no features yet."""
    common: Common = field(default_factory=Common)
    pair: PairOptions = field(default_factory=PairOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        place = self.common.place
        self.pair.check()
        listed = None
        if self.images is not None:
            place.check_apart(self.images)
            listed = list_photos(self.images)
        claim(place.root, place.features.name)
        if self.images is not None and not place.features.is_file():
            extracted = extract(self.images, place.features, resources=self.resources, listed=listed)
            print_result("extract", extracted)
        proposed = propose_where_needed(place, self.pair, self.resources, print_result)
        print_result("pair", pair(place.features, place.pairs, self.pair, proposed))
