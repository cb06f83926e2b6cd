"""Photos on disk: which files count, in what order, and that every format decodes to the right upright pixels."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from hardnet_sfm.colmap.cameras import readable_folder
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files import photo_files, truncated_photos
from hardnet_sfm.files.photo_decoding import exif_orientation
from hardnet_sfm.files.photo_files import read_as_stored, read_colours, read_photo, read_small, sha256_of, size_of
from hardnet_sfm.files.photo_folders import list_photos
from hardnet_sfm.files.truncated_photos import is_truncated
from hardnet_sfm.photos import resize_to_fit, sensor_from_upright, upright

Pixels = NDArray[np.uint8]
ORIENTATIONS = range(1, 9)
_ORIENTATION_TAG = 0x0112
_WITH_EXIF = ("jpg", "png", "tif", "webp")
_PILLOW_NAMES = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}


def test_lists_every_format_in_either_case_and_nothing_else(tmp_path: Path) -> None:
    photos = ["a.jpg", "b.jpeg", "c.png", "d.tif", "e.tiff", "f.bmp", "g.ppm", "h.pgm", "i.webp", "j.JPG", "k.TiFf"]
    photos += ["l.gif", "m.jp2", "n.jfif", "o.jpe"]
    _touch(tmp_path, *photos, "notes.txt", "jpg", "l.jpg.part", "m.svg", "n.jpgx")
    assert list_photos(tmp_path).names == photos


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    ordered = ["img1.jpg", "img2.jpg", "IMG3.JPG", "img10.jpg", "img010a.jpg", "img100.jpg", "imga.jpg"]
    _touch(tmp_path, *reversed(ordered))
    assert list_photos(tmp_path).names == ordered


def test_searches_subfolders_and_writes_names_as_posix_paths(tmp_path: Path) -> None:
    ordered = ["day2/morning/1.jpg", "day2/morning/2.jpg", "day10/1.jpg", "z.jpg"]
    _touch(tmp_path, *reversed(ordered))
    assert list_photos(tmp_path).names == ordered


def test_photos_of_equal_name_in_different_folders_stay_apart(tmp_path: Path) -> None:
    _touch(tmp_path, "left/1.jpg", "right/1.jpg", "1.jpg")
    assert list_photos(tmp_path).names == ["1.jpg", "left/1.jpg", "right/1.jpg"]


def test_names_may_have_spaces_umlauts_and_other_scripts(tmp_path: Path) -> None:
    names = {"Kölner Dom 1.jpg", "Ærø/Überblick é.jpg", "東京 タワー.png", " leading.jpg", "100 % #1.jpg"}
    _touch(tmp_path, *names)
    assert set(list_photos(tmp_path).names) == names
    assert all(read_photo(tmp_path / name).size == (3, 2) for name in names)


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", ".b.jpg", "._a.jpg", ".thumbnails/c.jpg", "deep/.cache/d.jpg", "deep/e.jpg")
    assert list_photos(tmp_path).names == ["a.jpg", "deep/e.jpg"]


def test_the_image_folder_itself_may_be_hidden(tmp_path: Path) -> None:
    _touch(tmp_path / ".photos", "a.jpg")
    assert list_photos(tmp_path / ".photos").names == ["a.jpg"]


def test_a_folder_named_like_a_photo_is_a_folder(tmp_path: Path) -> None:
    _touch(tmp_path, "set.jpg/1.jpg")
    assert list_photos(tmp_path).names == ["set.jpg/1.jpg"]


@settings(max_examples=40, deadline=None)
@given(
    stems=st.lists(st.text("019aAzÄß²٣ -_.é", min_size=1, max_size=6), min_size=1, max_size=8, unique=True),
    data=st.data(),
)
def test_the_order_does_not_depend_on_the_file_system(stems: list[str], data: st.DataObject) -> None:
    names = [f"{stem}.jpg" for stem in stems if not stem.startswith(".")]
    assume(names)
    listings = []
    for order in (names, data.draw(st.permutations(names))):
        with tempfile.TemporaryDirectory() as folder:
            for name in order:
                (Path(folder) / name).touch()
            listings.append(list_photos(Path(folder)).names)
    assert sorted(listings[0]) == sorted(names)
    assert listings[1] == listings[0]


@settings(max_examples=20, deadline=None)
@given(numbers=st.sets(st.integers(0, 10**7), min_size=2, max_size=6), prefix=st.sampled_from(["", "DSC_", "b/²"]))
def test_numbered_photos_are_in_the_order_of_their_numbers(numbers: set[int], prefix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _touch(Path(folder), *(f"{prefix}{number}.jpg" for number in numbers))
        assert list_photos(Path(folder)).names == [f"{prefix}{number}.jpg" for number in sorted(numbers)]


def test_an_empty_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "nothing here"
    folder.mkdir()
    with pytest.raises(HardnetSfmError, match="empty") as raised:
        list_photos(folder)
    assert str(folder) in raised.value.message


def test_a_folder_without_photos_is_an_error_that_says_what_counts_as_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(HardnetSfmError, match="no photos") as raised:
        list_photos(tmp_path)
    assert str(tmp_path) in raised.value.message
    assert ".jpg" in raised.value.hint


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(HardnetSfmError, match="no such folder") as raised:
        list_photos(tmp_path / "missing")
    assert str(tmp_path / "missing") in raised.value.message


def test_a_file_instead_of_a_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg")
    with pytest.raises(HardnetSfmError, match="not a folder") as raised:
        list_photos(tmp_path / "a.jpg")
    assert str(tmp_path / "a.jpg") in raised.value.message


def _colour() -> Pixels:
    """(37, 53, 3) RGB with soft edges and saturated colours."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    return np.clip((cv2.GaussianBlur(noise, (0, 0), 1.5).astype(int) - 128) * 3 + 128, 0, 255).astype(np.uint8)


