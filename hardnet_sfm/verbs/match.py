"""The command `match` matches the descriptors of the listed pairs and writes matches.h5."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardnet_sfm.errors import UsageError, refuse_without
from hardnet_sfm.files.again import Again, Round, read_again
from hardnet_sfm.files.fingerprints import match_fingerprints, what_changed
from hardnet_sfm.files.journal import Facts
from hardnet_sfm.files.ledger import Ledger, say_again
from hardnet_sfm.files.ownership import claim
from hardnet_sfm.files.pair_list import read_pairs
from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import KEYPOINTS, MATCHES, FeatureStore, check_names_apart, match_arrays, pair_key
from hardnet_sfm.files.workspace import Workspace, digest, locked
from hardnet_sfm.keypoints import PhotoPair
from hardnet_sfm.pair_matching import FindMatches, match_by_descriptors, match_by_network, order_by_blocks
from hardnet_sfm.progress import console, progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import Common, print_result
from hardnet_sfm.view_synthesis import MatchedPair, PhotoViews, ViewMatcher, ViewSynthesisOptions
from hardnet_sfm.workers import threaded, torch_threads

if TYPE_CHECKING:  # torch takes seconds to import
    from hardnet_sfm.matching.nearest import Acceptance
    from hardnet_sfm.matching.rescore import Rules
    from hardnet_sfm.networks.architectures import LoadedNetwork

_OF_RESCORING = ("short_list", "min_score")
_RATIO_OF_ODDS = 0.8


@dataclass(frozen=True)
class MatchOptions:
    """Which nearest neighbours count as matches."""

    max_ratio: float | None = None
    """Largest ratio of the distances to the nearest and to the second nearest neighbour, in both directions. Lower it
    for fewer and safer matches; 1 accepts any ratio. Default: what the descriptor recommends, which is 0.9 for the
    shipped HardNet and for RootSIFT, and 0.8 if its weights say nothing."""
    max_distance: float = 2.0
    """Largest L2 distance between two descriptors, which have unit length. 2 accepts any distance."""
    rescore: Path | None = None
    """Weights of a network that compares patches, such as matchnet or deepcompare-2ch, a .safetensors file. The network
    scores the nearest neighbours of each keypoint. A match is the best one for both of its keypoints. --max-ratio then
    compares the odds of the next best match with those of the best; its default is 0.8. This is slow: two photos of
    8192 keypoints take up to 82 thousand evaluations, 10 for each keypoint with the default short list. With
    deepcompare-2ch these are 3 TFLOP, or 10 seconds on two cores. matchnet needs a third of that once for each photo,
    deepcompare-siam a tenth, and then both take a second for a pair."""
    short_list: int = 5
    """How many nearest neighbours of each keypoint --rescore scores. The time grows with this number."""
    min_score: float = 0.0
    """Smallest score of a match with --rescore: the logarithm of the odds that the match is right. 0 means even
    odds."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        if self.rescore is None:
            refuse_without(self, _OF_RESCORING, "--rescore")
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

    def acceptance(self, features: FeatureStore) -> Acceptance:
        """Returns the rule by which neighbours are accepted among these features."""
        from hardnet_sfm.matching.nearest import Acceptance

        return Acceptance(self.ratio(features), self.max_distance)

    def rules(self, features: FeatureStore) -> Rules:
        """Returns the rules by which a network matches these features."""
        from hardnet_sfm.matching.rescore import Rules

        return Rules(self.short_list, self.max_distance, self.min_score, self.ratio(features))

    def recipe(self, features: FeatureStore, rescore_sha256: str = "") -> dict[str, Any]:
        """Collects everything that determines the matches of these features, in a form that JSON can hold."""
        kept: dict[str, Any] = {"max_ratio": self.ratio(features), "max_distance": self.max_distance}
        if self.rescore is not None:
            kept |= {"rescore_sha256": rescore_sha256, **{name: getattr(self, name) for name in _OF_RESCORING}}
        return kept


