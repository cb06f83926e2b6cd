"""Unpacks the archives in which the authors distribute Oxford5k and Paris6k. All photos go into one folder."""

from __future__ import annotations

import shutil
import tarfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.landmark_sets import LandmarkSetName
from hardnet_sfm.files.clutter import is_clutter
from hardnet_sfm.files.workspace import prepare_folder, read_json, replacing, write_json
from hardnet_sfm.progress import Advance, progress

_RECORD = ".unpacked.json"
_PHOTOS, _TEXTS = (".jpg",), (".txt",)


@dataclass(frozen=True)
class City:
    """Archives of a data set. The beginning of its name identifies each archive."""

    name: LandmarkSetName
    revisited: LandmarkSetName
    photo_archives: tuple[str, ...]
    truth_archive: str


OXFORD = City("oxford5k", "roxford5k", ("oxbuild_images",), "gt_files_170407")
PARIS = City("paris6k", "rparis6k", ("paris_1", "paris_2"), "paris_120310")


def unpack_data_set(city: City, given: Path, workspace: Path, truth: bool = True) -> Path:
    """Returns the folder of a data set. If the given folder holds archives, they are unpacked first.

    Args:
        city: archives of the data set.
        given: folder of the archives, or an unpacked data set in the official layout. Nothing is written to it.
        workspace: folder in which to create the folder of the unpacked data set.
        truth: True if ground truth is needed; False if the photos suffice.

    Raises:
        HardnetSfmError: an archive is missing or damaged.
    """
    if not given.is_dir():
        raise HardnetSfmError(f"no such folder: {given}", "Give the folder that the archives were downloaded to.")
    photos = [_archive(given, start) for start in city.photo_archives]
    if all(path is None for path in photos):
        return given
    ground_truth = _archive(given, city.truth_archive)
    missing = [start for start, path in zip(city.photo_archives, photos, strict=True) if path is None]
    missing += [city.truth_archive] if truth and ground_truth is None else []
    if missing:
        raise HardnetSfmError(f"{given}: no archive {missing[0]}.tgz", f"{city.name} has {_all_of(city)}.")
    folder = workspace / city.name
    unpack([path for path in photos if path], folder / "images", _PHOTOS)
    if ground_truth:
        unpack([ground_truth], folder / "gt", _TEXTS)
    for pickled in given.glob(f"gnd_{city.revisited}.pkl"):
        with replacing(folder / pickled.name) as beside:
            shutil.copyfile(pickled, beside)
    return folder


def _archive(folder: Path, start: str) -> Path | None:
    """Finds an archive by its official name. Newer archives have a version number in the name."""
    names = (f"{start}.tgz", f"{start}-v1.tgz", f"{start}.tar.gz")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _all_of(city: City) -> str:
    return ", ".join(f"{start}.tgz" for start in (*city.photo_archives, city.truth_archive))


def unpack(archives: Sequence[Path], folder: Path, suffixes: Collection[str]) -> int:
    """Unpacks files from .tgz archives into one folder, regardless of their folders in the archive.

    Nothing is ever written outside the folder: the function uses only the last part of a member's name and skips links
    and devices. A second call resumes after a killed one, and does nothing if all files are there.

    Args:
        archives: archives to unpack.
        folder: folder to write to; it is created if missing.
        suffixes: lower-case suffixes of the files to unpack; other files are skipped.

    Returns:
        Number of files with these suffixes that the folder now holds.

    Raises:
        HardnetSfmError: an archive is missing or damaged, two files have the same name, or the disk is full.
    """
    prepare_folder(folder)
    record = folder / _RECORD
    done = read_json(record) if record.is_file() else {}
    for archive in archives:
        try:
            size = archive.stat().st_size
        except OSError as error:
            raise HardnetSfmError(
                f"{archive}: {error.strerror or error}", "Download it again, or check its permissions."
            ) from error
        if done.get(archive.name) == size:
            continue
        with progress("unpack", size) as advance:
            _unpack_one(archive, folder, suffixes, advance)
        done[archive.name] = size
        write_json(record, done)
    return sum(path.suffix.lower() in suffixes for path in folder.iterdir() if not is_clutter(path.name))


def _unpack_one(archive: Path, folder: Path, suffixes: Collection[str], advance: Advance) -> None:
    seen: dict[str, str] = {}
    try:
        with archive.open("rb") as packed, tarfile.open(fileobj=packed, mode="r:*") as files:
            before = 0
            for member in files:
                name = PurePosixPath(member.name).name
                if not member.isfile() or not _wanted(name, suffixes):
                    continue
                if seen.setdefault(name, member.name) != member.name:
                    raise HardnetSfmError(
                        f"{archive}: {seen[name]} and {member.name} have the same name",
                        "This is not the archive that the data set's page offers: download it again.",
                    )
                _take(files, member, folder / name)
                advance(packed.tell() - before, note=name)
                before = packed.tell()
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise HardnetSfmError(f"{archive}: damaged, or not an archive: {error}", "Get the file again.") from error
    except OSError as error:
        raise HardnetSfmError(
            f"cannot unpack {archive} to {folder}: {error.strerror or error}",
            "Make room on the disk, or get the archive again; what is unpacked is kept.",
        ) from error


def _wanted(name: str, suffixes: Collection[str]) -> bool:
    return PurePosixPath(name).suffix.lower() in suffixes and not is_clutter(name) and "\\" not in name


def _take(files: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if target.is_file() and target.stat().st_size == member.size:
        return
    content = files.extractfile(member)
    if content is None:
        return
    with replacing(target) as beside, beside.open("wb") as file:
        shutil.copyfileobj(content, file)
