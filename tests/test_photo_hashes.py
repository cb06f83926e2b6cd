"""Notes of photo hashes: unchanged files are not read again, and no change of a file goes unnoticed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files import photo_hashes
from hardnet_sfm.files.photo_hashes import PhotoHashes
from hardnet_sfm.resources import Resources
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.verbs.info import info


class Reads:
    """Counts the files that are read for their hash."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        whole = photo_hashes.sha256_of

        def counted(path: Path) -> str:
            self.names.append(path.name)
            return whole(path)

        monkeypatch.setattr(photo_hashes, "sha256_of", counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the test are an hour old."""
    monkeypatch.setattr(photo_hashes.time, "time_ns", lambda now=time.time_ns: now() + 3600 * 10**9)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(number).integers(0, 255, (80, 100), np.uint8)
        cv2.imwrite(str(folder / name), cv2.GaussianBlur(pixels, (0, 0), 2))
    return folder


def true_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashed(tmp_path: Path, images: Path) -> dict[str, str]:
    """The hashes that a run sees. It leaves its notes to the next run."""
    hashes = PhotoHashes(tmp_path / "notes.json", images)
    found = {name: hashes.sha256(name) for name in ("a.png", "b.png")}
    hashes.save(found)
    assert found == {name: true_hash(images / name) for name in found}
    return found


@pytest.mark.usefixtures("later")
def test_an_unchanged_file_is_read_once(tmp_path: Path, images: Path, reads: Reads) -> None:
    first = hashed(tmp_path, images)
    assert hashed(tmp_path, images) == first
    assert reads.names == ["a.png", "b.png"]


@pytest.mark.usefixtures("later")
def test_decoding_a_photo_notes_its_hash(tmp_path: Path, images: Path, reads: Reads) -> None:
    hashes = PhotoHashes(tmp_path / "notes.json", images)
    assert hashes.photo("a.png").sha256 == true_hash(images / "a.png")
    hashes.save(["a.png"])
    assert PhotoHashes(tmp_path / "notes.json", images).sha256("a.png") == true_hash(images / "a.png")
    assert reads.names == []


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("replace", [False, True], ids=["in place", "by another file"])
def test_a_change_that_keeps_size_and_time_is_noticed(
    tmp_path: Path, images: Path, reads: Reads, replace: bool
) -> None:
    """Programs that edit EXIF data can keep the time of modification."""
    hashed(tmp_path, images)
    photo, before = images / "a.png", (images / "a.png").stat()
    changed = photo.read_bytes()[:-1] + b"!"
    if replace:
        (images / "new").write_bytes(changed)
        (images / "new").replace(photo)
    else:
        time.sleep(0.02)  # longer than the resolution of a file system's times
        photo.write_bytes(changed)
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert photo.stat().st_size == before.st_size and photo.stat().st_mtime_ns == before.st_mtime_ns
    reads.names.clear()
    hashed(tmp_path, images)
    assert reads.names == ["a.png"]


def test_a_file_that_may_change_within_the_resolution_of_its_time_is_not_trusted(
    tmp_path: Path, images: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change may leave size, times and inode as they are: the racy case of git."""
    hashed(tmp_path, images)
    hashed(tmp_path, images)
    assert reads.names == ["a.png", "b.png"] * 2
    changed = max(at for name in ("a.png", "b.png") for at in (images / name).stat()[8:10]) * 10**9
    for wait, count in ((1, 2), (10, 2), (10, 0)):  # seconds; the run after ten seconds takes the notes
        monkeypatch.setattr(photo_hashes.time, "time_ns", lambda now=changed + wait * 10**9: now)
        reads.names.clear()
        hashed(tmp_path, images)
        assert len(reads.names) == count


@pytest.mark.usefixtures("later")
def test_notes_about_another_folder_or_damaged_notes_are_not_taken(tmp_path: Path, images: Path, reads: Reads) -> None:
    hashed(tmp_path, images)
    other = tmp_path / "other"
    images.rename(other)
    hashed(tmp_path, other)
    for content in ("", "[]", '{"images": 3}', f'{{"images": "{other}", "photos": 5}}'):
        (tmp_path / "notes.json").write_text(content)
        hashed(tmp_path, other)
    assert reads.names == ["a.png", "b.png"] * 6


def test_a_missing_file_is_an_error(tmp_path: Path, images: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PhotoHashes(tmp_path / "notes.json", images).sha256("gone.png")


@pytest.mark.usefixtures("later", "one_thread")
def test_an_extraction_that_is_up_to_date_reads_no_photo(tmp_path: Path, images: Path, reads: Reads) -> None:
    features, resources = tmp_path / "out" / "features.h5", Resources(device="cpu", workers=1)
    options = ExtractOptions(descriptor="rootsift", max_keypoints=20, orientation="upright")
    assert extract(images, features, options, resources).computed == 2
    assert extract(images, features, options, resources).computed == 0
    assert not info(features.parent)[0].stale
    assert reads.names == []
    cv2.imwrite(str(images / "b.png"), cv2.imread(str(images / "b.png"))[::-1])
    assert info(features.parent)[0].stale == "1 photos changed"
    assert extract(images, features, options, resources).computed == 1
    assert reads.names == ["b.png"] * 2