def _alpha() -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (37, 53), dtype=np.uint8)


def _deep(pixels: Pixels) -> NDArray[np.uint16]:
    """The same picture at 16 bits, with random lower bytes."""
    low = np.random.default_rng(2).integers(0, 256, pixels.shape, dtype=np.uint16)
    return pixels.astype(np.uint16) * 256 + low


def _by_pillow(image: Image.Image, extension: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, _PILLOW_NAMES.get(extension, extension), **options)
    return buffer.getvalue()


def _by_opencv(rgb: NDArray[np.uint16], extension: str) -> bytes:
    """Pillow writes no 16-bit colour."""
    order = [2, 1, 0, 3][: rgb.shape[2]]
    return cv2.imencode(f".{extension}", np.ascontiguousarray(rgb[..., order]))[1].tobytes()


def _oriented(pixels: NDArray[np.number], extension: str, orientation: int) -> bytes:
    """A file that stores the pixels as they are and claims an EXIF orientation."""
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    image = Image.fromarray(pixels)
    options: dict[str, object] = {}
    if extension == "webp":  # knows no grey
        image, options = image.convert("RGB"), {"lossless": True}
    return _by_pillow(image, extension, exif=exif, **options)


def _luma(rgb: NDArray[np.number]) -> NDArray[np.float64]:
    """ITU-R BT.601, the grey of JPEG, OpenCV and Pillow."""
    return rgb[..., :3].astype(np.float64) @ [0.299, 0.587, 0.114]


def _lossless() -> dict[str, tuple[bytes, NDArray[np.float64]]]:
    """Files by name, and the grey values that went in."""
    rgb, alpha = _colour(), _alpha()
    grey = rgb[..., 1]
    deep, deep_grey = _deep(np.dstack([rgb, alpha])), _deep(grey)
    cases: dict[str, tuple[bytes, NDArray[np.float64]]] = {}
    for extension in ("png", "tif", "bmp", "ppm", "webp"):
        options = {"lossless": True} if extension == "webp" else {}
        cases[f"rgb.{extension}"] = _by_pillow(Image.fromarray(rgb), extension, **options), _luma(rgb)
    for extension in ("png", "tif", "bmp", "webp"):
        options = {"lossless": True, "exact": True} if extension == "webp" else {}
        cases[f"rgba.{extension}"] = (
            _by_pillow(Image.fromarray(np.dstack([rgb, alpha])), extension, **options),
            _luma(rgb),
        )
    for extension in ("png", "tif", "bmp", "pgm"):
        cases[f"grey.{extension}"] = _by_pillow(Image.fromarray(grey), extension), grey.astype(np.float64)
    for extension in ("png", "tif", "pgm"):
        cases[f"grey16.{extension}"] = _by_pillow(Image.fromarray(deep_grey), extension), (deep_grey >> 8).astype(float)
    for extension in ("png", "tif", "ppm"):
        cases[f"rgb16.{extension}"] = _by_opencv(deep[..., :3], extension), _luma(deep >> 8)
    for extension in ("png", "tif"):
        cases[f"rgba16.{extension}"] = _by_opencv(deep, extension), _luma(deep >> 8)
        cases[f"grey-alpha.{extension}"] = (
            _by_pillow(Image.fromarray(np.dstack([grey, alpha])), extension),
            grey.astype(np.float64),
        )
    for extension in ("png", "tif", "bmp"):
        two = Image.fromarray(grey).convert("1")
        cases[f"black-and-white.{extension}"] = _by_pillow(two, extension), np.asarray(two) * 255.0
        palette = Image.fromarray(rgb).quantize(64)
        cases[f"palette.{extension}"] = _by_pillow(palette, extension), _luma(np.asarray(palette.convert("RGB")))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        data = _by_pillow(Image.fromarray(rgb), "tif", compression=compression)
        cases[f"{compression}.tif"] = data, _luma(rgb)
    return cases


