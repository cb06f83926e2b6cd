"""The stage `match`: features.h5 and pairs.txt to matches.h5."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.again import Again, read_again
from hardnet_sfm.files.fingerprints import match_fingerprint, what_changed
from hardnet_sfm.files.pair_list import read_pairs
from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.stores import (
    MATCHES,
    FeatureStore,
    MatchStore,
    StoreWriter,
    check_names_apart,
    match_arrays,
    pair_key,
)
from hardnet_sfm.files.workspace import Workspace, digest, locked
from hardnet_sfm.keypoints import Matches, PhotoPair
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import Common, print_result
from hardnet_sfm.view_synthesis import MatchedPair, ViewMatcher, ViewSynthesisOptions
from hardnet_sfm.workers import in_order, torch_threads

if TYPE_CHECKING:  # torch takes seconds to import
    from hardnet_sfm.matching.nearest import Acceptance
    from hardnet_sfm.networks.architectures import LoadedNetwork

# Photos whose descriptors are kept ready, 0.8 KB a keypoint in int8, 1.5 KB in float32: 0.8 GB at 8192 each at most.
_PHOTOS_AT_HAND = 64
_OF_RESCORING = ("short_list", "min_score")
_RATIO_OF_ODDS = 0.8


@dataclass(frozen=True)
class MatchOptions:
    """Which nearest neighbours are believed."""

    max_ratio: float | None = None
    """Largest ratio of the distances to the nearest and the second nearest neighbour, in both directions. 1: any. By
    default the descriptor recommends it: 0.9 for the shipped HardNet and for RootSIFT, 0.8 if its weights say
    nothing. Lower: fewer and safer matches."""
    max_distance: float = 2.0
    """Largest L2 distance of two descriptors, which are of unit length. 2: any."""
    rescore: Path | None = None
    """Weights of a network that compares patches (matchnet, deepcompare-2ch and its like), .safetensors: it scores each
    keypoint's nearest neighbours, and the best of both sides is the match; --max-ratio is then of the odds that it
    gives the next best. Slow: up to 10 evaluations a keypoint with the default short list, so two photos of 8192
    keypoints take 82 thousand. With deepcompare-2ch these are 3 TFLOP, 10 seconds on two cores; matchnet and
    deepcompare-siam need a third of that and a tenth for each photo, once, and then a second for a pair."""
    short_list: int = 5
    """Neighbours of each keypoint, by descriptor, that --rescore looks at; its cost grows with them."""
    min_score: float = 0.0
    """Smallest score of a match with --rescore, the logarithm of the odds that it is right. 0: even odds."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        if self.rescore is None:
            for of in fields(self):
                if of.name in _OF_RESCORING and getattr(self, of.name) != of.default:
                    raise UsageError(f"--{of.name.replace('_', '-')} has no effect without --rescore")
        if self.short_list < 1 or not abs(self.min_score) < float("inf"):
            raise UsageError("--short-list must be at least 1, and --min-score a number")
        for name, value, most in (("max-ratio", self.max_ratio, 1), ("max-distance", self.max_distance, 2)):
            if value is not None and not 0 < value <= most:
                raise UsageError(f"--{name} must be above 0 and at most {most}")

    def ratio(self, features: FeatureStore) -> float:
        """The given `max_ratio`, or the recommendation of the descriptor that made the features.

        The recommendation is about distances. With `rescore` the ratio is of odds, and its default is 0.8.
        """
        if self.max_ratio is not None:
            return self.max_ratio
        return features.max_ratio() if self.rescore is None else _RATIO_OF_ODDS

    def recipe(self, features: FeatureStore, rescore_sha256: str = "") -> dict[str, Any]:
        """Everything that decides what the matches of these features are, fit for JSON."""
        kept: dict[str, Any] = {"max_ratio": self.ratio(features), "max_distance": self.max_distance}
        if self.rescore is not None:
            kept |= {"rescore_sha256": rescore_sha256, **{name: getattr(self, name) for name in _OF_RESCORING}}
        return kept


@dataclass(frozen=True)
class MatchResult:
    """What the stage did.

    Attributes:
        pairs: number of pairs in the store.
        matches: of all of them together.
        computed: number of pairs done in this run; the others were up to date.
        reason: why any had to be computed, for people; empty where none.
        by_views: number of pairs whose matches are of synthetic views, too; None: no views were to be tried.
    """

    pairs: int
    matches: int
    computed: int
    reason: str = ""
    by_views: int | None = None

    def summary(self) -> str:
        """One line: what there is now, and what had to be computed for it."""
        views = "" if self.by_views is None else f", {self.by_views} of them with synthetic views"
        made = f"computed {self.computed} ({self.reason})" if self.computed else "up to date"
        return f"{self.matches} matches in {self.pairs} pairs{views}; {made}"


