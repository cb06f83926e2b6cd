"""The command `reconstruct`: extract, pair, match and map, one after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from tyro import MISSING

from hardnet_sfm.errors import NoModel, UsageError, check_choice
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.photo_files import list_photos
from hardnet_sfm.files.workspace import DEFAULT, Workspace, locked, read_json, write_json
from hardnet_sfm.reconstruction.left_out import retry_left_out
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.stages import OnStage, StageResult
from hardnet_sfm.terminal import Common, Images, print_result
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.verbs.map import map_photos, print_summary
from hardnet_sfm.verbs.match import MatchOptions, check_together, match_photos
from hardnet_sfm.verbs.pair import PairOptions, pair, propose_where_needed
from hardnet_sfm.verbs.report import write_report
from hardnet_sfm.view_synthesis import ViewSynthesisOptions

if TYPE_CHECKING:
    from hardnet_sfm.colmap.model import Model


PresetName = Literal["fast", "default", "thorough", "internet", "video"]


@dataclass(frozen=True)
class RetryOptions:
    """What is tried for photos that the model left out."""

    retry_views: bool = False
    """Match them again with synthetic views, each with the five photos of the model that have most matches with it. A
    photo takes 6 times the time to describe, and a pair 36 times the time to match."""

    def check_with(self, match: MatchOptions, views: ViewSynthesisOptions, mapping: MapOptions) -> None:
        """Raises UsageError where it has no effect with options of the stages."""
        if not self.retry_views:
            return
        if not mapping.retry:
            raise UsageError("--retry-views has no effect with --no-retry", "Leave one of them out.")
        if views.view_synthesis:
            raise UsageError(
                "--retry-views has no effect with --view-synthesis, which matches all weak pairs so",
                "Leave one of them out.",
            )
        if match.rescore is not None:
            raise UsageError(
                "--rescore and --retry-views cannot be combined: views are matched by the distances of descriptors",
                "Choose one of them.",
            )


@dataclass(frozen=True)
class Preset:
    """Options for each stage of `reconstruct`."""

    extract: ExtractOptions = field(default_factory=ExtractOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    match: MatchOptions = field(default_factory=MatchOptions)
    views: ViewSynthesisOptions = field(default_factory=ViewSynthesisOptions)
    map: MapOptions = field(default_factory=MapOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)


PRESETS: dict[PresetName, Preset] = {
    "fast": Preset(extract=ExtractOptions(max_keypoints=3000, max_image_size=1280)),
    "default": Preset(),
    "thorough": Preset(
        extract=ExtractOptions(max_keypoints=20000),
        map=MapOptions(guided_matching=True),
        retry=RetryOptions(retry_views=True),
    ),
    "internet": Preset(pair=PairOptions(pairing="retrieval"), map=MapOptions(camera_mode="per-image")),
    "video": Preset(pair=PairOptions(pairing="sequential"), map=MapOptions(camera_mode="single")),
}


def find_preset(name: PresetName = "default") -> Preset:
    """The options of a preset.

    Raises:
        UsageError: there is no such preset.

    Examples:
        >>> find_preset("video").pair.pairing
        'sequential'
    """
    check_choice("preset", name, PresetName)
    return PRESETS[name]


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
        workspace: folder for all that is made, see `hardnet_sfm.files.workspace.Workspace`.
        preset: set of options for the stages, see `find_preset`.
        extract_options, pair_options, match_options, map_options: of the four stages, instead of the preset's.
        view_options: whether pairs that fail plain matching are matched with synthetic views, and how.
        retry_options: what is tried for photos that the model left out.
        resources: how much of the machine.
        on_stage: told the name and the result of each stage as it ends.
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

    def run(name: str, stage: Callable[[], StageResult]) -> None:
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
        neighbours = None if proposed is None else pair_options.neighbours
        run("pair", lambda: pair(place.features, place.pairs, pair_options, proposed))
        seconds["pair"] += proposing
        before = _time_of(place.summary)
        model = match_and_map()
        if map_options.retry:
            model = retry_left_out(
                place,
                model,
                match_and_map,
                neighbours=neighbours,
                views=retry_options.retry_views,
                resources=resources,
            )
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


def peak_memory_mb() -> int:
    """The most memory this process has had resident, MB (1e6 bytes); 0 on Windows, where Python cannot tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6)


@dataclass(frozen=True)
class ReconstructCommand:
    """Photos to a COLMAP model in one go; run it again to continue."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm reconstruct images/",
        "hardnet-sfm reconstruct images/ --workspace out --preset thorough",
    )

    images: Images
    """Folder of photos, searched recursively, never written to."""
    preset: PresetName = "default"
    """Set of options to start from; single options override it, and --help with it shows its values. fast: fewer
    keypoints from smaller photos. thorough: more keypoints, guided matching, and synthetic views for photos that the
    model left out. internet: each photo has a camera of its own, and pairs are proposed by similarity. video: one
    camera, and each photo is matched with those that follow it."""
    report: bool = True
    """Write report.html, the page to look at."""
    common: Common = field(default_factory=Common)
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    match: MatchOptions = field(default_factory=MatchOptions)
    views: ViewSynthesisOptions = field(default_factory=ViewSynthesisOptions)
    map: MapOptions = field(default_factory=MapOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)
    resources: Resources = field(default_factory=Resources)

    @classmethod
    def with_preset(cls, name: PresetName) -> Self:
        """The defaults of the command line with that preset.

        Raises:
            UsageError: there is no such preset.
        """
        chosen = find_preset(name)
        return cls(
            MISSING,
            name,
            extract=chosen.extract,
            pair=chosen.pair,
            match=chosen.match,
            views=chosen.views,
            map=chosen.map,
            retry=chosen.retry,
        )

    def run(self) -> None:
        reconstruct(
            self.images,
            self.common.workspace,
            preset=self.preset,
            extract_options=self.extract,
            pair_options=self.pair,
            match_options=self.match,
            view_options=self.views,
            map_options=self.map,
            retry_options=self.retry,
            resources=self.resources,
            on_stage=print_result,
            report=self.report,
        )
        print_summary(self.common.place)