LOSSLESS = _lossless()


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_decode_to_the_grey_that_went_in(name: str, tmp_path: Path) -> None:
    data, expected = LOSSLESS[name]
    (tmp_path / name).write_bytes(data)
    photo = read_photo(tmp_path / name)
    assert (photo.grey.dtype, photo.grey.shape, photo.size) == (np.uint8, expected.shape, (53, 37))
    # Some libraries round the weighted sum of red, green and blue, others cut it off, before or after dropping bits.
    assert size_of(tmp_path / name) == photo.size
    tolerance = 0 if "grey" in name or "black" in name else 1.5 if "16" in name else 1.01
    assert np.abs(photo.grey - expected).max() <= tolerance


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_decode_as_pillow_decodes_them(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(LOSSLESS[name][0])
    # Pillow rounds 16 bits to 8 where OpenCV drops the lower ones, and vice versa.
    tolerance = 0 if name.startswith(("grey.", "grey-alpha.", "black")) else 1
    difference = read_photo(tmp_path / name).grey.astype(int) - _pillow_grey(LOSSLESS[name][0])
    assert np.abs(difference).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "RGB", "progressive", "CMYK"])
def test_jpeg_decodes_as_pillow_decodes_it(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(_colour())
    if mode in ("L", "CMYK"):
        image = image.convert(mode)
    data = _by_pillow(image, "jpg", quality=90, progressive=mode == "progressive")
    (tmp_path / "a.jpg").write_bytes(data)
    reference = Image.open(io.BytesIO(data))
    reference.draft("L", None)  # a JPEG stores its grey as it is; by way of RGB it would be rounded and clipped
    difference = read_photo(tmp_path / "a.jpg").grey.astype(int) - np.asarray(reference.convert("L"))
    assert np.abs(difference).max() <= (2 if mode == "CMYK" else 0)


def test_lossy_webp_decodes_as_pillow_decodes_it(tmp_path: Path) -> None:
    data = _by_pillow(Image.fromarray(_colour()), "webp", quality=90)
    (tmp_path / "a.webp").write_bytes(data)
    difference = read_photo(tmp_path / "a.webp").grey.astype(int) - _pillow_grey(data)
    assert np.abs(difference).max() <= 1


def test_the_fingerprint_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg")
    expected = hashlib.sha256((tmp_path / "a.jpg").read_bytes()).hexdigest()
    assert read_photo(tmp_path / "a.jpg").sha256 == expected == sha256_of(tmp_path / "a.jpg")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("extension", _WITH_EXIF)
def test_exif_orientation_is_applied_as_pillow_applies_it(extension: str, orientation: int, tmp_path: Path) -> None:
    data = _oriented(_colour()[..., 0], extension, orientation)
    path = tmp_path / f"a.{extension}"
    path.write_bytes(data)
    photo = read_photo(path)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L"))
    np.testing.assert_array_equal(photo.grey, expected)
    assert photo.orientation == orientation
    assert photo.size == size_of(path) == ((53, 37) if orientation < 5 else (37, 53))


@pytest.mark.parametrize("depth", ["grey", "colour", "alpha", "16 bits"])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_colours_are_those_that_went_in_turned_upright(extension: str, depth: str, tmp_path: Path) -> None:
    rgb = _colour()
    grey = np.repeat(rgb[..., :1], 3, axis=2)
    stored, expected = {
        "grey": (rgb[..., 0], grey),
        "colour": (rgb, rgb),
        "alpha": (np.dstack([rgb, _alpha()]), rgb),
        "16 bits": (_deep(rgb[..., 0]), grey),
    }[depth]
    path = tmp_path / f"a.{extension}"
    for orientation in ORIENTATIONS:
        path.write_bytes(_oriented(stored, extension, orientation))
        difference = read_colours(path) - upright(expected, orientation).astype(float)
        assert np.abs(difference).max() <= 1, orientation


@pytest.mark.parametrize("depth", ["colour", "alpha", "16 bits"])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_exif_orientation_is_applied_at_every_depth(extension: str, depth: str, tmp_path: Path) -> None:
    rgb = _colour()
    stored, expected = {
        "colour": (rgb, _luma(rgb)),
        "alpha": (np.dstack([rgb, _alpha()]), _luma(rgb)),
        "16 bits": (_deep(rgb[..., 0]), rgb[..., 0]),
    }[depth]
    path = tmp_path / f"a.{extension}"
    for orientation in ORIENTATIONS:
        path.write_bytes(_oriented(stored, extension, orientation))
        difference = read_photo(path).grey - upright(np.asarray(expected), orientation).astype(float)
        assert np.abs(difference).max() <= 1.01, orientation


@pytest.mark.parametrize(
    ("orientation", "first", "last_of_first_row"),
    [
        (1, "top left", "top right"),
        (2, "top right", "top left"),
        (3, "bottom right", "bottom left"),
        (4, "bottom left", "bottom right"),
        (5, "top left", "bottom left"),
        (6, "top right", "bottom right"),
        (7, "bottom right", "top right"),
        (8, "bottom left", "top left"),
    ],
)
def test_upright_puts_the_corners_where_the_exif_standard_says(
    orientation: int, first: str, last_of_first_row: str
) -> None:
    """EXIF 2.32, tag 274: which side of the scene the stored row 0 and column 0 show."""
    stored = np.zeros((3, 5), np.uint8)
    stored[0, 0], stored[0, -1] = 1, 2
    turned = upright(stored, orientation)
    corners = {
        f"{vertical} {horizontal}": turned[row, column]
        for vertical, row in (("top", 0), ("bottom", -1))
        for horizontal, column in (("left", 0), ("right", -1))
    }
    assert {value: corner for corner, value in corners.items() if value} == {1: first, 2: last_of_first_row}


@given(orientation=st.sampled_from(ORIENTATIONS), height=st.integers(1, 15), width=st.integers(1, 17))
def test_sensor_from_upright_leads_every_pixel_to_where_it_is_stored(orientation: int, height: int, width: int) -> None:
    stored = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    turned = upright(stored, orientation)
    affine = sensor_from_upright(orientation, (turned.shape[1], turned.shape[0]))
    for (y, x), value in np.ndenumerate(turned):
        column, row = affine @ [x, y, 1]
        assert 0 <= row < height and 0 <= column < width
        assert stored[int(row), int(column)] == value


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_sensor_from_upright_leads_the_corners_of_the_photo_to_corners(orientation: int) -> None:
    """Corners lie half a pixel outside the outermost centres: continuous coordinates turn about the right point."""
    size = (53, 37) if orientation < 5 else (37, 53)
    affine = sensor_from_upright(orientation, size)
    corners = {(x, y) for x in (-0.5, size[0] - 0.5) for y in (-0.5, size[1] - 0.5)}
    moved = {tuple((affine @ [x, y, 1]).tolist()) for x, y in corners}
    assert moved == {(x, y) for x in (-0.5, 52.5) for y in (-0.5, 36.5)}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
def test_colmap_reads_the_pixels_that_sensor_from_upright_leads_to(
    extension: str, orientation: int, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{extension}"
    path.write_bytes(_oriented(_colour()[..., 0], extension, orientation))
    bitmap = pycolmap.Bitmap.read(path, as_rgb=False)
    assert (bitmap.width, bitmap.height) == (53, 37)
    photo = read_photo(path)
    np.testing.assert_array_equal(_seen_through(photo.orientation, photo.size, bitmap.to_array()), photo.grey)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(value: int, tmp_path: Path) -> None:
    grey = _colour()[..., 0]
    for extension in ("png", "tif"):
        path = tmp_path / f"a.{extension}"
        path.write_bytes(_oriented(grey, extension, value))
        photo = read_photo(path)
        assert photo.orientation == 1
        np.testing.assert_array_equal(photo.grey, grey)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@settings(max_examples=60, deadline=None, derandomize=True)
@given(garbage=st.binary(max_size=60), little_endian=st.booleans())
def test_damaged_exif_costs_no_pixels(garbage: bytes, little_endian: bool) -> None:
    image = Image.fromarray(_colour()[..., 0])
    head = b"II*\0\x08\0\0\0" if little_endian else b"MM\0*\0\0\0\x08"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(_by_pillow(image, "png", exif=b"Exif\0\0" + head + garbage))
        photo = read_photo(path)
    np.testing.assert_array_equal(photo.grey, upright(np.asarray(image), photo.orientation))


def test_saharov_is_upright_for_us_and_landscape_for_colmap(shared_data: Path) -> None:
    """A portrait photo, stored lying down with EXIF orientation 8."""
    path = min((shared_data / "train" / "saharov32" / "images").iterdir())
    photo = read_photo(path)
    assert (photo.orientation, photo.size) == (8, (728, 1092))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("L"), int)
    assert np.abs(photo.grey - expected).max() <= 4  # rounding and clipping by way of RGB
    bitmap = pycolmap.Bitmap.read(path, as_rgb=True)
    assert (bitmap.width, bitmap.height) == (1092, 728)
    seen = _luma(_seen_through(8, photo.size, bitmap.to_array()))
    difference = np.abs(photo.grey - seen)
    assert difference.mean() < 0.6
    assert np.quantile(difference, 0.999) < 3


def _damaged() -> dict[str, bytes]:
    image = Image.fromarray(_colour())
    files = {extension: _by_pillow(image, extension) for extension in ("jpg", "png", "tif", "bmp", "ppm", "webp")}
    files["pgm"] = _by_pillow(image.convert("L"), "pgm")
    cases = {f"head-of-{length}.{extension}": data[:length] for extension, data in files.items() for length in (1, 9)}
    cases |= {f"empty.{extension}": b"" for extension in files}
    cases |= {f"text.{extension}": b"This is not a photo.\n" * 50 for extension in files}
    cases |= {f"zeros.{extension}": bytes(4096) for extension in files}
    cases |= {f"no-head.{extension}": data[9:] for extension, data in files.items()}
    oriented = _oriented(_colour(), "tif", 6)
    cases |= {"oriented-head.tif": oriented[:8]}
    return cases


DAMAGED = _damaged()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_no_photo_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    with pytest.raises(HardnetSfmError) as raised:
        read_photo(path)
    assert str(path) in raised.value.message
    assert ("empty" in raised.value.message) == (not DAMAGED[name])


def test_a_missing_photo_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(HardnetSfmError, match="No such file") as raised:
        read_photo(tmp_path / "gone.jpg")
    assert str(tmp_path / "gone.jpg") in raised.value.message


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged tags
@settings(max_examples=150, deadline=None, derandomize=True)
@given(extension=st.sampled_from(["jpg", "png", "tif", "bmp", "ppm", "webp"]), data=st.data())
def test_flipped_bytes_give_a_photo_or_a_clear_error(extension: str, data: st.DataObject) -> None:
    content = bytearray(_by_pillow(Image.fromarray(_colour()), extension))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 300) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{extension}"
        path.write_bytes(content)
        try:
            assert read_photo(path).grey.ndim == 2
        except HardnetSfmError as error:
            assert str(path) in error.message


