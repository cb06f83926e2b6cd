"""The verbs from photos to a model: reconstruct, its stages one by one, export; and demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from rich.markup import escape
from tyro import MISSING
from tyro.conf import Positional, arg

from hardnet_sfm.commands.common import Common, Images, output, print_report
from hardnet_sfm.errors import UsageError
from hardnet_sfm.extraction import extract
from hardnet_sfm.features.stage import ExtractOptions
from hardnet_sfm.matching.pairs import PairOptions, pair
from hardnet_sfm.matching.stage import MatchOptions
from hardnet_sfm.presets import PresetName, preset
from hardnet_sfm.progress import console as errors
from hardnet_sfm.reconstruction.export import Form, export
from hardnet_sfm.reconstruction.options import MapOptions
from hardnet_sfm.reconstruction.stage import map_photos
from hardnet_sfm.resources import Resources
from hardnet_sfm.retry import RetryOptions
from hardnet_sfm.view_synthesis import ViewSynthesisOptions, match_photos
from hardnet_sfm.workspace import Workspace, read_json

_GROUPS = 3  # groups of photos by camera; the summary has them all
_NAMED = 20  # photos that are not in the model; the summary has them all


@dataclass(frozen=True)
class Reconstruct:
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
        chosen = preset(name)
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
        from hardnet_sfm.pipeline import reconstruct

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
            on_stage=print_report,
            report=self.report,
        )
        _print_summary(self.common.place)


@dataclass(frozen=True)
class Extract:
    """Detect and describe keypoints, into features.h5."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm extract images/",
        "hardnet-sfm extract images/ --max-keypoints 4000 --detector dog",
    )

    images: Images
    """Folder of photos, searched recursively, never written to."""
    common: Common = field(default_factory=Common)
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        place = self.common.place
        place.check_apart(self.images)
        print_report("extract", extract(self.images, place.features, self.extract, self.resources))


@dataclass(frozen=True)
class Pair:
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
        from hardnet_sfm.pipeline import propose_where_needed

        place = self.common.place
        self.pair.check()
        if self.images is not None:
            place.check_apart(self.images)
        if self.images is not None and not place.features.is_file():
            print_report("extract", extract(self.images, place.features, resources=self.resources))
        proposed = propose_where_needed(place, self.pair, self.resources, print_report)
        print_report("pair", pair(place.features, place.pairs, self.pair, proposed))


@dataclass(frozen=True)
class Match:
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
        report = match_photos(
            self.common.place, self.match, self.views, self.resources, images=self.images, weights=self.weights
        )
        print_report("match", report)


