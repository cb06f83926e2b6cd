"""The command line: subcommands, nothing else. Parse, call a stage, print."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand

from hardnet_sfm import __version__
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.stage import ExtractOptions, ExtractReport, extract
from hardnet_sfm.matching.pairs import PairOptions, PairReport, pair
from hardnet_sfm.matching.stage import MatchOptions, MatchReport, match
from hardnet_sfm.progress import console as errors
from hardnet_sfm.reconstruction.export import Form, export
from hardnet_sfm.reconstruction.stage import MapOptions, map_photos
from hardnet_sfm.report.info import Part, info
from hardnet_sfm.resources import Resources
from hardnet_sfm.workspace import DEFAULT, Workspace, read_json

if TYPE_CHECKING:
    from hardnet_sfm.pipeline import Report

output = Console(highlight=False, soft_wrap=True)
_INTERRUPTED = 130
_NAMED = 20  # photos that are not in the model; the summary has them all

Images = Annotated[Path, Positional, arg(metavar="IMAGES")]


@dataclass(frozen=True)
class Common:
    """What every verb takes."""

    workspace: Path = DEFAULT
    """Folder for everything that is made; all verbs share it."""
    debug: bool = False
    """Show where in the program an error came from."""

    @property
    def place(self) -> Workspace:
        return Workspace(self.workspace)


@dataclass(frozen=True)
class Reconstruct:
    images: Images
    """Folder of photos, searched recursively, never written to."""
    common: Common = field(default_factory=Common)
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    match: MatchOptions = field(default_factory=MatchOptions)
    map: MapOptions = field(default_factory=MapOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.pipeline import reconstruct

        reconstruct(
            self.images,
            self.common.workspace,
            extract_options=self.extract,
            pair_options=self.pair,
            match_options=self.match,
            map_options=self.map,
            resources=self.resources,
            on_stage=_print_report,
        )
        _print_summary(self.common.place)


@dataclass(frozen=True)
class Extract:
    images: Images
    """Folder of photos, searched recursively, never written to."""
    common: Common = field(default_factory=Common)
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        _print_report("extract", extract(self.images, self.common.place.features, self.extract, self.resources))


@dataclass(frozen=True)
class Pair:
    common: Common = field(default_factory=Common)
    pair: PairOptions = field(default_factory=PairOptions)

    def run(self) -> None:
        place = self.common.place
        _print_report("pair", pair(place.features, place.pairs, self.pair))


@dataclass(frozen=True)
class Match:
    common: Common = field(default_factory=Common)
    match: MatchOptions = field(default_factory=MatchOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        place = self.common.place
        _print_report("match", match(place.features, place.pairs, place.matches, self.match, self.resources))


@dataclass(frozen=True)
class Map:
    common: Common = field(default_factory=Common)
    images: Path | None = None
    """Where the photos are now, if no longer where features were extracted from."""
    map: MapOptions = field(default_factory=MapOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        map_photos(self.common.place, self.map, self.resources, images=self.images)
        _print_summary(self.common.place)


@dataclass(frozen=True)
class Info:
    workspace: Annotated[Path, Positional, arg(metavar="WORKSPACE")] = DEFAULT
    """Folder that `reconstruct` or another verb made."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        _print_parts(self.workspace, info(self.workspace))


@dataclass(frozen=True)
class Export:
    workspace: Annotated[Path, Positional, arg(metavar="WORKSPACE")]
    """Folder that `reconstruct` made a model in."""
    to: Path
    """Folder to write to, made if missing."""
    forms: tuple[Form, ...] = get_args(Form)
    """Which: COLMAP models as binary or text, points as ply, pairs for hloc, database without our own table."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        for path in export(self.workspace, self.to, self.forms):
            output.print(escape(str(path)))


@dataclass(frozen=True)
class Demo:
    workspace: Path = Path("demo-out")
    """Folder for the photos and everything made of them."""
    seed: int = 0
    """Of the scene."""
    debug: bool = False
    """Show where in the program an error came from."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.demo import demo

        result = demo(self.workspace, seed=self.seed, resources=self.resources, on_stage=_print_report)
        _print_summary(Workspace(self.workspace))
        at = result.errors
        output.print(
            f"Against the true cameras: {result.photos - len(at.missing)} of {result.photos} recovered, position error "
            f"{1000 * at.positions.mean():.1f} mm mean, {1000 * at.positions.max():.1f} mm largest (the square is 20 m "
            f"wide), AUC@1 degree {at.auc(1):.3f}"
        )


Command = Reconstruct | Extract | Pair | Match | Map | Info | Export | Demo

