"""Features of photos that are gone are dropped only after they were counted and named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.photo_checks import check_losses
from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.photo_folders import list_photos
from hardnet_sfm.files.photo_hashes import PhotoHashes
from hardnet_sfm.scene import Scene

FEW = ExtractOptions(descriptor="rootsift", max_keypoints=200, orientation="upright")


class Stored:
    """A store of features of photos, as far as its header and its fingerprints go."""

    def __init__(self, images: Path, names: list[str]) -> None:
        for name in names:
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            (images / name).write_text(f"pixels of {images.name} {name}")
        self.header: dict[str, Any] = {"images": str(images.resolve()), "names": names}
        self.facts = {name: {"photo_sha256": sha256_of(images / name)} for name in names}

    def losses(self, images: Path, prune: bool = False) -> int:
        names = [path.relative_to(images).as_posix() for path in images.rglob("*") if path.is_file()]
        hashes = PhotoHashes(images / ".none", images)
        return check_losses(Path("features.h5"), self.header, self.facts, hashes, names, prune=prune)


def twenty(folder: Path) -> Stored:
    return Stored(folder, [f"{number:02}.jpg" for number in range(20)])


def test_a_few_photos_that_are_gone_are_named_and_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = twenty(tmp_path)
    assert stored.losses(tmp_path) == 0 and capsys.readouterr().err == ""
    (tmp_path / "07.jpg").unlink()
    assert stored.losses(tmp_path) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("gone: 1 of 20 photos (07.jpg). Their features, matches and places in the model")


def test_a_tenth_of_the_photos_needs_prune(tmp_path: Path) -> None:
    stored = twenty(tmp_path)
    for name in ("07.jpg", "11.jpg"):
        (tmp_path / name).unlink()
    with pytest.raises(HardnetSfmError, match=r"2 of 20 photos \(07\.jpg, 11\.jpg\) are missing") as raised:
        stored.losses(tmp_path)
    assert "make them reachable and run again" in raised.value.hint and "--prune" in raised.value.hint
    assert stored.losses(tmp_path, prune=True) == 2


def test_all_photos_of_a_folder_need_prune_however_few(tmp_path: Path) -> None:
    stored = Stored(tmp_path, ["card/a.jpg", *(f"{number:02}.jpg" for number in range(30))])
    shutil.rmtree(tmp_path / "card")
    with pytest.raises(HardnetSfmError, match=r"1 of 31 photos \(card/a\.jpg\)"):
        stored.losses(tmp_path)
    assert stored.losses(tmp_path, prune=True) == 1


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may read everything")
def test_photos_that_cannot_be_opened_count_as_lost(tmp_path: Path) -> None:
    stored = twenty(tmp_path)
    for name in ("07.jpg", "11.jpg"):
        (tmp_path / name).chmod(0)
    with pytest.raises(HardnetSfmError, match="cannot be read"):
        stored.losses(tmp_path)


def test_links_to_photos_that_cannot_be_followed_count_as_lost(tmp_path: Path) -> None:
    stored = twenty(tmp_path / "images")
    names = list(stored.facts)
    for name in names[:2]:
        (tmp_path / "images" / name).unlink()
        (tmp_path / "images" / name).symlink_to(tmp_path / "unmounted" / name)
    with pytest.raises(HardnetSfmError, match="2 of 20 photos"):
        hashes = PhotoHashes(tmp_path / ".none", tmp_path / "images")
        check_losses(Path("features.h5"), stored.header, stored.facts, hashes, names, prune=False)


def test_a_second_folder_is_refused(tmp_path: Path) -> None:
    stored = twenty(tmp_path / "day1")
    Stored(tmp_path / "day2", ["a.jpg", "b.jpg"])
    with pytest.raises(
        HardnetSfmError, match=r"features of the photos in .*/day1, and 20 of 20 photos .* are not in .*day2 or differ"
    ) as raised:
        stored.losses(tmp_path / "day2")
    assert "To add photos, copy them into that folder, or give a folder that contains both" in raised.value.hint


def test_a_second_folder_with_the_same_names_is_refused(tmp_path: Path) -> None:
    """Cameras count their photos from one again."""
    stored = twenty(tmp_path / "day1")
    twenty(tmp_path / "day2")
    with pytest.raises(HardnetSfmError, match="20 of 20"):
        stored.losses(tmp_path / "day2")


def test_photos_with_other_names_are_not_lost(tmp_path: Path) -> None:
    stored = twenty(tmp_path)
    (tmp_path / "sorted").mkdir()
    for path in tmp_path.glob("*.jpg"):
        path.rename(tmp_path / "sorted" / path.name)
    assert stored.losses(tmp_path) == 0


def test_a_folder_that_moved_or_that_contains_the_old_one_loses_nothing(tmp_path: Path) -> None:
    stored = twenty(tmp_path / "all/day1")
    Stored(tmp_path / "all/day2", ["a.jpg"])
    assert stored.losses(tmp_path / "all") == 0
    (tmp_path / "all/day1").rename(tmp_path / "moved")
    (tmp_path / "moved/07.jpg").write_text("edited")
    assert stored.losses(tmp_path / "moved") == 0


def test_features_stay_until_the_loss_is_wanted(
    small_scene: tuple[Path, Scene], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in small_scene[1].names[:3]:
        shutil.copy(small_scene[0] / name, photos)
    line = f"extract {photos} --workspace {out} --descriptor rootsift --max-keypoints 200 --orientation upright".split()
    main(line)
    before = (out / "features.h5").read_bytes()
    (photos / small_scene[1].names[0]).unlink()
    for verb in ("extract", "index", "reconstruct", "vocabulary"):
        with pytest.raises(SystemExit) as exit:
            main([verb, *line[1:]])
        assert exit.value.code == 1 and "1 of 3 photos" in capsys.readouterr().err
    assert (out / "features.h5").read_bytes() == before
    main([*line, "--prune"])
    assert "removed 1" in capsys.readouterr().out
    with hardnet_sfm.FeatureStore(out / "features.h5") as store:
        assert store.names() == list_photos(photos).names


def test_info_works_without_any_photo(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in small_scene[1].names[:2]:
        shutil.copy(small_scene[0] / name, photos)
    hardnet_sfm.extract(photos, tmp_path / "features.h5", FEW)
    for path in photos.iterdir():
        path.unlink()
    (part,) = hardnet_sfm.info(tmp_path)
    assert part.stale.startswith("2 photos gone")
    photos.rmdir()
    assert hardnet_sfm.info(tmp_path)[0].stale == f"the photos are no longer in {photos}"