def check_together(match_options: MatchOptions, view_options: ViewSynthesisOptions) -> None:
    """Raises UsageError where options of matching make no sense, each by itself or together."""
    match_options.check()
    view_options.check()
    if view_options.view_synthesis and match_options.rescore is not None:
        raise UsageError(
            "--rescore and --view-synthesis cannot be combined: views are matched by the distances of descriptors",
            "Choose one of them.",
        )


def match_photos(
    workspace: Workspace | Path | str,
    match_options: MatchOptions | None = None,
    view_options: ViewSynthesisOptions | None = None,
    resources: Resources | None = None,
    *,
    images: Path | str | None = None,
    weights: Path | None = None,
) -> MatchResult:
    """Matches all pairs of a workspace, see `match`."""
    place = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    return match(
        place.features,
        place.pairs,
        place.matches,
        match_options,
        resources,
        view_options=view_options,
        images=images,
        weights=weights,
        again=place.again,
    )


def match(
    features: Path | str,
    pairs: Path | str,
    matches: Path | str,
    options: MatchOptions | None = None,
    resources: Resources | None = None,
    *,
    view_options: ViewSynthesisOptions | None = None,
    images: Path | str | None = None,
    weights: Path | None = None,
    again: Path | None = None,
) -> MatchResult:
    """Finds mutual nearest neighbours between the descriptors of each pair of photos.

    With `rescore` in the options the few nearest are compared by a network instead, see
    `hardnet_sfm.matching.rescore.Rescorer`. With `view_synthesis`, pairs with too few verified matches are matched with
    views of both photos, see `hardnet_sfm.view_synthesis`; their keypoints go into `keypoints-views.h5` next to the
    matches. A pair that has enough without views gets the same matches as without the option. A second run does what is
    left; neither it nor the number of threads changes the result.

    Memory is bounded by 64 photos' descriptors (1.5 KB a keypoint), or 16 photos' patches (4 KB a keypoint), and, on
    each thread, a block of a similarity matrix. Views take the descriptions of 8 photos in all their views, and of two
    more on each thread, 1.5 KB each at most; and on each thread a view while it is rendered.

    Args:
        features: store of the photos.
        pairs: list of pairs, as `pair` writes it.
        matches: the store to make or continue.
        options: which neighbours are believed, in photos and views alike.
        resources: how much of the machine.
        view_options: whether there are views, which, and how many matches are enough.
        images: folder of the photos, which views and a network for re-scoring need. Default: where features were
            extracted.
        weights: of the descriptor, which views need where photos were not described with those that come with the
            package.
        again: file of pairs beyond the list, and of pairs to match with views, for photos that a model of these matches
            left out; it need not exist.

    Raises:
        HardnetSfmError: a store or the list is missing or damaged, or was made for other photos; weights do not fit; a
            photo is gone or was changed since its features were extracted.
        UsageError: an option makes no sense.
    """
    from hardnet_sfm.networks.device import resolve_device

    options, view_options = options or MatchOptions(), view_options or ViewSynthesisOptions()
    resources = resources or Resources()
    check_together(options, view_options)
    features, pairs, matches = Path(features), Path(pairs), Path(matches)
    network = _read_network(options)
    with ExitStack() as stack:
        stack.enter_context(locked(matches.parent))
        store = stack.enter_context(FeatureStore(features))
        writer = stack.enter_context(StoreWriter(matches, MATCHES))
        check_names_apart(store.names())
        photos = Path(store.header["images"] if images is None else images)
        plain = options.recipe(store, network.sha256 if network else "")
        listed, made_from = read_pairs(pairs, store.names()), store.fingerprints()
        made_of = digest("matched", plain, made_from, listed)
        more = read_again(again, made_of) if again else Again(made_of)
        wanted = [*listed, *more.pairs]
        with_views = set(wanted if view_options.view_synthesis else () if network else more.views)
        views = None
        if with_views:
            place, accept = Workspace(matches.parent), _acceptance(options, store)
            matcher = ViewMatcher(store, photos, place, accept, view_options, resources, weights)
            views = stack.enter_context(matcher)
        recipe = {**plain, **(view_options.recipe() if views else {})}
        prints = {
            pair: match_fingerprint(recipe if pair in with_views else plain, *(made_from[name] for name in pair))
            for pair in wanted
        }
        due = [pair for pair in wanted if writer.fingerprints.get(pair_key(*pair)) != prints[pair]]
        reason = what_changed(writer.header, recipe) or f"{len(due)} pairs are new or have new features"
        if due:
            device, counts = resolve_device(resources.device), store.counts()
            if network is None:
                find_matches, at_hand = _by_descriptors(store, options, device), _PHOTOS_AT_HAND
            else:
                find_matches, at_hand = _by_network(store, network, options, device, photos)

            def match_one(pair: PhotoPair) -> MatchedPair:
                found = find_matches(pair)
                return views(pair, found) if views and pair in with_views else MatchedPair(found, counts[pair[0]])

            threads = resources.threads if device == "cpu" else 1
            ordered = _by_blocks(due, store.names(), at_hand)
            with (
                progress("match", len(wanted), len(wanted) - len(due)) as advance,
                torch_threads(threads) as pool,
                closing(in_order(pool, match_one, ordered, threads + 2)) as stream,
            ):
                for pair, future in stream:
                    found = future.result()
                    facts: dict[str, str | int] = {"name0": pair[0], "name1": pair[1], "matches": len(found.matches)}
                    if views and pair in with_views:
                        views.keep(pair, found.view_steps)
                        facts["view_steps"] = found.view_steps
                    writer.put(pair_key(*pair), prints[pair], match_arrays(found.matches, found.keypoints), facts)
                    advance(note=f"{pair[0]} {pair[1]}")
        if views:
            for pair in with_views:  # those of an earlier run, too, whose keypoints may have been deleted
                views.keep(pair, int(writer.facts[pair_key(*pair)]["view_steps"]))
            views.finish()
        header = {"options": recipe, "pairs": sha256_of(pairs), "made_of": made_of, "rounds": list(more.rounds)}
        writer.commit([pair_key(*pair) for pair in wanted], header)
    with MatchStore(matches) as result:
        total, by_views = result.total(), result.by_views() if views else None
    return MatchResult(len(wanted), total, len(due), reason if due else "", by_views)


