"""`hardnet-sfm doctor`: each check on a store made wrong in just that way, and no alarm where nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from hardnet_sfm.checks import machine as machine_checks
from hardnet_sfm.checks import selftest
from hardnet_sfm.checks.findings import Finding
from hardnet_sfm.checks.store import check_store
from hardnet_sfm.cli import main
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files import weight_files
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.resources import Resources
from hardnet_sfm.verbs.extract import extract

Arrays = dict[str, NDArray[Any]]
Photos = Mapping[str, Arrays]


def texture(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).standard_normal(size[::-1])
    layers = [cv2.GaussianBlur(noise, (0, 0), sigma) for sigma in (1.5, 3, 6)]
    summed = np.sum([layer / layer.std() for layer in layers], axis=0)
    return np.asarray(np.clip(128 + 25 * summed, 0, 255), np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos, one of them in a folder. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "a").mkdir()
    cv2.imwrite(str(folder / "a" / "one.png"), texture((400, 300), 1))
    cv2.imwrite(str(folder / "two.png"), texture((320, 240), 2))
    return folder


@pytest.fixture(scope="module")
def store(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `extract` makes of them. Tests must not write to it."""
    path = tmp_path_factory.mktemp("doctor-out") / "features.h5"
    extract(images, path, ExtractOptions(descriptor="rootsift", orientation="estimated"), Resources(workers=1))
    return path


@pytest.fixture(scope="module")
def photos(store: Path) -> Photos:
    """The arrays in it, without our own attributes: all that another program's store has."""
    with FeatureStore(store) as features, h5py.File(store) as file:
        return {name: {key: item[()] for key, item in file[name].items()} for name in features.names()}


def hloc_store(path: Path, photos: Photos, change: Callable[[Arrays], None] | None = None) -> Path:
    """As hloc's extract_features writes: a group a photo, float16 but for sizes, no attribute but an uncertainty."""
    with h5py.File(path, "w", libver="latest") as file:
        for name, arrays in photos.items():
            ours = {key: array.copy() for key, array in arrays.items()}
            if change is not None:
                change(ours)
            group = file.create_group(name)
            for key, array in ours.items():
                group.create_dataset(key, data=array)
            group["keypoints"].attrs["uncertainty"] = 1.0
    return path


def halve(arrays: Arrays) -> None:
    for key, array in arrays.items():
        if array.dtype == np.float32:
            arrays[key] = array.astype(np.float16)


def found_in(path: Path, images: Path | None = None) -> dict[str, Finding]:
    return {found.what: found for found in check_store(path, images)}


def states(findings: Mapping[str, Finding]) -> dict[str, str]:
    return {what: found.state for what, found in findings.items() if found.state != "ok"}


def test_a_store_of_ours_is_found_well(store: Path) -> None:
    findings = found_in(store)
    assert states(findings) == {}
    assert "(0, 0) from where they are found again" in findings["half a pixel"].said
    assert "read as degrees," in findings["angles"].said
    assert "128 numbers" in findings["descriptors"].said


