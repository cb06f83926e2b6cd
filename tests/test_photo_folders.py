"""What a folder of photos holds besides: it is followed, left out, and in any case said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files import photo_folders
from hardnet_sfm.files.photo_folders import EXTENSIONS, NotTaken, list_photos


def fill(folder: Path, *names: str) -> Path:
    """Writes a JPEG of 3x2 pixels under every name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(path, "JPEG")
    return folder


def as_heic(path: Path) -> None:
    """Writes the head of a HEIC photo."""
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pillow-heif is not installed."""
    monkeypatch.setattr(photo_folders, "EXTENSIONS", tuple(set(EXTENSIONS) - {".heic", ".heif", ".hif"}))


def test_other_spellings_of_jpeg_are_taken(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jfif", "c.JPE", "d.jpeg")
    assert list_photos(tmp_path).names == ["a.jpg", "b.jfif", "c.JPE", "d.jpeg"]
    assert list_photos(tmp_path).not_taken == NotTaken()
    assert list_photos(tmp_path).not_taken.summary() == ""


@pytest.mark.usefixtures("without_heic")
def test_formats_that_are_not_read_are_counted_with_what_to_do(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "notes.txt", "Thumbs.db", ".hidden.heic")
    for name in ("1.HEIC", "2.heic", "sub/3.heic", "4.DNG", "5.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        as_heic(tmp_path / name)
    listed = list_photos(tmp_path)
    assert listed.names == ["a.jpg"]
    assert listed.not_taken == NotTaken({".dng": 1, ".heic": 3, ".mov": 1})
    assert listed.not_taken.summary() == "1 .dng, 3 .heic, 1 .mov"
    for what in ("pip install pillow-heif", "raw", "videos"):
        assert what in listed.not_taken.hint()


@pytest.mark.usefixtures("without_heic")
def test_a_jpeg_that_a_phone_named_heic_is_taken(tmp_path: Path) -> None:
    fill(tmp_path, "a.heic")
    as_heic(tmp_path / "b.heic")
    assert list_photos(tmp_path).names == ["a.heic"]
    assert list_photos(tmp_path).not_taken.formats == {".heic": 1}


@pytest.mark.usefixtures("without_heic")
def test_a_folder_of_heic_alone_says_how_to_read_them(tmp_path: Path) -> None:
    as_heic(tmp_path / "a.heic")
    with pytest.raises(HardnetSfmError, match=r"no photos in it; not taken: 1 \.heic") as raised:
        list_photos(tmp_path)
    assert "pip install pillow-heif" in raised.value.hint


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "disk", "1.jpg", "deep/2.jpg")
    images = fill(tmp_path / "images", "a.jpg")
    (images / "day1").symlink_to(tmp_path / "disk")
    (images / "z.jpg").symlink_to(tmp_path / "disk/1.jpg")
    listed = list_photos(images)
    assert listed.names == ["a.jpg", "day1/1.jpg", "day1/deep/2.jpg", "z.jpg"]
    assert listed.not_taken == NotTaken()


def test_no_folder_is_taken_twice_and_links_do_not_loop(tmp_path: Path) -> None:
    images = fill(tmp_path / "images", "day1/1.jpg", "day2/2.jpg")
    (images / "again").symlink_to(images / "day2")
    (images / "day1/up").symlink_to(images)
    (images / "outside").symlink_to(tmp_path)
    fill(tmp_path, "3.jpg")
    listed = list_photos(images)
    assert listed.names == ["day1/1.jpg", "day2/2.jpg", "outside/3.jpg"]
    assert listed.not_taken.repeated == ("again", "day1/up", "outside/images")
    assert listed.not_taken.summary() == "again/, day1/up/ and outside/images/ are taken by other names"


def test_links_to_nothing_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    for name in ("gone.jpg", "day2", "notes.txt"):
        (tmp_path / name).symlink_to("/nowhere/at/all")
    (tmp_path / "me").symlink_to(tmp_path / "me")
    listed = list_photos(tmp_path)
    assert listed.names == ["a.jpg"]
    assert listed.not_taken.dangling == ("day2", "gone.jpg", "me")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, who can read everything."""
    fill(tmp_path, "a.jpg", "private/b.jpg")
    real = os.scandir

    def scandir(place: Path) -> Any:
        if Path(place).name == "private":
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    listed = list_photos(tmp_path)
    assert listed.names == ["a.jpg"]
    assert listed.not_taken.summary() == "private/ cannot be read (permission denied)"
    with pytest.raises(HardnetSfmError, match=r"cannot read .*private: permission denied"):
        list_photos(tmp_path / "private")
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(HardnetSfmError, match="no photos in it; not taken: private/ cannot be read") as raised:
        list_photos(tmp_path)
    assert raised.value.hint


def test_thumbnails_of_network_drives_are_not_photos(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "__MACOSX/b.jpg", "._a.jpg", ".thumbnails/c.jpg")
    listed = list_photos(tmp_path)
    assert listed.names == ["a.jpg"]
    assert listed.not_taken.summary() == "@eaDir/ and __MACOSX/ hold thumbnails or deleted files"


def test_many_folders_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, *(f"day{number}/@eaDir/a.jpg" for number in range(6)), "a.jpg")
    assert list_photos(tmp_path).not_taken.summary() == (
        "day0/@eaDir/, day1/@eaDir/, day2/@eaDir/ and 3 more hold thumbnails or deleted files"
    )


@pytest.fixture
def photos(tmp_path: Path, small_scene: tuple[Path, Any]) -> Iterator[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in small_scene[1].names[:2]:
        (folder / name).write_bytes((small_scene[0] / name).read_bytes())
    (folder / "[red].DNG").touch()
    yield folder


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("verb", ["extract", "warp", "retrieve"])
def test_verbs_print_what_they_do_not_take(
    verb: str, photos: Path, indexed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {
        "extract": f"extract {photos} --workspace {tmp_path / 'ws'} --max-keypoints 50 --descriptor rootsift",
        "warp": f"warp {photos} -o {tmp_path / 'p.h5'} --views 1 --max-keypoints 50",
        "retrieve": f"retrieve --query {photos} --workspace {indexed}",
    }[verb]
    main(line.split())
    assert "not taken: 1 .dng. Develop raw photos as JPEG" in capsys.readouterr().err