@dataclass(frozen=True)
class MatchResult:
    """Result of the stage.

    Attributes:
        pairs: number of pairs in the store.
        matches: number of matches in all pairs together.
        computed: number of pairs processed in this run; the others were up to date.
        reason: why pairs had to be computed, as text for the user; empty if none had to be.
        by_views: number of pairs with matches from synthetic views; None if no pair was to be tried with views.
        skipped: lines of the list of pairs that were left out, and why.
    """

    pairs: int
    matches: int
    computed: int
    reason: str = ""
    by_views: int | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line about the contents of the store and the work of this run."""
        views = "" if self.by_views is None else f", {self.by_views} of them with synthetic views"
        made = f"computed {self.computed} ({self.reason})" if self.computed else "up to date"
        return f"{self.matches} matches in {self.pairs} pairs{views}; {made}"


def check_together(match_options: MatchOptions, view_options: ViewSynthesisOptions) -> None:
    """Raises UsageError if a matching option is invalid or two of them exclude each other."""
    match_options.check()
    view_options.check()
    if view_options.view_synthesis and match_options.rescore is not None:
        raise UsageError(
            "--rescore and --view-synthesis cannot be combined: views are matched by distances between descriptors",
            "Choose one of them.",
        )


def _chosen(
    root: Path, match_options: MatchOptions | None, view_options: ViewSynthesisOptions | None
) -> tuple[MatchOptions, ViewSynthesisOptions]:
    """Returns the given options, or those that the workspace remembers; raises UsageError if they are invalid."""
    ledger = Ledger(root)
    match_options = match_options or ledger.recall("match", MatchOptions) or MatchOptions()
    view_options = view_options or ledger.recall("views", ViewSynthesisOptions) or ViewSynthesisOptions()
    check_together(match_options, view_options)
    return match_options, view_options


def match_photos(
    workspace: Workspace | Path | str,
    match_options: MatchOptions | None = None,
    view_options: ViewSynthesisOptions | None = None,
    resources: Resources | None = None,
    *,
    images: Path | str | None = None,
    weights: Path | None = None,
) -> MatchResult:
    """Matches all pairs of a workspace. See `match` for the arguments."""
    place = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    match_options, view_options = _chosen(place.root, match_options, view_options)
    claim(place.root, place.matches.name, place.view_keypoints.name)
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

    With the option `rescore`, a network compares the few nearest neighbours instead, see
    `hardnet_sfm.matching.rescore.Rescorer`. With `view_synthesis`, pairs with too few verified matches are matched
    again with synthetic views of both photos, see `hardnet_sfm.view_synthesis`. The keypoints of the views go into
    `keypoints-views.h5` next to the matches. A pair with enough matches keeps them unchanged under this option.
    A second run does only the remaining pairs. The result depends neither on interruptions nor on the number of
    threads.

    Peak memory is the descriptors of 64 photos (1.5 KB a keypoint), or the patches of 16 photos (4 KB a keypoint), and
    one block of a similarity matrix for each thread. Views add the descriptors of 8 photos in all their views, and of
    two more photos for each thread, at most 1.5 KB each. Each thread also holds the view that it renders.

    Args:
        features: store with the features of the photos.
        pairs: list of pairs in the format of `pair`.
        matches: store to create or to continue.
        options: which neighbours are accepted as matches, in photos and in views. None means the options that the
            workspace remembers, or the defaults; the same holds for `view_options`.
        resources: threads and device to use.
        view_options: whether to use views, which views, and how many matches are enough without them.
        images: folder of the photos, needed for views and for re-scoring. The default is the folder that the features
            were extracted from.
        weights: weights of the descriptor, needed for views if the features were not described with the shipped
            weights.
        again: file that a retry writes for photos that a model left out. It lists additional pairs, and pairs to match
            with views. The file need not exist.

    Raises:
        HardnetSfmError: a store or the list is missing, damaged or made for other photos, the weights do not fit, or a
            photo is missing or has changed since its features were extracted.
        UsageError: an option is invalid.
    """
    from hardnet_sfm.networks.device import resolve_device

    features, pairs, matches, resources = Path(features), Path(pairs), Path(matches), resources or Resources()
    ledger = Ledger(matches.parent)
    options, view_options = _chosen(matches.parent, options, view_options)
    network = _read_network(options.rescore)
    with ExitStack() as stack:
        stack.enter_context(locked(matches.parent))
        store = stack.enter_context(FeatureStore(features))
        writer = stack.enter_context(StoreWriter(matches, MATCHES))
        check_names_apart(store.names())
        photos = Path(store.header["images"] if images is None else images)
        plan = _plan(store, pairs, again, options, view_options, network)
        views = None
        if plan.with_views:
            place, accept = Workspace(matches.parent), options.acceptance(store)
            described = PhotoViews(store, photos, place.views, view_options, resources, weights)
            views = ViewMatcher(described, stack.enter_context(StoreWriter(place.view_keypoints, KEYPOINTS)), accept)
        due = [pair for pair in plan.wanted if writer.fingerprints.get(pair_key(*pair)) != plan.prints[pair]]
        changed = what_changed(writer.header, plan.recipe)
        _announce(ledger, writer.facts, plan, len(due), changed)
        start = time.perf_counter()
        if due:
            device = resolve_device(resources.device)
            if network is None:
                find, at_hand = match_by_descriptors(store, options.acceptance(store), device)
            else:
                find, at_hand = match_by_network(store, photos, network, options.rules(store), device)
            ordered = order_by_blocks(due, store.names(), at_hand)
            _match_due(ordered, plan, find, views, store.counts(), writer, resources.threads if device == "cpu" else 1)
        if views:
            for pair in plan.with_views:  # also pairs of an earlier run: their keypoints may have been deleted
                views.keep(pair, int(writer.facts[pair_key(*pair)]["view_steps"]))
            views.finish()
        made = {"options": plan.recipe, "made_of": plan.made_of, "rounds": list(plan.rounds)}
        writer.commit([pair_key(*pair) for pair in plan.wanted], {"pairs": sha256_of(pairs), **made})
        if not plan.rounds:  # the few pairs of a retry take longer than others
            ledger.note_seconds("match", time.perf_counter() - start, len(due), len(plan.wanted))
        ledger.remember("match", options)
        ledger.remember("views", view_options)
        known = [writer.facts[pair_key(*pair)] for pair in plan.wanted]
    total, by_views = sum(int(of["matches"]) for of in known), sum(int(of.get("view_steps", 0)) > 0 for of in known)
    reason = (changed or f"{len(due)} pairs are new or have new features") if due else ""
    return MatchResult(len(known), total, len(due), reason, by_views if views else None, plan.skipped)


