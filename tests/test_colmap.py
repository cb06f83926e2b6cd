"""The adapter to COLMAP, against the real wheel and Pillow."""

from __future__ import annotations

import io
import resource
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IFDRational

from hardnet_sfm.colmap import database as database_module
from hardnet_sfm.colmap.calibration import adjust_robustly
from hardnet_sfm.colmap.cameras import CameraMode, CameraSetup, import_photos, readable_folder
from hardnet_sfm.colmap.database import (
    Database,
    colmap_keypoints,
    drop_facts,
    read_fact,
    replace_database,
    write_facts,
)
from hardnet_sfm.colmap.log import native_log
from hardnet_sfm.colmap.mapping import Mapping
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.colmap.model_files import check_binary_model
from hardnet_sfm.colmap.two_view import Verification
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.photo_folders import EXTENSIONS
from hardnet_sfm.keypoints import Keypoints

Pair = tuple[str, str]
Colour = NDArray[np.uint8]

_ORIENTATION, _EXIF_IFD, _FOCAL_LENGTH_35MM, _MAKE, _MODEL = 0x0112, 0x8769, 0xA405, 0x010F, 0x0110


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path) -> Iterator[None]:
    with native_log(tmp_path / "logs"):
        yield


def exif(*, orientation: int | None = None, focal_length_35mm: int | None = None, camera: str = "") -> Image.Exif:
    tags = Image.Exif()
    if orientation:
        tags[_ORIENTATION] = orientation
    if camera:
        tags[_MAKE], tags[_MODEL] = "Maker", camera
    if focal_length_35mm:
        tags.get_ifd(_EXIF_IFD)[_FOCAL_LENGTH_35MM] = focal_length_35mm
    return tags