@pytest.mark.parametrize("kind", ["webp", "avif", "jpeg2000", "gif", "png", "tiff", "bmp", "ppm", "jpeg"])
@pytest.mark.parametrize("extension", ["jpg", "png", "tif"])
def test_a_photo_is_what_its_content_says(kind: str, extension: str, tmp_path: Path) -> None:
    rgb = _colour()
    options = {"webp": {"lossless": True}, "avif": {"quality": 100}, "jpeg": {"quality": 100}}.get(kind, {})
    path = tmp_path / f"a.{extension}"
    path.write_bytes(_by_pillow(Image.fromarray(rgb), kind, **options))
    reference = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    assert np.abs(read_colours(path) - np.asarray(reference, float)).max() <= 2
    assert np.abs(read_photo(path).grey - _luma(np.asarray(reference))).max() <= 2
    assert size_of(path) == read_photo(path).size == (53, 37)


@pytest.mark.parametrize("orientation", [1, 6])
def test_avif_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    data = _oriented(_colour(), "avif", orientation)
    (tmp_path / "a.avif").write_bytes(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(read_colours(tmp_path / "a.avif"), np.asarray(expected))
    assert size_of(tmp_path / "a.avif") == expected.size == ((53, 37) if orientation == 1 else (37, 53))


def test_heic_is_read_where_its_package_is_there(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    rgb = np.asarray(Image.fromarray(_colour()).resize((106, 74)))
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = 6
    Image.fromarray(rgb).save(tmp_path / "a.heic", quality=100, exif=exif.tobytes())
    assert list_photos(tmp_path).names == ["a.heic"]
    photo = read_photo(tmp_path / "a.heic")
    assert photo.size == size_of(tmp_path / "a.heic") == (74, 106)
    assert np.abs(photo.grey - upright(_luma(rgb).astype(np.uint8), 6).astype(float)).mean() < 4


def test_a_heic_photo_named_jpg_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_files, "CAN_READ_HEIC", False)
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(HardnetSfmError, match=r"a\.jpg: a HEIC photo") as raised:
        read_photo(tmp_path / "a.jpg")
    assert "pip install pillow-heif" in raised.value.hint


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_an_animation_gives_its_first_picture(kind: str, tmp_path: Path) -> None:
    first, second = (Image.fromarray(pixels) for pixels in (_colour(), 255 - _colour()))
    options = {"lossless": True} if kind == "webp" else {}
    data = _by_pillow(first, kind, save_all=True, append_images=[second], **options)
    (tmp_path / "a.jpg").write_bytes(data)
    reference = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.abs(read_colours(tmp_path / "a.jpg") - np.asarray(reference, float)).max() <= 1


def _large_jpeg(**options: object) -> bytes:
    """Smooth, so that truncation and not the coding makes the difference; high enough for several rows of blocks."""
    image = Image.fromarray(_colour()).resize((640, 480), Image.Resampling.BICUBIC)
    return _by_pillow(image, "jpg", quality=90, **options)


def test_a_jpeg_without_an_end_marker_is_read_whole(tmp_path: Path) -> None:
    data = _large_jpeg()
    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "cut.jpg").write_bytes(data[:-2])
    (tmp_path / "zeros.jpg").write_bytes(data[:-2] + bytes(4096))  # of an interrupted copy
    expected = read_photo(tmp_path / "whole.jpg").grey
    for name in ("cut.jpg", "zeros.jpg"):
        np.testing.assert_array_equal(read_photo(tmp_path / name).grey, expected)
        assert is_truncated(tmp_path / name)
    np.testing.assert_array_equal(read_small(tmp_path / "cut.jpg", 320), read_small(tmp_path / "whole.jpg", 320))
    assert not is_truncated(tmp_path / "whole.jpg")
    assert not is_truncated(data + b"the trailer of a phone")
    assert not is_truncated(tmp_path / "gone.jpg")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_jpeg_is_read_as_far_as_it_goes(share: float, tmp_path: Path) -> None:
    data = _large_jpeg()
    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "cut.jpg").write_bytes(data[: int(share * len(data))])
    whole, cut = read_photo(tmp_path / "whole.jpg").grey, read_photo(tmp_path / "cut.jpg").grey
    assert cut.shape == whole.shape
    rows = int((share - 0.1) * len(whole))
    np.testing.assert_array_equal(cut[:rows], whole[:rows])
    assert (cut[-8:] != whole[-8:]).any()
    assert is_truncated(tmp_path / "cut.jpg")


