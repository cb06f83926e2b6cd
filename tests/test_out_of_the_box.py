"""The table of both programs without any option, from figures that are known."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pycolmap
import pytest
from rich.console import Console

from hardnet_sfm.colmap.model import Model
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.scene import Scene

SCRIPT = Path(__file__).parents[1] / "pipelines" / "out_of_the_box.py"
COLMAP = {"photos": 10, "points": 1000, "observations": 4000, "mean_track_length": 4.0}
OURS = {"photos": 12, "points": 1500, "observations": 6000, "mean_track_length": 4.0}
COSTS = {"seconds": 20.0, "peak_memory_mb": 500}


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def write(folder: Path, program: str, figures: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{program}.json").write_text(json.dumps({**figures, **COSTS}))


def printed(script: SimpleNamespace, data: Path, workspace: Path) -> list[list[str]]:
    console = Console(width=200, record=True, file=io.StringIO())
    script.print_table(console, script.Options(data, workspace, scenes=("statue",)))
    rows = [line for line in console.export_text().splitlines() if "│" in line]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def twice_the_same() -> Model:
    """Two cameras that see 40 points; the last one is where the first one is, with keypoints of its own."""
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1, num_cameras_per_rig=1, num_frames_per_rig=2, num_points3D=39, num_points2D_without_point3D=0
    )
    made = pycolmap.synthesize_dataset(options)
    with_another = pycolmap.Reconstruction()
    for camera in made.cameras.values():
        with_another.add_camera_with_trivial_rig(camera)
    first = min(made.points3D)
    where = {element.image_id: element.point2D_idx for element in made.point3D(first).track.elements}
    for number, image in made.images.items():
        xy = [keypoint.xy for keypoint in image.points2D]
        keypoints = pycolmap.Point2DList([pycolmap.Point2D(at) for at in [*xy, xy[where[number]]]])
        copy = pycolmap.Image(image.name, keypoints, image.camera_id, number)
        with_another.add_image_with_trivial_frame(copy, image.cam_from_world())
    for point in made.points3D.values():
        with_another.add_point3D(point.xyz, point.track, point.color)
    track = pycolmap.Track([pycolmap.TrackElement(number, 39) for number in made.images])
    with_another.add_point3D(made.point3D(first).xyz, track, np.zeros(3, np.uint8))
    return Model(with_another)


def test_the_ratio_is_ours_to_colmaps(script: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "data/statue").mkdir(parents=True)
    write(tmp_path / "work/statue", "colmap", COLMAP)
    write(tmp_path / "work/statue", "ours", OURS)
    for folder in ("colmap", "ours/sparse/0"):  # of two photos that see 40 points, two of them at the same place
        twice_the_same().write(tmp_path / "work/statue" / folder)
    theirs, ours, ratio = printed(script, tmp_path / "data", tmp_path / "work")
    assert theirs == ["statue", "colmap", "10", "1000", "39", "400", "8", "4.00", "20", "500", ""]
    assert ours[2:] == ["12", "1500", "39", "500", "6", "4.00", "20", "500", ""]
    assert ratio[1:] == ["ours / colmap", "1.20", "1.50", "1.00", "1.25", "0.83", "1.00", "1.00", "1.00", ""]


def test_a_program_that_makes_no_model_has_no_photos(script: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "data/statue").mkdir(parents=True)
    write(tmp_path / "work/statue", "colmap", {"error": "no model"})
    write(tmp_path / "work/statue", "ours", OURS)
    twice_the_same().write(tmp_path / "work/statue/ours/sparse/0")
    theirs, _, ratio = printed(script, tmp_path / "data", tmp_path / "work")
    assert theirs[2:8] == ["0", "0", "0", "0", "0", "0.00"]
    assert ratio[2:7] == ["-", "-", "-", "-", "-"]


def test_errors_are_distances_to_the_reference(
    script: SimpleNamespace, made: Workspace, small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    """The rendered scene is 20 m wide; its model is some millimetres off."""
    truth = dict(zip(small_scene[1].names, small_scene[1].cam_from_world, strict=True))
    Model.read(made.sparse / "0").write(tmp_path / "colmap")
    error, auc = script.errors_of(script.Reference(truth, "mm", 1000), tmp_path, "colmap")
    assert 0.1 < error < 30 and auc > 0.3


def test_a_missing_scene_is_named(script: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(HardnetSfmError, match="no such scene: "):
        script.images_of(tmp_path / "nowhere")
