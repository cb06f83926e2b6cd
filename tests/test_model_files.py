"""Models of COLMAP with files that are missing, cut short or contradict each other."""

from __future__ import annotations

from pathlib import Path

import pycolmap
import pytest

from hardnet_sfm.colmap.log import native_log
from hardnet_sfm.colmap.mappers import large_enough
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.errors import HardnetSfmError


@pytest.fixture
def colmap() -> pycolmap.Reconstruction:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 1, 4, 20
    return pycolmap.synthesize_dataset(options)


def test_a_missing_camera_is_named_and_nothing_is_to_be_deleted(
    colmap: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    colmap.write_text(tmp_path)
    (tmp_path / "cameras.txt").write_text("7 SIMPLE_RADIAL 1296 1936 2435.38 648 968 -0.03\n")
    with pytest.raises(HardnetSfmError, match=r"camera 1 is missing in cameras\.txt \(4 photos use it") as raised:
        Model.read(tmp_path)
    assert "elete" not in raised.value.hint


def test_cameras_that_end_early_are_noticed(colmap: pycolmap.Reconstruction, tmp_path: Path) -> None:
    """COLMAP reads this file without an error."""
    colmap.write_binary(tmp_path)
    path = tmp_path / "cameras.bin"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(HardnetSfmError, match=r"cameras\.bin: it ends before"):
        Model.read(tmp_path)


@pytest.mark.parametrize("name", ["images.bin", "points3D.bin", "frames.bin"])
def test_an_empty_file_is_named(colmap: pycolmap.Reconstruction, name: str, tmp_path: Path) -> None:
    colmap.write_binary(tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(HardnetSfmError, match=f"{name} is empty"):
        Model.read(tmp_path)


def test_a_text_model_without_points_is_read(colmap: pycolmap.Reconstruction, tmp_path: Path) -> None:
    """COLMAP's manual tells users with known poses to make an empty points3D.txt."""
    for point in list(colmap.point3D_ids()):
        colmap.delete_point3D(point)
    colmap.write_text(tmp_path)
    (tmp_path / "points3D.txt").write_text("")
    assert len(Model.read(tmp_path).names) == 4


def test_names_with_spaces_in_a_text_model_are_whole(colmap: pycolmap.Reconstruction, tmp_path: Path) -> None:
    names = ["IMG (1).jpg", "a  b.jpg", "WhatsApp Image 3.jpg", "plain.jpg"]
    for number, name in zip(sorted(colmap.reg_image_ids()), names, strict=True):
        colmap.image(number).name = name
    colmap.write_text(tmp_path / "text") if (tmp_path / "text").mkdir() is None else None
    assert sorted(Model.read(tmp_path / "text").names) == sorted(names)


def test_two_logs_within_a_second_leave_the_terminal_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for text in ("one", "two"):
        with native_log(tmp_path):
            pycolmap.logging.warning(text)
    assert capfd.readouterr().err == ""
    written = sorted(path.read_text() for path in tmp_path.iterdir() if not path.is_symlink())
    assert len(written) == 2 and "one" in "".join(written) and "two" in "".join(written)


def test_small_models_are_dropped_but_the_largest_is_kept(colmap: pycolmap.Reconstruction) -> None:
    model = Model(colmap)
    assert large_enough([model, model], 5) == [model]
    assert large_enough([model, model], 4) == [model, model]
    assert large_enough([], 3) == []