_VERBS: tuple[tuple[type[Any], str, str], ...] = (
    (
        Reconstruct,
        "Photos to a COLMAP model: extract, pair, match and map in one go. Run it again to continue.",
        "hardnet-sfm reconstruct images/\nhardnet-sfm reconstruct images/ --workspace out --camera-mode single",
    ),
    (
        Extract,
        "Detect and describe keypoints in a folder of photos, into features.h5.",
        "hardnet-sfm extract images/\nhardnet-sfm extract images/ --max-keypoints 4000 --detector dog",
    ),
    (
        Pair,
        "Choose which photos to match, into pairs.txt.",
        "hardnet-sfm pair\nhardnet-sfm pair --pairing sequential --window 5",
    ),
    (
        Match,
        "Match descriptors of each pair: mutual nearest neighbours, into matches.h5.",
        "hardnet-sfm match\nhardnet-sfm match --max-ratio 0.9",
    ),
    (
        Map,
        "Verify matches and reconstruct, into database.db, sparse/ and summary.json.",
        "hardnet-sfm map\nhardnet-sfm map --camera-model PINHOLE --camera-params 1840,1840,768,512 --fix-intrinsics",
    ),
    (
        Info,
        "Say what is in a workspace: counts, options, weights, what is stale.",
        "hardnet-sfm info\nhardnet-sfm info out/",
    ),
    (
        Export,
        "Write models, points, pairs or the database for COLMAP, hloc and viewers.",
        "hardnet-sfm export hardnet-sfm-out/ --to elsewhere/\nhardnet-sfm export out/ --to elsewhere/ --forms text ply",
    ),
    (
        Demo,
        "Render a scene with known cameras, reconstruct it, compare. Needs no photos.",
        "hardnet-sfm demo\nhardnet-sfm demo --workspace /tmp/demo --seed 1",
    ),
)


def parse(args: Sequence[str] | None = None) -> Command:
    """Parses a command line; exits with status 2 where it is wrong."""
    asked = list(sys.argv[1:] if args is None else args)[:1]

    def described(kind: type[Any], text: str, examples: str) -> str:
        # Only a verb's own help has room for its examples.
        lines = ["", "Examples:", *examples.splitlines()] if asked == [kind.__name__.lower()] else []
        return "\n\n".join([text, *lines[1:]])

    verbs = tuple(
        Annotated[kind, subcommand(kind.__name__.lower(), description=described(kind, text, examples))]
        for kind, text, examples in _VERBS
    )
    union: Any = verbs[0]
    for verb in verbs[1:]:
        union = union | verb
    description = f"hardnet-sfm {__version__}: local features for structure from motion. Start with: hardnet-sfm demo"
    parsed: Command = tyro.cli(
        union, args=args, prog="hardnet-sfm", description=description, config=(OmitArgPrefixes, FlagCreatePairsOff)
    )
    return parsed


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command line and exits: 0 done, 1 not done, 2 wrong usage, 130 interrupted."""
    if list(sys.argv[1:] if args is None else args) == ["--version"]:
        output.print(f"hardnet-sfm {__version__}")
        return
    debug = False
    try:
        command = parse(args)
        debug = command.common.debug if hasattr(command, "common") else command.debug
        command.run()
    except BrokenPipeError:
        # Whoever read the output has had enough, as in `| head`. What is left of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except HardnetSfmError as error:
        if debug:
            raise
        errors.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
        if error.hint:
            errors.print(escape(error.hint), soft_wrap=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        errors.print("Interrupted. Finished work is kept: the same command goes on from here.")
        sys.exit(_INTERRUPTED)


def _print_report(stage: str, report: Report) -> None:
    """One line a stage: what there is now, and what had to be computed for it."""
    match report:
        case ExtractReport():
            text = f"{report.keypoints} keypoints in {report.photos} photos"
        case PairReport():
            text = f"{report.pairs} pairs of {report.photos} photos ({report.how})"
        case MatchReport():
            text = f"{report.matches} matches in {report.pairs} pairs"
    if isinstance(report, ExtractReport | MatchReport):
        text += f"; computed {report.computed} ({report.reason})" if report.computed else "; up to date"
    output.print(f"[bold]{stage:>8}[/]  {escape(text)}")
    if isinstance(report, ExtractReport):
        for why in report.skipped.values():
            errors.print(f"[yellow]skipped:[/] {escape(why)}", soft_wrap=True)


def _print_summary(place: Workspace) -> None:
    summary = read_json(place.summary)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for number, model in enumerate(summary["models"]):
        table.add_row(f"[bold]sparse/{number}[/]", f"{model['photos']} of {summary['photos']} photos registered")
        table.add_row("", f"{model['points']} points, mean track length {model['mean_track_length']:.2f}")
        table.add_row("", f"mean reprojection error {model['mean_reprojection_error']:.2f} px")
    verified = f"{summary['verified_matches']} verified in {summary['verified_pairs']} of {summary['pairs']} pairs"
    table.add_row("matches", verified)
    table.add_row("cameras", str(summary["cameras"]))
    if "seconds" in summary:
        seconds = summary["seconds"]
        times = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        table.add_row("made in", f"{sum(seconds.values()):.1f} s ({times}); peak memory {summary['peak_memory_mb']} MB")
    table.add_row("files", escape(str(place.root)))
    output.print(table)
    unregistered = list(summary["unregistered"].items())
    for name, why in unregistered[:_NAMED]:
        errors.print(f"[yellow]not in sparse/0:[/] {escape(name)}: {escape(why)}", soft_wrap=True)
    if len(unregistered) > _NAMED:
        errors.print(f"and {len(unregistered) - _NAMED} more: all are in {escape(str(place.summary))}", soft_wrap=True)


def _print_parts(workspace: Path, parts: list[Part]) -> None:
    if not parts:
        output.print(f"{escape(str(workspace))}: nothing in it yet")
    for part in parts:
        state = f"[yellow]stale: {escape(part.stale)}[/]" if part.stale else "[green]up to date[/]"
        output.print(f"[bold]{part.name:>8}[/]  {escape(part.holds)}; {state}")
        chosen = ", ".join(f"{name} {value}" for name, value in part.options.items() if value not in ("", None))
        output.print(f"          [dim]{escape(chosen)}[/]")
