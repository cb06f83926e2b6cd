"""The command line: subcommands, nothing else. Parse, call a stage, print."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.markup import escape
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg, subcommand

from hardnet_sfm import __version__
from hardnet_sfm.commands.common import Common, Images, output, print_report, print_skipped
from hardnet_sfm.commands.evaluate import Evaluate
from hardnet_sfm.commands.retrieval import Index, Pair, Retrieve, Vocabulary
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.stage import ExtractOptions, extract
from hardnet_sfm.matching.pairs import PairOptions
from hardnet_sfm.matching.stage import MatchOptions, match
from hardnet_sfm.progress import console as errors
from hardnet_sfm.reconstruction.export import Form, export
from hardnet_sfm.reconstruction.stage import MapOptions, map_photos
from hardnet_sfm.report.info import Part, info
from hardnet_sfm.resources import Resources
from hardnet_sfm.training.observations import MineOptions
from hardnet_sfm.training.stage import TrainOptions
from hardnet_sfm.training.warps import WarpOptions
from hardnet_sfm.workspace import DEFAULT, Workspace, read_json

_INTERRUPTED = 130
_NAMED = 20  # photos that are not in the model; the summary has them all


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
            on_stage=print_report,
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
        print_report("extract", extract(self.images, self.common.place.features, self.extract, self.resources))


@dataclass(frozen=True)
class Match:
    common: Common = field(default_factory=Common)
    match: MatchOptions = field(default_factory=MatchOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        place = self.common.place
        print_report("match", match(place.features, place.pairs, place.matches, self.match, self.resources))


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


@dataclass(frozen=True)
class Mine:
    model: Annotated[Path, Positional, arg(metavar="MODEL")]
    """Workspace that `reconstruct` made, or folder of any COLMAP model."""
    images: Path
    """Folder of the model's photos."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """patches.h5 to make."""
    sheet: Path | None = None
    """PNG to draw some of the patches on, a row a point."""
    as_brown: Path | None = None
    """Folder to make with the same patches in the layout of Brown's PhotoTour, for other trainers."""
    debug: bool = False
    """Show where in the program an error came from."""
    mine: MineOptions = field(default_factory=MineOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.features.detectors import DetectorOptions, make_detector
        from hardnet_sfm.training.mine import mine

        detect = make_detector("opencv-dog", DetectorOptions(8192, 0.02 / 3, 10, upright=False, affine_shape=False))
        report = mine(self.model, self.images, self.output, self.mine, self.resources, detect=detect)
        output.print(f"{report.patches} patches of {report.points} points in {report.photos} photos")
        for name, count in report.dropped.items():
            output.print(f"  {100 * count / report.observations:5.2f} % dropped: {name}")
        print_skipped(report.skipped)
        _print_patches(self.output, self.sheet, self.as_brown)


@dataclass(frozen=True)
class Warp:
    images: Images
    """Folder of photos, searched recursively, never written to. They need not show the same thing."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """patches.h5 to make."""
    sheet: Path | None = None
    """PNG to draw some of the patches on, a row a point."""
    debug: bool = False
    """Show where in the program an error came from."""
    warp: WarpOptions = field(default_factory=WarpOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.training.warps import warp

        report = warp(self.images, self.output, self.warp, self.resources)
        output.print(f"{report.patches} patches of {report.points} points in {report.photos} photos")
        print_skipped(report.skipped)
        _print_patches(self.output, self.sheet, None)


@dataclass(frozen=True)
class Train:
    patches: Annotated[tuple[Path, ...], Positional, arg(metavar="PATCHES")]
    """patches.h5 files, as `mine` and `warp` make them."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """.safetensors file to make."""
    validation: Path | None = None
    """patches.h5 of scenes that are not trained on, to measure with."""
    shares: tuple[float, ...] | None = None
    """Share of each of PATCHES in a batch. Default: as the root of its number of points."""
    debug: bool = False
    """Show where in the program an error came from."""
    train: TrainOptions = field(default_factory=TrainOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.training.stage import train

        report = train(
            self.patches, self.output, self.train, self.resources, validation=self.validation, shares=self.shares
        )
        measures = "".join(f", {name} {value:.4f}" for name, value in report.measures.items())
        output.print(f"{escape(str(self.output))}: {report.steps} steps in {report.minutes:.1f} minutes{measures}")


@dataclass(frozen=True)
class Weights:
    action: Annotated[Literal["list", "show", "verify", "convert"], Positional]
    """list: what comes with the package. show: what a file says of itself. verify: hold it against its card. convert: a
    PyTorch checkpoint to safetensors."""
    name: Annotated[str | None, Positional, arg(metavar="NAME")] = None
    """A shipped name or a file."""
    output: Annotated[Path | None, arg(aliases=["-o"])] = None
    """convert: .safetensors file to make. Default: beside the checkpoint."""
    architecture: str | None = None
    """convert: the network that they are of, as `train --network` has it. Default: recognised by names and shapes."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        from hardnet_sfm.weights import convert, find_weights, read_weights, shipped_names, verify

        if (self.name is None) != (self.action == "list"):
            raise UsageError(f"weights {self.action} takes {'no name' if self.name else 'a name or a file'}")
        for option in ("output", "architecture"):
            if getattr(self, option) is not None and self.action != "convert":
                raise UsageError(f"--{option} has no effect with weights {self.action}")
        if self.action == "list":
            for name in shipped_names():
                output.print(f"{name}  {escape(str(find_weights(name)))}")
            if not shipped_names():
                output.print("none come with this version")
            return
        assert self.name is not None
        if self.action == "convert":
            target = self.output or Path(self.name).with_suffix(".safetensors")
            convert(Path(self.name), target, self.architecture)
            output.print(escape(str(target)))
            return
        path = find_weights(self.name)
        if self.action == "verify":
            output.print(f"{escape(str(path))}: as its card says, sha256 {verify(path)}")
            return
        weights = read_weights(path)
        numbers = sum(tensor.numel() for tensor in weights.tensors.values())
        facts = {**weights.metadata, "numbers": str(numbers), "sha256": weights.sha256}
        for name, value in sorted(facts.items()):  # a safetensors file has them in no order
            output.print(f"[bold]{escape(name)}[/]  {escape(value)}")


Retrieval = Vocabulary | Index | Retrieve | Evaluate
Command = Reconstruct | Extract | Pair | Match | Map | Info | Export | Retrieval | Demo | Mine | Warp | Train | Weights

_VERBS: tuple[tuple[type[Any], str, str], ...] = (
    (
        Reconstruct,
        "Photos to a COLMAP model in one go; run it again to continue.",
        "hardnet-sfm reconstruct images/\nhardnet-sfm reconstruct images/ --workspace out --camera-mode single",
    ),
    (
        Extract,
        "Detect and describe keypoints, into features.h5.",
        "hardnet-sfm extract images/\nhardnet-sfm extract images/ --max-keypoints 4000 --detector dog",
    ),
    (
        Pair,
        "Choose which photos to match, into pairs.txt.",
        "hardnet-sfm pair photos/ --retrieval 20\nhardnet-sfm pair --pairing sequential --window 5",
    ),
    (
        Match,
        "Match descriptors of each pair, into matches.h5.",
        "hardnet-sfm match\nhardnet-sfm match --max-ratio 0.9",
    ),
    (
        Map,
        "Verify matches and reconstruct, into sparse/.",
        "hardnet-sfm map\nhardnet-sfm map --camera-model PINHOLE --camera-params 1840,1840,768,512 --fix-intrinsics",
    ),
    (
        Info,
        "Say what is in a workspace, and what is stale.",
        "hardnet-sfm info\nhardnet-sfm info out/",
    ),
    (
        Export,
        "Write models and more for COLMAP, hloc and viewers.",
        "hardnet-sfm export hardnet-sfm-out/ --to elsewhere/\nhardnet-sfm export out/ --to elsewhere/ --forms text ply",
    ),
    (
        Vocabulary,
        "Learn visual words, for any collection.",
        "hardnet-sfm vocabulary photos/ --words 65536\nhardnet-sfm vocabulary photos/ --workspace other-city",
    ),
    (
        Index,
        "Make photos searchable; run it again when they change.",
        "hardnet-sfm index photos/\nhardnet-sfm index photos/ --vocabulary other-city/",
    ),
    (
        Retrieve,
        "Find photos that show what a photo shows.",
        "hardnet-sfm retrieve --query q.jpg\n"
        "hardnet-sfm retrieve --query q.jpg --bbox 136 34 648 955 --top 20\n"
        "hardnet-sfm retrieve --query queries/ --method hqe+ma --top 1000 --json",
    ),
    (
        Demo,
        "Render a scene, reconstruct it, compare with the truth.",
        "hardnet-sfm demo\nhardnet-sfm demo --workspace /tmp/demo --seed 1",
    ),
    (
        Mine,
        "Cut training patches from a model and its photos.",
        "hardnet-sfm mine hardnet-sfm-out/ --images images/ -o patches.h5\n"
        "hardnet-sfm mine model/ --images images/ -o patches.h5 --sheet sheet.png",
    ),
    (
        Warp,
        "Make training patches from photos alone, by warping them.",
        "hardnet-sfm warp photos/ -o warps.h5\nhardnet-sfm warp photos/ -o warps.h5 --views 8 --sheet sheet.png",
    ),
    (
        Train,
        "Learn HardNet from patches (needs hardnet-sfm[train]).",
        "hardnet-sfm train patches.h5 warps.h5 -o my.safetensors --minutes 60\n"
        "hardnet-sfm train patches.h5 -o my.safetensors --validation held-out.h5 --resume",
    ),
    (
        Weights,
        "Look at, verify or convert weights.",
        "hardnet-sfm weights list\nhardnet-sfm weights convert HardNet++.pth -o hardnet++.safetensors",
    ),
    (
        Evaluate,
        "Measure descriptors and methods on Oxford5k and the like.",
        "hardnet-sfm evaluate oxford5k OXFORD --vocabulary PARIS --words 65536\n"
        "hardnet-sfm evaluate rparis6k PARIS --vocabulary OXFORD --weights my.safetensors --csv table.csv",
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the end that `kill` and `timeout` ask for
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
    except OSError as error:
        if debug:
            raise
        where = f"{escape(str(error.filename))}: " if error.filename else ""
        errors.print(f"[bold red]error:[/] {where}{escape(error.strerror or str(error))}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("Interrupted. Finished work is kept: the same command goes on from here.")
        sys.exit(_INTERRUPTED)


def _print_patches(patches: Path, sheet: Path | None, as_brown: Path | None) -> None:
    """Draws and writes what was asked for beside the patches, and says where all of it is."""
    output.print(escape(str(patches)))
    if sheet is not None:
        from hardnet_sfm.report.sheets import sheet as draw

        draw(patches, sheet)
        output.print(escape(str(sheet)))
    if as_brown is not None:
        from hardnet_sfm.training.brown import write_brown
        from hardnet_sfm.training.patches import read_patches

        write_brown(read_patches(patches), as_brown)
        output.print(escape(str(as_brown)))


def _print_summary(place: Workspace) -> None:
    summary = read_json(place.summary)

    def row(name: str, text: str) -> None:
        output.print(f"[bold]{name:<8}[/]  {text}")

    for number, model in enumerate(summary["models"]):
        row(f"sparse/{number}", f"{model['photos']} of {summary['photos']} photos registered")
        row("", f"{model['points']} points, mean track length {model['mean_track_length']:.2f}")
        row("", f"mean reprojection error {model['mean_reprojection_error']:.2f} px")
    row("matches", f"{summary['verified_matches']} verified in {summary['verified_pairs']} of {summary['pairs']} pairs")
    row("cameras", str(summary["cameras"]))
    if "seconds" in summary:
        seconds = summary["seconds"]
        times = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
        row("last run", f"{sum(seconds.values()):.1f} s ({times}); peak memory {summary['peak_memory_mb']} MB")
    row("files", escape(str(place.root)))
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
