"""Verbs that use photos again refuse photos of another size than those that features were extracted from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

import hardnet_sfm
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.photo_checks import check_sizes
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.export import export
from hardnet_sfm.verbs.map import map_photos
from hardnet_sfm.verbs.mine import mine
from hardnet_sfm.verbs.report import write_report

pytestmark = pytest.mark.usefixtures("one_thread")
_ORIENTATION = 0x0112


@pytest.fixture
def smaller(small_scene: tuple[Path, Scene], tmp_path: Path) -> Path:
    """Copies of the photos, one of them at half its size."""
    folder = tmp_path / "smaller"
    shutil.copytree(small_scene[0], folder)
    shrink(folder / "view_003.jpg")
    return folder


def shrink(photo: Path) -> None:
    image = Image.open(photo)
    image.resize((image.width // 2, image.height // 2)).save(photo)


@pytest.mark.parametrize("verb", ["map", "report", "view", "mine"])
def test_a_smaller_copy_is_named_with_both_sizes(verb: str, made: Workspace, smaller: Path, tmp_path: Path) -> None:
    owner = "its camera" if verb in ("view", "mine") else "its features"
    with pytest.raises(HardnetSfmError, match=f"view_003.jpg 240x180, {owner} 480x360") as raised:
        if verb == "map":
            shutil.copytree(made.root, tmp_path / "ws")
            map_photos(tmp_path / "ws", images=smaller)
        elif verb == "report":
            write_report(made, tmp_path / "page.html", images=smaller)
        elif verb == "view":
            pytest.importorskip("viser")
            from hardnet_sfm.verbs.view import ViewOptions, viewing

            with viewing(made.root, smaller, ViewOptions(port=0)):
                pass
        else:
            mine(made.root, smaller, tmp_path / "p.h5")
    assert "original photos" in raised.value.hint
    assert not (tmp_path / "page.html").exists()


def test_a_photo_that_was_shrunk_in_place_stops_map_and_export(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    photos, place = tmp_path / "photos", Workspace(tmp_path / "ws")
    photos.mkdir()
    for name in ("view_000.jpg", "view_001.jpg"):
        shutil.copy(small_scene[0] / name, photos)
    hardnet_sfm.extract(photos, place.features, hardnet_sfm.ExtractOptions(descriptor="rootsift", max_keypoints=100))
    hardnet_sfm.pair(place.features, place.pairs)
    hardnet_sfm.match(place.features, place.pairs, place.matches)
    export(place, tmp_path / "whole", ("pairs",))
    shrink(photos / "view_001.jpg")
    for work in (lambda: export(place, tmp_path / "to", ("pairs",)), lambda: map_photos(place)):
        with pytest.raises(HardnetSfmError, match=r"view_001.jpg 240x180, its features 480x360"):
            work()
    assert not (tmp_path / "to").exists()
    shutil.rmtree(photos)  # photos that are away do not keep anyone from exporting
    export(place, tmp_path / "to", ("pairs",))


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_sizes_are_those_as_stored(extension: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / f"a.{extension}", exif=exif)
    check_sizes(tmp_path, {f"a.{extension}": (40, 30), "gone.jpg": (1, 1)}, "its camera")
    with pytest.raises(HardnetSfmError, match="40x30, its camera 30x40"):
        check_sizes(tmp_path, {f"a.{extension}": (30, 40)}, "its camera")


def test_five_photos_are_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    for number in range(7):
        Image.new("L", (8, 6)).save(tmp_path / f"{number}.png")
    with pytest.raises(HardnetSfmError, match=r"0.png 8x6, its camera 9x6; .*4.png 8x6, its camera 9x6; and 2 more"):
        check_sizes(tmp_path, {f"{number}.png": (9, 6) for number in range(7)}, "its camera")