def _match_due(
    due: list[PhotoPair],
    plan: _Plan,
    find: FindMatches,
    views: ViewMatcher | None,
    counts: Mapping[str, int],
    writer: StoreWriter,
    threads: int,
) -> None:
    """Matches pairs in this order and puts their matches into the store. `counts` are the photos' keypoints."""

    def match_one(pair: PhotoPair) -> MatchedPair:
        found = find(pair)
        return views(pair, found) if views and pair in plan.with_views else MatchedPair(found, counts[pair[0]])

    with (
        progress("match", len(plan.wanted), len(plan.wanted) - len(due)) as advance,
        threaded(match_one, due, threads, torch_threads) as stream,
    ):
        for pair, future in stream:
            found = future.result()
            facts: Facts = {"name0": pair[0], "name1": pair[1], "matches": len(found.matches)}
            if views and pair in plan.with_views:
                views.keep(pair, found.view_steps)
                facts = {**facts, "view_steps": found.view_steps}
            arrays = match_arrays(found.matches, found.keypoints)
            writer.put(pair_key(*pair), plan.prints[pair], arrays, facts)
            advance(note=f"{pair[0]} {pair[1]}")


def _announce(ledger: Ledger, stored: Collection[str], plan: _Plan, due: int, changed: str) -> None:
    """Says before the work which pairs are matched again because of other options, and how many are dropped."""
    dropped = len(set(stored) - {pair_key(*pair) for pair in plan.wanted})
    if due and changed and stored:
        say_again(ledger, "match", f"{due} pairs", changed, items=due)
    if dropped:
        console.print(
            f"[yellow]gone:[/] {dropped} of {len(stored)} matched pairs are not in the list of pairs any more. Their "
            "matches are dropped.",
        )


