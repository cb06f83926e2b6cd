"""The stage `extract`: photos in, features out, the same ones whatever the machine does meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import kornia.feature
import numpy as np
import pycolmap
import pytest
import safetensors.torch
import torch
from hdf5 import contents
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.weight_files import find_weights, read_weights
from hardnet_sfm.keypoints import Keypoints
from hardnet_sfm.networks.hardnet import HardNet
from hardnet_sfm.networks.loading import load_into
from hardnet_sfm.networks.rootsift import RootSift
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.extract import extract

CPU = Resources(device="cpu", workers=2)
FEW = ExtractOptions(descriptor="rootsift", max_keypoints=100, orientation="upright")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images(small_scene: tuple[Path, Scene], tmp_path: Path) -> Path:
    """Five photos of 320x240 that a test may do with as it likes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in small_scene[1].names[:5]:
        photo = cv2.imread(str(small_scene[0] / name))
        cv2.imwrite(str(folder / name), cv2.resize(photo, (320, 240), interpolation=cv2.INTER_AREA))
    return folder


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return tmp_path / "out" / "features.h5"


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HardNet with random weights and running statistics, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    state = HardNet().state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = torch.rand(value.shape, generator=generator) * 0.2 + (0.9 if "running_var" in name else -0.1)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    safetensors.torch.save_file(state, path, {"architecture": "hardnet", "measurement_size": "12"})
    return path


def of_photo(found: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key.startswith(f"{name}/")}


def grey_of(path: Path) -> NDArray[np.uint8]:
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