def picture(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """Smooth colours, so that JPEG keeps them."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def keypoints(xy: Sequence[Sequence[float]], degrees: Sequence[float], scale: float = 2) -> Keypoints:
    ones = np.ones(len(xy), np.float32)
    return Keypoints(np.array(xy, np.float32), ones * np.float32(scale), np.array(degrees, np.float32), ones)


class TestKeypointsForColmap:
    def test_the_centre_of_the_first_pixel_is_half_a_pixel_from_the_corner(self) -> None:
        rows = colmap_keypoints(keypoints([[0, 0], [10.25, 7]], [0, 270]), 1, (20, 10))
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, [[0.5, 0.5, 2, 0], [10.75, 7.5, 2, -np.pi / 2]], atol=1e-6)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_keypoint_stays_on_its_pixel_and_points_to_the_same_one(self, orientation: int, tmp_path: Path) -> None:
        """Two marked pixels of a file: a keypoint on the first, whose x axis points to the second.

        Pillow says what the photo looks like upright.
        """
        stored = np.zeros((30, 40), np.uint8)
        start, end = (7, 22), (19, 6)  # x, y as stored
        stored[start[1], start[0]], stored[end[1], end[0]] = 200, 100
        path = tmp_path / "photo.png"
        Image.fromarray(stored).save(path, exif=exif(orientation=orientation))
        with Image.open(path) as opened:
            turned = np.asarray(ImageOps.exif_transpose(opened))
        photo = read_photo(path)
        np.testing.assert_array_equal(photo.grey, turned)

        (upright_start,), (upright_end,) = (np.argwhere(turned == value)[:, ::-1] for value in (200, 100))
        towards = upright_end - upright_start
        angle = np.degrees(np.arctan2(towards[1], towards[0])) % 360
        (row,) = colmap_keypoints(keypoints([upright_start], [angle]), photo.orientation, photo.size)
        np.testing.assert_allclose(row[:2], np.array(start) + 0.5, atol=1e-5)
        assert row[2] == 2
        direction = np.subtract(end, start) / np.linalg.norm(np.subtract(end, start))
        np.testing.assert_allclose([np.cos(row[3]), np.sin(row[3])], direction, atol=1e-5)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_an_affine_frame_takes_its_axes_along(self, orientation: int, tmp_path: Path) -> None:
        """Four marked pixels: keypoint, tips of both axes, and one for the sum of both."""
        stored = np.zeros((40, 50), np.uint8)
        tips = {50: (20, 18), 100: (29, 21), 150: (17, 30), 200: (26, 33)}  # the last is second + third - first
        for value, (x, y) in tips.items():
            stored[y, x] = value
        path = tmp_path / "photo.png"
        Image.fromarray(stored).save(path, exif=exif(orientation=orientation))
        with Image.open(path) as opened:
            turned = np.asarray(ImageOps.exif_transpose(opened))
        upright = {value: np.argwhere(turned == value)[0][::-1] for value in tips}
        frame = np.stack([upright[100] - upright[50], upright[150] - upright[50]], 1).astype(np.float32)
        ones = np.ones(1, np.float32)
        found = Keypoints(upright[50][None].astype(np.float32), ones, ones, ones, frame[None])
        (row,) = colmap_keypoints(found, orientation, (turned.shape[1], turned.shape[0]))
        assert row.shape == (6,)
        np.testing.assert_allclose(row[:2], np.array(tips[50]) + 0.5)
        sensor_frame = row[2:].reshape(2, 2)
        np.testing.assert_allclose(sensor_frame @ [1, 0], np.subtract(tips[100], tips[50]), atol=1e-5)
        np.testing.assert_allclose(sensor_frame @ [0, 1], np.subtract(tips[150], tips[50]), atol=1e-5)
        np.testing.assert_allclose(sensor_frame @ [1, 1], np.subtract(tips[200], tips[50]), atol=1e-5)

    def test_none(self) -> None:
        assert colmap_keypoints(Keypoints.empty(), 6, (20, 10)).shape == (0, 4)

    def test_colmap_reads_back_what_was_written(self, tmp_path: Path) -> None:
        picture().save(tmp_path / "a.png")
        import_photos(tmp_path / "d.db", tmp_path, ["a.png"], CameraSetup("auto", "SIMPLE_RADIAL"), tmp_path / "s")
        written = keypoints([[3, 4], [70.5, 50.25]], [10, 200])
        with Database(tmp_path / "d.db") as database:
            database.write_keypoints([("a.png", written, 1, (80, 60))])
        with pycolmap.Database.open(tmp_path / "d.db") as opened:
            rows = opened.read_keypoints(1)
        np.testing.assert_array_equal(rows, colmap_keypoints(written, 1, (80, 60)))


class TestImport:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Two photos of one phone and one of another in a/, one of the first in b/; all of one size."""
        folder = tmp_path / "images"
        for name, camera in (("a/1.jpg", "X"), ("a/2.jpg", "X"), ("a/3.jpg", "Y"), ("b/4.jpg", "X")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            picture().save(folder / name, exif=exif(camera=camera, focal_length_35mm=28))
        return folder

    NAMES = ("a/1.jpg", "a/2.jpg", "a/3.jpg", "b/4.jpg")

    @staticmethod
    def cameras_by_photo(path: Path) -> dict[str, pycolmap.Camera]:
        with pycolmap.Database.open(path) as opened:
            cameras = {camera.camera_id: camera for camera in opened.read_all_cameras()}
            assert opened.num_frames() == opened.num_images()
            assert opened.num_rigs() == len(cameras)
            return {image.name: cameras[image.camera_id] for image in opened.read_all_images()}

    @pytest.mark.parametrize(
        ("mode", "groups"),
        [
            ("auto", [{"a/1.jpg", "a/2.jpg", "b/4.jpg"}, {"a/3.jpg"}]),
            ("single", [{"a/1.jpg", "a/2.jpg", "a/3.jpg", "b/4.jpg"}]),
            ("per-folder", [{"a/1.jpg", "a/2.jpg", "a/3.jpg"}, {"b/4.jpg"}]),
            ("per-image", [{"a/1.jpg"}, {"a/2.jpg"}, {"a/3.jpg"}, {"b/4.jpg"}]),
        ],
    )
    def test_photos_share_cameras_as_the_mode_says(
        self, folder: Path, tmp_path: Path, mode: CameraMode, groups: list[set[str]]
    ) -> None:
        path = tmp_path / "d.db"
        import_photos(path, folder, list(self.NAMES), CameraSetup(mode, "SIMPLE_RADIAL"), tmp_path / "scratch")
        found: dict[int, set[str]] = {}
        for name, camera in self.cameras_by_photo(path).items():
            found.setdefault(camera.camera_id, set()).add(name)
        assert sorted(found.values(), key=sorted) == sorted(groups, key=sorted)
        with Database(path) as database:
            assert database.cameras() == len(groups)
            assert set(database.ids) == set(self.NAMES)
        assert not (tmp_path / "scratch").exists()

    def test_the_focal_length_comes_from_exif(self, folder: Path, tmp_path: Path) -> None:
        """A 35 mm equivalent is to the diagonal of the photo as to that of the film, 43.27 mm."""
        path = tmp_path / "d.db"
        import_photos(path, folder, list(self.NAMES), CameraSetup("auto", "SIMPLE_RADIAL"), tmp_path / "scratch")
        camera = self.cameras_by_photo(path)["a/1.jpg"]
        assert (camera.width, camera.height, camera.has_prior_focal_length) == (80, 60, True)
        np.testing.assert_allclose(camera.params, [28 * 100 / np.hypot(36, 24), 40, 30, 0], rtol=1e-3)

    @pytest.mark.parametrize("mode", ["auto", "single", "per-folder", "per-image"])
    def test_given_parameters_are_every_cameras(self, folder: Path, tmp_path: Path, mode: CameraMode) -> None:
        params = (71.23456789012345, 70.1, 41.5, 29.25, -1e-3, 2.5e-7, 0.0, 1 / 3)
        path = tmp_path / "d.db"
        import_photos(path, folder, list(self.NAMES), CameraSetup(mode, "OPENCV", params), tmp_path / "scratch")
        for camera in self.cameras_by_photo(path).values():
            assert camera.model_name == "OPENCV"
            assert tuple(camera.params) == params
            assert camera.has_prior_focal_length

    @pytest.mark.parametrize("mode", ["single", "per-folder"])
    def test_photos_of_different_sizes_cannot_share_a_camera(
        self, folder: Path, tmp_path: Path, mode: CameraMode
    ) -> None:
        picture(80, 50).save(folder / "a/5.jpg")
        names = [*self.NAMES, "a/5.jpg"]
        with pytest.raises(HardnetSfmError, match=r"a/5\.jpg") as refused:
            import_photos(tmp_path / "d.db", folder, names, CameraSetup(mode, "PINHOLE"), tmp_path / "scratch")
        told = str(refused.value).replace(str(folder), "")
        assert "size" in told
        assert "--camera-mode" in told

    def test_a_photo_that_is_gone_is_named(self, folder: Path, tmp_path: Path) -> None:
        (folder / "a/2.jpg").unlink()
        with pytest.raises(HardnetSfmError, match=r"a/2\.jpg: missing, or in a format that COLMAP cannot read"):
            import_photos(
                tmp_path / "d.db", folder, list(self.NAMES), CameraSetup("auto", "PINHOLE"), tmp_path / "scratch"
            )

    @pytest.mark.parametrize("suffix", [*EXTENSIONS, ".JPG", ".WebP"])
    def test_every_format_that_we_read_can_be_imported(self, tmp_path: Path, suffix: str) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        name = f"photo{suffix}"
        (picture().convert("L") if suffix == ".pgm" else picture()).save(folder / name)
        import_photos(tmp_path / "d.db", folder, [name], CameraSetup("auto", "SIMPLE_PINHOLE"), tmp_path / "scratch")
        camera = self.cameras_by_photo(tmp_path / "d.db")[name]
        assert (camera.width, camera.height) == (80, 60)

    @pytest.mark.parametrize("kind", ["webp", "avif", "jpeg2000", "gif", "tiff", "png", "bmp"])
    def test_a_photo_is_what_its_content_says(self, tmp_path: Path, kind: str) -> None:
        """Under the name of a JPEG, as from the web."""
        folder = tmp_path / "images"
        folder.mkdir()
        content = io.BytesIO()
        picture().save(content, kind)
        (folder / "a.jpg").write_bytes(content.getvalue())
        import_photos(tmp_path / "d.db", folder, ["a.jpg"], CameraSetup("auto", "SIMPLE_PINHOLE"), tmp_path / "scratch")
        camera = self.cameras_by_photo(tmp_path / "d.db")["a.jpg"]
        assert (camera.width, camera.height) == (80, 60)
        readable = readable_folder(folder, ["a.jpg"], tmp_path / "scratch")
        assert (readable == folder) == (kind in ("tiff", "png", "bmp"))
        seen = pycolmap.Bitmap.read(readable / "a.jpg", as_rgb=True)
        with Image.open(folder / "a.jpg") as photo:
            np.testing.assert_array_equal(seen.to_array(), np.asarray(photo.convert("RGB")))

    @pytest.mark.parametrize("size", [(80, 60), (60, 80)])
    @pytest.mark.parametrize(
        ("details", "known"),
        [
            ({0x920A: 4, 0xA20E: IFDRational(0, 1), 0xA210: 2}, False),  # sensor resolution 0
            ({0x920A: 4, 0xA20E: IFDRational(0, 0), 0xA210: 2}, False),
            ({0x920A: 4, 0xA20E: IFDRational(10**6, 1), 0xA210: 2}, False),  # 157480 pixels
            ({_FOCAL_LENGTH_35MM: 1}, False),
            ({_FOCAL_LENGTH_35MM: 65535}, False),
            ({_FOCAL_LENGTH_35MM: 8}, True),  # a fisheye
            ({_FOCAL_LENGTH_35MM: 3000}, True),  # the longest zoom of a compact camera
        ],
    )
    @pytest.mark.parametrize("model", ["SIMPLE_RADIAL", "OPENCV_FISHEYE"])
    def test_a_focal_length_that_no_lens_has_counts_as_unknown(
        self, tmp_path: Path, details: dict[int, float], known: bool, model: str, size: tuple[int, int]
    ) -> None:
        tags = exif(camera="X")
        tags.get_ifd(_EXIF_IFD).update(details)
        picture(*size).save(tmp_path / "a.jpg", exif=tags)
        import_photos(tmp_path / "d.db", tmp_path, ["a.jpg"], CameraSetup("auto", model), tmp_path / "scratch")
        camera = self.cameras_by_photo(tmp_path / "d.db")["a.jpg"]
        assert camera.has_prior_focal_length == known
        wanted = details.get(_FOCAL_LENGTH_35MM, 0) * 100 / np.hypot(36, 24) if known else 1.2 * 80
        np.testing.assert_allclose(camera.params[list(camera.focal_length_idxs())], wanted, rtol=1e-3)
        np.testing.assert_allclose(camera.params[list(camera.principal_point_idxs())], np.divide(size, 2))
        with Database(tmp_path / "d.db") as database:
            assert database.guessed_cameras() == (0 if known else 1)

    def test_photos_are_taken_as_stored_whatever_their_exif_orientation(self, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        picture().save(folder / "portrait.jpg", exif=exif(orientation=6))
        assert read_photo(folder / "portrait.jpg").size == (60, 80)
        names = ["portrait.jpg"]
        import_photos(tmp_path / "d.db", folder, names, CameraSetup("auto", "SIMPLE_PINHOLE"), tmp_path / "scratch")
        camera = self.cameras_by_photo(tmp_path / "d.db")["portrait.jpg"]
        assert (camera.width, camera.height) == (80, 60)


class TestCameraSetup:
    def test_accepts_what_colmap_knows(self) -> None:
        CameraSetup("auto", "SIMPLE_RADIAL").check()
        CameraSetup("auto", "SIMPLE_RADIAL", (500, 320, 240, 0)).check()
        CameraSetup("single", "PINHOLE", (500, 500, 320, 240)).check()

    def test_says_which_parameters_a_model_takes(self) -> None:
        with pytest.raises(UsageError) as refused:
            CameraSetup("auto", "SIMPLE_RADIAL", (500, 320, 240)).check()
        assert "SIMPLE_RADIAL takes 4 parameters (f, cx, cy, k), not 3" in str(refused.value)

    @pytest.mark.parametrize("model", ["SIMPLE", "simple_radial", "INVALID", ""])
    def test_lists_the_models_where_there_is_none_of_that_name(self, model: str) -> None:
        with pytest.raises(UsageError, match=f"unknown camera model: {model}") as refused:
            CameraSetup("auto", model).check()
        assert "PINHOLE" in refused.value.hint
        assert "OPENCV_FISHEYE" in refused.value.hint


class TestWebp:
    """COLMAP's wheel does not read WebP, so that it gets a folder of stand-ins."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "images"
        (folder / "sub").mkdir(parents=True)
        picture(seed=1).save(folder / "sub/a.webp", lossless=True, exif=exif(focal_length_35mm=28, camera="X"))
        clear = picture(seed=2)
        clear.putalpha(Image.new("L", clear.size, 130))
        clear.save(folder / "b.WEBP", lossless=True, exact=True)
        picture(seed=3).save(folder / "c.jpg")
        return folder

    NAMES = ("sub/a.webp", "b.WEBP", "c.jpg")

    def test_stand_ins_show_the_same(self, folder: Path, tmp_path: Path) -> None:
        readable = readable_folder(folder, list(self.NAMES), tmp_path / "scratch")
        assert sorted(p.relative_to(readable).as_posix() for p in readable.rglob("*.*")) == sorted(self.NAMES)
        for name, seed in (("sub/a.webp", 1), ("b.WEBP", 2)):
            seen = pycolmap.Bitmap.read(readable / name, as_rgb=True)
            assert seen is not None
            np.testing.assert_array_equal(seen.to_array(), np.asarray(picture(seed=seed)))
        assert (readable / "c.jpg").read_bytes() == (folder / "c.jpg").read_bytes()
        assert (readable / "c.jpg").is_symlink()

    def test_they_are_imported_with_size_and_focal_length(self, folder: Path, tmp_path: Path) -> None:
        path = tmp_path / "d.db"
        setup = CameraSetup("auto", "SIMPLE_RADIAL")
        import_photos(path, folder, list(self.NAMES), setup, tmp_path / "scratch")
        cameras = TestImport.cameras_by_photo(path)
        assert cameras.keys() == set(self.NAMES)
        assert {(camera.width, camera.height) for camera in cameras.values()} == {(80, 60)}
        assert cameras["sub/a.webp"].focal_length == pytest.approx(28 * 100 / np.hypot(36, 24), rel=1e-3)
        assert not cameras["b.WEBP"].has_prior_focal_length

    def test_pixels_stay_as_stored_under_an_exif_orientation(self, tmp_path: Path) -> None:
        picture().save(tmp_path / "o.webp", lossless=True, exif=exif(orientation=6))
        readable = readable_folder(tmp_path, ["o.webp"], tmp_path / "scratch")
        seen = pycolmap.Bitmap.read(readable / "o.webp", as_rgb=True)
        np.testing.assert_array_equal(seen.to_array(), np.asarray(picture()))
        assert Image.open(io.BytesIO((readable / "o.webp").read_bytes())).getexif()[_ORIENTATION] == 6

    def test_the_photos_themselves_stay_as_they_are(self, folder: Path, tmp_path: Path) -> None:
        def state() -> dict[str, tuple[str, int]]:
            files = (path for path in folder.rglob("*") if path.is_file())
            return {str(p): (sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}

        before = state()
        setup = CameraSetup("auto", "SIMPLE_RADIAL")
        import_photos(tmp_path / "d.db", folder, list(self.NAMES), setup, tmp_path / "scratch")
        shutil.rmtree(tmp_path / "scratch")
        assert state() == before

    def test_stand_ins_of_an_earlier_run_go_away(self, folder: Path, tmp_path: Path) -> None:
        stale = tmp_path / "scratch/old/z.webp"
        stale.parent.mkdir(parents=True)
        stale.touch()
        readable_folder(folder, list(self.NAMES), tmp_path / "scratch")
        assert not stale.exists()

    def test_a_folder_without_any_is_used_as_it_is(self, folder: Path, tmp_path: Path) -> None:
        assert readable_folder(folder, ["c.jpg"], tmp_path / "scratch") == folder
        assert not (tmp_path / "scratch").exists()


@dataclass(frozen=True)
class Matched:
    """A database of photos of a cloud of points, with true and false matches.

    Attributes:
        path: of the database.
        pairs: of the photos; the last has too few matches.
        truth: (M,) whether a match is true, by pair.
    """

    path: Path
    pairs: list[Pair]
    truth: dict[Pair, NDArray[np.bool_]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Matched:
    """Four views of 150 points at known places, 0.3 pixel of noise, and a third of the matches false."""
    folder = tmp_path_factory.mktemp("matched")
    rng = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(4)]
    cloud = rng.uniform((-2, -2, 6), (2, 2, 10), (150, 3))
    seen = {}
    for number, name in enumerate(names):
        Image.new("L", (640, 480)).save(folder / name)
        turn = 0.06 * (number - 1.5)
        rotation = np.array([[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]])
        x, y, z = rotation @ (cloud - [0.6 * number - 0.9, 0.1 * number, 0]).T
        pixels = np.column_stack([600 * x / z + 319.5, 600 * y / z + 239.5])
        seen[name] = keypoints((pixels + rng.normal(0, 0.3, pixels.shape)).tolist(), np.zeros(150).tolist())
    pairs = [(a, b) if (a, b) != ("1.png", "3.png") else (b, a) for a, b in combinations(names, 2)]
    truth, rows = {}, {}
    for pair in pairs:
        true = rng.random(150) < 2 / 3
        other = np.where(true, np.arange(150), (np.arange(150) + rng.integers(1, 149, 150)) % 150)
        rows[pair], truth[pair] = np.column_stack([np.arange(150), other]).astype(np.int32), true
    rows[pairs[-1]], truth[pairs[-1]] = rows[pairs[-1]][:12], truth[pairs[-1]][:12]
    path = folder / "matched.db"
    with native_log(None):
        import_photos(path, folder, names, CameraSetup("single", "PINHOLE", (600, 600, 320, 240)), folder / "scratch")
        with Database(path) as database:
            database.write_keypoints((name, found, 1, (640, 480)) for name, found in seen.items())
            database.write_matches((*pair, matches) for pair, matches in rows.items())
    return Matched(path, pairs, truth)


@pytest.fixture
def matched(prepared: Matched, tmp_path: Path) -> Matched:
    return Matched(Path(shutil.copy(prepared.path, tmp_path / "matched.db")), prepared.pairs, prepared.truth)


def inliers(database: Database, pair: Pair) -> NDArray[np.uint32]:
    first, second = (database.ids[name] for name in pair)
    return np.asarray(database._database.read_two_view_geometry(first, second).inlier_matches)


class TestVerification:
    HOW = Verification(max_error=4, min_inliers=15, seed=3)

    def test_errors_are_counted_in_pixels_of_the_shrunk_photo(self, matched: Matched, tmp_path: Path) -> None:
        """Of a pair the photo that was shrunk more counts: where two pixels are one, half the error is the same."""
        other, (first, second) = Path(shutil.copy(matched.path, tmp_path / "other.db")), matched.pairs[0]
        half = replace(self.HOW, max_error=self.HOW.max_error / 2)
        with Database(matched.path) as whole, Database(other) as shrunk:
            list(whole.verify(matched.pairs[:2], self.HOW, threads=1))
            list(shrunk.verify(matched.pairs[:2], half, threads=1, pixels={first: 1.0, second: 2.0}))
            np.testing.assert_array_equal(inliers(shrunk, matched.pairs[0]), inliers(whole, matched.pairs[0]))
            assert second not in matched.pairs[1]
            assert len(inliers(shrunk, matched.pairs[1])) < len(inliers(whole, matched.pairs[1]))

    @pytest.mark.parametrize("how", [HOW, Verification(max_error=1, min_inliers=95, seed=0)])
    def test_is_colmaps_own(self, matched: Matched, tmp_path: Path, how: Verification) -> None:
        theirs, listed = Path(shutil.copy(matched.path, tmp_path / "theirs.db")), tmp_path / "pairs.txt"
        listed.write_text("".join(f"{first} {second}\n" for first, second in matched.pairs), encoding="utf-8")
        options = pycolmap.TwoViewGeometryOptions(min_num_inliers=how.min_inliers)
        options.ransac.max_error, options.ransac.random_seed = how.max_error, how.seed
        pycolmap.verify_matches(theirs, listed, options)
        with Database(matched.path) as database, Database(theirs) as reference:
            list(database.verify(matched.pairs, how, threads=2))
            assert database.verified() == reference.verified()
            for pair in matched.pairs:
                np.testing.assert_array_equal(inliers(database, pair), inliers(reference, pair))

    def test_keeps_the_true_matches(self, matched: Matched) -> None:
        with Database(matched.path) as database:
            assert list(database.verify(matched.pairs, self.HOW, threads=2)) == matched.pairs
            for pair in matched.pairs[:-1]:
                rows = inliers(database, pair)
                true = {(row, row) for row in np.flatnonzero(matched.truth[pair]).tolist()}
                found = {*map(tuple, rows.tolist())}
                assert len(found & true) > 0.95 * len(true)
                assert len(found - true) < 0.1 * len(true)  # a false match may lie on its epipolar line by chance

    def test_a_pair_with_too_few_inliers_is_done_but_not_verified(self, matched: Matched) -> None:
        weak = matched.pairs[-1]
        with Database(matched.path) as database:
            list(database.verify(matched.pairs, self.HOW, threads=1))
            assert database.unverified(matched.pairs) == []
            assert len(inliers(database, weak)) == 0
            assert {frozenset(pair) for pair in database.verified()} == set(map(frozenset, matched.pairs[:-1]))
            for pair, count in database.verified().items():
                assert count == len(inliers(database, pair)) >= 15

    def test_does_not_depend_on_the_number_of_threads(self, matched: Matched, tmp_path: Path) -> None:
        other = Path(shutil.copy(matched.path, tmp_path / "other.db"))
        with Database(matched.path) as one, Database(other) as four:
            list(one.verify(matched.pairs, self.HOW, threads=1))
            list(four.verify(matched.pairs[::-1], self.HOW, threads=4))
            for pair in matched.pairs:
                np.testing.assert_array_equal(inliers(one, pair), inliers(four, pair))

    def test_goes_on_where_it_was_stopped(
        self, matched: Matched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = Path(shutil.copy(matched.path, tmp_path / "whole.db"))
        monkeypatch.setattr(database_module, "_PAIRS_A_COMMIT", 2)
        with Database(matched.path) as database:
            assert database.unverified(matched.pairs) == matched.pairs
            running = database.verify(matched.pairs, self.HOW, threads=2)
            assert next(running) == matched.pairs[0]
            # What is yielded is on disk, for others to see.
            with closing(sqlite3.connect(matched.path)) as other:
                assert other.execute("SELECT COUNT(*) FROM two_view_geometries").fetchone() == (2,)
            running.close()
        with Database(matched.path) as database, Database(whole) as uninterrupted:
            due = database.unverified(matched.pairs)
            assert due == matched.pairs[2:]
            assert list(database.verify(due, self.HOW, threads=2)) == due
            assert database.unverified(matched.pairs) == []
            list(uninterrupted.verify(matched.pairs, self.HOW, threads=2))
            assert database.verified() == uninterrupted.verified()


class TestFacts:
    def test_are_read_back(self, matched: Matched) -> None:
        assert read_fact(matched.path, "fingerprint") == ""
        write_facts(matched.path, {"fingerprint": "abc"})
        write_facts(matched.path, {"other": "x"})
        write_facts(matched.path, {"fingerprint": "d'e\"f"})
        assert read_fact(matched.path, "fingerprint") == "d'e\"f"
        assert read_fact(matched.path, "other") == "x"
        assert read_fact(matched.path, "none") == ""

    def test_do_not_show_in_colmap_and_leave_no_trace(self, matched: Matched) -> None:
        def seen_by_colmap() -> tuple[object, ...]:
            with pycolmap.Database.open(matched.path) as opened:
                return (
                    [image.name for image in opened.read_all_images()],
                    [camera.params.tolist() for camera in opened.read_all_cameras()],
                    opened.num_keypoints(),
                    opened.num_matches(),
                )

        def content() -> list[str]:
            with closing(sqlite3.connect(matched.path)) as opened:
                return list(opened.iterdump())

        seen, whole = seen_by_colmap(), content()
        write_facts(matched.path, {"fingerprint": "abc"})
        assert seen_by_colmap() == seen
        assert content() != whole
        assert read_fact(matched.path, "fingerprint") == "abc", "COLMAP keeps what it does not know"
        drop_facts(matched.path)
        assert content() == whole
        drop_facts(matched.path)
        assert read_fact(matched.path, "fingerprint") == ""

    def test_dropping_them_from_a_damaged_database_names_it(self, tmp_path: Path) -> None:
        path = tmp_path / "database.db"
        path.write_bytes(b"no database" * 100)
        with pytest.raises(HardnetSfmError, match=r"database\.db: not a COLMAP database, or damaged"):
            drop_facts(path)

    def test_there_are_none_without_a_database(self, tmp_path: Path) -> None:
        assert read_fact(tmp_path / "none.db", "fingerprint") == ""
        assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "letter.db"
    path.write_text("Dear COLMAP, " * 200, encoding="utf-8")
    for attempt in (Database, lambda path: read_fact(path, "fingerprint")):
        with pytest.raises(HardnetSfmError, match=r"letter\.db: not a COLMAP database, or damaged"):
            attempt(path)


def test_a_replaced_database_is_not_haunted_by_the_log_of_the_old_one(matched: Matched, tmp_path: Path) -> None:
    """SQLite would play a write-ahead log of the old database into the new one."""
    old, fresh = tmp_path / "old.db", tmp_path / "fresh.db"
    with closing(sqlite3.connect(tmp_path / "living.db")) as living:
        living.execute("PRAGMA journal_mode=WAL")
        living.execute("CREATE TABLE ghosts (name)")
        living.commit()
        for suffix in ("", "-wal", "-shm"):  # as a killed process leaves them
            shutil.copy(tmp_path / f"living.db{suffix}", f"{old}{suffix}")
    assert (tmp_path / "old.db-wal").stat().st_size > 0
    shutil.copy(matched.path, fresh)
    replace_database(fresh, old)
    assert sorted(path.name for path in tmp_path.glob("old.db*")) == ["old.db"]
    assert not fresh.exists()
    assert old.read_bytes() == matched.path.read_bytes()
    with Database(old) as database:
        assert len(database.ids) == 4


class TestModel:
    @pytest.fixture
    def model(self) -> Model:
        pycolmap.set_random_seed(1)
        options = pycolmap.SyntheticDatasetOptions()
        options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 5
        options.num_points3D = 40
        return Model(pycolmap.synthesize_dataset(options))

    @pytest.mark.parametrize("form", ["binary", "text"])
    def test_comes_back_as_it_was_written(self, model: Model, tmp_path: Path, form: Literal["binary", "text"]) -> None:
        model.write(tmp_path / "new/model", form)
        suffix = {"binary": ".bin", "text": ".txt"}[form]
        assert {path.suffix for path in (tmp_path / "new/model").iterdir()} == {suffix}
        read = Model.read(tmp_path / "new/model")
        assert read.names == model.names
        assert len(read.names) == 5
        assert (read.points, read.observations, read.mean_track_length) == (40, 200, 5.0)
        assert read.facts() == model.facts()
        for name, pose in model.cam_from_world().items():
            np.testing.assert_allclose(read.cam_from_world()[name], pose, atol=1e-12)

    def test_poses_project_points_to_their_observations(self, model: Model) -> None:
        poses = model.cam_from_world()
        for image in model.colmap.images.values():
            camera = model.colmap.camera(image.camera_id)
            for point2d in image.points2D:
                if point2d.has_point3D():
                    xyz = model.colmap.point3D(point2d.point3D_id).xyz
                    projected = camera.img_from_cam(poses[image.name] @ [*xyz, 1])
                    np.testing.assert_allclose(projected, point2d.xy, atol=1e-6)

    def test_writes_its_points_as_ply(self, model: Model, tmp_path: Path) -> None:
        model.write(tmp_path, "ply")
        assert b"element vertex 40" in (tmp_path / "points3D.ply").read_bytes()[:400]

    @pytest.mark.parametrize("form", ["binary", "text", "ply"])
    def test_a_disk_that_is_full_keeps_the_old_files(
        self, model: Model, tmp_path: Path, form: Literal["binary", "text", "ply"]
    ) -> None:
        """COLMAP does not notice it and leaves truncated files. A limit on the size of files acts like a full disk."""
        model.write(tmp_path / "model", form)
        before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        try:
            with pytest.raises(HardnetSfmError, match=r"cannot write the model to .*model: its files are incomplete"):
                model.write(tmp_path / "model", form)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
        assert not (tmp_path / ".model.tmp").exists()

    @pytest.mark.parametrize("name", ["cameras", "rigs", "frames", "images", "points3D"])
    def test_counts_of_more_than_a_file_holds_are_damage(self, model: Model, tmp_path: Path, name: str) -> None:
        """COLMAP would read for hours behind the end of the file."""
        model.write(tmp_path)
        path = tmp_path / f"{name}.bin"
        for data in ((2**60).to_bytes(8, "little") + path.read_bytes()[8:], path.read_bytes()[:-1]):
            path.write_bytes(data)
            with pytest.raises(HardnetSfmError, match=rf"not a COLMAP model, or damaged: {name}\.bin: it ends before"):
                Model.read(tmp_path)

    def test_models_of_rigs_are_as_long_as_their_counts_say(self, tmp_path: Path) -> None:
        options = pycolmap.SyntheticDatasetOptions()
        options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 2, 3, 2
        options.num_points3D = 40
        Model(pycolmap.synthesize_dataset(options)).write(tmp_path)
        check_binary_model(tmp_path)
        assert Model.read(tmp_path).points == 40

    def test_of_older_versions_of_colmap_are_read(self, model: Model, tmp_path: Path) -> None:
        """Before 3.12 there were no rigs and no frames."""
        model.write(tmp_path)
        for name in ("rigs.bin", "frames.bin"):
            (tmp_path / name).unlink()
        assert Model.read(tmp_path).names == model.names

    def test_a_folder_without_one_is_named(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "missing"):
            with pytest.raises(HardnetSfmError, match=f"no COLMAP model in {folder}\n") as refused:
                Model.read(folder)
            assert "cameras.bin" in refused.value.hint

    @pytest.mark.parametrize(
        ("form", "name", "content"),
        [
            ("binary", "cameras.bin", b"\xff" * 300),
            ("binary", "images.bin", None),
            ("binary", "rigs.bin", None),
            ("text", "frames.txt", b"1 1 0.5"),
            ("text", "images.txt", b""),
        ],
        ids=["garbage", "photos missing", "rigs missing", "cut short", "photos empty"],
    )
    def test_a_damaged_one_is_named(
        self, model: Model, tmp_path: Path, form: Literal["binary", "text"], name: str, content: bytes | None
    ) -> None:
        model.write(tmp_path, form)
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(HardnetSfmError, match=f"{tmp_path}: (the model is incomplete|not a COLMAP model)"):
            Model.read(tmp_path)


class TestLastAdjustment:
    """On COLMAP's synthetic cameras and points, whose observations are spoilt."""

    MAPPING = Mapping("incremental", False, True, False, 3, 1, 0)

    @staticmethod
    def spoilt(seed: int, wrong: float) -> tuple[pycolmap.Reconstruction, NDArray[np.float64]]:
        """A model whose observations are 0.3 pixels off, and a share of them 3, and the true camera centres."""
        pycolmap.set_random_seed(seed)
        options = pycolmap.SyntheticDatasetOptions(
            num_rigs=1, num_cameras_per_rig=1, num_frames_per_rig=8, num_points3D=300, num_points2D_without_point3D=0
        )
        model, rng = pycolmap.synthesize_dataset(options), np.random.default_rng(seed)
        for number in model.reg_image_ids():
            for point in model.image(number).points2D:
                point.xy = point.xy + rng.normal(0, 3 if rng.random() < wrong else 0.3, 2)
        return model, centres(model)

    def test_wrong_observations_pull_less_than_on_squares(self) -> None:
        plain, robust = [], []
        for seed in range(4):
            model, truth = self.spoilt(seed, wrong=0.1)
            other = pycolmap.Reconstruction(model)
            pycolmap.bundle_adjustment(model, pycolmap.BundleAdjustmentOptions(print_summary=False))
            other = adjust_robustly(other, self.MAPPING)
            plain.append(error(model, truth))
            robust.append(error(other, truth))
            assert other.compute_num_observations() == model.compute_num_observations()
        assert np.mean(robust) < 0.7 * np.mean(plain)

    def test_its_end_is_a_minimum_of_the_stated_loss(self) -> None:
        model = adjust_robustly(self.spoilt(0, wrong=0.1)[0], self.MAPPING)

        def cost() -> float:
            squares = []
            for number in model.reg_image_ids():
                image = model.image(number)
                for point in image.points2D:
                    projected = image.project_point(model.point3D(point.point3D_id).xyz)
                    squares.append(((projected - point.xy) ** 2).sum())
            return float((2 * (np.sqrt(1 + np.array(squares)) - 1)).sum())

        least = cost()
        rng = np.random.default_rng(0)
        for number in list(model.points3D)[:40]:
            point = model.point3D(number)
            kept = point.xyz.copy()
            point.xyz = kept + rng.normal(0, 0.01, 3)
            assert cost() > least - 1e-4 * least
            point.xyz = kept

    def test_nothing_is_said_on_the_terminal(self, capfd: pytest.CaptureFixture[str]) -> None:
        adjust_robustly(self.spoilt(0, wrong=0)[0], self.MAPPING)
        assert capfd.readouterr() == ("", "")

    def test_known_cameras_stay(self) -> None:
        model, _ = self.spoilt(1, wrong=0.1)
        before = {number: camera.params.copy() for number, camera in model.cameras.items()}
        adjust_robustly(model, replace(self.MAPPING, fix_intrinsics=True))
        for number, params in before.items():
            np.testing.assert_array_equal(model.camera(number).params, params)


class TestPrincipalPoints:
    """Refined by the last adjustment, on photos whose noise is 0.3 pixels and of whose observations 3 % are wrong."""

    MAPPING = Mapping("incremental", False, True, False, 3, 1, 0)
    MIDDLE = np.array([800.0, 600.0])
    OFF = np.array([12.0, -9.0])

    def photographed(
        self, seed: int, poses: dict[int, list[pycolmap.Rigid3d]], points: NDArray[np.float64]
    ) -> pycolmap.Reconstruction:
        """Photos of points from poses, by cameras 1, 2 ... of which the first has a principal point off the middle."""
        model, rng = pycolmap.Reconstruction(), np.random.default_rng(seed)
        tracks = [pycolmap.Track() for _ in points]
        for number, places in poses.items():
            centre = self.MIDDLE + self.OFF * (number == 1)
            model.add_camera_with_trivial_rig(
                pycolmap.Camera(
                    camera_id=number, model="SIMPLE_RADIAL", width=1600, height=1200, params=[1400.0, *centre, -0.05]
                )
            )
            for pose in places:
                seen = model.camera(number).img_from_cam(points @ pose.matrix()[:, :3].T + pose.matrix()[:, 3])
                seen += rng.normal(0, 0.3, seen.shape)
                wrong = rng.random(len(seen)) < 0.03
                seen[wrong] += rng.normal(0, 3, (wrong.sum(), 2))
                image = model.num_images() + 1
                model.add_image_with_trivial_frame(
                    pycolmap.Image(name=str(image), keypoints=seen, camera_id=number, image_id=image), pose
                )
                for row, track in enumerate(tracks):
                    track.add_element(image, row)
        for point, track in zip(points, tracks, strict=True):
            model.add_point3D(point, track, np.zeros(3, np.uint8))
        camera = model.camera(1)
        camera.principal_point_x, camera.principal_point_y = self.MIDDLE
        return model

    @staticmethod
    def around(rng: np.random.Generator, count: int) -> list[pycolmap.Rigid3d]:
        """Poses on one side of the origin, ten away from it, that look at it and are turned about that direction."""
        poses = []
        for turn, tilt, roll in rng.uniform(-0.6, 0.6, (count, 3)):
            rotation = np.eye(3)
            for axis, angle in (((0, 1, 0), turn), ((1, 0, 0), tilt), ((0, 0, 1), roll)):
                rotation = pycolmap.Rotation3d(angle * np.array(axis, np.float64)).matrix() @ rotation
            poses.append(pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), np.array([0, 0, rng.uniform(9, 11)])))
        return poses

    @pytest.mark.parametrize("seed", range(3))
    def test_is_found_for_a_camera_of_many_photos_and_the_others_follow(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        points = rng.normal(0, 1.5, (200, 3))
        model = self.photographed(seed, {1: self.around(rng, 8), 2: self.around(rng, 4)}, points)
        truth, known = centres(model), pycolmap.Reconstruction(model)
        left = adjust_robustly(pycolmap.Reconstruction(model), replace(self.MAPPING, refine_principal_point=False))
        np.testing.assert_array_equal(principal_point(left.camera(1)), self.MIDDLE)
        refined = adjust_robustly(model, self.MAPPING)
        np.testing.assert_allclose(principal_point(refined.camera(1)), self.MIDDLE + self.OFF, atol=2)
        np.testing.assert_array_equal(principal_point(refined.camera(2)), self.MIDDLE)
        known.camera(1).principal_point_x, known.camera(1).principal_point_y = self.MIDDLE + self.OFF
        known = adjust_robustly(known, replace(self.MAPPING, refine_principal_point=False))
        assert abs(refined.camera(2).focal_length - known.camera(2).focal_length) < 1
        assert error(refined, truth) < 1.1 * error(known, truth)

    def test_brings_cameras_nearer_to_the_truth(self) -> None:
        """By a third on average. In one set of photos chance can make up for a wrong principal point."""
        errors = []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            points = rng.normal(0, 1.5, (200, 3))
            model = self.photographed(seed, {1: self.around(rng, 8), 2: self.around(rng, 4)}, points)
            truth = centres(model)
            left = adjust_robustly(pycolmap.Reconstruction(model), replace(self.MAPPING, refine_principal_point=False))
            errors.append((error(adjust_robustly(model, self.MAPPING), truth), error(left, truth)))
        refined, unrefined = np.mean(errors, axis=0)
        assert refined < 0.7 * unrefined

    @pytest.mark.parametrize("relief", [0.0, 0.5])
    @pytest.mark.parametrize("seed", range(3))
    def test_stays_where_photos_of_one_direction_leave_it_open(self, relief: float, seed: int) -> None:
        """Another principal point is as good as all cameras turned."""
        rng = np.random.default_rng(seed)
        places = [(1.5 * (number % 4 - 1.5), 1.5 * (number // 4 - 1), 0) for number in range(12)]
        points = np.column_stack([rng.uniform(-3, 3, (200, 2)), 10 + rng.uniform(-relief, relief, 200)])
        poses = [pycolmap.Rigid3d(pycolmap.Rotation3d(), -np.array(place)) for place in places]
        refined = adjust_robustly(self.photographed(seed, {1: poses}, points), self.MAPPING)
        np.testing.assert_allclose(principal_point(refined.camera(1)), self.MIDDLE, atol=1)

    def test_stays_where_no_camera_took_many_photos(self) -> None:
        rng = np.random.default_rng(0)
        poses = {number: self.around(rng, 4) for number in (1, 2, 3)}
        refined = adjust_robustly(self.photographed(0, poses, rng.normal(0, 1.5, (200, 3))), self.MAPPING)
        for number in poses:
            np.testing.assert_array_equal(principal_point(refined.camera(number)), self.MIDDLE)


def error(model: pycolmap.Reconstruction, truth: NDArray[np.float64]) -> float:
    """Of the camera centres, once they are aligned."""
    found = centres(model)
    aligned = pycolmap.estimate_sim3d(found, truth)
    assert aligned is not None
    return float(np.linalg.norm(aligned * found - truth, axis=1).mean())


def principal_point(camera: pycolmap.Camera) -> NDArray[np.float64]:
    return np.array([camera.principal_point_x, camera.principal_point_y])


def centres(model: pycolmap.Reconstruction) -> NDArray[np.float64]:
    return np.array([model.image(number).projection_center() for number in sorted(model.reg_image_ids())])
