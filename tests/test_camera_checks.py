"""Camera options that cannot fit the sizes of the photos are refused before photos are matched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FEATURES, FeatureStore, feature_arrays
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.reconstruction.camera_checks import check_cameras
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.reconstruction.summary import explain_failure


def check(options: MapOptions, sizes: dict[str, tuple[int, int]], folder: Path, orientation: int = 1) -> None:
    with StoreWriter(folder / "features.h5", FEATURES) as writer:
        for name, size in sizes.items():
            arrays = feature_arrays(Keypoints.empty(), np.zeros((0, 128), np.float16), size)
            writer.put(name, name, arrays, {"exif_orientation": orientation, "keypoints": 0})
        writer.commit(list(sizes), {"names": list(sizes), "images": "", "options": {}, "skipped": {}})
    with FeatureStore(folder / "features.h5") as store:
        check_cameras(options, store)


def test_the_photo_that_differs_is_named_with_its_size_though_it_comes_first(tmp_path: Path) -> None:
    sizes = {"a-whatsapp.jpg": (600, 400), "f02.jpg": (768, 512), "f03.jpg": (768, 512)}
    with pytest.raises(HardnetSfmError) as raised:
        check(MapOptions(camera_mode="single"), sizes, tmp_path)
    assert "2 of 3 photos have 768 x 512" in raised.value.message
    assert raised.value.message.endswith("Other sizes: a-whatsapp.jpg (600 x 400)")


def test_folders_may_differ_with_a_camera_for_each(tmp_path: Path) -> None:
    check(MapOptions(camera_mode="per-folder"), {"a/1.jpg": (60, 40), "b/1.jpg": (80, 50)}, tmp_path)
    with pytest.raises(HardnetSfmError, match=r"Other sizes: a/2\.jpg \(80 x 50\)"):
        check(MapOptions(camera_mode="per-folder"), {"a/1.jpg": (60, 40), "a/2.jpg": (80, 50)}, tmp_path)


def test_portraits_share_a_camera_with_landscapes_by_their_size_as_stored(tmp_path: Path) -> None:
    check(MapOptions(camera_mode="single"), {"1.jpg": (512, 768), "2.jpg": (512, 768)}, tmp_path, orientation=6)
    given = MapOptions(camera_model="PINHOLE", camera_params="700,700,700,20")  # outside the upright photo
    check(given, {"1.jpg": (512, 768)}, tmp_path, orientation=6)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("4200,4200,2304,1536", r"the principal point \(2304, 1536\) lies outside the photo f02.jpg of 768 x 512"),
        ("20,20,384,256", "the focal length 20 is too short for the photo f02.jpg"),
        ("90000,90000,384,256", "the focal length 90000 is too long for"),
    ],
)
def test_parameters_of_another_resolution_are_refused(params: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        check(MapOptions(camera_model="PINHOLE", camera_params=params), {"f02.jpg": (768, 512)}, tmp_path)


@pytest.mark.parametrize(("params", "says"), [("nan,nan,384,256", "not finite"), ("0,0,384,256", "is not positive")])
def test_nonsense_parameters_are_wrong_usage(params: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        MapOptions(camera_model="PINHOLE", camera_params=params).check()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "--camera-model OPENCV_FISHEYE"),
        ({"camera_model": "auto", "camera_params": "700,384,256,0"}, "--camera-params 700,384,256,0"),
    ],
)
def test_a_given_camera_that_fits_nothing_is_not_blamed_on_overlap(options: dict[str, str], named: str) -> None:
    counts = {"photos": 5, "keypoints": 100, "matches": 50, "pairs": 10, "verified_pairs": 0}
    failure = explain_failure(
        {**counts, "unregistered": {"a.jpg": "no verified pairs"}, "tried": {}, "options": {"map": options}},
        Path("database.db"),
        kept=False,
    )
    assert named in failure.hint and "overlap" not in failure.hint