def _read_network(options: MatchOptions) -> LoadedNetwork | None:
    """The network that compares patches, where the options have one."""
    if options.rescore is None:
        return None
    from hardnet_sfm.networks.loading import check_compares, load_network

    network = load_network(options.rescore)
    check_compares(network)
    return network


def _acceptance(options: MatchOptions, store: FeatureStore) -> Acceptance:
    from hardnet_sfm.matching.nearest import Acceptance

    return Acceptance(options.ratio(store), options.max_distance)


def _by_descriptors(store: FeatureStore, options: MatchOptions, device: str) -> Callable[[PhotoPair], Matches]:
    """Matches pairs by nearest neighbours."""
    from hardnet_sfm.matching.nearest import PreparedDescriptors, mutual_nearest_neighbours, prepare, rounding_for

    counts, accept = store.counts(), _acceptance(options, store)
    richest = max(counts, key=counts.__getitem__)
    rounding = rounding_for(store.descriptors(richest), device)

    @lru_cache(_PHOTOS_AT_HAND)
    def descriptors(name: str) -> PreparedDescriptors:
        rows = store.descriptors(name)
        if rows.shape[1] != len(rounding.centre):
            raise HardnetSfmError(
                f"{store.path}: descriptors of {richest} and {name} differ in length",
                "Delete the file and extract all photos with one descriptor.",
            )
        return prepare(rows, rounding)

    return lambda pair: mutual_nearest_neighbours(descriptors(pair[0]), descriptors(pair[1]), accept)


def _by_network(
    store: FeatureStore, network: LoadedNetwork, options: MatchOptions, device: str, images: Path
) -> tuple[Callable[[PhotoPair], Matches], int]:
    """Matches pairs by a network's scores, and how many photos are kept ready."""
    from hardnet_sfm.matching.rescore import PHOTOS_AT_HAND, Rescorer

    rescore = Rescorer(
        store,
        images,
        network,
        short_list=options.short_list,
        max_distance=options.max_distance,
        min_score=options.min_score,
        max_ratio=options.ratio(store),
        device=device,
    )
    return lambda pair: rescore(*pair), PHOTOS_AT_HAND


def _by_blocks(pairs: list[PhotoPair], names: list[str], at_hand: int) -> list[PhotoPair]:
    """Orders pairs so that half as many photos as are kept ready serve many pairs in turn."""
    block = {name: number // (at_hand // 2) for number, name in enumerate(names)}
    return sorted(pairs, key=lambda pair: sorted((block[pair[0]], block[pair[1]])))


@dataclass(frozen=True)
class MatchCommand:
    """Match descriptors of each pair, into matches.h5."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm match",
        "hardnet-sfm match --max-ratio 0.8",
        "hardnet-sfm match --rescore matchnet.safetensors --short-list 3",
        "hardnet-sfm match --view-synthesis --view-tilts 2 4 8",
    )

    common: Common = field(default_factory=Common)
    images: Path | None = None
    """With --rescore or --view-synthesis: where the photos are now, if no longer where features were extracted from."""
    match: MatchOptions = field(default_factory=MatchOptions)
    views: ViewSynthesisOptions = field(default_factory=ViewSynthesisOptions)
    weights: Path | None = None
    """--view-synthesis: weights of the descriptor, where photos were described with other ones than the package's."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        if self.images is not None and self.match.rescore is None and not self.views.view_synthesis:
            raise UsageError("--images has no effect without --rescore or --view-synthesis", "Leave it out.")
        if self.weights is not None and not self.views.view_synthesis:
            raise UsageError(
                "--weights has no effect without --view-synthesis",
                "Features are described by `hardnet-sfm extract`, which takes it.",
            )
        result = match_photos(
            self.common.place, self.match, self.views, self.resources, images=self.images, weights=self.weights
        )
        print_result("match", result)