def said_by(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(args)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


@pytest.mark.parametrize("orientation", ["upright", "estimated"])
def test_opencv_dog_keeps_the_strongest_keypoints_of_opencv(
    orientation: Literal["upright", "estimated"], images: Path, features: Path
) -> None:
    """Those of highest contrast times scale. A place counts once, however many orientations it has."""
    extract(images, features, replace(FEW, orientation=orientation), CPU)
    # OpenCV divides its threshold by the number of layers, and shifts by a quarter pixel unless told to be precise.
    sift = cv2.SIFT.create(nOctaveLayers=3, contrastThreshold=0.02, edgeThreshold=10, enable_precise_upscale=True)
    with FeatureStore(features) as store:
        for name in store.names():
            points = sift.detect(grey_of(images / name), None)
            turned = orientation == "estimated"
            rows = {
                (*point.pt, point.size / 2, point.angle % 360 * turned, point.response * point.size / 2)
                for point in points
            }
            places = sorted({(row[4], row[:3]) for row in rows}, reverse=True)[:100]
            expected = np.array(sorted(row for row in rows if (row[4], row[:3]) in set(places)), np.float32)
            found = store.keypoints(name)
            rows = np.column_stack([found.xy, found.scales, found.oris, found.scores])
            assert len(points) > 150
            np.testing.assert_allclose(sorted(rows.tolist()), expected, rtol=1e-6)
            assert np.all(np.diff(found.scores) <= 0)


def test_dog_keypoints_are_those_that_colmap_writes_into_its_database(images: Path, tmp_path: Path) -> None:
    """Read back from a database that COLMAP itself made of the same photos; its pixel centres are at 0.5."""
    grey = tmp_path / "grey"
    grey.mkdir()
    for path in sorted(images.iterdir())[:2]:
        cv2.imwrite(str(grey / f"{path.stem}.png"), grey_of(path))  # COLMAP has its own idea of what is grey
    colmaps = ExtractOptions(descriptor="rootsift", detector="dog", max_keypoints=8192, orientation="estimated")
    extract(grey, tmp_path / "features.h5", colmaps, CPU)
    options = pycolmap.FeatureExtractionOptions()
    options.use_gpu = False
    pycolmap.extract_features(tmp_path / "reference.db", grey, extraction_options=options, device=pycolmap.Device.cpu)
    with pycolmap.Database.open(tmp_path / "reference.db") as database, FeatureStore(tmp_path / "features.h5") as store:
        for image in database.read_all_images():
            # COLMAP has a few keypoints twice; we have them once.
            expected = np.unique(np.asarray(database.read_keypoints(image.image_id)), axis=0)
            found = store.keypoints(image.name)
            frames = found.frames().reshape(-1, 4)
            rows = np.column_stack([found.xy + 0.5, frames])
            assert len(rows) == len(expected) > 200
            assert cKDTree(rows).query(expected)[0].max() < 2e-3
            assert cKDTree(expected).query(rows)[0].max() < 2e-3


def test_descriptors_are_those_of_each_photos_own_patches(images: Path, features: Path) -> None:
    """Photos share batches; here each is described by itself in float32."""
    extract(images, features, FEW, CPU)
    with FeatureStore(features) as store:
        for name in store.names():
            found = store.keypoints(name)
            patches = extract_patches(grey_of(images / name), found.xy, found.frames(), 32, 15.0)
            expected = RootSift(32, 15.0)(torch.from_numpy(patches)[:, None] / 255).numpy()
            np.testing.assert_allclose(store.descriptors(name), expected, atol=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_hardnet_descriptors_are_those_of_kornia(
    dtype: torch.dtype, images: Path, features: Path, random_weights: Path
) -> None:
    state = safetensors.torch.load_file(random_weights)
    weights = features.parent.with_suffix(".safetensors")
    safetensors.torch.save_file({name: value.to(dtype) for name, value in state.items()}, weights)
    extract(images, features, ExtractOptions(descriptor="hardnet", weights=weights, max_keypoints=100), CPU)
    reference = kornia.feature.HardNet(pretrained=False).eval()
    reference.load_state_dict(state)
    with FeatureStore(features) as store, torch.inference_mode():
        for name in store.names():
            found = store.keypoints(name)
            patches = extract_patches(grey_of(images / name), found.xy, found.frames(), 32, 12.0)
            expected = reference(torch.from_numpy(patches)[:, None] / 255).numpy()
            distances = np.linalg.norm(store.descriptors(name).astype(np.float32) - expected, axis=1)
            assert np.quantile(distances, 0.95) < 0.05  # bfloat16 on CPUs that have it
            apart = np.linalg.norm(expected - expected[::-1], axis=1)
            assert np.median(distances) < np.median(apart) / 4


def test_without_options_it_is_hardnet_with_the_shipped_weights(images: Path, features: Path) -> None:
    extract(images, features, ExtractOptions(max_keypoints=100), CPU)
    network, weights = HardNet(), read_weights(find_weights("hardnet-sfm"))
    load_into(network, weights, "hardnet")
    with FeatureStore(features) as store:
        assert store.header["options"]["weights_sha256"] == weights.sha256
        name = store.names()[0]
        found = store.keypoints(name)
        across = float(weights.metadata["measurement_size"])
        patches = extract_patches(grey_of(images / name), found.xy, found.frames(), 32, across)
        with torch.inference_mode():
            expected = network.eval()(torch.from_numpy(patches)[:, None] / 255).numpy()
        similarity = (store.descriptors(name).astype(np.float32) * expected).sum(1)
        assert similarity.min() > 0.99  # bfloat16 where the CPU has it


def test_facts_about_each_photo_are_kept(images: Path, features: Path) -> None:
    extract(images, features, FEW, CPU)
    with FeatureStore(features) as store:
        assert store.names() == sorted(path.name for path in images.iterdir())
        assert {store.size(name) for name in store.names()} == {(320, 240)}
        assert {store.orientation(name) for name in store.names()} == {1}
        assert store.header["images"] == str(images.resolve())
        assert store.header["options"]["max_keypoints"] == 100


@pytest.mark.parametrize(
    ("detector", "descriptor"),
    [("opencv-dog", "rootsift"), pytest.param("dog", "hardnet", marks=pytest.mark.slow)],
)
def test_the_result_does_not_depend_on_the_number_of_workers(
    detector: str, descriptor: str, images: Path, tmp_path: Path, random_weights: Path
) -> None:
    weights = random_weights if descriptor == "hardnet" else None
    options = ExtractOptions(detector=detector, descriptor=descriptor, weights=weights, max_keypoints=100)
    found = []
    for workers, torch_threads in ((1, 1), (2, 2), (4, 1)):
        torch.set_num_threads(torch_threads)
        path = tmp_path / f"{workers} workers" / "features.h5"
        extract(images, path, options, Resources(device="cpu", workers=workers))
        found.append(contents(path))
    torch.set_num_threads(1)
    assert found[1] == found[0]
    assert found[2] == found[0]


@pytest.mark.parametrize("finished", [1, 3, 5])
def test_an_interrupted_run_goes_on_to_the_same_result(
    finished: int, images: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole" / "features.h5"
    assert extract(images, whole, FEW, CPU).computed == 5
    put, done = StoreWriter.put, []

    def interrupted(self: StoreWriter, *args: Any) -> None:
        if len(done) == finished:
            raise KeyboardInterrupt
        put(self, *args)
        done.append(args[0])

    def not_committed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "put", interrupted)
        patched.setattr(StoreWriter, "commit", not_committed)
        with pytest.raises(KeyboardInterrupt):
            extract(images, features, FEW, CPU)
    assert not features.exists()
    assert extract(images, features, FEW, CPU).computed == 5 - finished
    assert contents(features) == contents(whole)


def test_a_second_run_computes_nothing_and_leaves_the_file_alone(images: Path, features: Path) -> None:
    first = extract(images, features, FEW, CPU)
    before = features.stat().st_mtime_ns, features.stat().st_ino, features.read_bytes()
    second = extract(images, features, FEW, CPU)
    assert (first.photos, first.computed) == (second.photos, 5) == (5, 5)
    assert (second.computed, second.reason) == (0, "")
    assert first.keypoints == second.keypoints == 500
    assert (features.stat().st_mtime_ns, features.stat().st_ino, features.read_bytes()) == before
    left = {path.name for path in features.parent.iterdir() if ".lock" not in path.name}
    assert left - {".photo-hashes.json"} == {"features.h5"}  # photos get their notes when they are two seconds old


def test_photos_are_never_written_to(images: Path, features: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in images.iterdir()}
    extract(images, features, FEW, CPU)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in images.iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"max_keypoints": 90}, "max_keypoints 100 -> 90"),
        ({"orientation": "estimated"}, "orientation upright -> estimated"),
        pytest.param(
            {"detector": "dog", "edge_threshold": 12.0},
            "detector opencv-dog -> dog, edge_threshold 10.0 -> 12.0",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_changed_options_recompute_everything_and_the_report_says_which(
    changed: dict[str, Any], reason: str, images: Path, features: Path, tmp_path: Path
) -> None:
    extract(images, features, FEW, CPU)
    options = replace(FEW, **changed)
    report = extract(images, features, options, CPU)
    assert (report.computed, report.reason) == (5, reason)
    extract(images, tmp_path / "anew" / "features.h5", options, CPU)
    assert contents(features) == contents(tmp_path / "anew" / "features.h5")


def test_other_weights_recompute_everything(images: Path, features: Path, random_weights: Path) -> None:
    options = ExtractOptions(descriptor="hardnet", weights=random_weights, max_keypoints=50)
    extract(images, features, options, CPU)
    copy = shutil.copy(random_weights, features.parent / "copy.safetensors")
    same = ExtractOptions(descriptor="hardnet", weights=Path(copy), max_keypoints=50)
    assert extract(images, features, same, CPU).computed == 0  # the bytes count, not the name of the file
    state = {name: value * 1.5 for name, value in safetensors.torch.load_file(copy).items()}
    safetensors.torch.save_file(state, copy)
    report = extract(images, features, same, CPU)
    assert report.computed == 5
    assert report.reason.startswith("weights_sha256 ")


def test_what_does_not_change_the_result_recomputes_nothing(images: Path, features: Path) -> None:
    extract(images, features, FEW, CPU)
    strict = replace(FEW, strict=True)
    assert extract(images, features, strict, Resources(device="cpu", workers=1)).computed == 0


def test_a_changed_photo_alone_is_recomputed(images: Path, features: Path) -> None:
    extract(images, features, FEW, CPU)
    before = contents(features)
    shutil.copy(images / "view_004.jpg", images / "view_001.jpg")
    report = extract(images, features, FEW, CPU)
    assert (report.photos, report.computed) == (5, 1)
    after = contents(features)
    for name in ("view_000.jpg", "view_002.jpg", "view_003.jpg", "view_004.jpg"):
        assert of_photo(after, name) == of_photo(before, name)
    copied = {key.replace("001", "004"): value for key, value in of_photo(after, "view_001.jpg").items()}
    assert copied == of_photo(before, "view_004.jpg")


def test_a_photo_that_is_only_touched_is_not_recomputed(images: Path, features: Path) -> None:
    extract(images, features, FEW, CPU)
    os.utime(images / "view_001.jpg", (0, 0))
    assert extract(images, features, FEW, CPU).computed == 0


def test_a_removed_photo_disappears_and_an_added_one_appears(images: Path, features: Path) -> None:
    moved = images / "view_002.jpg"
    extract(images, features, FEW, CPU)
    before = contents(features)
    moved.rename(images / "added.jpg")
    report = extract(images, features, FEW, CPU)
    assert (report.photos, report.computed) == (5, 1)
    with FeatureStore(features) as store:
        assert store.names() == ["added.jpg", "view_000.jpg", "view_001.jpg", "view_003.jpg", "view_004.jpg"]
        assert set(store.fingerprints()) == set(store.names())
    after = contents(features)
    assert of_photo(after, "view_002.jpg") == {}
    added = {key.replace("added", "view_002"): value for key, value in of_photo(after, "added.jpg").items()}
    assert added == of_photo(before, "view_002.jpg")


def test_a_corrupt_photo_is_skipped_and_listed(images: Path, features: Path, tmp_path: Path) -> None:
    extract(images, tmp_path / "good" / "features.h5", FEW, CPU)
    (images / "broken.jpg").write_bytes((images / "view_000.jpg").read_bytes()[:50])
    (images / "view_0005.jpg").touch()
    report = extract(images, features, FEW, CPU)
    assert (report.photos, report.computed) == (5, 5)
    assert set(report.skipped) == {"broken.jpg", "view_0005.jpg"}
    assert all(str(images / name) in why for name, why in report.skipped.items())
    assert "empty" in report.skipped["view_0005.jpg"]
    with FeatureStore(features) as store:
        assert store.names() == [f"view_00{number}.jpg" for number in range(5)]
        assert store.header["skipped"] == report.skipped
    found, expected = contents(features), contents(tmp_path / "good" / "features.h5")
    assert all(
        of_photo(found, f"view_00{number}.jpg") == of_photo(expected, f"view_00{number}.jpg") for number in range(5)
    )


def test_a_truncated_photo_is_described_and_named_in_every_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, end in (("view_001.jpg", -2), ("view_002.jpg", -1000)):
        (images / name).write_bytes((images / name).read_bytes()[:end])
    before = extract(images, tmp_path / "whole" / "features.h5", FEW, CPU)
    assert before.truncated == ("view_001.jpg", "view_002.jpg")
    line = f"extract {images} --workspace {tmp_path / 'out'} --max-keypoints 100 --descriptor rootsift"
    for _ in range(2):
        main(line.split())
        captured = capsys.readouterr()
        assert "in 5 photos" in captured.out
        assert "truncated: view_001.jpg, view_002.jpg: read as far as they go" in captured.err


def test_odd_photos_are_described_or_named_and_stop_nothing(
    images: Path, features: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Formats under wrong names, colour spaces, tiny photos and damaged ones."""
    plain = extract(images, tmp_path / "plain" / "features.h5", FEW, CPU)
    photo = Image.open(images / "view_000.jpg")
    photo.convert("LAB").save(images / "lab.tif")
    photo.convert("CMYK").save(images / "cmyk.jpg")
    photo.convert("1").save(images / "two.tif")
    photo.save(images / "web.jpg", format="WEBP")
    photo.save(images / "moving.png", format="GIF")
    (images / "float.tif").write_bytes(cv2.imencode(".tif", np.asarray(photo.convert("F")))[1].tobytes())
    Image.new("L", (1, 1)).save(images / "dot.png")
    Image.new("L", (3, 900)).save(images / "line.png")
    (images / "empty.png").touch()
    (images / "page.jpg").write_text("<html>not found</html>")
    (images / "wide.png").write_bytes((images / "dot.png").read_bytes().replace(b"\0\0\0\1", b"\x7f\xff\xff\xff"))
    capfd.readouterr()
    result = extract(images, features, FEW, CPU)
    assert set(result.skipped) == {"empty.png", "page.jpg", "wide.png"}
    assert result.photos == plain.photos + 8
    with FeatureStore(features) as store:
        counts = store.counts()
    for name in ("lab.tif", "cmyk.jpg", "web.jpg", "moving.png", "float.tif"):
        assert counts[name] == FEW.max_keypoints
    assert "OpenCV" not in capfd.readouterr().err


def test_a_corrupt_photo_does_not_make_the_others_compute_again(images: Path, features: Path) -> None:
    (images / "broken.jpg").write_bytes(b"no photo")
    extract(images, features, FEW, CPU)
    before = features.stat().st_mtime_ns
    report = extract(images, features, FEW, CPU)
    assert (report.photos, report.computed, set(report.skipped)) == (5, 0, {"broken.jpg"})
    assert features.stat().st_mtime_ns == before
    shutil.copy(images / "view_000.jpg", images / "broken.jpg")  # the user has mended it
    report = extract(images, features, FEW, CPU)
    assert (report.photos, report.computed, report.skipped) == (6, 1, {})


def test_a_photo_that_has_become_corrupt_disappears(images: Path, features: Path) -> None:
    extract(images, features, FEW, CPU)
    (images / "view_003.jpg").write_bytes(b"no photo")
    report = extract(images, features, FEW, CPU)
    assert (report.photos, report.computed, set(report.skipped)) == (4, 0, {"view_003.jpg"})
    with FeatureStore(features) as store:
        assert "view_003.jpg" not in store.fingerprints()


def test_strict_stops_at_a_corrupt_photo_and_names_it(images: Path, features: Path) -> None:
    (images / "view_002.jpg").write_bytes(b"no photo")
    with pytest.raises(HardnetSfmError) as raised:
        extract(images, features, replace(FEW, strict=True), CPU)
    assert str(images / "view_002.jpg") in raised.value.message
    # What came before it is not lost, but for a photo that was waiting for its batch to be full.
    assert extract(images, features, FEW, CPU).computed in (2, 3)


def test_no_readable_photo_at_all_is_an_error(images: Path, features: Path) -> None:
    for path in images.iterdir():
        path.write_bytes(b"no photo")
    with pytest.raises(HardnetSfmError, match="none of the 5 photos") as raised:
        extract(images, features, FEW, CPU)
    assert str(images) in raised.value.message
    assert not features.exists()


@pytest.mark.parametrize("detector", ["opencv-dog", "dog"])
def test_flat_photos_have_no_keypoints(detector: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for value, size in ((0, (240, 320)), (128, (240, 320)), (255, (33, 500)), (128, (1, 1)), (7, (3, 2))):
        cv2.imwrite(str(images / f"{value} {size[0]}x{size[1]}.png"), np.full(size, value, np.uint8))
    report = extract(images, tmp_path / "features.h5", ExtractOptions(descriptor="rootsift", detector=detector), CPU)
    assert (report.photos, report.keypoints, report.skipped) == (5, 0, {})
    with FeatureStore(tmp_path / "features.h5") as store:
        for name in store.names():
            assert store.descriptors(name).shape == (0, 128)
            assert store.keypoints(name).xy.shape == (0, 2)


@pytest.mark.parametrize("detector", ["opencv-dog", "dog"])
def test_max_keypoints_keeps_the_first_of_the_detectors_order(detector: str, images: Path, tmp_path: Path) -> None:
    """opencv-dog puts the strongest first, dog the largest."""
    for path in sorted(images.iterdir())[2:]:
        path.unlink()
    found = {}
    for most in (1, 40, 100):
        path = tmp_path / str(most) / "features.h5"
        extract(images, path, replace(FEW, detector=detector, max_keypoints=most), CPU)
        with FeatureStore(path) as store:
            found[most] = {name: store.keypoints(name) for name in store.names()}
            assert set(store.counts().values()) == {most}
    for name, many in found[100].items():
        of_40 = np.column_stack([found[40][name].xy, found[40][name].scales, found[40][name].oris])
        of_100 = np.column_stack([many.xy, many.scales, many.oris])
        assert np.all(np.diff(many.scores) <= 0)
        # Equal scores, as of two orientations of one keypoint, may be cut either way.
        surely = found[40][name].scores > many.scores[40]
        assert {tuple(row) for row in of_40[surely]} <= {tuple(row) for row in of_100}
        assert found[40][name].scores.min() >= many.scores[40]


@pytest.mark.parametrize(("detector", "largest"), [("opencv-dog", 240), ("dog", 240), ("opencv-dog", 350)])
def test_keypoints_of_shrunk_photos_are_in_pixels_of_the_photo_as_it_is(
    detector: str, largest: int, small_scene: tuple[Path, Scene], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in small_scene[1].names[:2]:
        shutil.copy(small_scene[0] / name, images)
    stores = {}
    for size in (largest, 3200):
        path = tmp_path / str(size) / "features.h5"
        extract(images, path, ExtractOptions(descriptor="rootsift", detector=detector, max_image_size=size), CPU)
        stores[size] = path
    offsets, ratios = [], []
    with FeatureStore(stores[largest]) as shrunk, FeatureStore(stores[3200]) as full:
        for name in full.names():
            assert shrunk.size(name) == full.size(name) == (480, 360)
            assert (shrunk.shrunk(name), full.shrunk(name)) == (480 / largest, 1)
            few, many = shrunk.keypoints(name), full.keypoints(name)
            distance, row = cKDTree(_place_and_scale(many)).query(_place_and_scale(few))
            assert np.mean(distance < 1.5) > 0.5
            same = distance < 1.5
            offsets.append((few.xy - many.xy[row])[same])
            ratios.append((few.scales / many.scales[row])[same])
    offset = np.concatenate(offsets)
    assert np.quantile(np.linalg.norm(offset, axis=1), 0.8) < 1
    np.testing.assert_allclose(np.median(offset, axis=0), 0, atol=0.1)  # a wrong pixel centre would be half a pixel
    np.testing.assert_allclose(np.median(np.concatenate(ratios)), 1, atol=0.05)


def _place_and_scale(keypoints: Keypoints) -> NDArray[np.float32]:
    """Rows in which a factor of 1.2 in scale is as far as a pixel."""
    return np.column_stack([keypoints.xy, np.log(keypoints.scales) / np.log(1.2)])


def test_options_that_make_no_sense_are_refused_before_anything_is_made(images: Path, features: Path) -> None:
    for option, value in (
        ("max_keypoints", 0),
        ("max_image_size", 31),
        ("peak_threshold", -1),
        ("edge_threshold", 0.5),
    ):
        with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}"):
            extract(images, features, ExtractOptions(descriptor="rootsift", **{option: value}), CPU)
    with pytest.raises(UsageError, match="--affine-shape"):
        extract(images, features, ExtractOptions(descriptor="rootsift", affine_shape=True), CPU)
    assert not features.parent.exists()


def test_names_that_hloc_cannot_tell_apart_are_refused_before_anything_is_made(images: Path, features: Path) -> None:
    for name in ("a-b/c.jpg", "a/b-c.jpg"):
        (images / name).parent.mkdir()
        shutil.copy(images / "view_000.jpg", images / name)
    with pytest.raises(HardnetSfmError) as raised:
        extract(images, features, FEW, CPU)
    assert all(name in raised.value.message for name in ("a-b/c.jpg", "a/b-c.jpg"))
    assert not features.exists()


def test_a_name_that_is_not_unicode_is_a_clear_error(images: Path, features: Path) -> None:
    """As in archives of old Windows computers; HDF5 and hloc know UTF-8 only."""
    try:
        shutil.copy(images / "view_000.jpg", os.fsencode(images) + b"/Stra\xdfe.jpg")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    with pytest.raises(HardnetSfmError, match="Stra"):
        extract(images, features, FEW, CPU)


def _no_safetensors(path: Path, _: dict[str, torch.Tensor]) -> None:
    path.write_text("weights")


def _a_pickle(path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, path)


def _truncated(path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1000])


def _damaged_head(path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, path)
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def _empty(path: Path, _: dict[str, torch.Tensor]) -> None:
    path.touch()


def _named_otherwise(path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, path, {"architecture": "tfeat"})


def _other_tensors(path: Path, _: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file({"features.0.weight": torch.zeros(32, 1, 7, 7), "descr.weight": torch.zeros(9)}, path)


def _other_shape(path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file({**state, "features.19.weight": torch.zeros(256, 128, 8, 8)}, path)


def _one_missing(path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file({name: value for name, value in state.items() if name != "features.9.weight"}, path)


def _size_is_no_number(path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, path, {"architecture": "hardnet", "measurement_size": "twelve"})


def _missing(*_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_no_safetensors, "safetensors"),
        (_a_pickle, "safetensors"),
        (_truncated, "safetensors"),
        (_damaged_head, "safetensors"),
        (_empty, "safetensors"),
        (_named_otherwise, "weights of tfeat, not of hardnet"),
        (_other_tensors, "unknown: descr.weight"),
        (_other_shape, "of another shape: features.19.weight"),
        (_one_missing, "missing: features.9.weight"),
        (_size_is_no_number, "measurement_size"),
        (_missing, "no weights file"),
    ],
)
def test_wrong_weights_are_an_error_that_names_the_file(
    spoil: Callable[[Path, dict[str, torch.Tensor]], None],
    says: str,
    images: Path,
    features: Path,
    random_weights: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.safetensors"
    spoil(path, safetensors.torch.load_file(random_weights))
    with pytest.raises(HardnetSfmError) as raised:
        extract(images, features, ExtractOptions(descriptor="hardnet", weights=path), CPU)
    assert str(path) in raised.value.message
    assert says in str(raised.value)
    assert not features.exists()


def test_weights_for_rootsift_are_refused(
    images: Path, random_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["extract", str(images), "--workspace", str(tmp_path / "out"), "--weights", str(random_weights)]
    status, text = said_by([*args, "--descriptor", "rootsift"], capsys)
    assert status == 2
    assert "--weights has no effect with --descriptor rootsift" in text


@pytest.mark.parametrize(
    ("option", "wrong", "meant"),
    [
        ("detector", "opencvdog", "opencv-dog"),
        ("descriptor", "rootshift", "rootsift"),
        ("descriptor", "hardent", "hardnet"),
    ],
)
def test_an_unknown_name_gets_a_suggestion_and_exit_status_2(
    option: str, wrong: str, meant: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = said_by(["extract", str(images), "--workspace", str(tmp_path / "out"), f"--{option}", wrong], capsys)
    assert status == 2
    assert f"unknown {option}: {wrong}" in text
    assert f"Did you mean {meant}?" in text


def test_the_command_says_what_was_computed_and_what_was_skipped(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken.jpg").write_bytes(b"no photo")
    args = ["extract", str(images), "--workspace", str(tmp_path / "out"), "--max-keypoints", "100", "--device", "cpu"]
    main(args)
    captured = capsys.readouterr()
    assert "500 keypoints in 5 photos, upright: " in captured.out and "; computed 5" in captured.out
    assert f"skipped: {images / 'broken.jpg'}" in captured.err
    main(args)
    out = capsys.readouterr().out
    assert "500 keypoints in 5 photos, upright: " in out and "; up to date" in out
    status, text = said_by([*args, "--strict"], capsys)
    assert status == 1
    assert str(images / "broken.jpg") in text


PLUGIN = """
import numpy as np, torch
from hardnet_sfm.features.descriptors import Descriptor
from hardnet_sfm.keypoints import Keypoints
class Plain(torch.nn.Module):
    def forward(self, patches):
        return torch.nn.functional.normalize(patches.flatten(1) + 0.01)
def grid(options):
    xy = np.stack(np.meshgrid(np.arange(20, 300, 40), np.arange(20, 220, 40)), -1).reshape(-1, 2).astype(np.float32)
    return lambda grey: Keypoints(xy, *(np.full(len(xy), value, np.float32) for value in (2, 0, 1)))
def plain(weights):
    return Descriptor(Plain(), patch_size=8, measurement_size=4.0)
def picky(weights):
    return Descriptor(Plain(), patch_size=8, measurement_size=4.0, max_ratio=0.7)
def odd(weights):
    return Descriptor(Plain(), patch_size=8, measurement_size=4.0, max_ratio=90)
def long(weights):
    return Descriptor(torch.nn.Flatten(), patch_size=8, measurement_size=4.0)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with a detector and a descriptor of its own."""
    site = tmp_path / "site"
    about = site / "example-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "example.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[hardnet_sfm.detectors]\ngrid = example:grid\nbroken = example_that_is_gone:grid\n"
        "[hardnet_sfm.descriptors]\nplain = example:plain\npicky = example:picky\n"
        "odd = example:odd\nlong = example:long\n"
    )
    monkeypatch.syspath_prepend(site)


@pytest.mark.usefixtures("plugin")
def test_another_package_adds_a_detector_and_a_descriptor_by_entry_points(images: Path, tmp_path: Path) -> None:
    chosen = ["--detector", "grid", "--descriptor", "plain", "--device", "cpu"]
    main(["extract", str(images), "--workspace", str(tmp_path / "out"), *chosen])
    steps = (np.arange(8) + 0.5) / 8 * 8 - 4  # 4 sigmas of 2 pixels are 8 pixels: one pixel of the photo each
    with FeatureStore(tmp_path / "out" / "features.h5") as store:
        assert store.header["options"]["detector"] == "grid"
        for name in store.names():
            grey = grey_of(images / name).astype(np.float64)
            xy = store.keypoints(name).xy
            assert xy.tolist() == [[x, y] for y in range(20, 220, 40) for x in range(20, 300, 40)]
            between = (grey[:-1, :-1] + grey[:-1, 1:] + grey[1:, :-1] + grey[1:, 1:]) / 4
            rows, columns = np.floor(xy[:, 1, None] + steps).astype(int), np.floor(xy[:, 0, None] + steps).astype(int)
            patches = between[rows[:, :, None], columns[:, None, :]].reshape(len(xy), -1) / 255 + 0.01
            expected = patches / np.linalg.norm(patches, axis=1, keepdims=True)
            np.testing.assert_allclose(store.descriptors(name), expected, atol=2e-3)


@pytest.mark.usefixtures("plugin")
def test_a_store_notes_the_ratio_that_its_descriptor_recommends(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for descriptor, ratio in (("plain", 0.8), ("picky", 0.7), ("rootsift", 0.9)):
        features = tmp_path / descriptor / "features.h5"
        extract(images, features, ExtractOptions(detector="grid", descriptor=descriptor), CPU)
        with FeatureStore(features) as store:
            assert store.max_ratio() == store.header["max_ratio"] == ratio
    args = ["extract", str(images), "--workspace", str(tmp_path / "out"), "--descriptor", "odd", "--device", "cpu"]
    status, text = said_by(args, capsys)
    assert status == 1
    assert "the descriptor odd recommends the ratio 90" in text


@pytest.mark.usefixtures("plugin")
def test_descriptors_that_are_not_of_unit_length_are_refused_with_the_name_of_the_plugin(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["extract", str(images), "--workspace", str(tmp_path / "out"), "--descriptor", "long", "--device", "cpu"]
    status, text = said_by(args, capsys)
    assert status == 1
    assert "the plug-in long gives descriptors of length" in text and "needs unit length" in text


@pytest.mark.usefixtures("plugin")
def test_a_package_that_cannot_be_imported_is_a_clear_error(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["extract", str(images), "--workspace", str(tmp_path / "out"), "--detector", "broken"]
    status, text = said_by(args, capsys)
    assert status == 1
    assert "the detector broken (example_that_is_gone:grid) cannot be loaded" in text
    assert "Traceback" not in text