def test_a_truncated_progressive_jpeg_is_read_at_a_lower_quality(tmp_path: Path) -> None:
    data = _large_jpeg(progressive=True)
    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    difference = read_photo(tmp_path / "cut.jpg").grey - read_photo(tmp_path / "whole.jpg").grey.astype(float)
    assert 0 < np.abs(difference).mean() < 8
    assert is_truncated(tmp_path / "cut.jpg")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".png", {"mode": "L"}),
        (".png", {"mode": "P"}),
        (".png", {"mode": "1"}),
        (".png", {"mode": "I;16"}),
        (".tif", {}),
    ],
)
def test_a_truncated_png_or_tiff_is_read_as_far_as_it_goes(
    suffix: str, options: dict[str, str], share: float, tmp_path: Path
) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    photo = Image.open(io.BytesIO(_large_jpeg())).resize((403, 301))
    mode = options.get("mode", "RGB")
    deep = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    (deep if mode == "I;16" else photo.convert(mode)).save(whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(share * len(data))])
    expected, found = read_photo(whole).grey, read_photo(cut).grey
    assert found.shape == expected.shape and is_truncated(cut) and not is_truncated(whole)
    rows = int((share - 0.2) * len(expected))  # a photo's bytes are not spread evenly over its rows
    np.testing.assert_array_equal(found[:rows], expected[:rows])
    assert (found[-3:] == 0).mean() > 0.9 or share > 0.9
    cut.write_bytes(cut.read_bytes() + bytes(9999))  # an interrupted copy
    np.testing.assert_array_equal(read_photo(cut).grey[:rows], expected[:rows])


