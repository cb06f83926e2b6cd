"""Reconstructs, mines, trains and reconstructs: shows the gain of weights that were trained on the same photos.

    python pipelines/closed_loop.py IMAGES --map.camera-mode single --minutes 10

By default it fine-tunes the shipped weights for half an hour. `--init None` trains from scratch. Another --network that
describes patches needs this, too. Options of training are spelled as in `hardnet-sfm train`. Options of the other
stages begin with the name of the stage. Both reconstructions share all options except the descriptor. The first one
uses --extract.descriptor with --extract.weights. To fine-tune your own weights, give them to --extract.weights and to
--init.

The gain is measured on the photos of the training. It shows the benefit of a descriptor for the photos that it was
trained on, not its quality elsewhere. `pipelines/homography.py` and `pipelines/strecha.py` measure that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.datasets.patch_sources import read_any_patches
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.weight_files import find_weights
from hardnet_sfm.files.workspace import Workspace, read_json
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.networks.architectures import ARCHITECTURES
from hardnet_sfm.networks.loading import load_network
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.training.observations import MineOptions
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.verbs.match import MatchOptions
from hardnet_sfm.verbs.mine import mine
from hardnet_sfm.verbs.pair import PairOptions
from hardnet_sfm.verbs.reconstruct import reconstruct
from hardnet_sfm.verbs.train import train

said = Console(highlight=False)


@dataclass(frozen=True)
class Options:
    """Reconstruct, mine, train, reconstruct."""

    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Folder of photos."""
    workspace: Path = Path("closed-loop-out")
    """Folder for both reconstructions, the patches and the weights."""
    validation: tuple[Path, ...] = ()
    """patches.h5 files of other scenes, to measure with while it trains."""
    train: Annotated[TrainOptions, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: TrainOptions(init="hardnet-sfm", minutes=30.0)
    )
    resources: Annotated[Resources, tyro.conf.OmitArgPrefixes] = field(default_factory=Resources)
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    match: MatchOptions = field(default_factory=MatchOptions)
    map: MapOptions = field(default_factory=MapOptions)
    mine: MineOptions = field(default_factory=MineOptions)


def check(options: Options) -> None:
    """Raises HardnetSfmError where training, which comes late, would; or where what it makes cannot describe photos."""
    options.train.check()
    network = ARCHITECTURES.find(options.train.completed().network)
    if network.metric != "l2":
        raise UsageError(
            f"--network {network.name} compares patches and describes none: photos cannot be matched by it alone",
            "Train it with hardnet-sfm train, and use it with hardnet-sfm match --rescore.",
        )
    if options.train.init is not None:
        load_network(find_weights(options.train.init), network.name)
    for path in options.validation:
        size = read_any_patches(path).measurement_size
        if size != options.mine.measurement_size:
            raise HardnetSfmError(
                f"{path}: patches {size:g} sigmas wide, those to train on are {options.mine.measurement_size:g}",
                "Mine them anew in that size, or say the other as --mine.measurement-size.",
            )


def closed_loop(options: Options) -> tuple[Workspace, Workspace]:
    """Runs the loop; what an earlier run finished is kept. The workspaces before and after."""
    check(options)
    before, after = Workspace(options.workspace / "before"), Workspace(options.workspace / "after")
    patches, weights = options.workspace / "patches.h5", options.workspace / "learned.safetensors"

    def mapped(place: Workspace, extract: ExtractOptions) -> None:
        reconstruct(
            options.images,
            place.root,
            extract_options=extract,
            pair_options=options.pair,
            match_options=options.match,
            map_options=options.map,
            resources=options.resources,
        )

    mapped(before, options.extract)
    mined = mine(before.root, options.images, patches, options.mine, options.resources)
    said.print(f"mined: {mined.patches} patches of {mined.points} points in {mined.photos} photos")
    trained = train([patches], weights, options.train, options.resources, validation=options.validation, overwrite=True)
    measures = "".join(f", {name} {value:.4f}" for name, value in trained.measures.items())
    said.print(f"learned: {trained.steps} steps in {trained.minutes:.1f} minutes{measures}")
    mapped(after, replace(options.extract, descriptor=options.train.network, weights=weights))
    return before, after


def print_gain(before: Workspace, after: Workspace) -> None:
    summaries = [read_json(place.summary) for place in (before, after)]
    models = [summary["models"][0] for summary in summaries]
    rows = {
        "photos": [summary["photos"] for summary in summaries],
        "photos registered": [model["photos"] for model in models],
        "keypoints": [summary["keypoints"] for summary in summaries],
        "matches": [summary["matches"] for summary in summaries],
        "verified pairs": [summary["verified_pairs"] for summary in summaries],
        "verified matches": [summary["verified_matches"] for summary in summaries],
        "points": [model["points"] for model in models],
        "observations": [model["observations"] for model in models],
        "mean track length": [model["mean_track_length"] for model in models],
        "mean reprojection error, px": [model["mean_reprojection_error"] for model in models],
    }
    table = Table(title=f"{before.root.parent}: before and after learning on these photos")
    for column in ("", f"before ({_descriptor(summaries[0])})", "after (learned)", "after / before"):
        table.add_column(escape(column), justify="right" if column else "left")
    for name, (old, new) in rows.items():
        table.add_row(name, f"{old:.7g}", f"{new:.7g}", f"{new / old:.2f}" if old else "-")
    said.print(table)


def _descriptor(summary: dict[str, Any]) -> str:
    """Its name, with the first digits of its weights' sha256 where it has any."""
    chosen = summary["options"]["extract"]
    return f"{chosen['descriptor']} {chosen['weights_sha256'][:8]}".strip()


def main() -> None:
    options = tyro.cli(Options, registry=flag_rules())
    resumes = "Interrupted. The same command resumes; if it was training, add --resume."
    with report_errors(interrupted=resumes):
        print_gain(*closed_loop(options))


if __name__ == "__main__":
    main()
