"""Shows the effect of each default: runs `reconstruct` without options, and with one default at its former value.

    python pipelines/each_default.py DATA --workspace DIR --scenes fountain-P11 lund-door train/lund-street

DATA holds a folder for each scene, with the photos in it or in `images/`. The columns follow the work from photos to a
model: keypoints, matches, verified matches, photos, points and errors. A gain in one column may be lost in the next.
A variant starts from the files of the first variant, so it repeats only the work that its option affects. DIR keeps
finished runs. Delete the JSON file of a run to repeat it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from out_of_the_box import errors_of, images_of, reference_of
from rich.console import Console
from rich.table import Table

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.workspace import Workspace, read_json, write_json
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.verbs.match import MatchOptions
from hardnet_sfm.verbs.reconstruct import reconstruct

DEFAULTS = "the defaults"
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    "--max-keypoints 8192": {"extract_options": ExtractOptions(max_keypoints=8192)},
    "--orientation estimated": {"extract_options": ExtractOptions(orientation="estimated")},
    "--orientation both": {"extract_options": ExtractOptions(orientation="both")},
    "--max-ratio 0.8": {"match_options": MatchOptions(max_ratio=0.8)},
    "--max-error 1.5": {"map_options": MapOptions(max_error=1.5)},
    "--camera-mode per-image": {"map_options": MapOptions(camera_mode="per-image")},
    "--camera-model SIMPLE_RADIAL": {"map_options": MapOptions(camera_model="SIMPLE_RADIAL")},
    "--mapper incremental --no-retry": {"map_options": MapOptions(mapper="incremental", retry=False)},
    "--guided-matching": {"map_options": MapOptions(guided_matching=True)},
}


@dataclass(frozen=True)
class Options:
    """What each default gives."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of the scenes."""
    workspace: Path
    """Folder for the models and figures; finished runs are kept."""
    scenes: tuple[str, ...] = ("fountain-P11", "lund-door", "train/lund-street")
    """Folders below DATA."""
    resources: Resources = field(default_factory=Resources)


def folder_of(name: str) -> str:
    """Of a variant, below that of its scene."""
    return name.replace("--", "").replace(" ", "-").replace(".", "-")


def run(images: Path, folder: Path, first: Path, options: dict[str, Any], resources: Resources) -> dict[str, Any]:
    """The figures of one variant, started from the files of the first."""
    if folder != first:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(first, folder)
    place = Workspace(folder)
    try:
        model = reconstruct(images, folder, resources=resources, report=False, **options)
    except HardnetSfmError as error:
        return {"error": error.message}
    summary = read_json(place.summary)
    kept = ("keypoints", "matches", "verified_pairs", "verified_matches", "photos")
    return {**model.facts(), "registered": model.facts()["photos"], **{name: summary[name] for name in kept}}


COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("keypoints a photo", lambda row: f"{row['keypoints'] / row['photos']:.0f}"),
    ("matches", lambda row: f"{row['matches']}"),
    ("verified pairs", lambda row: f"{row['verified_pairs']}"),
    ("verified matches", lambda row: f"{row['verified_matches']}"),
    ("registered", lambda row: f"{row['registered']}"),
    ("points", lambda row: f"{row['points']}"),
    ("track length", lambda row: f"{row['mean_track_length']:.2f}"),
    ("position error", lambda row: row.get("position_error", "")),
)


def table_of(scene: str, rows: dict[str, dict[str, Any]]) -> Table:
    table = Table("", *(name for name, _ in COLUMNS), title=scene)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in rows.items():
        cells = ["no model"] if "error" in row else [form(row) for _, form in COLUMNS]
        table.add_row(name, *cells)
    return table


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,), registry=flag_rules())
    console = Console(width=140, highlight=False)
    for scene in options.scenes:
        place, reference = options.workspace / scene, reference_of(options.data / scene)
        images = images_of(options.data / scene)
        rows: dict[str, dict[str, Any]] = {}
        for name, changed in VARIANTS.items():
            folder = place / folder_of(name)
            figures = folder.with_suffix(".json")
            if not figures.is_file():
                found = run(images, folder / "ours", place / folder_of(DEFAULTS) / "ours", changed, options.resources)
                if reference and "error" not in found:
                    found["position_error"] = f"{errors_of(reference, folder, 'ours')[0]:.3g} {reference.unit}"
                write_json(figures, found)
            rows[name] = read_json(figures)
        console.print(table_of(scene, rows))


if __name__ == "__main__":
    with report_errors():
        main()