def test_a_truncated_tiff_keeps_its_orientation(tmp_path: Path) -> None:
    data = _oriented(_colour(), "tif", 6)
    (tmp_path / "whole.tif").write_bytes(data)
    (tmp_path / "half.tif").write_bytes(data[: len(data) // 2])
    whole, half = read_photo(tmp_path / "whole.tif").grey, read_photo(tmp_path / "half.tif").grey
    assert half.shape == whole.shape and size_of(tmp_path / "half.tif") == size_of(tmp_path / "whole.tif")
    columns = whole.shape[1] * 6 // 10  # orientation 6 shows the first row as the last column
    np.testing.assert_array_equal(half[:, columns:], whole[:, columns:])
    assert (half[:, : columns // 2] == 0).all()


def test_a_truncated_interlaced_png_is_read_at_a_lower_resolution(tmp_path: Path) -> None:
    """Neither Pillow nor OpenCV writes interlaced files, so this one is put together by hand."""
    grey = np.asarray(Image.open(io.BytesIO(_large_jpeg())).resize((45, 37)).convert("L"))
    passes = [grey[y::down, x::right] for x, y, right, down in truncated_photos._PASSES]
    pixels = b"".join(b"\0" + row.tobytes() for one in passes for row in one)
    head = struct.pack(">IIBBBBB", 45, 37, 8, 0, 0, 0, 1)

    def png(packed: bytes) -> bytes:
        parts = [truncated_photos._chunk(b"IHDR", head), truncated_photos._chunk(b"IDAT", packed)]
        return b"".join([b"\x89PNG\r\n\x1a\n", *parts, truncated_photos._chunk(b"IEND", b"")])

    path = tmp_path / "a.png"
    path.write_bytes(png(zlib.compress(pixels, 0)))
    np.testing.assert_array_equal(read_photo(path).grey, grey)
    path.write_bytes(path.read_bytes()[:-500])
    found = read_photo(path).grey
    np.testing.assert_array_equal(found[::2, ::2], grey[::2, ::2])
    assert (found[-2] == 0).any()


@pytest.mark.parametrize(("suffix", "options"), [(".webp", {}), (".tif", {"compression": "tiff_lzw"})])
def test_what_cannot_be_read_without_its_end_is_called_truncated(
    suffix: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    Image.open(io.BytesIO(_large_jpeg())).save(path, **options)
    assert not is_truncated(path) and read_photo(path).size
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(HardnetSfmError, match="truncated or damaged: its end is missing"):
        read_photo(path)


def test_a_truncated_png_has_a_copy_that_colmap_reads(tmp_path: Path) -> None:
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.open(io.BytesIO(_large_jpeg())).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    folder = readable_folder(path.parent, ["a.png"], tmp_path / "copies")
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "a.png")), read_as_stored(path))


def test_a_jpeg_that_is_only_a_head_is_damaged(tmp_path: Path) -> None:
    data = _large_jpeg()
    scan = data.index(b"\xff\xda")
    for end in (scan, scan + 14):
        (tmp_path / "a.jpg").write_bytes(data[:end])
        with pytest.raises(HardnetSfmError, match="damaged"):
            read_photo(tmp_path / "a.jpg")


_ABOVE_THE_LIMITS = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("error")
from hardnet_sfm.files import photo_decoding
from hardnet_sfm.files.photo_files import read_photo, size_of
photo = read_photo(Path(sys.argv[1]))
print(photo.orientation, photo.size, size_of(Path(sys.argv[1])), int(photo.grey[0, 0]), int(photo.grey[-1, -1]))
"""


def test_photos_above_the_limit_of_opencv_are_read(tmp_path: Path) -> None:
    """The limit is 2^30 pixels; the test lowers it."""
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = 6
    image = Image.new("L", (400, 300), 90)
    image.paste(200, (0, 200, 100, 300))  # the lower left corner, which is the upper left one upright
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    done = subprocess.run(
        [sys.executable, "-c", _ABOVE_THE_LIMITS, str(tmp_path / "a.jpg")],
        env={**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": "1000"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "6 (300, 400) (300, 400) 200 90"
    assert done.stderr == ""


def test_photos_above_the_limit_of_pillow_keep_their_orientation(tmp_path: Path) -> None:
    """200 megapixels, above the 179 at which Pillow refuses; few bytes, as it is even."""
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = 8
    Image.new("L", (16384, 12288), 77).save(tmp_path / "a.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert exif_orientation(tmp_path / "a.jpg") == 8
        assert size_of(tmp_path / "a.jpg") == (12288, 16384)
        small = read_small(tmp_path / "a.jpg", 64)
    assert small.shape == (64, 48, 3)
    assert (small == 77).all()


def test_a_size_that_cannot_be_true_is_an_error(tmp_path: Path) -> None:
    data = bytearray(_large_jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"  # 65535x65535
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(HardnetSfmError, match=r"a\.jpg: damaged: it states 65535x65535 pixels"):
        read_photo(tmp_path / "a.jpg")


@pytest.mark.parametrize("orientation", [1, 6])
def test_lab_is_converted_to_the_colours_that_went_in(orientation: int, tmp_path: Path) -> None:
    rgb = Image.fromarray(_colour())
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(rgb, transform)
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    lab.save(tmp_path / "a.tif", exif=exif)
    back = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    expected = upright(np.asarray(ImageCms.applyTransform(lab, back)), orientation)  # some colours are outside sRGB
    np.testing.assert_array_equal(read_colours(tmp_path / "a.tif"), expected)
    assert np.abs(read_photo(tmp_path / "a.tif").grey - _luma(expected)).max() <= 1


@pytest.mark.parametrize(("mode", "extension"), [("CMYK", "tif"), ("YCbCr", "tif"), ("CMYK", "jpg"), ("P", "gif")])
def test_other_colour_spaces_decode_as_pillow_decodes_them(mode: str, extension: str, tmp_path: Path) -> None:
    data = _by_pillow(Image.fromarray(_colour()).convert(mode), extension)
    (tmp_path / f"a.{extension}").write_bytes(data)
    reference = Image.open(io.BytesIO(data)).convert("RGB")
    difference = read_colours(tmp_path / f"a.{extension}") - np.asarray(reference, float)
    assert np.abs(difference).max() <= (4 if extension == "jpg" else 2)


def test_transparency_of_a_palette_is_dropped(tmp_path: Path) -> None:
    palette = Image.fromarray(_colour()).quantize(64)
    for extension in ("png", "gif"):
        palette.save(tmp_path / f"a.{extension}", transparency=3)
        expected = np.asarray(palette.convert("RGB"), float)
        assert np.abs(read_colours(tmp_path / f"a.{extension}") - expected).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.float32, 0, 1), (np.float32, 0, 255), (np.float64, 280, 310), (np.int32, -40, 3000)],
)
def test_numbers_of_32_or_64_bits_use_the_whole_range(dtype: type, low: float, high: float, tmp_path: Path) -> None:
    grey = _colour()[..., 0]
    values = (low + grey / 255 * (high - low)).astype(dtype)
    (tmp_path / "a.tif").write_bytes(cv2.imencode(".tif", values)[1].tobytes())
    photo = read_photo(tmp_path / "a.tif")
    assert np.abs(photo.grey - _stretched(grey)).max() <= 1
    assert size_of(tmp_path / "a.tif") == photo.size == (53, 37)


def test_values_that_are_not_numbers_do_not_hide_the_others(tmp_path: Path) -> None:
    """As at the borders of an orthophoto, or where a thermal camera measured nothing."""
    grey = _colour()[..., 0]
    values = 290 + grey.astype(np.float32) / 10
    values[:5], values[5:8], values[8:10] = np.nan, np.inf, -np.inf
    (tmp_path / "a.tif").write_bytes(cv2.imencode(".tif", values)[1].tobytes())
    found = read_photo(tmp_path / "a.tif").grey
    assert np.abs(found[10:] - _stretched(grey[10:])).max() <= 1
    assert (found[:10] == 0).all()
    (tmp_path / "b.tif").write_bytes(cv2.imencode(".tif", np.full((4, 5), np.nan, np.float32))[1].tobytes())
    assert (read_photo(tmp_path / "b.tif").grey == 0).all()


@pytest.mark.parametrize("kind", ["little-endian", "big-endian", "BigTIFF"])
def test_a_tiff_of_either_byte_order_and_size_is_turned_once(kind: str, tmp_path: Path) -> None:
    grey = _colour()[..., 0]
    if kind == "big-endian":
        (height, width), ends = grey.shape, 8 + grey.size
        tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 274: 6, 277: 1, 278: height, 279: grey.size}
        rows = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
        head = struct.pack(">2sHI", b"MM", 42, ends)
        (tmp_path / "a.tif").write_bytes(head + grey.tobytes() + struct.pack(">H", len(tags)) + rows + bytes(4))
    else:
        exif = Image.Exif()
        exif[_ORIENTATION_TAG] = 6
        Image.fromarray(grey).save(tmp_path / "a.tif", exif=exif, big_tiff=kind == "BigTIFF")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.tif").grey, upright(grey, 6))
    assert size_of(tmp_path / "a.tif") == (37, 53)


def test_colours_of_32_bits_keep_their_order(tmp_path: Path) -> None:
    rgb = _colour()
    bgr = np.ascontiguousarray(rgb[..., ::-1]).astype(np.float32) / 255
    (tmp_path / "a.tif").write_bytes(cv2.imencode(".tif", bgr)[1].tobytes())
    assert np.abs(read_colours(tmp_path / "a.tif") - _stretched(rgb)).max() <= 1
    assert size_of(tmp_path / "a.tif") == (53, 37)


def _stretched(pixels: Pixels) -> NDArray[np.float64]:
    """The same picture with one in a thousand values black, and one white."""
    low, high = np.quantile(pixels.astype(float), (0.001, 0.999))
    return ((pixels - low) * 255 / (high - low)).clip(0, 255)


@pytest.mark.parametrize("extension", _WITH_EXIF)
def test_reading_never_writes_to_a_photo(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{extension}"
    path.write_bytes(_oriented(_colour()[..., 0], extension, 6))
    before = path.read_bytes(), path.stat().st_mtime_ns
    list_photos(tmp_path)
    read_photo(path)
    sha256_of(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [path]


@given(height=st.integers(1, 90), width=st.integers(1, 90), longest=st.integers(1, 100))
def test_resize_to_fit_keeps_small_photos_and_shrinks_large_ones_to_the_pixel(
    height: int, width: int, longest: int
) -> None:
    grey = np.random.default_rng(height * width).integers(0, 256, (height, width), dtype=np.uint8)
    fitted = resize_to_fit(grey, longest)
    if max(height, width) <= longest:
        np.testing.assert_array_equal(fitted, grey)
    else:
        assert max(fitted.shape) == longest
        for shrunk, side in zip(fitted.shape, grey.shape, strict=True):
            assert abs(shrunk - side * longest / max(height, width)) <= 0.5 or shrunk == 1


def test_resize_to_fit_averages_the_pixels_that_it_merges() -> None:
    grey = np.random.default_rng(3).integers(0, 256, (30, 60), dtype=np.uint8)
    means = grey.reshape(10, 3, 20, 3).mean((1, 3))
    assert np.abs(resize_to_fit(grey, 20) - means).max() <= 0.51


def _touch(folder: Path, *names: str) -> None:
    """Writes a photo of 3x2 pixels under every name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 3), 128, np.uint8)).save(path, "PNG")


def _pillow_grey(data: bytes) -> NDArray[np.int64]:
    # From memory: Pillow 13 mixes up width and height of a TIFF with orientation that it maps from disk.
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I"):
        return np.asarray(image).astype(int) >> 8
    return np.asarray(image.convert("L")).astype(int)


def _seen_through(orientation: int, size: tuple[int, int], stored: Pixels) -> Pixels:
    """The upright picture of stored pixels, looked up pixel by pixel with `sensor_from_upright`."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    positions = np.tensordot(sensor_from_upright(orientation, size), np.stack([x, y, np.ones_like(x)]), axes=1)
    columns, rows = positions.astype(int)
    return stored[rows, columns]
