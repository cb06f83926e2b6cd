"""Unpacking the archives of data sets: into one folder, never beside it, again after a kill."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

from hardnet_sfm.errors import HardnetSfmError

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
from archives import OXFORD, PARIS, City, unpack, unpack_data_set


def archive(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def inside(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_photos_of_all_archives_and_folders_lie_side_by_side(tmp_path: Path) -> None:
    first = archive(
        tmp_path / "paris_1.tgz", {"paris/defense/a.jpg": b"a", "paris/eiffel/b.JPG": b"b", "paris/x.txt": b""}
    )
    second = archive(tmp_path / "paris_2.tgz", {"c.jpg": b"c", "._c.jpg": b"resource fork"})
    assert unpack([first, second], tmp_path / "images", {".jpg"}) == 3
    assert inside(tmp_path / "images") == {"a.jpg": b"a", "b.JPG": b"b", "c.jpg": b"c"}


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "images"
    evil = archive(
        tmp_path / "evil.tgz",
        {"../../up.jpg": b"1", str(tmp_path / "absolute.jpg"): b"2", "link/through.jpg": b"3", "a\\..\\b.jpg": b"4"},
        {"link": str(tmp_path), "link.jpg": "/etc/passwd"},
    )
    unpack([evil], target, {".jpg"})
    assert inside(target) == {"up.jpg": b"1", "absolute.jpg": b"2", "through.jpg": b"3"}
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "evil.tgz"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["images"]


def test_a_second_call_reads_no_archive_again(tmp_path: Path) -> None:
    packed = archive(tmp_path / "a.tgz", {"a.jpg": b"a"})
    unpack([packed], tmp_path / "images", {".jpg"})
    packed.write_bytes(b"x" * packed.stat().st_size)
    assert unpack([packed], tmp_path / "images", {".jpg"}) == 1


def test_damaged_archive_keeps_what_was_whole_and_goes_on_when_mended(tmp_path: Path) -> None:
    contents = {f"{i}.jpg": bytes(range(256)) * 40 + bytes([i]) for i in range(30)}
    packed = archive(tmp_path / "a.tgz", contents)
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(HardnetSfmError, match=r"a.tgz"):
        unpack([packed], tmp_path / "images", {".jpg"})
    kept = inside(tmp_path / "images")
    assert kept.items() <= contents.items()
    packed.write_bytes(whole)
    assert unpack([packed], tmp_path / "images", {".jpg"}) == 30
    assert inside(tmp_path / "images") == contents


def test_not_an_archive_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "page.tgz").write_text("<html>302 Found</html>")
    with pytest.raises(HardnetSfmError, match=r"page.tgz: damaged, or not an archive"):
        unpack([tmp_path / "page.tgz"], tmp_path / "images", {".jpg"})
    with pytest.raises(HardnetSfmError, match="No such file"):
        unpack([tmp_path / "none.tgz"], tmp_path / "images", {".jpg"})


def test_two_photos_of_one_name(tmp_path: Path) -> None:
    packed = archive(tmp_path / "a.tgz", {"one/a.jpg": b"1", "two/a.jpg": b"2"})
    with pytest.raises(HardnetSfmError, match=r"one/a.jpg and two/a.jpg have the same name"):
        unpack([packed], tmp_path / "images", {".jpg"})


def official(folder: Path, city: City, *leave_out: str) -> Path:
    """A folder with the archives of a city, tiny, in the layout that their authors gave them."""
    folder.mkdir()
    for number, start in enumerate(city.photo_archives):
        if start not in leave_out:
            archive(
                folder / f"{start}-v1.tgz", {f"deep/er/{city.name}_{number}.jpg": b"photo", "deep/readme.txt": b"no"}
            )
    if city.truth_archive not in leave_out:
        archive(folder / f"{city.truth_archive}.tgz", {"a_1_query.txt": b"text"})
    return folder


@pytest.mark.parametrize("city", [OXFORD, PARIS], ids=lambda city: city.name)
def test_official_archives_become_a_data_set(tmp_path: Path, city: City) -> None:
    given = official(tmp_path / "given", city)
    (given / f"gnd_{city.revisited}.pkl").write_bytes(b"pickle")
    before = inside(given)
    folder = unpack_data_set(city, given, tmp_path / "work")
    assert inside(folder / "images").keys() == {f"{city.name}_{i}.jpg" for i in range(len(city.photo_archives))}
    assert inside(folder / "gt") == {"a_1_query.txt": b"text"}
    assert (folder / f"gnd_{city.revisited}.pkl").read_bytes() == b"pickle"
    assert inside(given) == before, "something was written to the user's folder"


def test_data_set_that_is_unpacked_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert unpack_data_set(PARIS, tmp_path, tmp_path / "work") == tmp_path
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("missing", ["paris_2", "paris_120310"])
def test_missing_archive_is_named(tmp_path: Path, missing: str) -> None:
    with pytest.raises(HardnetSfmError, match=rf"no archive {missing}.tgz"):
        unpack_data_set(PARIS, official(tmp_path / "given", PARIS, missing), tmp_path / "work")


def test_photos_alone_will_do_for_a_vocabulary(tmp_path: Path) -> None:
    folder = unpack_data_set(PARIS, official(tmp_path / "given", PARIS, "paris_120310"), tmp_path / "work", truth=False)
    assert len(inside(folder / "images")) == 2
