"""Pairs of photos: both layouts, and the measure of WxBS against kornia and hand-made geometry."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia.geometry as KG
import numpy as np
import pytest
import torch
from clutter import litter
from PIL import Image

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.image_pairs import read_image_pairs
from hardnet_sfm.evaluation.epipolar import epipolar_distances, fundamental_matrix, recall_of_truth

TILT = np.array([[0.9, 0.3, -20.0], [-0.2, 1.1, 30.0], [2e-4, -1e-4, 1.0]])
# Of two cameras side by side: x2' F x1 = y2 - y1, up to sign.
SIDEWAYS = np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])


def evd(folder: Path) -> Path:
    for at in ("1", "2", "h"):
        (folder / at).mkdir(parents=True)
    for name in ("there", "adam"):
        for at in "12":
            Image.new("L", (30, 20)).save(folder / at / f"{name}.png")
        (folder / "h" / f"{name}.txt").write_text("\n".join(" ".join(map(str, row)) for row in TILT))
    return folder


def wxbs(folder: Path) -> Path:
    for name in ("WGABS/kremlin", "WLABS/dh", "WGABS/petrzin"):
        (folder / name).mkdir(parents=True)
        for photo in ("01.png", "02.jpg"):
            Image.new("L", (30, 20)).save(folder / name / photo)
        (folder / name / "corrs.txt").write_text("1 2 3.5 4\n5 6 7 8\n")
        (folder / name / "crossval_errors.txt").write_text("0.1\n0.2\n")
    return folder


def test_evd(tmp_path: Path) -> None:
    pairs, _ = read_image_pairs(evd(tmp_path))
    assert [pair.name for pair in pairs] == ["adam", "there"]
    assert pairs[1].photos == (tmp_path / "1/there.png", tmp_path / "2/there.png")
    np.testing.assert_array_equal(pairs[0].homography, TILT)
    assert pairs[0].correspondences is None


def test_names_with_dots_and_brackets(tmp_path: Path) -> None:
    evd(tmp_path)
    for name in ("adam.b", "a[1]"):
        for of in ("1", "2"):
            shutil.copy(tmp_path / of / "adam.png", tmp_path / of / f"{name}.png")
        shutil.copy(tmp_path / "h/adam.txt", tmp_path / f"h/{name}.txt")
    pairs = {pair.name: pair.photos[1].name for pair in read_image_pairs(tmp_path)[0]}
    assert pairs == {name: f"{name}.png" for name in ("a[1]", "adam", "adam.b", "there")}


@pytest.mark.parametrize("make", [evd, wxbs])
def test_what_a_mac_or_a_nas_leaves_is_passed_over(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path)
    expected = [pair.name for pair in read_image_pairs(folder)[0]]
    litter(folder)
    pairs, left_out = read_image_pairs(folder)
    assert [pair.name for pair in pairs] == expected
    assert left_out == {}


def test_wxbs_without_the_pairs_for_validation(tmp_path: Path) -> None:
    pairs, _ = read_image_pairs(wxbs(tmp_path))
    assert [pair.name for pair in pairs] == ["WGABS/kremlin", "WLABS/dh"]
    assert pairs[1].photos == (tmp_path / "WLABS/dh/01.png", tmp_path / "WLABS/dh/02.jpg")
    np.testing.assert_array_equal(pairs[0].correspondences, [[1, 2, 3.5, 4], [5, 6, 7, 8]])
    assert pairs[0].homography is None


EVD_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no counterpart": (lambda folder: (folder / "2/adam.png").unlink(), "2: no photo named adam"),
    "two counterparts": (
        lambda folder: shutil.copy(folder / "2/adam.png", folder / "2/adam.bmp"),
        "several photos named adam",
    ),
    "no truth": (lambda folder: (folder / "h/adam.txt").unlink(), r"adam\.txt: no such file"),
    "truncated truth": (lambda folder: (folder / "h/adam.txt").write_text("1 0 0 0"), r"adam\.txt: 4 numbers"),
    "empty": (lambda folder: [path.unlink() for path in (folder / "1").iterdir()], "no pairs of photos"),
}
WXBS_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no second photo": (lambda folder: (folder / "WLABS/dh/02.jpg").unlink(), "dh: no photo named 02"),
    "no truth": (lambda folder: (folder / "WLABS/dh/corrs.txt").unlink(), r"dh: no corrs\.txt"),
    "truncated truth": (
        lambda folder: (folder / "WLABS/dh/corrs.txt").write_text("1 2 3 4\n5 6\n"),
        r"corrs\.txt: not lines",
    ),
    "three columns": (lambda folder: (folder / "WLABS/dh/corrs.txt").write_text("1 2 3\n"), r"corrs\.txt: not lines"),
    "no numbers": (lambda folder: (folder / "WLABS/dh/corrs.txt").write_text("1 2 3 nan\n"), r"corrs\.txt: not lines"),
    "empty truth": (lambda folder: (folder / "WLABS/dh/corrs.txt").write_text(""), r"corrs\.txt: not lines"),
    "another layout": (lambda folder: [shutil.rmtree(path) for path in folder.iterdir()], "no pairs of photos"),
}


@pytest.mark.parametrize("damage", [*EVD_DAMAGES, *(f"wxbs {name}" for name in WXBS_DAMAGES)])
def test_a_bad_pair_is_left_out_and_named(damage: str, tmp_path: Path) -> None:
    of_wxbs = damage.startswith("wxbs ")
    (wxbs if of_wxbs else evd)(tmp_path)
    change, message = WXBS_DAMAGES[damage.removeprefix("wxbs ")] if of_wxbs else EVD_DAMAGES[damage]
    change(tmp_path)
    if message == "no pairs of photos":
        with pytest.raises(HardnetSfmError, match=message):
            read_image_pairs(tmp_path)
    else:
        (kept,), left_out = read_image_pairs(tmp_path)
        ((name, error),) = left_out.items()
        assert (kept.name, name) == (("WGABS/kremlin", "WLABS/dh") if of_wxbs else ("there", "adam"))
        assert re.search(message, error.message)
        shutil.rmtree(kept.photos[0].parent)
        with pytest.raises(HardnetSfmError):
            read_image_pairs(tmp_path)
    with pytest.raises(HardnetSfmError, match="no such folder"):
        read_image_pairs(tmp_path / "none")


def test_epipolar_distances_are_kornias() -> None:
    rng = np.random.default_rng(1)
    matrix, points = rng.normal(size=(3, 3)), rng.uniform(0, 500, (50, 4))
    first, second = torch.from_numpy(points[None, :, :2]), torch.from_numpy(points[None, :, 2:])
    expected = KG.epipolar.symmetrical_epipolar_distance(first, second, torch.from_numpy(matrix[None]), squared=False)
    np.testing.assert_allclose(epipolar_distances(matrix, points), expected[0].numpy(), rtol=1e-6)


def test_recall_of_points_that_are_a_few_rows_off() -> None:
    """Both points are as far from the other's line, so the distance is the root of 2 times that of the rows."""
    first = np.stack([np.arange(5.0), np.arange(5.0)], 1)
    second = np.array([[0, 0], [1, 1.1], [2, 3], [2.5, 2], [4.1, 6]])
    truth = np.hstack([first, second])
    np.testing.assert_allclose(epipolar_distances(SIDEWAYS, truth), np.sqrt(2) * np.array([0, 0.1, 1, 1, 2]))
    recall = recall_of_truth(SIDEWAYS, truth)
    assert recall.shape == (20,)
    assert recall[:4].tolist() == [0.2, 0.4, 0.8, 1.0]
    assert recall_of_truth(None, truth).tolist() == [0] * 20


