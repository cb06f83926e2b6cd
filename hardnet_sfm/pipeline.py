"""The chain behind `reconstruct`: extract, pair, match, map."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hardnet_sfm.errors import NoModel
from hardnet_sfm.extraction import ExtractReport, extract
from hardnet_sfm.features.stage import ExtractOptions
from hardnet_sfm.images import list_photos
from hardnet_sfm.matching.pairs import NEIGHBOURS, PairOptions, PairReport, pair
from hardnet_sfm.matching.stage import MatchOptions, MatchReport
from hardnet_sfm.presets import PresetName
from hardnet_sfm.presets import preset as find_preset
from hardnet_sfm.reconstruction.options import MapOptions
from hardnet_sfm.reconstruction.stage import map_photos
from hardnet_sfm.report.write import write_report
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.options import IndexReport, ProposeReport, VocabularyReport
from hardnet_sfm.retry import RetryOptions, retry_left_out
from hardnet_sfm.stores import FeatureStore
from hardnet_sfm.view_synthesis import ViewSynthesisOptions, check_together, match_photos
from hardnet_sfm.workspace import DEFAULT, Workspace, locked, read_json, write_json

if TYPE_CHECKING:
    from hardnet_sfm.colmap.model import Model

Report = ExtractReport | PairReport | MatchReport | VocabularyReport | IndexReport | ProposeReport
OnStage = Callable[[str, Report], None]


def reconstruct(
    images: Path | str,
    workspace: Path | str = DEFAULT,
    *,
    preset: PresetName = "default",
    extract_options: ExtractOptions | None = None,
    pair_options: PairOptions | None = None,
    match_options: MatchOptions | None = None,
    view_options: ViewSynthesisOptions | None = None,
    map_options: MapOptions | None = None,
    retry_options: RetryOptions | None = None,
    resources: Resources | None = None,
    on_stage: OnStage | None = None,
    report: bool = True,
) -> Model:
    """Turns a folder of photos into a COLMAP model.

    Everything is kept in the workspace: a second call does only what is missing or what changed options touch.

    Args:
        images: folder of photos, searched recursively; never written to.
        workspace: folder for all that is made, see `hardnet_sfm.workspace.Workspace`.
        preset: set of options for the stages, see `hardnet_sfm.presets`.
        extract_options, pair_options, match_options, map_options: of the four stages, instead of the preset's.
        view_options: whether pairs that fail plain matching are matched with synthetic views, and how.
        retry_options: what is tried for photos that the model left out.
        resources: how much of the machine.
        on_stage: told the name and the report of each stage as it ends.
        report: write report.html, the page to look at, where there is none of this model yet; also where no model
            could be made, to see why.

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
    chosen = find_preset(preset)
    extract_options, pair_options = extract_options or chosen.extract, pair_options or chosen.pair
    match_options, view_options = match_options or chosen.match, view_options or chosen.views
    map_options, retry_options = map_options or chosen.map, retry_options or chosen.retry
    # What can be refused is refused before the first photo is read.
    for options in (pair_options, map_options):
        options.check()
    check_together(match_options, view_options)
    retry_options.check_with(match_options, view_options, map_options)
    images = Path(images)
    place.check_apart(images)
    seconds: dict[str, float] = {}
    memory: dict[str, int] = {}

    def spend(name: str, start: float) -> None:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        memory[name] = peak_memory_mb()

    def run(name: str, stage: Callable[[], Report]) -> None:
        start = time.perf_counter()
        done = stage()
        spend(name, start)
        if on_stage:
            on_stage(name, done)

    def match_and_map() -> Model | NoModel:
        run(
            "match",
            lambda: match_photos(
                place, match_options, view_options, resources, images=images, weights=extract_options.weights
            ),
        )
        start = time.perf_counter()
        try:
            return map_photos(place, map_options, resources)
        except NoModel as failure:
            return failure
        finally:
            spend("map", start)

    list_photos(images)
    with locked(place.root):
        run("extract", lambda: extract(images, place.features, extract_options, resources))
        start = time.perf_counter()
        proposed = propose_where_needed(place, pair_options, resources, on_stage)
        proposing = time.perf_counter() - start
        run("pair", lambda: pair(place.features, place.pairs, pair_options, proposed))
        seconds["pair"] += proposing
        before = _time_of(place.summary)
        model = match_and_map()
        model = retry_left_out(place, pair_options, map_options, retry_options, resources, model, match_and_map)
        if _changed(place, before):
            spent = {
                "preset": preset,
                "seconds": {name: round(value, 2) for name, value in seconds.items()},
                "peak_memory_mb": memory["map"],
                "peak_memory_mb_by_stage": memory,
            }
            write_json(place.summary, {**read_json(place.summary), **spent})
        if report and _time_of(place.report) < _time_of(place.summary):
            write_report(place, resources=resources)
    if isinstance(model, NoModel):
        raise model
    return model


def _time_of(path: Path) -> int:
    """When a file was written, ns; 0 where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0


def _changed(place: Workspace, before: int) -> bool:
    """Whether there is another summary than that written at a time."""
    return _time_of(place.summary) not in (0, before)


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
