"""The chain behind `reconstruct`: extract, pair, match, map."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hardnet_sfm.features.stage import ExtractOptions, ExtractReport, extract
from hardnet_sfm.images import list_photos
from hardnet_sfm.matching.pairs import NEIGHBOURS, PairOptions, PairReport, pair
from hardnet_sfm.matching.stage import MatchOptions, MatchReport, match
from hardnet_sfm.reconstruction.stage import MapOptions, map_photos
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.options import IndexReport, ProposeReport, VocabularyReport
from hardnet_sfm.stores import FeatureStore
from hardnet_sfm.workspace import DEFAULT, Workspace, locked, read_json, write_json

if TYPE_CHECKING:
    from hardnet_sfm.colmap.model import Model

Report = ExtractReport | PairReport | MatchReport | VocabularyReport | IndexReport | ProposeReport
OnStage = Callable[[str, Report], None]


def reconstruct(
    images: Path | str,
    workspace: Path | str = DEFAULT,
    *,
    extract_options: ExtractOptions | None = None,
    pair_options: PairOptions | None = None,
    match_options: MatchOptions | None = None,
    map_options: MapOptions | None = None,
    resources: Resources | None = None,
    on_stage: OnStage | None = None,
) -> Model:
    """Turns a folder of photos into a COLMAP model.

    Everything is kept in the workspace: a second call does only what is missing or what changed options touch.

    Args:
        images: folder of photos, searched recursively; never written to.
        workspace: folder for all that is made, see `hardnet_sfm.workspace.Workspace`.
        extract_options, pair_options, match_options, map_options: of the four stages.
        resources: how much of the machine.
        on_stage: told the name and the report of each stage as it ends.

    Returns:
        The largest model; the others are beside it in `workspace/sparse`.

    Raises:
        HardnetSfmError: no photos, or no model could be made; the message says what was found.
        UsageError: contradictory options.

    Examples:
        >>> model = hardnet_sfm.reconstruct("images/")  # doctest: +SKIP
        >>> len(model.names), model.mean_track_length  # doctest: +SKIP
        (11, 4.6)
    """
    resources, place = resources or Resources(), Workspace(Path(workspace))
    pair_options, map_options = pair_options or PairOptions(), map_options or MapOptions()
    # What can be refused is refused before the first photo is read.
    for options in (pair_options, map_options, match_options or MatchOptions()):
        options.check()
    images = Path(images)
    place.check_apart(images)
    seconds: dict[str, float] = {}

    def run(name: str, stage: Callable[[], Report]) -> None:
        start = time.perf_counter()
        report = stage()
        seconds[name] = time.perf_counter() - start
        if on_stage:
            on_stage(name, report)

    list_photos(images)
    with locked(place.root):
        run("extract", lambda: extract(images, place.features, extract_options, resources))
        start = time.perf_counter()
        proposed = propose_where_needed(place, pair_options, resources, on_stage)
        proposing = time.perf_counter() - start
        run("pair", lambda: pair(place.features, place.pairs, pair_options, proposed))
        seconds["pair"] += proposing
        run("match", lambda: match(place.features, place.pairs, place.matches, match_options, resources, images=images))
        start = time.perf_counter()
        before = place.summary.stat().st_mtime_ns if place.summary.is_file() else 0
        model = map_photos(place, map_options, resources)
        seconds["map"] = time.perf_counter() - start
        if place.summary.stat().st_mtime_ns != before:
            rounded = {name: round(value, 2) for name, value in seconds.items()}
            write_json(
                place.summary, {**read_json(place.summary), "seconds": rounded, "peak_memory_mb": peak_memory_mb()}
            )
    return model


def propose_where_needed(
    place: Workspace, options: PairOptions, resources: Resources, on_stage: OnStage | None
) -> Path | None:
    """Has the index propose pairs where the options mean that, and returns their file."""
    with FeatureStore(place.features) as store:
        photos = len(store.names())
    if options.how(photos) != "retrieval":
        return None
    from hardnet_sfm.retrieve import propose_pairs

    propose_pairs(place, options.retrieval or NEIGHBOURS, resources, on_stage)
    return place.proposed


def peak_memory_mb() -> int:
    """The most memory this process has had resident, MB (1e6 bytes); 0 on Windows, where Python cannot tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6)
