"""pipelines/strangers.py as a user runs it: what it links, and that its table tells what the models hold."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pycolmap
import pytest
from printed import cells

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.scene import Scene, render

SCRIPT = Path(__file__).parents[1] / "pipelines" / "strangers.py"


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Folders with so many empty files that are named as photos."""
    made = {}
    for name, count in (("scene", 9), ("few", 2), ("many", 12)):
        made[name] = tmp_path / name / "images"
        made[name].mkdir(parents=True)
        for number in range(count):
            (made[name] / f"{name}{number}.jpg").touch()
    return {name: folder.parent for name, folder in made.items()}


def test_links_are_spread_evenly_over_scene_and_folders(places: dict[str, Path], tmp_path: Path) -> None:
    link_photos = runpy.run_path(str(SCRIPT))["link_photos"]
    folder = tmp_path / "links"
    assert link_photos(places["scene"], (places["few"], places["many"]), 5, 3, folder) == (5, 3)
    names = {kind: sorted(path.resolve().name for path in (folder / kind).iterdir()) for kind in ("scene", "others")}
    assert names["scene"] == [f"scene{number}.jpg" for number in (0, 2, 4, 6, 8)]
    assert names["others"] == ["few0.jpg", "few1.jpg", "many0.jpg"]
    assert link_photos(places["scene"], (places["many"],), 0, 12, folder) == (9, 12)  # all, and no link of before
    assert len(list(folder.rglob("*.jpg"))) == 21


def test_too_few_other_photos_are_an_error(places: dict[str, Path], tmp_path: Path) -> None:
    link_photos = runpy.run_path(str(SCRIPT))["link_photos"]
    with pytest.raises(HardnetSfmError, match="4 photos where 5 are asked for"):
        link_photos(places["scene"], (places["few"], places["many"]), 0, 5, tmp_path / "links")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_photos_of_another_scene_are_not_registered(
    small_scene: tuple[Path, Scene],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    render(tmp_path / "elsewhere", photos=4, size=(480, 360), seed=1)
    how = "--descriptor rootsift --max-keypoints 1000 --max-ratio 0.9 --max-error 4 --workers 1 --count 4"
    paths = f"{small_scene[0]} --others {tmp_path / 'elsewhere'} --workspace {tmp_path / 'out'}"
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *paths.split(), *how.split()])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    row = next(line for line in capsys.readouterr().out.splitlines() if "8 of 8" in line)
    made = tmp_path / "out" / small_scene[0].name / "out"
    model = pycolmap.Reconstruction(made / "sparse" / "0")
    with pycolmap.Database.open(made / "database.db") as database:
        names = {image.image_id: image.name.split("/")[0] for image in database.read_all_images()}
        pairs, inliers = database.read_two_view_geometry_num_inliers()
        ends = [pycolmap.pair_id_to_image_pair(pair) for pair in pairs]
        false = [n for (a, b), n in zip(ends, inliers, strict=True) if n and names[a] != names[b]]
    expected = ["photos", "8 of 8", model.num_points3D(), "0 of 4", 0, len(false), max(false, default=0)]
    assert cells(row) == [str(value) for value in expected]
