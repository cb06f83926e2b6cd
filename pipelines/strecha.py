"""Compares this package with COLMAP's SIFT on a scene with known cameras.

    python pipelines/strecha.py FOLDER

FOLDER has the layout of Strecha et al. (CVPR 2008), `images/` and `gt_dense_cameras/`; or it has a COLMAP model in
`colmap/` as the reference. Both programs get the same photos, image size and limit on keypoints. This package runs with
each of the descriptors. Every combination runs twice: once calibrating the camera, and once with the true intrinsics
fixed.

A COLMAP model is not a survey. Its principal point is usually fixed at the middle of the photos. The table therefore
also has errors relative to that model with the principal point refined from its own observations. It also says how far
the refinement moves the principal point.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hardnet_sfm.colmap.baseline import reconstruct_with_sift
from hardnet_sfm.colmap.calibration import adjust_robustly
from hardnet_sfm.colmap.cameras import CameraSetup
from hardnet_sfm.colmap.mapping import Mapping
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.errors import check_least
from hardnet_sfm.evaluation.datasets.strecha import read_strecha
from hardnet_sfm.evaluation.poses import PoseErrors, pose_errors
from hardnet_sfm.features.descriptors import make_descriptor
from hardnet_sfm.features.extraction import ExtractOptions, KeypointOptions
from hardnet_sfm.files.workspace import Workspace, read_json
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.verbs.reconstruct import reconstruct


@dataclass(frozen=True)
class Options:
    """Ours beside COLMAP's SIFT on a scene with known cameras."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Scene: images/ and gt_dense_cameras/, or images/ and colmap/."""
    max_features: int = 8192
    """Most keypoints a photo, for both programs. One with two orientations counts once."""
    descriptors: tuple[str, ...] = ("rootsift", "hardnet")
    """Of ours, one run for each."""
    weights: Path | None = None
    """Of a learned descriptor; with --descriptors hardnet."""
    extract: KeypointOptions = field(default_factory=lambda: KeypointOptions(max_image_size=1600))
    resources: Resources = field(default_factory=Resources)


class Truth(NamedTuple):
    """True poses by photo, the true camera in COLMAP's terms, and how many of the unit of error a unit of length is.

    Of a model that stands for the truth also the one with its principal point refined, where its photos determine that.
    """

    cam_from_world: dict[str, NDArray]
    camera: CameraSetup
    unit: str
    per_unit: float
    refined: Model | None = None


class Row(NamedTuple):
    """Figures of one run."""

    model: Model
    verified_matches: int
    seconds: dict[str, float]


def read_truth(folder: Path) -> Truth:
    if (folder / "colmap").is_dir():
        model = Model.read(folder / "colmap")
        camera = next(iter(model.colmap.cameras.values()))
        setup = CameraSetup("single", camera.model_name, tuple(map(float, camera.params)))
        poses, per_unit = model.cam_from_world(), 100 / _extent(model)
        refined = adjust_robustly(model.colmap, _mapping(fixed=False, threads=1))
        return Truth(poses, setup, "% of extent", per_unit, None if refined is model.colmap else Model(refined))
    scene = read_strecha(folder)
    return Truth(scene.cam_from_world, CameraSetup("single", "PINHOLE", scene.colmap_pinhole()), "mm", 1000)


def _mapping(*, fixed: bool, threads: int) -> Mapping:
    return Mapping(
        "incremental",
        fix_intrinsics=fixed,
        refine_principal_point=True,
        grow_distortion=False,
        min_model_size=3,
        threads=threads,
        seed=0,
    )


def _extent(model: Model) -> float:
    """Largest distance of two cameras: a model made by SfM has no unit of its own."""
    centres = [model.colmap.image(number).projection_center() for number in model.colmap.reg_image_ids()]
    return max(float(((a - b) ** 2).sum() ** 0.5) for a in centres for b in centres)


def check(options: Options) -> None:
    """Raises HardnetSfmError where ours, which comes after COLMAP's, would."""
    check_least(options, max_features=1)
    options.extract.check()
    for descriptor in options.descriptors:
        make_descriptor(descriptor, options.weights)


def run(options: Options, camera: CameraSetup, fixed: bool, folder: Path) -> tuple[Row, dict[str, Row], float]:
    """COLMAP's figures, ours by descriptor, and the mean number of keypoints a photo."""
    images = options.folder / "images"
    mapping = _mapping(fixed=fixed, threads=options.resources.threads)
    (folder / "colmap").mkdir(parents=True)
    baseline = reconstruct_with_sift(
        images,
        folder / "colmap",
        camera,
        mapping,
        max_image_size=options.extract.max_image_size,
        max_features=options.max_features,
    )
    theirs = Row(baseline.model, baseline.verified_matches, baseline.seconds)
    ours = {}
    for descriptor in options.descriptors:
        same = {**asdict(options.extract), "max_keypoints": options.max_features}
        extract = ExtractOptions(**same, descriptor=descriptor, weights=options.weights)
        ours[descriptor] = run_ours(options, camera, fixed, extract, folder / descriptor)
    return theirs, ours, baseline.keypoints


