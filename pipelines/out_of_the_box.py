"""What both programs make of a folder of photos without any option: ours next to COLMAP.

    python pipelines/out_of_the_box.py DATA --workspace DIR

DATA holds a folder for each scene, with the photos in it or in `images/`. Both programs get the photos at full size, as
their defaults have it. COLMAP extracts SIFT, matches all pairs and maps with the cameras of its automatic mode. Each run
has a process of its own, so that its peak memory is known. A finished run is kept in DIR: delete its JSON file to
repeat it.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from hardnet_sfm.commands.common import errors_said
from hardnet_sfm.commands.flags import flag_rules
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.images import list_photos
from hardnet_sfm.pipeline import peak_memory_mb
from hardnet_sfm.resources import Resources
from hardnet_sfm.workspace import read_json, write_json

Program = Literal["colmap", "ours"]

SCENES = (
    *("fountain-P11", "lund-door", "train/lund-street", "train/saharov32", "train/fox", "train/rock"),
    *("train/ochota-kite", "train/bonsai", "train/south-building", "train/statue-of-liberty"),
)


@dataclass(frozen=True)
class Options:
    """What both programs make of a folder of photos without any option: ours next to COLMAP."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of the scenes."""
    workspace: Path
    """Folder for the models and figures; finished runs are kept."""
    scenes: tuple[str, ...] = SCENES
    """Folders below DATA."""
    programs: tuple[Program, ...] = ("colmap", "ours")
    """Which to run; the table has all that were ever run."""
    resources: Resources = field(default_factory=Resources)


def images_of(scene: Path) -> Path:
    """The folder of a scene's photos.

    Raises:
        HardnetSfmError: it is missing.
    """
    images = scene / "images"
    if images.is_dir():
        return images
    if not scene.is_dir():
        raise HardnetSfmError(f"no such scene: {scene}", "Give the folder that holds the scenes, and --scenes NAME.")
    return scene


def run_colmap(images: Path, folder: Path, resources: Resources) -> dict[str, Any]:
    """COLMAP's SIFT, exhaustive matching and incremental mapper at their defaults. Runs in a process of its own."""
    from hardnet_sfm.colmap.baseline import reconstruct_with_sift
    from hardnet_sfm.colmap.cameras import CameraSetup
    from hardnet_sfm.colmap.mapping import Mapping

    mapping = Mapping("incremental", False, False, min_model_size=3, threads=resources.threads, seed=0)
    setup = CameraSetup("auto", "SIMPLE_RADIAL")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run = reconstruct_with_sift(
                images, Path(scratch), setup, mapping, max_image_size=-1, max_features=8192
            )
        except HardnetSfmError as error:
            return {"seconds": time.perf_counter() - start, "peak_memory_mb": peak_memory_mb(), "error": error.message}
    run.model.write(folder / "colmap")
    return {
        **run.model.facts(),
        "cameras": run.model.colmap.num_cameras(),
        "verified_matches": run.verified_matches,
        "seconds": time.perf_counter() - start,
        "seconds_by_stage": run.seconds,
        "peak_memory_mb": peak_memory_mb(),
    }


def run_ours(images: Path, folder: Path, resources: Resources) -> dict[str, Any]:
    """Our `reconstruct`, without an option. Runs in a process of its own."""
    from hardnet_sfm.pipeline import reconstruct
    from hardnet_sfm.workspace import Workspace

    place = Workspace(folder / "ours")
    start = time.perf_counter()
    try:
        model = reconstruct(images, place.root, resources=resources)
    except HardnetSfmError as error:
        return {"seconds": time.perf_counter() - start, "peak_memory_mb": peak_memory_mb(), "error": error.message}
    seconds, summary = time.perf_counter() - start, read_json(place.summary)
    return {
        **model.facts(),
        "cameras": model.colmap.num_cameras(),
        "verified_matches": summary["verified_matches"],
        "seconds": seconds,
        "seconds_by_stage": summary["seconds"],
        "peak_memory_mb": peak_memory_mb(),
    }


RUNS: dict[Program, Callable[[Path, Path, Resources], dict[str, Any]]] = {"colmap": run_colmap, "ours": run_ours}


def run_alone(program: Program, images: Path, folder: Path, resources: Resources) -> dict[str, Any]:
    """The figures of one run, made by a fresh process."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(RUNS[program], images, folder, resources).result()


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,), registry=flag_rules())
    console = Console(width=120, highlight=False)
    scenes = {name: images_of(options.data / name) for name in options.scenes}
    for name, images in scenes.items():
        for program in options.programs:
            figures = options.workspace / name / f"{program}.json"
            if not figures.is_file():
                done = run_alone(program, images, figures.parent, options.resources)
                write_json(figures, done)
                console.print(f"{name}, {program}: {done.get('photos', 0)} photos, {done['seconds']:.0f} s")


if __name__ == "__main__":
    with errors_said():
        main()
