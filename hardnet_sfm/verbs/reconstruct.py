"""The command `reconstruct` runs extract, pair, match and map in order."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from tyro import MISSING

from hardnet_sfm.errors import NoModel, UsageError, check_choice
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.ledger import Ledger
from hardnet_sfm.files.outputs import read_mark
from hardnet_sfm.files.ownership import claim
from hardnet_sfm.files.photo_folders import PhotoList, list_photos
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import DEFAULT, Workspace, digest, locked, read_json, write_json
from hardnet_sfm.reconstruction.camera_checks import check_cameras
from hardnet_sfm.reconstruction.left_out import retry_left_out
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.stages import OnStage, ignore
from hardnet_sfm.terminal import Common, Images, Prune, print_result
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.verbs.map import MADE, map_photos, print_summary
from hardnet_sfm.verbs.match import MatchOptions, check_together, match_photos
from hardnet_sfm.verbs.pair import PairOptions, pair, propose_where_needed
from hardnet_sfm.verbs.report import write_report
from hardnet_sfm.view_synthesis import ViewSynthesisOptions

if TYPE_CHECKING:
    from hardnet_sfm.colmap.model import Model


PresetName = Literal["fast", "default", "thorough", "internet", "video"]


@dataclass(frozen=True)
class RetryOptions:
    """How photos that the model left out are tried again."""

    retry_views: bool = False
    """Match photos that the model left out again, with synthetic views. Each is matched with the five photos of the
    model that it has most matches with. A photo takes 6 times the time to describe, and a pair 36 times the time to
    match."""

    def check_with(self, match: MatchOptions, views: ViewSynthesisOptions, mapping: MapOptions) -> None:
        """Raises UsageError if the retry has no effect with, or contradicts, the options of the stages."""
        if not self.retry_views:
            return
        if not mapping.retry:
            raise UsageError("--retry-views has no effect with --no-retry", "Leave one of them out.")
        if views.view_synthesis:
            raise UsageError(
                "--retry-views has no effect with --view-synthesis, which already matches all weak pairs with views",
                "Leave one of them out.",
            )
        if match.rescore is not None:
            raise UsageError(
                "--rescore and --retry-views cannot be combined: views are matched by distances between descriptors",
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

    def with_options(self, **given: Any) -> Preset:
        """Returns the same options with the given ones in their places. None keeps those of the preset."""
        return replace(self, **{name: options for name, options in given.items() if options is not None})

    def check(self) -> None:
        """Raises UsageError if an option is invalid or two options exclude each other."""
        self.extract.check()
        self.pair.check()
        self.map.check()
        check_together(self.match, self.views)
        self.retry.check_with(self.match, self.views, self.map)


PRESETS: dict[PresetName, Preset] = {
    "fast": Preset(extract=ExtractOptions(descriptor="hardnet-fast", max_keypoints=3000, max_image_size=1280)),
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
    """Returns the options of a preset.

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
    preset: PresetName | None = None,
    extract_options: ExtractOptions | None = None,
    pair_options: PairOptions | None = None,
    match_options: MatchOptions | None = None,
    view_options: ViewSynthesisOptions | None = None,
    map_options: MapOptions | None = None,
    retry_options: RetryOptions | None = None,
    resources: Resources | None = None,
    on_stage: OnStage = ignore,
    report: bool = True,
    prune: bool = False,
) -> Model:
    """Turns a folder of photos into a COLMAP model.

    The workspace keeps all results. A second call does only what is missing or what changed options affect.

    Args:
        images: folder of photos, searched recursively and never written to.
        workspace: folder for all outputs, see `hardnet_sfm.files.workspace.Workspace`.
        preset: set of options for the stages, see `find_preset`. None means the options that the workspace remembers,
            or the preset `default`.
        extract_options, pair_options, match_options, map_options: options of the four stages; each replaces the
            options of the preset or those that the workspace remembers.
        view_options: whether and how to match pairs with synthetic views after plain matching failed.
        retry_options: how to retry photos that the model left out.
        resources: threads and device to use.
        on_stage: called with the name and the result of each stage as it ends.
        report: write report.html if there is no page about this model yet. The page is also written if no model could
            be made, to show why.
        prune: drop photos that are gone, even if these are a tenth of the photos or more.

    Returns:
        The largest model. `workspace/sparse` also holds the other models.

    Raises:
        HardnetSfmError: the folder has no photos, many photos are gone and `prune` is not set, the workspace has files
            of a user, or no model could be made; the message says what was found.
        UsageError: the options contradict each other.

    Examples:
        >>> model = hardnet_sfm.reconstruct("images/")  # doctest: +SKIP
        >>> len(model.names), model.mean_track_length  # doctest: +SKIP
        (11, 4.6)
    """
    resources, place, images = resources or Resources(), Workspace(Path(workspace)), Path(images)
    base = remembered_preset(place.root) if preset is None else find_preset(preset)
    chosen = base.with_options(
        extract=extract_options,
        pair=pair_options,
        match=match_options,
        views=view_options,
        map=map_options,
        retry=retry_options,
    )
    # Invalid options are refused before the first photo is read.
    chosen.check()
    place.check_apart(images)
    listed = list_photos(images)
    outputs = (place.features, place.pairs, place.matches, place.view_keypoints, place.again)
    claim(place.root, *(path.name for path in outputs), *MADE, *([place.report.name] if report else []))
    stages = _Stages(place, images, chosen, resources, on_stage)
    with locked(place.root):
        _remember(place, chosen, preset)
        stages.extract(listed, prune)
        neighbours = stages.pair()
        before = _read_summary(place)
        model = stages.match_and_map()
        if chosen.map.retry:
            views, again = chosen.retry.retry_views, stages.match_and_map
            model = retry_left_out(place, model, again, neighbours=neighbours, views=views, resources=resources)
        summary = _read_summary(place)
        if summary != before:
            summary |= {"preset": preset or remembered_name(place.root), **stages.costs()}
            write_json(place.summary, summary)
        if report and summary and read_mark(place.report) != digest(summary):
            write_report(place, resources=resources)
    if isinstance(model, NoModel):
        raise model
    return model