def run_ours(options: Options, camera: CameraSetup, fixed: bool, extract: ExtractOptions, workspace: Path) -> Row:
    """Our figures with one descriptor."""
    start = time.perf_counter()
    model = reconstruct(
        options.folder / "images",
        workspace,
        extract_options=extract,
        map_options=MapOptions(
            camera_mode=camera.mode,
            camera_model=camera.model,
            camera_params=",".join(map(repr, map(float, camera.params))) or None,
            fix_intrinsics=fixed,
        ),
        resources=options.resources,
    )
    total = time.perf_counter() - start
    summary = read_json(Workspace(workspace).summary)
    seconds = summary["seconds"] | {"match": summary["seconds"]["match"] + summary["seconds"]["pair"]}
    seconds["map"] += total - sum(summary["seconds"].values())
    del seconds["pair"]
    return Row(model, summary["verified_matches"], seconds)


def print_table(console: Console, title: str, truth: Truth, fixed: bool, theirs: Row, ours: dict[str, Row]) -> None:
    """COLMAP's figures, ours, and ours as multiples of COLMAP's."""
    table = Table(title=title, title_justify="left")
    table.add_column()
    for column in ("COLMAP SIFT", *(column for name in ours for column in (name, "/ COLMAP"))):
        table.add_column(column, justify="right")
    figures: list[tuple[str, str, Callable[[Row], float]]] = [
        (f"registered of {len(truth.cam_from_world)}", ".0f", lambda row: len(row.model.names)),
        *accuracy(truth.cam_from_world, truth, ""),
        *(accuracy(truth.refined.cam_from_world(), truth, " *") if truth.refined else ()),
        ("points", ".0f", lambda row: row.model.points),
        ("observations", ".0f", lambda row: row.model.observations),
        ("mean track length", ".2f", lambda row: row.model.mean_track_length),
        ("verified matches", ".0f", lambda row: row.verified_matches),
        ("reprojection error, px", ".3f", lambda row: row.model.mean_reprojection_error),
        *((f"seconds, {stage}", ".1f", lambda row, s=stage: row.seconds[s]) for stage in ("extract", "match", "map")),
        ("seconds, total", ".1f", lambda row: sum(row.seconds.values())),
    ]
    for name, form, figure in figures:
        base = figure(theirs)
        cells = []
        for value in map(figure, ours.values()):
            cells += [format(value, form), format(value / base, ".2f") if base else "-"]
        table.add_row(name, format(base, form), *cells)
    console.print(table)
    if truth.refined:
        moved = pose_errors(truth.cam_from_world, truth.refined.cam_from_world()).positions.mean() * truth.per_unit
        camera = next(iter(truth.refined.colmap.cameras.values()))
        x, y = camera.principal_point_x, camera.principal_point_y
        console.print(f"*: to the model of the set with its principal point refined, to ({x:.1f}, {y:.1f}),")
        console.print(f"   which moves it by {moved:.3g} {truth.unit}.")
    if not fixed:
        console.print("COLMAP leaves the principal point in the middle, we refine it at the end.")
    console.print("match and map: COLMAP verifies pairs while matching, we while mapping.\n")


def accuracy(poses: dict[str, NDArray], truth: Truth, mark: str) -> list[tuple[str, str, Callable[[Row], float]]]:
    """Rows of errors to poses: their names, how they are written, and how each is computed."""

    def errors(row: Row) -> PoseErrors:
        return pose_errors(row.model.cam_from_world(), poses)

    name = f"position error{mark}, {truth.unit}"
    return [
        (f"{name}, mean", ".3g", lambda row: errors(row).positions.mean() * truth.per_unit),
        (f"{name}, largest", ".3g", lambda row: errors(row).positions.max() * truth.per_unit),
        *((f"pose AUC@{t:g} degree{mark}", ".3f", lambda row, t=t: errors(row).auc(t)) for t in (0.1, 0.5, 1.0)),
    ]


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,), registry=flag_rules())
    console = Console(width=100)
    check(options)
    truth = read_truth(options.folder)
    self_calibrated = CameraSetup("single", "SIMPLE_RADIAL")
    with tempfile.TemporaryDirectory() as scratch:
        for title, camera, fixed in (
            ("self-calibrated, one SIMPLE_RADIAL camera", self_calibrated, False),
            (f"true intrinsics fixed ({truth.camera.model})", truth.camera, True),
        ):
            theirs, ours, keypoints = run(options, camera, fixed, Path(scratch) / title.split(",")[0])
            title = f"{options.folder.name}: {title}; {keypoints:.0f} keypoints a photo"
            print_table(console, title, truth, fixed, theirs, ours)


if __name__ == "__main__":
    with report_errors():
        main()
