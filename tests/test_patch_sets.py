"""patches.h5 and the layouts of Brown and HPatches: what is read is what was there, whatever is killed or damaged."""

from __future__ import annotations

import math
import resource
import signal
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from processes import last_words, running

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.datasets.brown import open_brown, read_brown, read_pairs, write_brown
from hardnet_sfm.evaluation.datasets.hpatches import read_hpatches
from hardnet_sfm.files.patch_sets import PatchWriter, read_patches, write_patches
from hardnet_sfm.patch_set import PatchSet
from hardnet_sfm.training.shared_photos import describe_shared_photos

NAMES = tuple(f"day {number % 2}/{number}.jpg" for number in range(12))
ARRAYS = ("patches", "point", "image", "frame", "angle", "xyz")


def a_set(path: Path = Path("made"), seed: int = 0, points: int = 30) -> PatchSet:
    """Random patches of points that are seen in two to four of six photos; half of the facts about points unknown."""
    rng = np.random.default_rng(seed)
    of_point = [np.sort(rng.choice(6, rng.integers(2, 5), replace=False)) for _ in range(points)]
    image = np.concatenate(of_point).astype(np.int32)
    count = len(image)
    xyz = rng.normal(size=(points, 3)).astype(np.float32)
    xyz[::2] = np.nan
    return PatchSet(
        str(path),
        "sfm",
        12.0,
        tuple(NAMES[:6]),
        rng.integers(0, 256, (count, 64, 64), np.uint8),
        np.repeat(np.arange(points), [len(images) for images in of_point]),
        image,
        rng.normal(size=(count, 2, 3)).astype(np.float32),
        rng.normal(size=count).astype(np.float32),
        xyz,
        4.5,
        {"min_track": 3},
    )


def assert_same(found: PatchSet, expected: PatchSet, *but: str) -> None:
    for name in {field.name for field in fields(PatchSet)} - {*but}:
        if name in ARRAYS:
            assert getattr(found, name).dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_a_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    expected = a_set(tmp_path / "patches.h5")
    write_patches(Path(expected.origin), expected)
    assert_same(read_patches(Path(expected.origin)), expected)
    assert [*tmp_path.iterdir()] == [Path(expected.origin)]


def test_numbers_of_points_in_their_model_are_kept_where_they_are_known(tmp_path: Path) -> None:
    """Older files have none, nor have patches that are of no model."""
    plain = a_set(tmp_path / "patches.h5")
    numbered = replace(plain, point_id=np.cumsum(np.arange(30)) * 10**12)
    write_patches(Path(numbered.origin), numbered)
    assert_same(read_patches(Path(numbered.origin)), numbered)
    with h5py.File(Path(numbered.origin), "r+") as file:
        assert (str(file["point_id"].dtype), file["point_id"].shape) == ("int64", (30,))
        del file["point_id"]
    assert read_patches(Path(numbered.origin)).point_id is None
    assert_same(read_patches(Path(numbered.origin)), plain)
    with pytest.raises(HardnetSfmError, match=r"point_id is of shape \(29,\), expected \(30,\)"):
        write_patches(Path(plain.origin), replace(plain, point_id=np.arange(29)))


def test_the_file_has_the_documented_types_and_shapes(tmp_path: Path) -> None:
    expected = a_set(tmp_path / "patches.h5")
    write_patches(Path(expected.origin), replace(expected, extent=math.nan))
    count, points = len(expected), len(expected.xyz)
    with h5py.File(Path(expected.origin), "r") as file:
        assert {name: (str(item.dtype), item.shape) for name, item in file.items()} == {
            "patches": ("uint8", (count, 64, 64)),
            "point": ("int64", (count,)),
            "image": ("int32", (count,)),
            "frame": ("float32", (count, 2, 3)),
            "angle": ("float32", (count,)),
            "xyz": ("float32", (points, 3)),
        }
        assert file.attrs["format"] == "hardnet-sfm patches 1"
        assert (file.attrs["source"], file.attrs["measurement_size"]) == ("sfm", 12.0)
        assert file.attrs["images"].startswith('["day 0/0.jpg", "day 1/1.jpg", ')
        assert file.attrs["options"] == '{"min_track": 3}'
    assert math.isnan(read_patches(Path(expected.origin)).extent)


