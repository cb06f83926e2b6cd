"""Photos that the model left out: `reconstruct` matches them again and extends the model.

There are two rounds. In the first, the index proposes more photos for each photo that was left out, if it proposed the
pairs. The second uses synthetic views for the photos that are still left out. It matches each with the photos of the
model that have most matches with it. `again.json` and the stores keep the results of a round, so a second run repeats
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hardnet_sfm.errors import NoModel
from hardnet_sfm.files.again import Round, read_again, write_again
from hardnet_sfm.files.stores import FeatureStore, MatchStore
from hardnet_sfm.files.workspace import Workspace, read_json
from hardnet_sfm.keypoints import PhotoPair
from hardnet_sfm.resources import Resources

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does not need it
    from hardnet_sfm.colmap.model import Model

# The index proposes this many times as many photos for a photo that was left out as for the first list.
_TIMES = 3
# Number of photos that a left out photo is matched with in views. Each of these pairs takes as long as 36 plain pairs.
_CANDIDATES = 5


def retry_left_out(
    place: Workspace,
    outcome: Model | NoModel,
    match_and_map: Callable[[], Model | NoModel],
    *,
    neighbours: int | None,
    views: bool,
    resources: Resources,
) -> Model | NoModel:
    """Runs the rounds that are due, until the model has all photos.

    Args:
        place: workspace with matches and the results of mapping.
        outcome: the largest model so far, or the reason why there is none.
        match_and_map: runs both stages again.
        neighbours: number of photos that the index proposed for each photo; None if it did not propose the pairs.
        views: whether to match photos with synthetic views.
        resources: how much of the machine to use.

    Returns:
        The outcome of the last round.
    """
    with FeatureStore(place.features) as features:
        keypoints = features.counts()
    rounds: list[tuple[Round, str, Callable[[list[str]], list[PhotoPair]]]] = []
    if neighbours is not None:
        more = _TIMES * neighbours
        rounds.append(("more pairs", "pairs", lambda names: _more_pairs(place, names, more, resources)))
    if views:
        rounds.append(("view synthesis", "views", lambda names: _candidates(place, outcome, names)))
    for name, kind, choose in rounds:
        summary = _summary(place, outcome)
        left = [photo for photo in summary["unregistered"] if keypoints[photo]]
        if not left:
            break
        with MatchStore(place.matches) as matches:
            again = read_again(place.again, matches.header["made_of"])
        if name not in again.rounds:
            pairs = choose(left)
            listed: dict[str, Any] = {kind: (*getattr(again, kind), *pairs), "rounds": (*again.rounds, name)}
            write_again(place.again, replace(again, **listed))
            if pairs:
                outcome = match_and_map()
    return outcome


def _summary(place: Workspace, outcome: Model | NoModel) -> dict[str, Any]:
    """Returns the summary of the last attempt. An attempt without a model does not replace an earlier summary."""
    return outcome.summary if isinstance(outcome, NoModel) else read_json(place.summary)


def _more_pairs(place: Workspace, names: list[str], neighbours: int, resources: Resources) -> list[PhotoPair]:
    """Returns new pairs of the named photos that the index proposes, without pairs that were matched already."""
    from hardnet_sfm.index_folder import open_index
    from hardnet_sfm.retrieval.search import most_alike

    with MatchStore(place.matches) as matches:
        known = {frozenset(pair) for pair in matches.pairs()}
    proposed = most_alike(open_index(place.index, resources).lists, set(names), neighbours)
    pairs = {(min(name, other), max(name, other)) for name, others in proposed for other in others}
    return sorted(pair for pair in pairs if frozenset(pair) not in known)


def _candidates(place: Workspace, outcome: Model | NoModel, names: list[str]) -> list[PhotoPair]:
    """Returns pairs of each named photo with the photos of the model that have most in common with it.

    If there is no model, it takes all photos.
    """
    from hardnet_sfm.colmap.database import Database
    from hardnet_sfm.colmap.model import Model

    largest = set(Model.read(place.sparse / "0").names) if _summary(place, outcome)["models"] else None
    with Database(outcome.database if isinstance(outcome, NoModel) else place.database) as database:
        verified = database.verified()
    with MatchStore(place.matches) as matches:
        found = {pair: (verified.get(pair, 0), matches.count(*pair)) for pair in matches.pairs()}
    chosen: dict[PhotoPair, None] = {}
    for name in names:
        partners = [pair for pair in found if name in pair and (largest is None or largest & set(pair))]
        best = sorted(partners, key=lambda pair: (-found[pair][0], -found[pair][1], pair))[:_CANDIDATES]
        chosen.update(dict.fromkeys(best))
    return list(chosen)