def remembered_preset(root: Path) -> Preset:
    """Returns the options of each stage that a workspace remembers, and the default options of other stages."""
    ledger = Ledger(root)
    kinds: dict[str, Any] = {of.name: of.default_factory for of in fields(Preset)}
    return Preset(**{stage: ledger.recall(stage, kind) or kind() for stage, kind in kinds.items()})


def remembered_name(root: Path) -> PresetName:
    """Returns the name of the preset that a workspace was last given."""
    return (Ledger(root).recall("reconstruct", _Given) or _Given()).preset


@dataclass(frozen=True)
class _Given:
    """What `reconstruct` remembers of itself."""

    preset: PresetName = "default"


def _remember(place: Workspace, chosen: Preset, preset: PresetName | None) -> None:
    """Notes the preset, and the options of stages that have no result yet. The other stages note theirs at their end.

    So a run that is killed in its first stage resumes with the same options, and a failed run leaves those of the last
    good result.
    """
    ledger = Ledger(place.root)
    results = {"extract": place.features, "pair": place.pairs, "match": place.matches, "views": place.matches}
    for of in fields(chosen):
        if not results.get(of.name, place.sparse).exists():
            ledger.remember(of.name, getattr(chosen, of.name))
    ledger.remember("retry", chosen.retry)
    if preset is not None:
        ledger.remember("reconstruct", _Given(preset))


def _read_summary(place: Workspace) -> dict[str, Any]:
    """Returns the summary of the last model, or an empty dictionary before the first one."""
    return read_json(place.summary) if place.summary.is_file() else {}


@dataclass(frozen=True)
class _Stages:
    """Runs the stages with the chosen options, tells the caller of their ends, and measures time and memory."""

    place: Workspace
    images: Path
    chosen: Preset
    resources: Resources
    on_stage: OnStage
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def extract(self, listed: PhotoList, prune: bool) -> None:
        """Extracts features, and checks that the camera options fit the photos."""
        with self._measured("extract"):
            options, features = self.chosen.extract, self.place.features
            extracted = extract(self.images, features, options, self.resources, listed=listed, prune=prune)
        self.on_stage("extract", extracted)
        with FeatureStore(features) as store:
            check_cameras(self.chosen.map, store)

    def pair(self) -> int | None:
        """Lists the pairs. Returns how many similar photos the index proposed for each; None without the index."""
        options = self.chosen.pair
        with self._measured("pair"):
            proposed = propose_where_needed(self.place, options, self.resources, self.on_stage)
            paired = pair(self.place.features, self.place.pairs, options, proposed)
        self.on_stage("pair", paired)
        return None if proposed is None else options.neighbours

    def match_and_map(self) -> Model | NoModel:
        """Matches the pairs and makes models."""
        options, weights = self.chosen, self.chosen.extract.weights
        with self._measured("match"):
            how = options.match, options.views, self.resources
            matched = match_photos(self.place, *how, images=self.images, weights=weights)
        self.on_stage("match", matched)
        with self._measured("map"):
            try:
                return map_photos(self.place, options.map, self.resources)
            except NoModel as failure:
                return failure

    @contextmanager
    def _measured(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to the stage, and notes the peak memory after it."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            self.memory[stage] = peak_memory_mb()

    def costs(self) -> dict[str, Any]:
        """Returns seconds and MB by stage, fit for the summary."""
        return {
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "peak_memory_mb": self.memory["map"],
            "peak_memory_mb_by_stage": dict(self.memory),
        }


def peak_memory_mb() -> int:
    """Returns the peak resident memory of this process in MB (1e6 bytes); 0 on Windows, where Python cannot tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6)


@dataclass(frozen=True)
class ReconstructCommand:
    """Options of `hardnet-sfm reconstruct`.

    Examples:
        hardnet-sfm reconstruct images/
        hardnet-sfm reconstruct images/ --workspace out --preset thorough
    """

    images: Images
    """Folder of photos, searched recursively, never written to."""
    preset: PresetName = "default"
    """Set of options to start from. Single options override it, and `--preset NAME --help` shows its values. Without
    it, the workspace remembers the options of the last run; with it, they are forgotten. fast:
    fewer keypoints from smaller photos. thorough: more keypoints, guided matching, and synthetic views for photos that
    the model left out. internet: each photo has its own camera, and similar photos are paired. video: one camera for
    all photos, and each photo is matched with the next ones."""
    report: bool = True
    """Write report.html, a page that shows the result in a browser."""
    prune: Prune = False
    common: Common = field(default_factory=Common)
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    match: MatchOptions = field(default_factory=MatchOptions)
    views: ViewSynthesisOptions = field(default_factory=ViewSynthesisOptions)
    map: MapOptions = field(default_factory=MapOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)
    resources: Resources = field(default_factory=Resources)

    @classmethod
    def with_preset(cls, name: PresetName | None, root: Path, recalled: Mapping[str, Any]) -> Self:
        """The defaults of the command line with a preset, or else with the options that the workspace remembers.

        Args:
            name: the preset. None means the one that the workspace was last given.
            root: folder of the workspace.
            recalled: options of stages that the workspace remembers.
        """
        name = name or remembered_name(root)
        return cls(MISSING, name, **{**vars(find_preset(name)), **recalled})

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
            prune=self.prune,
        )
        print_summary(self.common.place)