def test_taken_patches_are_a_copy_of_the_rows_of_any_shape(tmp_path: Path) -> None:
    expected = a_set(tmp_path / "patches.h5")
    write_patches(Path(expected.origin), expected)
    opened = read_patches(Path(expected.origin))
    rows = np.random.default_rng(1).integers(0, len(expected), (2, 7))
    taken = opened.take(rows)
    for index in np.ndindex(rows.shape):
        np.testing.assert_array_equal(taken[index], expected.patches[rows[index]])
    taken[:] = 0
    assert_same(read_patches(Path(expected.origin)), expected)
    with pytest.raises(ValueError, match="read-only"):
        opened.patches[0] = 0


def test_an_open_set_outlives_its_replacement(tmp_path: Path) -> None:
    before, after = (a_set(tmp_path / "patches.h5", seed) for seed in (0, 1))
    write_patches(Path(before.origin), before)
    opened = read_patches(Path(before.origin))
    write_patches(Path(before.origin), after)
    assert_same(opened, before)
    assert_same(read_patches(Path(after.origin)), after)


def resized(file: h5py.File) -> None:
    small = file["patches"][:, ::2, ::2]
    del file["patches"]
    file["patches"] = small


def packed(file: h5py.File) -> None:
    patches = file["patches"][()]
    del file["patches"]
    file.create_dataset("patches", data=patches, compression="gzip")


def wide(file: h5py.File) -> None:
    patches = file["patches"][()]
    del file["patches"]
    file["patches"] = patches.astype(np.uint16)


def _set(name: str, row: int, value: int) -> Callable[[h5py.File], None]:
    return lambda file: file[name].__setitem__(row, value)


