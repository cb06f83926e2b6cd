"""Reconstruct, mine, train, reconstruct: what weights that were learned on a folder of photos gain on it.

    python pipelines/closed_loop.py IMAGES --map.camera-mode single --train.minutes 30

The gain is measured on the photos that were learned from: it tells what a descriptor made for these photos does for
them, not how well it does elsewhere; `pipelines/homography.py` and `pipelines/strecha.py` tell that.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.stage import ExtractOptions
from hardnet_sfm.pipeline import reconstruct
from hardnet_sfm.progress import console as errors
from hardnet_sfm.reconstruction.stage import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.training.mine import mine
from hardnet_sfm.training.stage import TrainOptions, train
from hardnet_sfm.workspace import Workspace, read_json


@dataclass(frozen=True)
class Options:
    """Reconstruct, mine, train, reconstruct."""

    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Folder of photos."""
    workspace: Path = Path("closed-loop-out")
    """Folder for both reconstructions, the patches and the weights."""
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    map: MapOptions = field(default_factory=MapOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    resources: Resources = field(default_factory=Resources)


def closed_loop(options: Options) -> tuple[Workspace, Workspace]:
    """Runs the loop; what an earlier run finished is kept. The workspaces before and after."""
    before, after = Workspace(options.workspace / "before"), Workspace(options.workspace / "after")
    patches, weights = options.workspace / "patches.h5", options.workspace / "learned.safetensors"
    maps, resources = options.map, options.resources
    reconstruct(options.images, before.root, extract_options=options.extract, map_options=maps, resources=resources)
    mine(before.root, options.images, patches, resources=resources)
    train([patches], weights, options.train, resources)
    learned = replace(options.extract, descriptor="hardnet", weights=weights)
    reconstruct(options.images, after.root, extract_options=learned, map_options=maps, resources=resources)
    return before, after


def print_gain(before: Workspace, after: Workspace) -> None:
    summaries = [read_json(place.summary) for place in (before, after)]
    models = [summary["models"][0] for summary in summaries]
    rows = {
        "photos registered": [model["photos"] for model in models],
        "verified pairs": [summary["verified_pairs"] for summary in summaries],
        "verified matches": [summary["verified_matches"] for summary in summaries],
        "points": [model["points"] for model in models],
        "observations": [model["observations"] for model in models],
        "mean track length": [model["mean_track_length"] for model in models],
        "mean reprojection error, px": [model["mean_reprojection_error"] for model in models],
    }
    table = Table(title=f"{before.root.parent}: before and after learning on these photos")
    names = [summary["options"]["extract"]["descriptor"] for summary in summaries]
    for column in ("", f"before ({names[0]})", "after (learned)", "after / before"):
        table.add_column(escape(column), justify="right" if column else "left")
    for name, (old, new) in rows.items():
        table.add_row(name, f"{old:g}", f"{new:g}", f"{new / old:.2f}" if old else "-")
    Console().print(table)


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        print_gain(*closed_loop(options))
    except HardnetSfmError as error:
        errors.print(f"[bold red]error:[/] {escape(error.message)}\n{escape(error.hint)}", soft_wrap=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