@dataclass(frozen=True)
class Map:
    """Verify matches and reconstruct, into sparse/."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm map",
        "hardnet-sfm map --camera-params 1840,768,512,0 --fix-intrinsics",
    )

    common: Common = field(default_factory=Common)
    images: Path | None = None
    """Where the photos are now, if no longer where features were extracted from."""
    map: MapOptions = field(default_factory=MapOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        map_photos(self.common.place, self.map, self.resources, images=self.images)
        _print_summary(self.common.place)


@dataclass(frozen=True)
class Export:
    """Write models and more for COLMAP, hloc and viewers."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm export hardnet-sfm-out/ --to elsewhere/",
        "hardnet-sfm export out/ --to elsewhere/ --forms text ply",
    )

    workspace: Annotated[Path, Positional, arg(metavar="WORKSPACE")]
    """Folder that `reconstruct` made a model in."""
    to: Path
    """Folder to write to, made if missing."""
    forms: tuple[Form, ...] | None = None
    """Which: COLMAP models as binary or text, points as ply, pairs for hloc, database without our own table. Default:
    all, but no pairs for hloc where names of photos have spaces, which it cannot read."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        written = export(self.workspace, self.to, self.forms)
        for path in written:
            output.print(escape(str(path)))
        if self.forms is None and not any(path.name == "pairs.txt" for path in written):
            errors.print("[yellow]left out:[/] pairs.txt: hloc cannot read names of photos that have spaces")


@dataclass(frozen=True)
class Demo:
    """Render a scene, reconstruct it, compare with the truth."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm demo",
        "hardnet-sfm demo --workspace /tmp/demo --seed 1",
    )

    workspace: Path = Path("demo-out")
    """Folder for the photos and everything made of them."""
    seed: int = 0
    """Of the scene."""
    debug: bool = False
    """Show where in the program an error came from."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.demonstration import demo

        result = demo(self.workspace, seed=self.seed, resources=self.resources, on_stage=print_report)
        _print_summary(Workspace(self.workspace))
        at = result.errors
        output.print(
            f"Against the true cameras: {result.photos - len(at.missing)} of {result.photos} recovered, position error "
            f"{1000 * at.positions.mean():.1f} mm mean, {1000 * at.positions.max():.1f} mm largest (the square is 20 m "
            f"wide), AUC@1 degree {at.auc(1):.3f}"
        )


def _describe_growth(summary: dict[str, Any]) -> str:
    """Which camera models the cameras of sparse/0 grew to, such as " (OPENCV, grown from SIMPLE_RADIAL)"."""
    alone = summary["cameras"] == 1
    grown = ", ".join(name if alone else f"{count} {name}" for name, count in summary["grown_cameras"].items())
    return f" ({grown}, grown from SIMPLE_RADIAL)" if grown else ""


def _describe_cameras(count: int, groups: Sequence[Mapping[str, Any]]) -> str:
    """How many cameras there are, which photos share one, and why."""
    lines = []
    for group in groups[:_GROUPS]:
        verb = "share one" if group["shared"] else "have one each" if group["photos"] > 1 else "has its own"
        lines.append(f"{group['photos']} photo{'s' * (group['photos'] != 1)} {verb}: {group['reason']}")
    if len(groups) > _GROUPS:
        lines.append(f"{len(groups) - _GROUPS} more groups, which summary.json has")
    return f"{count} ({'; '.join(lines)})" if lines else str(count)


def _print_summary(place: Workspace) -> None:
    summary = read_json(place.summary)

    def row(name: str, text: str) -> None:
        output.print(f"[bold]{name:<8}[/]  {text}")

    for number, model in enumerate(summary["models"]):
        row(f"sparse/{number}", f"{model['photos']} of {summary['photos']} photos registered")
        row("", f"{model['points']} points, mean track length {model['mean_track_length']:.2f}")
        row("", f"mean reprojection error {model['mean_reprojection_error']:.2f} px")
    row("matches", f"{summary['verified_matches']} verified in {summary['verified_pairs']} of {summary['pairs']} pairs")
    row("cameras", _describe_cameras(summary["cameras"], summary["camera_groups"]) + _describe_growth(summary))
    if len(summary.get("tried", {})) > 1:
        photos = ", ".join(f"{mapper} {count}" for mapper, count in summary["tried"].items())
        row("mapper", f"{summary['mapper']}; photos in the largest model of each: {photos}")
    for step in summary.get("recovered", ()):
        row("retry", f"{step['step']}: {step['registered']} of {step['tried']} photos that were left out")
    if "seconds" in summary:
        seconds = summary["seconds"]
        times = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        row("last run", f"{sum(seconds.values()):.1f} s ({times}); peak memory {summary['peak_memory_mb']} MB")
    row("files", escape(str(place.root)))
    if place.report.is_file():
        row("look at", escape(str(place.report)))
    suspects = summary.get("suspect_pairs", 0)
    if suspects:
        what = "1 pair looks alike but disagrees" if suspects == 1 else f"{suspects} pairs look alike but disagree"
        where = "report.html" if place.report.is_file() else "summary.json"
        errors.print(f"[yellow]suspects:[/] {what} with the model: repeated structures? See {where}.", soft_wrap=True)
    unregistered = list(summary["unregistered"].items())
    for name, why in unregistered[:_NAMED]:
        errors.print(f"[yellow]not in sparse/0:[/] {escape(name)}: {escape(why)}", soft_wrap=True)
    if len(unregistered) > _NAMED:
        errors.print(f"and {len(unregistered) - _NAMED} more: all are in {escape(str(place.summary))}", soft_wrap=True)