DAMAGES: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "another format": (lambda file: file.attrs.__setitem__("format", "hardnet-sfm features"), "format"),
    "no format": (lambda file: file.attrs.clear(), "format is 'not given'"),
    "another size": (resized, r"32, 32\), expected \(\d+, 64, 64"),
    "packed": (packed, "chunked or compressed"),
    "wide": (wide, "uint16"),
    "not sorted": (_set("point", 0, 1), "not sorted"),
    "point below": (_set("point", 0, -1), "numbers of points from -1"),
    "point beyond": (_set("point", -1, 30), "numbers of points from 0 to 30, but there are 30"),
    "photo below": (_set("image", 3, -1), "numbers of photos from -1"),
    "photo beyond": (_set("image", 3, 6), "numbers of photos from 0 to 6, but there are 6"),
    "no point": (lambda file: file.__delitem__("point"), "point"),
    "no source": (lambda file: file.attrs.__delitem__("source"), "source"),
    "broken names": (lambda file: file.attrs.__setitem__("images", "[1, "), "damaged"),
    "a group": (lambda file: (file.__delitem__("patches"), file.create_group("patches")), "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_file_is_a_clear_error(damage: str, tmp_path: Path) -> None:
    made = a_set(tmp_path / "patches.h5")
    write_patches(Path(made.origin), made)
    change, message = DAMAGES[damage]
    with h5py.File(Path(made.origin), "r+") as file:
        change(file)
    with pytest.raises(HardnetSfmError, match=message) as raised:
        read_patches(Path(made.origin))
    assert made.origin in raised.value.message
    assert raised.value.hint


def test_a_file_that_is_missing_foreign_or_truncated_is_a_clear_error(tmp_path: Path) -> None:
    made = a_set(tmp_path / "patches.h5")
    with pytest.raises(HardnetSfmError, match="no patches at") as raised:
        read_patches(Path(made.origin))
    assert "hardnet-sfm mine" in raised.value.hint
    write_patches(Path(made.origin), made)
    content = Path(made.origin).read_bytes()
    for broken in (b"", b"hello " * 999, *(content[: round(share * len(content))] for share in (0.01, 0.5, 0.999))):
        Path(made.origin).write_bytes(broken)
        with pytest.raises(HardnetSfmError, match=r"the file is empty|not an HDF5 file|truncated") as raised:
            read_patches(Path(made.origin))
        assert made.origin in raised.value.message


def test_points_with_one_patch_each_are_too_few(tmp_path: Path) -> None:
    full = a_set(tmp_path / "patches.h5")
    first = np.searchsorted(full.point, np.arange(30))
    for rows in (first, first[:0]):
        one_each = replace(full, **{name: getattr(full, name)[rows] for name in ARRAYS if name != "xyz"})
        with pytest.raises(HardnetSfmError, match="too few points"):
            write_patches(Path(full.origin), one_each)
    assert not [*tmp_path.iterdir()]


def photo(name: str, count: int = 25, points: int = 60) -> dict[str, NDArray[Any]]:
    """What mining puts for a photo: points have large numbers with gaps, and their place is known by the number."""
    rng = np.random.default_rng(NAMES.index(name))
    point = rng.choice(points, count, replace=False) * 10**12
    return {
        "patches": rng.integers(0, 256, (count, 64, 64), np.uint8),
        "point": point,
        "frame": rng.normal(size=(count, 2, 3)).astype(np.float32),
        "angle": rng.random(count).astype(np.float32),
        "xyz": np.stack([point, point / 2, -point], 1).astype(np.float32),
    }


def mined(path: Path, names: tuple[str, ...] = NAMES, count: int = 25) -> Path:
    path.parent.mkdir(exist_ok=True)
    with PatchWriter(path) as writer:
        for name in names:
            if name not in writer.done:
                writer.put(name, "f", photo(name, count))
        writer.commit(names, "sfm", 12.0, 7.5, {"min_track": 2}, keep_ids=True)
    return path


@pytest.mark.parametrize("count", [1, 3, 25])
def test_mined_patches_are_sorted_by_point_then_photo(count: int, tmp_path: Path) -> None:
    """Against a loop over all patches. With 3 patches a photo most points have a single one and are left out."""
    names = NAMES[::-1]
    of_point: dict[int, list[tuple[int, dict[str, NDArray[Any]], int]]] = defaultdict(list)
    for image, name in enumerate(names):
        arrays = photo(name, count)
        for row, point in enumerate(arrays["point"].tolist()):
            of_point[point].append((image, arrays, row))
    expected = [seen for _, seen in sorted(of_point.items()) if len(seen) > 1]
    if not expected:
        with pytest.raises(HardnetSfmError, match="too few points"):
            mined(tmp_path / "patches.h5", names, count)
        return
    found = read_patches(mined(tmp_path / "patches.h5", names, count))
    assert (found.source, found.measurement_size, found.extent) == ("sfm", 12.0, 7.5)
    assert (found.images, found.options) == (names, {"min_track": 2})
    assert found.point.tolist() == [number for number, seen in enumerate(expected) for _ in seen]
    assert found.image.tolist() == [image for seen in expected for image, _, _ in seen]
    for name in ("patches", "frame", "angle"):
        values = [arrays[name][row] for seen in expected for _, arrays, row in seen]
        np.testing.assert_array_equal(getattr(found, name), values)
    np.testing.assert_array_equal(found.xyz, [arrays["xyz"][row] for ((_, arrays, row), *_) in expected])
    assert found.point_id is not None
    assert found.point_id.tolist() == [point for point, seen in sorted(of_point.items()) if len(seen) > 1]
    assert [*tmp_path.iterdir()] == [Path(found.origin)]


def test_a_photo_put_again_is_replaced_and_one_not_asked_for_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "patches.h5"
    with PatchWriter(path) as writer:
        writer.put(NAMES[0], "old", photo(NAMES[1]))
        writer.put(NAMES[5], "f", photo(NAMES[5]))
    with PatchWriter(path) as writer:
        assert writer.done == {NAMES[0]: "old", NAMES[5]: "f"}
        for name in NAMES[:4]:
            writer.put(name, "f", photo(name))
        assert writer.done == {**dict.fromkeys(NAMES[:4], "f"), NAMES[5]: "f"}
        writer.commit(NAMES[:4], "sfm", 12.0, 7.5, {"min_track": 2}, keep_ids=True)
    assert path.read_bytes() == mined(tmp_path / "other.h5", NAMES[:4]).read_bytes()


def test_a_photo_without_patches_counts_as_done(tmp_path: Path) -> None:
    nothing = {key: array[:0] for key, array in photo(NAMES[0]).items()}
    with PatchWriter(tmp_path / "patches.h5") as writer:
        writer.put(NAMES[0], "f", nothing)
        for name in NAMES[1:3]:
            writer.put(name, "f", photo(name))
        writer.commit(NAMES[:3], "sfm", 12.0)
    found = read_patches(tmp_path / "patches.h5")
    assert found.images == NAMES[:3]
    assert set(found.image.tolist()) == {1, 2}


@pytest.mark.parametrize("names", [(), NAMES[:1]])
def test_nothing_worth_committing_is_a_clear_error_and_loses_nothing(names: tuple[str, ...], tmp_path: Path) -> None:
    path = mined(tmp_path / "patches.h5")
    old = path.read_bytes()
    with PatchWriter(path) as writer:
        writer.put(NAMES[0], "f", photo(NAMES[0]))
        with pytest.raises(HardnetSfmError, match="too few points"):
            writer.commit(names, "sfm", 12.0)
    assert path.read_bytes() == old
    with PatchWriter(path) as writer:
        assert writer.done == {NAMES[0]: "f"}


@pytest.mark.parametrize("key", ["patches", "frame", "angle", "xyz"])
def test_arrays_of_another_shape_are_refused(key: str, tmp_path: Path) -> None:
    arrays = photo(NAMES[0])
    with PatchWriter(tmp_path / "patches.h5") as writer:
        with pytest.raises(ValueError, match=f"{key} of {NAMES[0]} has shape"):
            writer.put(NAMES[0], "f", {**arrays, key: arrays[key][1:]})
        assert not writer.done


def test_commit_holds_one_photo_at_a_time(tmp_path: Path) -> None:
    """The documented bound: four times the largest photo, and 200 bytes a patch."""
    photos, count = 24, 150
    with PatchWriter(tmp_path / "patches.h5") as writer:
        for number in range(photos):
            writer.put(str(number), "f", photo(NAMES[number % 12], count, points=200))
        tracemalloc.start()
        writer.commit([str(number) for number in range(photos)], "sfm", 12.0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    found = read_patches(tmp_path / "patches.h5")
    assert len(found) == photos * count
    assert peak < 4 * 4096 * count + 200 * len(found) < len(found) * 4096 / 3


def _mine(path: Path, limit: int | None, pipe: Connection) -> None:
    """Puts and commits, where no file can grow beyond `limit` bytes; tells every finished photo and the end."""
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        with PatchWriter(path) as writer:
            for name in NAMES:
                if name not in writer.done:
                    writer.put(name, "f", photo(name))
                    pipe.send(name)
            pipe.send("commit")
            writer.commit(NAMES, "sfm", 12.0, 7.5, {"min_track": 2}, keep_ids=True)
        pipe.send("done")
    except HardnetSfmError as error:
        pipe.send(f"error: {error}")
    except Exception as error:
        pipe.send(f"traceback: {error!r}")


@pytest.mark.parametrize("seed", range(4))
def test_mining_killed_at_random_moments_ends_as_if_never_interrupted(seed: int, tmp_path: Path) -> None:
    complete = mined(tmp_path / "complete" / "patches.h5").read_bytes()
    path = tmp_path / "work" / "patches.h5"
    path.parent.mkdir()
    rng = np.random.default_rng(seed)
    finished: set[str] = set()
    for _ in range(3):
        with running(_mine, path, None) as (process, pipe):
            said = last_words(pipe, rng.integers(0, 4))
            time.sleep(rng.uniform(0, 0.003))
            process.kill()
            finished |= {*said, *last_words(pipe)} & {*NAMES}
        with PatchWriter(path) as writer:
            assert finished <= writer.done.keys()
            assert len(writer.done) <= len(finished) + 1  # the one in flight may have made it
            finished = {*writer.done}
    with running(_mine, path, None) as (_, pipe):
        assert last_words(pipe) == [*(name for name in NAMES if name not in finished), "commit", "done"]
    assert path.read_bytes() == complete
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.slow
def test_kill_while_the_file_is_replaced_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    complete = mined(tmp_path / "complete" / "patches.h5").read_bytes()
    rng = np.random.default_rng(0)
    duration = 0.0
    for attempt in range(7):
        path = mined(tmp_path / f"work {attempt}" / "patches.h5", NAMES[:6])
        old = path.read_bytes()
        with running(_mine, path, None) as (process, pipe):
            assert last_words(pipe, 13)[-1] == "commit"
            began = time.monotonic()
            if attempt == 0:
                assert last_words(pipe) == ["done"]
                duration = time.monotonic() - began
            time.sleep(rng.uniform(0, duration))
            process.kill()
        assert path.read_bytes() in (old, complete)
        with running(_mine, path, None) as (_, pipe):
            assert last_words(pipe)[-2:] == ["commit", "done"]
        assert path.read_bytes() == complete
        assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("limit", [10_000, 300_000, 900_000])
def test_a_disk_that_fills_up_loses_no_finished_photo_and_no_old_file(limit: int, tmp_path: Path) -> None:
    complete = mined(tmp_path / "complete" / "patches.h5").read_bytes()
    path = mined(tmp_path / "work" / "patches.h5", NAMES[:6])
    old = path.read_bytes()
    with running(_mine, path, limit) as (_, pipe):
        *put, end = last_words(pipe)
    assert len(put) < len(NAMES)
    assert end.startswith("error: "), end
    assert str(path.parent) in end
    assert "Make room" in end
    assert path.read_bytes() == old
    with PatchWriter(path) as writer:
        assert [*writer.done] == put
    assert mined(path).read_bytes() == complete


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_a_disk_that_fills_up_while_committing_loses_nothing(share: float, tmp_path: Path) -> None:
    complete = mined(tmp_path / "complete" / "patches.h5").read_bytes()
    path = mined(tmp_path / "work" / "patches.h5", NAMES[:6])
    old = path.read_bytes()
    with PatchWriter(path) as writer:
        for name in NAMES:
            writer.put(name, "f", photo(name))
    with running(_mine, path, int(share * len(complete))) as (_, pipe):
        *_, end = last_words(pipe)
    assert end.startswith("error: "), end
    assert "Make room" in end
    assert path.read_bytes() == old
    assert not [*path.parent.glob("*.tmp")]
    with PatchWriter(path) as writer:
        assert writer.done.keys() == {*NAMES}
    assert mined(path).read_bytes() == complete


def test_a_damaged_journal_is_a_clear_error(tmp_path: Path) -> None:
    journal = tmp_path / ".patches.h5.journal"
    journal.write_bytes(b"hello " * 9999)
    with pytest.raises(HardnetSfmError, match="journal") as raised:
        PatchWriter(tmp_path / "patches.h5")
    assert "Move it away" in raised.value.hint and "elete" not in raised.value.hint


# Brown's layout, from its description: http://matthewalunbrown.com/patchdata/patchdata.html


def brown(folder: Path, info: NDArray[np.int64], seed: int = 0) -> NDArray[np.uint8]:
    """Writes sheets and info.txt for (N, 2) points and photos, and returns the patches in the order of info.txt."""
    folder.mkdir()
    patches = np.random.default_rng(seed).integers(0, 256, (len(info), 64, 64), np.uint8)
    for sheet in range(-(-len(info) // 256)):
        image = Image.new("L", (1024, 1024))
        for place, patch in enumerate(patches[sheet * 256 : sheet * 256 + 256]):
            image.paste(Image.fromarray(patch), (place % 16 * 64, place // 16 * 64))
        image.save(folder / f"patches{sheet:04d}.bmp")
    (folder / "info.txt").write_text("".join(f"{point} {photo}\n" for point, photo in info))
    return patches


def some_info(photos: bool, points: int = 90, seed: int = 0) -> NDArray[np.int64]:
    """Points with gaps in their numbers, two to five patches each; more than a sheet full."""
    rng = np.random.default_rng(seed)
    lines = [
        (3 * point + 5, photo if photos else 0)
        for point in range(points)
        for photo in np.sort(rng.choice(20, rng.integers(2, 6), replace=False))
    ]
    return np.array(lines, np.int64)


def test_brown_with_photo_numbers(tmp_path: Path) -> None:
    info = some_info(photos=True)
    patches = brown(tmp_path / "trevi", info)
    found = read_brown(tmp_path / "trevi")
    assert 256 < len(found) == len(info)
    np.testing.assert_array_equal(found.patches, patches)
    np.testing.assert_array_equal(found.point, (info[:, 0] - 5) // 3)
    assert [int(found.images[number]) for number in found.image] == info[:, 1].tolist()
    assert (found.source, found.measurement_size) == ("brown", 12.0)
    assert read_brown(tmp_path / "trevi", 10.0).measurement_size == 10.0
    assert np.isnan(found.frame).all()
    assert np.isnan(found.angle).all()
    assert np.isnan(found.xyz).all()
    assert found.xyz.shape == (90, 3)
    assert math.isnan(found.extent)


def test_brown_as_distributed_has_no_photo_numbers(tmp_path: Path) -> None:
    """Then the patches of a point count as of different photos, whose number is that of the patch within the point."""
    info = some_info(photos=False)
    brown(tmp_path / "liberty", info)
    found = read_brown(tmp_path / "liberty")
    counted: Counter[int] = Counter()
    for point, image in zip(info[:, 0].tolist(), found.image.tolist(), strict=True):
        assert image == counted[point]
        counted[point] += 1
    assert found.images == ("0", "1", "2", "3", "4")


def test_brown_in_any_order_is_sorted_by_point(tmp_path: Path) -> None:
    info = some_info(photos=True)
    info = info[np.random.default_rng(2).permutation(len(info))]
    patches = brown(tmp_path / "mixed", info)
    found = read_brown(tmp_path / "mixed")
    order = sorted(range(len(info)), key=lambda row: (info[row, 0], row))
    np.testing.assert_array_equal(found.patches, patches[order])
    np.testing.assert_array_equal(found.point, (info[order, 0] - 5) // 3)
    assert [int(found.images[number]) for number in found.image] == info[order, 1].tolist()


def test_a_set_read_from_brown_can_be_kept_as_patches(tmp_path: Path) -> None:
    brown(tmp_path / "liberty", some_info(photos=False))
    found = read_brown(tmp_path / "liberty")
    write_patches(tmp_path / "patches.h5", found)
    assert_same(read_patches(tmp_path / "patches.h5"), found, "origin")


@pytest.mark.parametrize("extra", ["", " 0"])
def test_labelled_pairs_name_the_patches_of_the_folder(extra: str, tmp_path: Path) -> None:
    """The authors' files have a seventh number in each line."""
    info = some_info(photos=False)
    info = info[np.random.default_rng(2).permutation(len(info))]
    patches = brown(tmp_path / "mixed", info)
    opened = open_brown(tmp_path / "mixed")
    np.testing.assert_array_equal(np.concatenate([*opened.blocks()]), patches)
    pairs = np.random.default_rng(3).integers(0, len(info), (40, 2)).tolist()
    pairs += [(row, next(other for other in range(len(info)) if info[other, 0] == info[row, 0])) for row in range(40)]
    lines = [f"{one} {info[one, 0]} 0 {other} {info[other, 0]} 0{extra}\n" for one, other in pairs]
    path = tmp_path / "mixed" / "m50_80_80_0.txt"
    path.write_text("".join(lines))
    labelled = read_pairs(path, opened)
    np.testing.assert_array_equal(labelled.patches, pairs)
    assert labelled.matching.tolist() == [info[one, 0] == info[other, 0] for one, other in pairs]


@pytest.mark.parametrize(
    ("line", "message"),
    [("0 5 0 999 5 0", "not in info.txt"), ("0 6 0 1 5 0", "other points"), ("0 5 0 1 x", "invalid literal")],
)
def test_labelled_pairs_that_contradict_info_are_left_out_and_named(line: str, message: str, tmp_path: Path) -> None:
    brown(tmp_path / "liberty", some_info(photos=False))
    path = tmp_path / "liberty" / "m50_2_2_0.txt"
    path.write_text(f"0 5 0 1 5 0\n{line}\n")
    labelled = read_pairs(path, open_brown(path.parent))
    assert (labelled.patches.tolist(), labelled.matching.tolist()) == ([[0, 1]], [True])
    (error,) = labelled.left_out.values()
    assert error.message.startswith(f"{path}: line 2: ")
    assert message in error.message
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(HardnetSfmError, match=f"{message}|whole numbers") as raised:
        read_pairs(path, open_brown(path.parent))
    assert str(path) in raised.value.message


BROWN_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no info": (lambda folder: (folder / "info.txt").unlink(), "no such file"),
    "words": (lambda folder: (folder / "info.txt").write_text("one two\n"), "whole numbers"),
    "one column": (lambda folder: (folder / "info.txt").write_text("1\n2\n"), "whole numbers"),
    "no sheet": (lambda folder: (folder / "patches0001.bmp").unlink(), "1 sheets .* has 3.. patches, which fill 2"),
    "short info": (lambda folder: (folder / "info.txt").write_text("5 0\n5 0\n"), "2 sheets .* has 2 patches"),
    "damaged sheet": (lambda folder: (folder / "patches0001.bmp").write_bytes(b"BM"), "patches0001.bmp: not a photo"),
    "another size": (
        lambda folder: Image.new("L", (512, 512)).save(folder / "patches0000.bmp"),
        "patches0000.bmp: 512x512 pixels",
    ),
}


@pytest.mark.parametrize("damage", BROWN_DAMAGES)
@pytest.mark.filterwarnings("error")
def test_a_bad_folder_of_brown_is_a_clear_error(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "liberty"
    brown(folder, some_info(photos=False))
    change, message = BROWN_DAMAGES[damage]
    change(folder)
    with pytest.raises(HardnetSfmError, match=message) as raised:
        read_brown(folder)
    assert str(folder) in raised.value.message


def test_brown_with_an_empty_info_is_a_clear_error(tmp_path: Path) -> None:
    brown(tmp_path / "empty", np.zeros((0, 2), np.int64))
    with pytest.raises(HardnetSfmError, match=r"info\.txt: .*no data"):
        read_brown(tmp_path / "empty")


def test_a_set_written_as_brown_is_what_the_description_says(tmp_path: Path) -> None:
    made = a_set(points=100)
    folder = tmp_path / "new" / "brown"
    write_brown(made, folder, pairs=500)
    assert {path.name for path in folder.iterdir()} == {
        "patches0000.bmp",
        "patches0001.bmp",
        "info.txt",
        "m50_500_500_0.txt",
    }
    assert [*folder.parent.iterdir()] == [folder]
    lines = (folder / "info.txt").read_text().splitlines()
    assert lines == [f"{point} {image}" for point, image in zip(made.point, made.image, strict=True)]
    sheets = [Image.open(folder / f"patches000{sheet}.bmp") for sheet in (0, 1)]
    assert [(sheet.mode, sheet.size) for sheet in sheets] == [("L", (1024, 1024))] * 2
    for row, patch in enumerate(made.patches):
        x, y = row % 16 * 64, row % 256 // 16 * 64
        np.testing.assert_array_equal(sheets[row // 256].crop((x, y, x + 64, y + 64)), patch)
    pairs = [line.split() for line in (folder / "m50_500_500_0.txt").read_text().splitlines()]
    assert len(pairs) == 500
    assert sum(point == other for _, point, _, _, other, _ in pairs) == 250
    for number, point, image, *_ in (half for pair in pairs for half in (pair[:3], pair[3:])):
        assert lines[int(number)] == f"{point} {image}"
    assert all(pair[0] != pair[3] for pair in pairs)
    labelled = read_pairs(folder / "m50_500_500_0.txt", open_brown(folder))
    assert labelled.patches.tolist() == [[int(pair[0]), int(pair[3])] for pair in pairs]
    found = read_brown(folder)
    assert_same(
        found,
        replace(made, frame=found.frame, xyz=found.xyz, angle=found.angle),
        *("origin", "source", "images", "extent", "options"),
    )


def test_labelled_pairs_follow_the_seed_and_reach_every_pair(tmp_path: Path) -> None:
    """Points with 1, 2 and 4 patches: matching pairs start at each of 6 patches alike, other pairs at each of 7."""
    full = a_set()
    point = np.array([0, 1, 1, 2, 2, 2, 2])
    rows = {name: getattr(full, name)[:7] for name in ("patches", "frame", "angle")}
    small = replace(full, **rows, point=point, image=np.array([0, 0, 1, 0, 1, 2, 3], np.int32), xyz=full.xyz[:3])
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        write_brown(small, tmp_path / name, 20_000, seed)
    one, again, other = ((tmp_path / name / "m50_20000_20000_0.txt").read_text() for name in ("one", "again", "other"))
    assert one == again != other
    labelled = read_pairs(tmp_path / "one" / "m50_20000_20000_0.txt", open_brown(tmp_path / "one"))
    counted = Counter(map(tuple, labelled.patches.tolist()))
    for first, second in np.ndindex(7, 7):
        same = point[first] == point[second]
        partners = [row for row in range(7) if (point[row] == point[first]) == same and row != first]
        starts = 6 if same else 7
        expected = 0 if first == second else 10_000 / starts / len(partners)
        assert abs(counted[first, second] - expected) <= 5 * np.sqrt(expected)


@pytest.mark.parametrize("pairs", [0, 1, 7])
def test_pairs_that_cannot_be_balanced_are_wrong_usage(pairs: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="even"):
        write_brown(a_set(), tmp_path / "brown", pairs)


def test_brown_is_not_written_over_another_folder_nor_of_one_point(tmp_path: Path) -> None:
    folder = tmp_path / "brown"
    folder.mkdir()
    write_brown(a_set(), folder, 10)
    with pytest.raises(HardnetSfmError, match="not empty"):
        write_brown(a_set(), folder, 10)
    assert [*tmp_path.iterdir()] == [folder]
    with pytest.raises(HardnetSfmError, match="one point"):
        write_brown(replace(a_set(), point=np.zeros(len(a_set()), np.int64)), tmp_path / "other", 10)


def _write_brown(folder: Path, limit: int, pipe: Connection) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        write_brown(a_set(points=100), folder, 5_000)
    except HardnetSfmError as error:
        pipe.send(f"error: {error}")


def test_a_disk_that_fills_up_leaves_no_half_written_brown(tmp_path: Path) -> None:
    with running(_write_brown, tmp_path / "brown", 1_000_000) as (_, pipe):
        (end,) = last_words(pipe)
    assert end.startswith("error: cannot write")
    assert str(tmp_path / "brown") in end
    assert not [*tmp_path.iterdir()]


# HPatches' layout, from its description: https://github.com/hpatches/hpatches-dataset

HPATCHES = ["ref", "e1", "e2", "e3", "e4", "e5", "h1", "h2", "h3", "h4", "h5", "t1", "t2", "t3", "t4", "t5"]


def hpatches(folder: Path, rows: dict[str, int]) -> dict[str, NDArray[np.uint8]]:
    """Writes sequences of so many rows, and returns their columns' patches by `sequence/column`."""
    made = {}
    rng = np.random.default_rng(0)
    for sequence, count in rows.items():
        (folder / sequence).mkdir(parents=True)
        for column in HPATCHES:
            patches = rng.integers(0, 256, (count, 65, 65), np.uint8)
            made[f"{sequence}/{column}"] = patches
            Image.fromarray(np.concatenate([*patches])).save(folder / sequence / f"{column}.png")
            (folder / sequence / "overlaps.txt").touch()
    return made


def overlap() -> NDArray[np.float64]:
    """(64, 65) shares of 65 pixels in each of 64 that cover the same length."""
    edges = np.arange(65) * 65 / 64
    pixels = np.arange(65)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return shared.clip(0) * 64 / 65


def test_hpatches_rows_are_points_and_columns_are_photos(tmp_path: Path) -> None:
    made = hpatches(tmp_path, {"v_wall": 3, "i_ski": 2})
    (tmp_path / "README.txt").touch()
    found = read_hpatches(tmp_path)
    assert len(found) == 5 * 16
    assert found.images == tuple(f"{sequence}/{column}" for sequence in ("i_ski", "v_wall") for column in HPATCHES)
    points = [("i_ski", 0), ("i_ski", 1), ("v_wall", 0), ("v_wall", 1), ("v_wall", 2)]
    weights = overlap()
    for row, patch in enumerate(found.patches):
        sequence, line = points[found.point[row]]
        name = found.images[found.image[row]]
        assert name == f"{sequence}/{HPATCHES[row % 16]}"
        assert np.abs(weights @ made[name][line] @ weights.T - patch).max() < 0.6
    assert (found.source, found.measurement_size) == ("hpatches", 10.0)
    assert np.isnan(found.xyz).all()
    write_patches(tmp_path / "patches.h5", found)
    assert_same(read_patches(tmp_path / "patches.h5"), found, "origin")


def test_halved_hpatches_are_as_if_resampled_at_once(tmp_path: Path) -> None:
    """Area resampling composes: 65 to 64 to 32 pixels, as networks take them, is 65 to 32 up to rounding."""
    made = hpatches(tmp_path, {"v_wall": 2})
    found = read_hpatches(tmp_path)
    for row, patch in enumerate(found.patches):
        whole = made[found.images[found.image[row]]][found.point[row]]
        at_once = cv2.resize(whole, (32, 32), interpolation=cv2.INTER_AREA)
        halved = patch.reshape(32, 2, 32, 2).mean((1, 3))
        assert np.abs(halved - at_once).max() <= 1


HPATCHES_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no column": (lambda folder: (folder / "i_ski" / "t3.png").unlink(), r"t3.png: No such file"),
    "no ref": (lambda folder: (folder / "v_wall" / "ref.png").unlink(), r"ref.png: No such file"),
    "short": (lambda folder: Image.new("L", (65, 65)).save(folder / "i_ski" / "e1.png"), "e1.png: 65x65 pixels"),
    "wide": (lambda folder: Image.new("L", (64, 130)).save(folder / "i_ski" / "ref.png"), "ref.png: 64x130 pixels"),
    "uneven": (lambda folder: Image.new("L", (65, 140)).save(folder / "i_ski" / "ref.png"), "ref.png: 65x140 pixels"),
    "damaged": (lambda folder: (folder / "i_ski" / "h5.png").write_bytes(b"\x89PNG"), "h5.png: not a photo"),
}


@pytest.mark.parametrize("damage", HPATCHES_DAMAGES)
def test_a_bad_folder_of_hpatches_is_a_clear_error(damage: str, tmp_path: Path) -> None:
    hpatches(tmp_path, {"v_wall": 3, "i_ski": 2})
    change, message = HPATCHES_DAMAGES[damage]
    change(tmp_path)
    with pytest.raises(HardnetSfmError, match=message) as raised:
        read_hpatches(tmp_path)
    assert str(tmp_path) in raised.value.message


def test_a_folder_without_sequences_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(HardnetSfmError, match="no sequences") as raised:
        read_hpatches(tmp_path)
    assert "hpatches-release" in raised.value.hint


def test_validation_on_photos_of_the_training_is_noticed() -> None:
    training, other = a_set(Path("train.h5")), a_set(Path("other.h5"), seed=1)
    (line,) = describe_shared_photos([training], [replace(training, origin="copy.h5")])
    assert line.startswith(f"{len(training.images)} of {len(training.images)} photos of copy.h5 are also in train.h5")
    assert len(describe_shared_photos([training], [training])) == 1
    # Photos of another scene may have the same names, as cameras count from 1.
    assert other.images == training.images
    assert describe_shared_photos([training], [other]) == []
