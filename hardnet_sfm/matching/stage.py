"""The stage `match`: features.h5 and pairs.txt to matches.h5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.fingerprints import match_fingerprint, what_changed
from hardnet_sfm.images import sha256_of
from hardnet_sfm.keypoints import Matches
from hardnet_sfm.matching.again import Again, read_again
from hardnet_sfm.matching.pairs import Pair, read_pairs
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.stores import MATCHES, FeatureStore, MatchStore, StoreWriter, check_names_apart, match_arrays, pair_key
from hardnet_sfm.workers import in_order, torch_threads
from hardnet_sfm.workspace import digest, locked

if TYPE_CHECKING:  # torch takes seconds to import
    from hardnet_sfm.weights import LoadedNetwork

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
class MatchReport:
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


@dataclass(frozen=True)
class Retried:
    """What a second try made of a pair.

    Attributes:
        matches: of the pair.
        keypoints: how many the first photo has for them.
        view_steps: how many steps of synthetic views they are from; 0: none.
    """

    matches: Matches
    keypoints: int
    view_steps: int


class SecondTry(Protocol):
    """Looks again at pairs that were matched, see `hardnet_sfm.view_synthesis`.

    Attributes:
        recipe: everything that decides what comes of it, fit for JSON, beside the options of the matches.
        only_again: whether it looks at the pairs alone that `again` names for it.
    """

    only_again: bool

    @property
    def recipe(self) -> Mapping[str, Any]: ...

    def __call__(self, pair: Pair, found: Matches) -> Retried:
        """Called by several threads at once."""

    def keep(self, pair: Pair, view_steps: int) -> None:
        """Stores what matches of the pair refer to, if it is not; they are stored after that, or were before."""

    def finish(self) -> None:
        """Completes what `keep` has stored; the matches are completed after that."""


def match(
    features: Path | str,
    pairs: Path | str,
    matches: Path | str,
    options: MatchOptions | None = None,
    resources: Resources | None = None,
    *,
    images: Path | str | None = None,
    second_try: SecondTry | None = None,
    again: Path | None = None,
) -> MatchReport:
    """Finds mutual nearest neighbours between the descriptors of each pair of photos.

    With `rescore` in the options the few nearest are compared by a network instead, see
    `hardnet_sfm.matching.rescore.Rescorer`.

    Memory is bounded by 64 photos' descriptors (1.5 KB a keypoint), or 16 photos' patches (4 KB a keypoint), and, on
    each thread, a block of a similarity matrix.

    Args:
        features: store of the photos.
        pairs: list of pairs, as `pair` writes it.
        matches: the store to make or continue.
        options: which neighbours are believed.
        resources: how much of the machine.
        images: where the photos are, which a network for re-scoring needs; by default, where features were extracted.
        second_try: given the matches of each pair, has the last word on them.
        again: file of pairs beyond the list, for photos that a model of these matches left out; it need not exist.

    Raises:
        HardnetSfmError: a store or the list is missing or damaged, or was made for other photos; weights do not fit.
        UsageError: an option makes no sense.
    """
    from hardnet_sfm.networks.device import resolve_device

    options, resources = options or MatchOptions(), resources or Resources()
    options.check()
    features, pairs, matches = Path(features), Path(pairs), Path(matches)
    network = None
    if options.rescore is not None:
        from hardnet_sfm.matching.scorer import pair_network
        from hardnet_sfm.weights import load_network

        network = load_network(options.rescore)
        pair_network(network)
    with locked(matches.parent), FeatureStore(features) as store, StoreWriter(matches, MATCHES) as writer:
        check_names_apart(store.names())
        plain = options.recipe(store, network.sha256 if network else "")
        recipe = {**plain, **(second_try.recipe if second_try else {})}
        listed, made_from = read_pairs(pairs, store.names()), store.fingerprints()
        made_of = _made_of(plain, made_from, listed)
        more = read_again(again, made_of) if again else Again(made_of)
        wanted = [*listed, *more.pairs]
        with_views = set(() if not second_try else more.views if second_try.only_again else wanted)
        prints = {
            pair: match_fingerprint(recipe if pair in with_views else plain, *(made_from[name] for name in pair))
            for pair in wanted
        }
        due = [pair for pair in wanted if writer.fingerprints.get(pair_key(*pair)) != prints[pair]]
        reason = what_changed(writer.header, recipe) or f"{len(due)} pairs are new or have new features"
        if due:
            device, counts = resolve_device(resources.device), store.counts()
            if network is None:
                first_try, at_hand = _by_descriptors(store, options, device), _PHOTOS_AT_HAND
            else:
                first_try, at_hand = _by_network(store, network, options, device, images)

            def find(pair: Pair) -> Retried:
                found = first_try(pair)
                if second_try and pair in with_views:
                    return second_try(pair, found)
                return Retried(found, counts[pair[0]], 0)

            threads = resources.threads if device == "cpu" else 1
            ordered = _by_blocks(due, store.names(), at_hand)
            with (
                progress("match", len(wanted), len(wanted) - len(due)) as advance,
                torch_threads(threads) as pool,
                closing(in_order(pool, find, ordered, threads + 2)) as stream,
            ):
                for pair, future in stream:
                    found = future.result()
                    facts: dict[str, str | int] = {"name0": pair[0], "name1": pair[1], "matches": len(found.matches)}
                    if second_try and pair in with_views:
                        second_try.keep(pair, found.view_steps)
                        facts["view_steps"] = found.view_steps
                    writer.put(pair_key(*pair), prints[pair], match_arrays(found.matches, found.keypoints), facts)
                    advance(note=f"{pair[0]} {pair[1]}")
        if second_try:
            for pair in with_views:  # those of an earlier run, too, whose keypoints may have been deleted
                second_try.keep(pair, int(writer.facts[pair_key(*pair)]["view_steps"]))
            second_try.finish()
        header = {"options": recipe, "pairs": sha256_of(pairs), "made_of": made_of, "rounds": list(more.rounds)}
        writer.commit([pair_key(*pair) for pair in wanted], header)
    with MatchStore(matches) as result:
        total, by_views = result.total(), result.by_views() if second_try else None
    return MatchReport(len(wanted), total, len(due), reason if due else "", by_views)


def views_again(features: Path, pairs: Path, again: Path, options: MatchOptions) -> tuple[Pair, ...]:
    """Pairs that a file names for synthetic views; none where it was made for other features, pairs or options.

    Args:
        features, pairs, again: as for `match`.
        options: which neighbours are believed.
    """
    if options.rescore is not None or not again.is_file():
        return ()
    with FeatureStore(features) as store:
        made_of = _made_of(options.recipe(store), store.fingerprints(), read_pairs(pairs, store.names()))
    return read_again(again, made_of).views


def _made_of(recipe: Mapping[str, Any], features: Mapping[str, str], pairs: list[Pair]) -> str:
    return digest("matched", recipe, features, pairs)


def _by_descriptors(store: FeatureStore, options: MatchOptions, device: str) -> Callable[[Pair], Matches]:
    """Matches pairs by nearest neighbours."""
    from hardnet_sfm.matching.nearest import (
        Acceptance,
        PreparedDescriptors,
        mutual_nearest_neighbours,
        prepare,
        rounding_for,
    )

    counts, accept = store.counts(), Acceptance(options.ratio(store), options.max_distance)
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
    store: FeatureStore, network: LoadedNetwork, options: MatchOptions, device: str, images: Path | str | None
) -> tuple[Callable[[Pair], Matches], int]:
    """Matches pairs by a network's scores, and how many photos are kept ready."""
    from hardnet_sfm.matching.rescore import PHOTOS_AT_HAND, Rescorer

    rescore = Rescorer(
        store,
        Path(store.header["images"] if images is None else images),
        network,
        short_list=options.short_list,
        max_distance=options.max_distance,
        min_score=options.min_score,
        max_ratio=options.ratio(store),
        device=device,
    )
    return lambda pair: rescore(*pair), PHOTOS_AT_HAND


def _by_blocks(pairs: list[Pair], names: list[str], at_hand: int) -> list[Pair]:
    """Orders pairs so that half as many photos as are kept ready serve many pairs in turn."""
    block = {name: number // (at_hand // 2) for number, name in enumerate(names)}
    return sorted(pairs, key=lambda pair: sorted((block[pair[0]], block[pair[1]])))