def test_so_it_is_where_its_photos_are_gone(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "features.h5"
    copy.write_bytes(store.read_bytes())
    with h5py.File(copy, "r+") as file:
        file.attrs["header"] = json.dumps({**json.loads(file.attrs["header"]), "images": str(tmp_path / "gone")})
    findings = found_in(copy)
    assert states(findings) == {}
    assert "hardnet-sfm made it" in findings["half a pixel"].said


@pytest.mark.parametrize(
    "options",
    [{"orientation": "upright"}, pytest.param({"detector": "dog", "affine_shape": True}, marks=pytest.mark.slow)],
    ids=str,
)
def test_other_keypoints_of_ours_are_found_well(options: dict[str, Any], images: Path, tmp_path: Path) -> None:
    extract(images, tmp_path / "f.h5", ExtractOptions(descriptor="rootsift", max_keypoints=800, **options))
    assert states(found_in(tmp_path / "f.h5")) == {}


def test_a_store_of_hlocs_is_found_well(photos: Photos, images: Path, tmp_path: Path) -> None:
    """float16 is a note, with its price; and what the file alone cannot tell is told with the photos."""
    path = hloc_store(tmp_path / "feats.h5", photos, halve)
    findings = found_in(path)
    assert states(findings) == {"precision": "note", "half a pixel": "unknown", "angles": "unknown"}
    assert "rounded by 0.125 pixels at most" in findings["precision"].said
    assert "--images" in findings["half a pixel"].hint
    assert states(found_in(path, images)) == {"precision": "note"}


def test_superpoint_in_hloc_is_found_well(tmp_path: Path) -> None:
    """Whole pixels of a photo that was shrunk to a half, no scales and no angles, 256 numbers a descriptor."""
    random = np.random.default_rng(0)

    def arrays(factor: float) -> Arrays:
        whole = random.integers(4, 236, (300, 2))
        descriptors = random.standard_normal((256, 300))
        return {
            "keypoints": ((whole + 0.5) * factor - 0.5).astype(np.float16),
            "descriptors": (descriptors / np.linalg.norm(descriptors, axis=0)).astype(np.float16),
            "scores": random.random(300).astype(np.float16),
            "image_size": np.array([240 * factor, 240 * factor]).astype(np.int64),
        }

    path = hloc_store(tmp_path / "feats.h5", {"1.jpg": arrays(1), "2.jpg": arrays(1)})
    assert states(found_in(path)) == {"precision": "note"}
    assert "certain: all keypoints are at k + 0" in found_in(path)["half a pixel"].said
    path = hloc_store(tmp_path / "feats.h5", {"1.jpg": arrays(2), "2.jpg": arrays(2)})
    assert states(found_in(path)) == {"precision": "note"}
    assert "certain: all keypoints are at 2 k + 0.5" in found_in(path)["half a pixel"].said
    path = hloc_store(tmp_path / "feats.h5", {"1.jpg": arrays(1.7), "2.jpg": arrays(1.7)})
    assert states(found_in(path)) == {"precision": "note", "half a pixel": "unknown"}


def add_half(arrays: Arrays) -> None:
    arrays["keypoints"] = arrays["keypoints"] + np.float32(0.5)


def test_half_a_pixel_is_told_by_the_photos(photos: Photos, images: Path, tmp_path: Path) -> None:
    found = found_in(hloc_store(tmp_path / "f.h5", photos, add_half), images)
    assert states(found) == {"half a pixel": "broken"}
    assert "(0.5, 0.5) from where they are found again" in found["half a pixel"].said
    assert "Subtract 0.5" in found["half a pixel"].hint


@pytest.mark.parametrize(
    ("factor", "remainder", "state"),
    [
        (1, 0, "ok"),
        (1, 0.5, "broken"),
        (2, 0.5, "ok"),
        (2, 1, "broken"),
        (2, 0, "note"),
        (3, 1, "ok"),
        (3, 1.5, "broken"),
    ],
)
def test_half_a_pixel_is_told_by_whole_pixels(factor: int, remainder: float, state: str, tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(5, 100, (80, 2))
    arrays: Arrays = {
        "keypoints": (factor * whole + remainder).astype(np.float32),
        "descriptors": np.eye(128, 80, dtype=np.float16),
        "image_size": np.array([320, 320]),
    }
    found = found_in(hloc_store(tmp_path / "f.h5", {"1.jpg": arrays}))
    assert states(found) == ({} if state == "ok" else {"half a pixel": state})


def test_half_a_pixel_is_likely_where_keypoints_pass_the_last_one(photos: Photos, tmp_path: Path) -> None:
    def beyond(arrays: Arrays) -> None:
        arrays["keypoints"][0] = arrays["image_size"] - 0.25

    found = found_in(hloc_store(tmp_path / "f.h5", photos, beyond))["half a pixel"]
    assert found.state == "broken" and found.said.startswith("likely")


def test_keypoints_of_another_kind_prove_nothing(photos: Photos, images: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def scatter(arrays: Arrays) -> None:
        size = arrays["image_size"] - 1
        arrays["keypoints"] = (random.random(arrays["keypoints"].shape) * size).astype(np.float32)
        del arrays["oris"], arrays["scales"]

    found = found_in(hloc_store(tmp_path / "f.h5", photos, scatter), images)
    assert states(found) == {"half a pixel": "unknown"}


@pytest.mark.parametrize(
    ("read_as", "change"),
    [
        ("degrees the other way round", lambda oris: -oris % 360),
        ("radians", np.deg2rad),
        ("radians the other way round", lambda oris: -np.deg2rad(oris)),
    ],
    ids=["other sense", "radians", "radians of the other sense"],
)
def test_angles_are_told_by_the_photos(
    read_as: str, change: Callable[[Any], Any], photos: Photos, images: Path, tmp_path: Path
) -> None:
    def turned(arrays: Arrays) -> None:
        arrays["oris"] = change(arrays["oris"]).astype(np.float32)

    found = found_in(hloc_store(tmp_path / "f.h5", photos, turned), images)
    assert states(found) == {"angles": "broken"}
    assert f"read as {read_as}," in found["angles"].said


def test_radians_are_told_without_photos(photos: Photos, tmp_path: Path) -> None:
    def turned(arrays: Arrays) -> None:
        arrays["oris"] = np.deg2rad(arrays["oris"])

    found = found_in(hloc_store(tmp_path / "f.h5", photos, turned))["angles"]
    assert found.state == "broken" and found.said.startswith("certain: in radians")


def test_upright_keypoints_have_no_angles_to_judge(photos: Photos, images: Path, tmp_path: Path) -> None:
    def upright(arrays: Arrays) -> None:
        arrays["oris"][:] = 0

    assert states(found_in(hloc_store(tmp_path / "f.h5", photos, upright), images)) == {}


@pytest.mark.parametrize(
    ("largest", "error", "state"), [(1000, "0.25", "note"), (2000, "0.5", "note"), (4000, "1", "broken")]
)
def test_float16_keypoints_cost_what_their_size_makes_them(
    largest: int, error: str, state: str, photos: Photos, tmp_path: Path
) -> None:
    def enlarge(arrays: Arrays) -> None:
        arrays["keypoints"] = (arrays["keypoints"] * np.float32(largest / 600)).astype(np.float16)
        arrays["keypoints"][0] = largest
        arrays["image_size"] = np.array([8000, 8000])

    found = found_in(hloc_store(tmp_path / "f.h5", photos, enlarge))["precision"]
    assert found.state == state
    assert f"to {largest} are rounded by {error} pixels" in found.said


def test_names_that_collide_are_named(photos: Photos, tmp_path: Path) -> None:
    arrays = photos["two.png"]
    path = hloc_store(tmp_path / "f.h5", {"a-b/c.jpg": arrays, "a/b-c.jpg": arrays, "d.jpg": arrays})
    found = found_in(path)
    assert states(found)["names"] == "broken"
    assert found["names"].said.endswith(": a/b-c.jpg and a-b/c.jpg")


def test_descriptors_of_other_lengths_than_one(photos: Photos, tmp_path: Path) -> None:
    def scaled(arrays: Arrays) -> None:
        arrays["descriptors"] = (arrays["descriptors"] * 2).astype(np.float16)

    found = found_in(hloc_store(tmp_path / "f.h5", photos, scaled))["descriptors"]
    assert found.state == "broken" and found.said.endswith("; 1 is needed")


def test_one_descriptor_of_zeros_is_enough(photos: Photos, tmp_path: Path) -> None:
    def blank(arrays: Arrays) -> None:
        arrays["descriptors"][:, 3] = 0

    found = found_in(hloc_store(tmp_path / "f.h5", photos, blank))["descriptors"]
    assert found.state == "broken" and "length 0.000 to" in found.said


def test_descriptors_of_different_kinds(photos: Photos, tmp_path: Path) -> None:
    short = {**photos["two.png"], "descriptors": np.eye(64, len(photos["two.png"]["keypoints"]), dtype=np.float16)}
    short["descriptors"][0, 64:] = 1
    found = found_in(hloc_store(tmp_path / "f.h5", {"a.png": photos["a/one.png"], "b.png": short}))
    assert states(found)["descriptors"] == "broken"
    assert "128 numbers in 1 photos" in found["descriptors"].said and "64 numbers" in found["descriptors"].said


def test_descriptors_in_rows(photos: Photos, tmp_path: Path) -> None:
    def transpose(arrays: Arrays) -> None:
        arrays["descriptors"] = arrays["descriptors"].T

    found = found_in(hloc_store(tmp_path / "f.h5", photos, transpose))
    assert states(found)["shapes"] == "broken" and "in rows, (N, D)" in found["shapes"].said


def test_no_descriptors(photos: Photos, tmp_path: Path) -> None:
    def drop(arrays: Arrays) -> None:
        del arrays["descriptors"]

    assert states(found_in(hloc_store(tmp_path / "f.h5", photos, drop)))["descriptors"] == "broken"


@pytest.mark.parametrize("key", ["scores", "oris", "descriptors"])
def test_fewer_entries_than_keypoints(key: str, photos: Photos, tmp_path: Path) -> None:
    def cut(arrays: Arrays) -> None:
        arrays[key] = arrays[key][..., :-1]

    found = found_in(hloc_store(tmp_path / "f.h5", photos, cut))
    assert states(found)["shapes"] == "broken" and f"({key} of" in found["shapes"].said


@pytest.mark.parametrize("key", ["keypoints", "descriptors", "scores", "scales"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(key: str, value: float, photos: Photos, tmp_path: Path) -> None:
    def spoil(arrays: Arrays) -> None:
        arrays[key][..., 0] = value

    found = found_in(hloc_store(tmp_path / "f.h5", photos, spoil))["numbers"]
    assert found.state == "broken" and f"a/one.png ({key})" in found.said


def test_scales_of_nothing(photos: Photos, tmp_path: Path) -> None:
    def shrink(arrays: Arrays) -> None:
        arrays["scales"][5] = 0

    assert found_in(hloc_store(tmp_path / "f.h5", photos, shrink))["numbers"].state == "broken"


def test_keypoints_of_a_photo_before_it_was_shrunk(photos: Photos, tmp_path: Path) -> None:
    def enlarge(arrays: Arrays) -> None:
        arrays["keypoints"] = arrays["keypoints"] * 2

    found = found_in(hloc_store(tmp_path / "f.h5", photos, enlarge))["inside"]
    assert found.state == "broken" and "keypoints outside their photos" in found.said


def test_sizes_the_wrong_way_round(photos: Photos, tmp_path: Path) -> None:
    def turn(arrays: Arrays) -> None:
        arrays["image_size"] = arrays["image_size"][::-1]

    found = found_in(hloc_store(tmp_path / "f.h5", photos, turn))["inside"]
    assert found.state == "broken" and "is (height, width)" in found.said


def test_no_sizes(photos: Photos, images: Path, tmp_path: Path) -> None:
    def drop(arrays: Arrays) -> None:
        del arrays["image_size"]

    assert states(found_in(hloc_store(tmp_path / "f.h5", photos, drop), images)) == {"inside": "unknown"}


def test_photos_that_have_changed_since(photos: Photos, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "two.png"), texture((160, 120), 2))
    found = found_in(hloc_store(tmp_path / "f.h5", photos), tmp_path)
    assert found["photos"].state == "broken" and "160x120 pixels, 320x240 in the store" in found["photos"].said


def test_photos_that_are_elsewhere(photos: Photos, tmp_path: Path) -> None:
    found = found_in(hloc_store(tmp_path / "f.h5", photos), tmp_path)
    assert found["photos"].state == "note" and found["half a pixel"].state == "unknown"


@pytest.mark.parametrize("content", [None, b"", b"no HDF5"], ids=["missing", "empty", "other"])
def test_no_store_is_an_error(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "f.h5").write_bytes(content)
    with pytest.raises(HardnetSfmError):
        check_store(tmp_path / "f.h5")


def test_a_file_without_keypoints_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_group("a.jpg").create_dataset("global_descriptor", data=np.zeros(4))
    with pytest.raises(HardnetSfmError, match="no keypoints in it"):
        check_store(tmp_path / "f.h5")


def test_a_photo_lost_from_our_store_is_an_error(store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "features.h5"
    copy.write_bytes(store.read_bytes())
    with h5py.File(copy, "r+") as file:
        del file["two.png"]
    with pytest.raises(HardnetSfmError, match=r"two\.png"):
        check_store(copy)


def test_the_command_says_it_and_its_status_tells(
    store: Path, photos: Photos, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", str(store.parent)])
    assert "half a pixel" in capsys.readouterr().out
    wrong = hloc_store(tmp_path / "f.h5", photos, add_half)
    with pytest.raises(SystemExit) as exit:
        main(["doctor", str(wrong), "--images", str(images), "--json"])
    assert exit.value.code == 1
    said = capsys.readouterr()
    content = json.loads(said.out)
    assert content["broken"] == ["half a pixel"]
    assert [found["what"] for found in content["findings"] if found["state"] == "broken"] == content["broken"]
    assert "broken: half a pixel" in said.err


@pytest.mark.parametrize("args", [["--images", "."], ["f.h5", "--images", "nowhere"]])
def test_photos_without_a_store_or_without_a_folder_are_refused(args: list[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["doctor", *args])
    assert exit.value.code == 2


def test_the_machine_is_found_well() -> None:
    findings = {found.what: found for found in machine_checks.machine()}
    assert not [found for found in findings.values() if found.state == "broken"]
    assert f"numpy {np.__version__}" in findings["packages"].said
    assert "sha256" in findings["weights hardnet-sfm"].said
    assert {"system", "packages", "device", "CPU", "faiss", "numba"} <= set(findings)


def test_a_package_out_of_range_or_missing_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=99", "h5py>=3", "no-such-package>=2", 'no-such-extra; extra == "train"']
    monkeypatch.setattr(machine_checks, "requires", lambda _: wanted)
    findings = [found for found in machine_checks.packages() if found.state == "broken"]
    assert [found.what for found in findings] == ["numpy", "no-such-package"]
    assert ">=99 is needed" in findings[0].said and '"no-such-package>=2"' in findings[1].hint


def test_another_package_with_the_same_module_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"faiss-gpu-cu12": "1.11", "hardnet-sfm": "0.1"}
    monkeypatch.setattr(machine_checks, "requires", lambda _: ["faiss-cpu>=1.9"])
    monkeypatch.setattr(machine_checks, "installed", lambda name: there.get(name, ""))
    findings = {found.what: found for found in machine_checks.packages()}
    assert "faiss-gpu-cu12 1.11" in findings["packages"].said and "faiss-cpu" not in findings


def test_weights_that_are_not_as_their_card_says_are_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = weight_files.find_weights("hardnet-sfm")
    (tmp_path / "hardnet-sfm.safetensors").write_bytes(shipped.read_bytes())
    (tmp_path / "hardnet-sfm.md").write_text(f"sha256 {'0' * 64}")
    monkeypatch.setattr(weight_files, "_FOLDERS", (tmp_path,))
    (found,) = machine_checks.weights()
    assert found.state == "broken" and "0" * 64 in found.said


@pytest.mark.slow
def test_the_self_test_passes() -> None:
    findings = selftest.self_test(Resources(workers=2))
    assert [found.what.removeprefix("self test: ") for found in findings] == [
        *("describe", "extract", "match", "retrieve", "map")
    ]
    assert not [found for found in findings if found.state != "ok"], findings


def test_the_self_test_tells_a_network_that_computes_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    from hardnet_sfm.features.descriptors import PatchDescriber

    right = PatchDescriber.__call__

    def wrong(self: PatchDescriber, patches: NDArray[np.uint8]) -> NDArray[np.float16]:
        rows = right(self, patches)
        rows[:, :8] *= -1
        return rows

    monkeypatch.setattr(PatchDescriber, "__call__", wrong)
    found = selftest._tried("describe", lambda: selftest._describe(Resources()))
    assert found.state == "broken" and "cosine" in found.said


def test_the_self_test_tells_a_step_that_fails() -> None:
    def fail() -> str:
        raise ImportError("libfaiss.so: cannot open shared object file")

    found = selftest._tried("retrieve", fail)
    assert found.state == "broken" and "libfaiss.so" in found.said


def test_brute_force_of_the_self_test_by_hand() -> None:
    """Rows 0 and 1 are each other's nearest; row 2's two best are equally near, which the ratio test refuses."""
    first = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float16)
    second = np.array([[0, 1, 0.1], [1, 0, 0], [0, 0.6, 0.8], [0.6, 0, 0.8]], np.float32)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    assert selftest._brute_force(first, second.astype(np.float16), 0.8).tolist() == [[0, 1], [1, 0]]
