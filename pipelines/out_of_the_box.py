"""Compares `reconstruct` with COLMAP on folders of photos, both without any options.

    python pipelines/out_of_the_box.py DATA --workspace DIR

DATA holds a folder for each scene, with the photos in it or in `images/`. Both programs get the photos at full size and
use their default sizes. COLMAP extracts SIFT, matches all pairs and maps with the cameras of its automatic mode. Each
run has its own process, so that its peak memory is known. DIR keeps finished runs. Delete the JSON file of a run to
repeat it.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.strecha import read_strecha
from hardnet_sfm.evaluation.poses import pose_errors
from hardnet_sfm.files.workspace import read_json, write_json
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.verbs.reconstruct import peak_memory_mb

if TYPE_CHECKING:  # pycolmap takes a second to import
    from hardnet_sfm.colmap.model import Model

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

    mapping = Mapping("incremental", False, False, False, min_model_size=3, threads=resources.threads, seed=0)
    setup = CameraSetup("auto", "SIMPLE_RADIAL")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run = reconstruct_with_sift(images, Path(scratch), setup, mapping, max_image_size=-1, max_features=8192)
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
    from hardnet_sfm.files.workspace import Workspace
    from hardnet_sfm.verbs.reconstruct import reconstruct

    place = Workspace(folder / "ours")
    shutil.rmtree(place.root, ignore_errors=True)  # files of a killed run would shorten the time
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


@dataclass(frozen=True)
class Reference:
    """What is known of a scene's cameras.

    Attributes:
        cam_from_world: (3, 4) true pose of each photo.
        unit: of the position error.
        per_unit: how many of that unit a unit of length is.
    """

    cam_from_world: dict[str, NDArray[np.float64]]
    unit: str
    per_unit: float


def reference_of(scene: Path) -> Reference | None:
    """Surveyed cameras, or those of a COLMAP model whose principal point was refined; None where there is neither."""
    from hardnet_sfm.colmap.calibration import adjust_robustly
    from hardnet_sfm.colmap.mapping import Mapping
    from hardnet_sfm.colmap.model import Model

    if (scene / "gt_dense_cameras").is_dir():
        return Reference(read_strecha(scene).cam_from_world, "mm", 1000)
    if not (scene / "colmap").is_dir():
        return None
    mapping = Mapping("incremental", False, True, grow_distortion=False, min_model_size=3, threads=1, seed=0)
    model = Model(adjust_robustly(Model.read(scene / "colmap").colmap, mapping))
    poses = model.cam_from_world()
    centres = [-pose[:, :3].T @ pose[:, 3] for pose in poses.values()]
    extent = max(float(np.linalg.norm(one - other)) for one in centres for other in centres)
    return Reference(poses, "% of extent", 100 / extent)


def model_of(folder: Path, program: Program) -> Model:
    """The largest model that a program made of a scene."""
    from hardnet_sfm.colmap.model import Model

    return Model.read(folder / "colmap" if program == "colmap" else folder / "ours" / "sparse" / "0")


def count_distinct(model: Model) -> dict[str, int]:
    """Points and observations of a model where one place counts once.

    SIFT describes a place along up to four orientations, each as a keypoint. Those of one place are matched and
    triangulated each by itself, and a model has the same point several times. Two points are one here if a photo sees
    both at one place, to a tenth of a pixel.

    Returns:
        "distinct_points", "distinct_observations".
    """
    rows = {number: row for row, number in enumerate(model.colmap.points3D)}
    same, observations = [np.zeros((0, 2), np.int64)], 0
    for number in model.colmap.reg_image_ids():
        seen = model.colmap.image(number).get_observation_points2D()
        points = np.array([rows[one.point3D_id] for one in seen], np.int64)
        places = np.array([one.xy for one in seen]).reshape(-1, 2).round(1)
        _, first, place = np.unique(places, axis=0, return_index=True, return_inverse=True)
        same.append(np.column_stack([points, points[first[place.ravel()]]]))
        observations += len(first)
    edges = np.concatenate(same)
    links = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(rows), len(rows)))
    return {"distinct_points": int(connected_components(links)[0]), "distinct_observations": observations}


def errors_of(reference: Reference, folder: Path, program: Program) -> tuple[float, float]:
    """Mean position error in the reference's unit, and AUC of pose errors up to 0.1 degree."""
    errors = pose_errors(model_of(folder, program).cam_from_world(), reference.cam_from_world)
    return float(errors.positions.mean()) * reference.per_unit, errors.auc(0.1)


def print_table(console: Console, options: Options) -> None:
    """Two rows a scene, and how many times COLMAP's value ours is."""
    table = Table("", "", *(column for column, _, _ in _COLUMNS), "position error")
    for column in table.columns[2:]:
        column.justify = "right"
    for name in options.scenes:
        folder, reference = options.workspace / name, reference_of(options.data / name)
        files = {program: folder / f"{program}.json" for program in RUNS}
        rows = {program: read_json(path) for program, path in files.items() if path.is_file()}
        for program, figures in rows.items():
            if "error" not in figures:
                figures |= count_distinct(model_of(folder, program))
        for program, figures in rows.items():
            cells = [form.format(value(figures)) for _, form, value in _COLUMNS]
            error = ""
            if reference and "error" not in figures:
                error = f"{errors_of(reference, folder, program)[0]:.3g} {reference.unit}"
            table.add_row(Path(name).name if program == "colmap" else "", program, *cells, error)
        if len(rows) == len(RUNS):
            ratios = [_ratio(value(rows["ours"]), value(rows["colmap"])) for _, _, value in _COLUMNS]
            table.add_row("", "ours / colmap", *ratios, "", end_section=True)
    console.print(table)


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}" if theirs else "-"


def _a_photo(figures: Mapping[str, Any], name: str) -> float:
    return float(figures.get(name, 0) / max(1, figures.get("photos", 0)))


_COLUMNS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], float]], ...] = (
    ("registered", "{:.0f}", lambda figures: figures.get("photos", 0)),
    ("points", "{:.0f}", lambda figures: figures.get("points", 0)),
    ("distinct", "{:.0f}", lambda figures: figures.get("distinct_points", 0)),
    ("observations a photo", "{:.0f}", lambda figures: _a_photo(figures, "observations")),
    ("distinct", "{:.0f}", lambda figures: _a_photo(figures, "distinct_observations")),
    ("track length", "{:.2f}", lambda figures: figures.get("mean_track_length", 0.0)),
    ("seconds", "{:.0f}", lambda figures: figures["seconds"]),
    ("MB", "{:.0f}", lambda figures: figures["peak_memory_mb"]),
)


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
    print_table(console, options)


if __name__ == "__main__":
    with report_errors():
        main()