@dataclass(frozen=True)
class _Plan:
    """Plan of a run: the pairs to match, and how to match them.

    Attributes:
        wanted: all pairs of the store.
        with_views: pairs that are matched with synthetic views if plain matching fails.
        prints: fingerprint of each pair's matches.
        recipe: everything that determines the matches, in a form that JSON can hold.
        made_of: digest of the features, the list and the options.
        rounds: retries for photos that a model left out; some of the pairs come from them.
        skipped: lines of the list that were left out, and why.
    """

    wanted: list[PhotoPair]
    with_views: set[PhotoPair]
    prints: dict[PhotoPair, str]
    recipe: dict[str, Any]
    made_of: str
    rounds: tuple[Round, ...]
    skipped: dict[str, str]


def _plan(
    store: FeatureStore,
    pairs: Path,
    again: Path | None,
    options: MatchOptions,
    view_options: ViewSynthesisOptions,
    network: LoadedNetwork | None,
) -> _Plan:
    plain = options.recipe(store, network.sha256 if network else "")
    pair_list, made_from = read_pairs(pairs, store.names()), store.fingerprints()
    listed = pair_list.pairs
    made_of = digest("matched", plain, made_from, listed)
    more = read_again(again, made_of) if again else Again(made_of)
    wanted = [*listed, *more.pairs]
    with_views = set(wanted if view_options.view_synthesis else () if network else more.views)
    recipe = {**plain, **(view_options.recipe() if with_views else {})}
    viewed, unviewed = match_fingerprints(recipe), match_fingerprints(plain)
    prints = {
        pair: (viewed if pair in with_views else unviewed)(made_from[pair[0]], made_from[pair[1]]) for pair in wanted
    }
    return _Plan(wanted, with_views, prints, recipe, made_of, more.rounds, pair_list.skipped())


def _read_network(weights: Path | None) -> LoadedNetwork | None:
    """Reads the network that compares patches if there is one."""
    if weights is None:
        return None
    from hardnet_sfm.networks.loading import check_compares, load_network

    network = load_network(weights)
    check_compares(network)
    return network


@dataclass(frozen=True)
class MatchCommand:
    """Options of `hardnet-sfm match`.

    Examples:
        hardnet-sfm match
        hardnet-sfm match --max-ratio 0.8
        hardnet-sfm match --rescore matchnet.safetensors --short-list 3
        hardnet-sfm match --view-synthesis --view-tilts 2 4 8
    """

    common: Common = field(default_factory=Common)
    images: Path | None = None
    """With --rescore or --view-synthesis: folder of the photos, if they moved after `extract`."""
    match: MatchOptions = field(default_factory=MatchOptions)
    views: ViewSynthesisOptions = field(default_factory=ViewSynthesisOptions)
    weights: Path | None = None
    """With --view-synthesis: weights of the descriptor, if `extract` did not use those of the package."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        if self.images is not None and self.match.rescore is None and not self.views.view_synthesis:
            raise UsageError("--images has no effect without --rescore or --view-synthesis", "Leave it out.")
        if self.weights is not None and not self.views.view_synthesis:
            raise UsageError(
                "--weights has no effect without --view-synthesis",
                "`hardnet-sfm extract` describes the keypoints: give --weights there.",
            )
        result = match_photos(
            self.common.place, self.match, self.views, self.resources, images=self.images, weights=self.weights
        )
        print_result("match", result)