def two_views(count: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of points in a box before two cameras, the second turned and aside; some matched at random."""
    rng = np.random.default_rng(2)
    points = rng.uniform((-2, -2, 4), (2, 2, 8), (count, 3))
    turn = np.array([[np.cos(0.2), 0, np.sin(0.2)], [0, 1, 0], [-np.sin(0.2), 0, np.cos(0.2)]])
    views = [points, points @ turn.T + [1.0, 0.1, 0]]
    first, second = (500 * view[:, :2] / view[:, 2:] + 320 for view in views)
    second[:wrong] = rng.uniform(0, 640, (wrong, 2))
    return first.astype(np.float32), second.astype(np.float32)


def test_matrix_of_matches_half_of_which_are_wrong_and_again() -> None:
    first, second = two_views(300, 150)
    found = fundamental_matrix(first, second)
    assert found is not None
    right = np.hstack([first[150:], second[150:]]).astype(np.float64)
    assert recall_of_truth(found, right)[1] > 0.98
    np.testing.assert_array_equal(fundamental_matrix(first, second), found)


@pytest.mark.parametrize("count", [0, 3, 7])
def test_no_matrix_of_too_few_matches(count: int) -> None:
    first, second = two_views(count, 0)
    assert fundamental_matrix(first, second) is None


def test_no_wrong_matrix_of_points_that_are_all_the_same() -> None:
    same = np.full((20, 2), 7, np.float32)
    found = fundamental_matrix(same, same)
    assert found is None or found.shape == (3, 3)
