"""Patches of warped photos against the geometry that made them."""

from __future__ import annotations

import errno
from pathlib import Path

import cv2
import numpy as np
import pytest

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.detectors import DetectorOptions, make_detector
from hardnet_sfm.files.journal import Journal
from hardnet_sfm.files.patch_sets import read_patches
from hardnet_sfm.files.photo_files import read_photo, sha256_of
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.training.warping import (
    WarpOptions,
    cut_warped_patches,
    degrade,
    find_again,
    jacobians,
    map_points,
    random_homography,
    warp_image,
)
from hardnet_sfm.verbs.warp import warp

FEW = WarpOptions(views=3, points=200, max_keypoints=600, measurement_size=12.0)


@pytest.fixture(scope="module")
def photo(small_scene: tuple[Path, Scene]) -> Grey:
    folder, scene = small_scene
    return read_photo(folder / scene.names[0]).grey


@pytest.fixture(scope="module")
def photos(small_scene: tuple[Path, Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos and a damaged one."""
    folder = tmp_path_factory.mktemp("photos")
    for name in small_scene[1].names[:2]:
        (folder / name).write_bytes((small_scene[0] / name).read_bytes())
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    return folder


def detect(grey: Grey) -> Keypoints:
    return make_detector("opencv-dog", DetectorOptions(600, 0.02 / 3, 10, False, False))(grey)


def homographies(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [random_homography((480, 360), rng) for _ in range(count)]


def test_jacobian_is_the_derivative() -> None:
    places, step = np.array([[10.0, 20.0], [300.0, 100.0], [470.0, 350.0]]), 1e-4
    for homography in homographies(10):
        numeric = np.stack(
            [
                (map_points(homography, places + shift) - map_points(homography, places - shift)) / (2 * step)
                for shift in step * np.eye(2)
            ],
            -1,
        )
        np.testing.assert_allclose(jacobians(homography, places), numeric, rtol=1e-6, atol=1e-6)


def test_through_is_opencvs() -> None:
    places = np.random.default_rng(1).uniform(0, 400, (50, 2))
    for homography in homographies(5):
        expected = cv2.perspectiveTransform(places[None], homography)[0]
        np.testing.assert_allclose(map_points(homography, places), expected, rtol=1e-9)


def test_homographies_keep_the_centre_and_their_stated_ranges() -> None:
    centre = np.array([[239.5, 179.5]])
    tilts, scales = [], []
    for homography in homographies(300):
        np.testing.assert_allclose(map_points(homography, centre), centre, atol=1e-9)
        largest, smallest = np.linalg.svd(jacobians(homography, centre)[0], compute_uv=False)
        tilts.append(largest / smallest)
        scales.append(np.sqrt(largest * smallest))
    assert 1 <= min(tilts) < 1.1
    assert 2.2 < max(tilts) < 2.5 + 1e-9
    assert 0.5 <= min(scales) < 0.55
    assert 1.5 < max(scales) <= 1.6


def test_a_shrunk_view_is_not_aliased() -> None:
    """Stripes of two pixels become one grey where two of them fall on less than a pixel."""
    stripes = np.tile(np.uint8([0, 0, 255, 255]), (100, 100))
    shrink = np.diag([0.3, 0.3, 1.0])
    plain = cv2.warpPerspective(stripes, shrink, stripes.shape[::-1])[5:25, 5:100]
    ours = warp_image(stripes, shrink)[5:25, 5:100]
    assert plain.std() > 70
    assert ours.std() < 12
    np.testing.assert_allclose(ours.mean(), 127.5, atol=2)


def test_an_enlarged_view_is_not_blurred(photo: Grey) -> None:
    enlarge = np.diag([1.5, 1.5, 1.0])
    expected = cv2.warpPerspective(photo, enlarge, photo.shape[::-1], borderMode=cv2.BORDER_REFLECT_101)
    np.testing.assert_array_equal(warp_image(photo, enlarge), expected)


@pytest.mark.slow
def test_found_again_is_the_brute_force(photo: Grey) -> None:
    rng, options = np.random.default_rng(2), WarpOptions()
    first = detect(photo)
    for homography in homographies(3):
        second = detect(degrade(warp_image(photo, homography), rng))
        rows, columns = find_again(first, second, homography, options)
        expected, frames = map_points(homography, first.xy), jacobians(homography, first.xy) @ first.frames()
        costs = np.full((len(first), len(second)), np.inf)
        for i in range(len(first)):
            scale = np.sqrt(abs(np.linalg.det(frames[i])))
            turn = np.rad2deg(np.arctan2(frames[i, 1, 0], frames[i, 0, 0]))
            for j in range(len(second)):
                distance = np.hypot(*(expected[i] - second.xy[j])) / min(3, options.max_distance * scale)
                octaves = abs(np.log2(second.scales[j] / scale)) / options.max_scale
                turned = abs((second.oris[j] - turn + 180) % 360 - 180) / options.max_turn
                if max(distance, octaves, turned) <= 1:
                    costs[i, j] = distance + octaves + turned
        mutual = [
            (i, j) for i, j in enumerate(costs.argmin(1)) if np.isfinite(costs[i, j]) and costs[:, j].argmin() == i
        ]
        assert len(mutual) > 10
        assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == mutual


def test_nothing_is_found_again_in_nothing() -> None:
    rows, columns = find_again(Keypoints.empty(), Keypoints.empty(), np.eye(3), WarpOptions())
    assert len(rows) == len(columns) == 0


def correlation(first: Grey, second: Grey) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def test_patches_of_a_point_look_alike_and_others_do_not(photo: Grey) -> None:
    made = cut_warped_patches(photo, detect, FEW, np.random.default_rng(6))
    counts = np.bincount(made.point)
    assert counts.min() >= 2
    assert len(counts) == len(made.xy) <= FEW.points
    assert len(made.xy) > 100
    firsts = np.searchsorted(made.point, np.arange(len(counts)))
    np.testing.assert_array_equal(made.view[firsts], 0)
    np.testing.assert_array_equal(made.frame[firsts, :, 2], made.xy)
    same = [correlation(made.patches[row], made.patches[row + 1]) for row in firsts]
    other = [correlation(made.patches[row], made.patches[row - 1]) for row in firsts[1:]]
    assert np.median(same) > 0.7
    assert np.median(other) < 0.3


class TestStage:
    def test_makes_the_same_patches_on_any_number_of_threads(self, photos: Path, tmp_path: Path) -> None:
        reports = [warp(photos, tmp_path / f"{workers}.h5", FEW, Resources(workers=workers)) for workers in (1, 3)]
        one, three = (read_patches(tmp_path / f"{workers}.h5") for workers in (1, 3))
        np.testing.assert_array_equal(one.patches, three.patches)
        np.testing.assert_array_equal(one.frame, three.frame)
        assert reports[0] == reports[1]
        assert (reports[0].photos, list(reports[0].skipped)) == (2, ["damaged.jpg"])
        assert reports[0].points == len(one.xyz) > 200
        # Points of two photos are farther apart than any two of one.
        photo_of = one.xyz[:, 2]
        assert len(set(photo_of.tolist())) == 2
        assert np.ptp(one.xyz[:, :2], axis=0).max() < np.ptp(photo_of)

    def test_a_killed_run_goes_on(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import hardnet_sfm.verbs.warp as module

        warp(photos, tmp_path / "whole.h5", FEW)
        real, calls = cut_warped_patches, []

        def stopping(*args: object) -> object:
            calls.append(args)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "cut_warped_patches", stopping)
        with pytest.raises(KeyboardInterrupt):
            warp(photos, tmp_path / "stopped.h5", FEW, Resources(workers=1))
        assert not (tmp_path / "stopped.h5").exists()
        report = warp(photos, tmp_path / "stopped.h5", FEW, Resources(workers=1))
        assert report.computed == 1
        whole, stopped = read_patches(tmp_path / "whole.h5"), read_patches(tmp_path / "stopped.h5")
        np.testing.assert_array_equal(whole.patches, stopped.patches)
        assert warp(photos, tmp_path / "stopped.h5", FEW).computed == 0

    def test_a_photo_that_comes_between_does_not_mix_points(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A killed run had finished one photo; when it goes on, another is listed before that one."""
        import hardnet_sfm.verbs.warp as module

        folder, names = (
            tmp_path / "photos",
            sorted(path.name for path in photos.iterdir() if path.name != "damaged.jpg"),
        )
        folder.mkdir()
        (folder / names[1]).write_bytes((photos / names[1]).read_bytes())

        def killed(*_: object, **__: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(module.PatchWriter, "commit", killed)
            with pytest.raises(MemoryError):
                warp(folder, tmp_path / "out.h5", FEW, Resources(workers=1))
        (folder / names[0]).write_bytes((photos / names[0]).read_bytes())
        assert warp(folder, tmp_path / "out.h5", FEW).computed == 1
        found = read_patches(tmp_path / "out.h5")
        photo_of = np.array([name.split("#")[0] for name in found.images])[found.image]
        for point in range(len(found.xyz)):
            assert len(set(photo_of[found.point == point])) == 1

    def test_a_photo_that_is_there_twice_is_taken_once(self, photos: Path, tmp_path: Path) -> None:
        name = min(path.name for path in photos.iterdir() if path.name != "damaged.jpg")
        for folder, names in (("once", ["a.jpg"]), ("twice", ["a.jpg", "b.jpg"])):
            (tmp_path / folder).mkdir()
            for copy in names:
                (tmp_path / folder / copy).write_bytes((photos / name).read_bytes())
        once, twice = (warp(tmp_path / folder, tmp_path / f"{folder}.h5", FEW) for folder in ("once", "twice"))
        assert (twice.patches, twice.points, twice.photos) == (once.patches, once.points, once.photos)
        assert twice.skipped == {"b.jpg": "the same photo as a.jpg"}

    def test_the_folder_of_photos_is_no_file_to_write(self, photos: Path) -> None:
        with pytest.raises(UsageError, match="is a folder"):
            warp(photos, photos, FEW)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"views": 0},
            {"points": 1},
            {"seed": -1},
            {"still": np.nan},
            {"max_turn": 0.0},
            {"max_distance": np.nan},
            {"max_scale": np.inf},
            {"measurement_size": np.inf},
            {"measurement_size": np.nan},
        ],
    )
    def test_options_that_make_no_sense_are_refused(
        self, photos: Path, tmp_path: Path, wrong: dict[str, float]
    ) -> None:
        with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')} must be"):
            warp(photos, tmp_path / "out.h5", WarpOptions(**wrong))  # type: ignore[arg-type]

    def test_photos_that_cannot_be_read_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "damaged.jpg").write_bytes(b"no photo")
        with pytest.raises(HardnetSfmError, match="none of the photos can be read"):
            warp(tmp_path / "photos", tmp_path / "out.h5", FEW)


def test_what_a_run_left_that_was_killed_at_its_end_is_cleared_away(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "warps.h5"
    warp(photos, output, FEW, Resources(workers=1))
    before, journal = output.read_bytes(), tmp_path / ".warps.h5.journal"
    left = Journal(journal)  # as if the run had been killed before it removed its journal
    left.put("a.jpg", {"fingerprint": "f"}, {}, packed=False)
    left.close()
    assert journal.is_file()
    assert warp(photos, output, FEW, Resources(workers=1)).computed == 0
    assert output.read_bytes() == before and not journal.exists()


def test_a_photo_that_may_not_be_read_is_skipped(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = min(path.name for path in photos.iterdir() if path.name != "damaged.jpg")

    def denied(path: Path) -> str:
        if path.name == first:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return sha256_of(path)

    monkeypatch.setattr("hardnet_sfm.verbs.warp.sha256_of", denied)
    result = warp(photos, tmp_path / "patches.h5", FEW)
    assert result.photos == 1 and result.skipped.keys() == {first, "damaged.jpg"}
    assert result.skipped[first].startswith(f"{photos / first}: ") and "ermission denied" in result.skipped[first]
