"""W1BS: its layout, and its measure against a loop over thresholds."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clutter import litter
from PIL import Image

from hardnet_sfm import measures
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.w1bs import find_columns
from hardnet_sfm.measures import score_columns


def layout(folder: Path, side: int = 20) -> Path:
    """Two sets; in each column patch k is of shade k in the first photo and k + 100 in the second."""
    for name, files in (("G", ("arch", "obama")), ("map2photo", ("maps",))):
        for at in "12":
            (folder / name / at).mkdir(parents=True)
            for count, file in enumerate(files, 3):
                shades = np.arange(count, dtype=np.uint8) + (100 if at == "2" else 0)
                column = np.repeat(shades, side * side).reshape(-1, side)
                Image.fromarray(column).save(folder / name / at / f"{file}.bmp")
                Image.new("L", (9, 9)).save(folder / name / at / f"{file}.png")
        (folder / name / "h").mkdir()
    return folder


def test_what_a_mac_or_a_nas_leaves_is_passed_over(tmp_path: Path) -> None:
    expected = find_columns(layout(tmp_path))
    litter(tmp_path)
    assert find_columns(tmp_path) == expected
    assert expected[1] == {}


@pytest.mark.parametrize("damage", ["no counterpart", "empty set"])
def test_a_column_without_counterpart_is_left_out_and_named(damage: str, tmp_path: Path) -> None:
    layout(tmp_path)
    change, message = DAMAGES[damage]
    change(tmp_path)
    pairs, left_out = find_columns(tmp_path)
    (error,) = left_out.values()
    assert re.search(message, error.message)
    gone = "arch" if damage == "no counterpart" else "maps"
    assert [pair.name for pair in pairs] == [name for name in ("arch", "obama", "maps") if name != gone]


def test_columns_are_pairs_by_set_and_name(tmp_path: Path) -> None:
    pairs, _ = find_columns(layout(tmp_path))
    assert [(pair.nuisance, pair.name) for pair in pairs] == [("G", "arch"), ("G", "obama"), ("map2photo", "maps")]
    first, second = pairs[1].read()
    assert first.shape == second.shape == (4, 20, 20)
    assert [set(patch.ravel().tolist()) for patch in first] == [{0}, {1}, {2}, {3}]
    assert [set(patch.ravel().tolist()) for patch in second] == [{100}, {101}, {102}, {103}]


def area_by_hand(first: np.ndarray, second: np.ndarray) -> float:
    """Thresholds from 0 to the largest ratio; a match below is accepted; lines between the points of the curve."""
    matches = []
    for number, row in enumerate(first.astype(np.float64)):
        distances = [float(np.linalg.norm(row - other)) for other in second.astype(np.float64)]
        nearest, rival = sorted(distances)[:2]
        matches.append((nearest / (rival + 1e-12), distances.index(nearest) == number))
    largest, curve = max(ratio for ratio, _ in matches), []
    for step in range(100):
        accepted = [right for ratio, right in matches if ratio < largest * step / 99]
        precision = sum(accepted) / len(accepted) if accepted else 1.0
        curve.append((1 - precision, sum(accepted) / len(matches)))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_score_is_that_of_a_loop(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_ROWS", 7)
    rng = np.random.default_rng(4)
    first = rng.normal(size=(40, 8)).astype(np.float16)
    second = (first + noise * rng.normal(size=first.shape)).astype(np.float16)
    assert score_columns(first, second) == pytest.approx(area_by_hand(first, second), abs=0.002)


def test_score_of_hand_made_matches() -> None:
    """Of three matches the most believed and the least are right; the least is never below its own ratio.

    So the curve goes from (0, 1/3) to (1/2, 1/3) in 1 - precision and recall: an area of 1/6.
    """
    second = np.array([[0, 0], [10, 0], [0, 10]], np.float16)
    first = np.array([[1, 0], [0, 2], [0, 6]], np.float16)  # nearest: 0 at 1 to 9, 0 at 2 to 8, 2 at 4 to 6
    assert score_columns(first, second) == pytest.approx(1 / 6)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no sets": (lambda folder: [shutil.rmtree(folder / name) for name in ("G", "map2photo")], "none of the sets"),
    "no counterpart": (lambda folder: (folder / "G/2/arch.bmp").unlink(), r"G: arch\.bmp is in 1/ or in 2/ only"),
    "empty set": (
        lambda folder: shutil.rmtree(folder / "map2photo/1") or shutil.rmtree(folder / "map2photo/2"),
        "map2photo: no columns",
    ),
    "other number": (
        lambda folder: Image.new("L", (20, 40)).save(folder / "G/2/arch.bmp"),
        r"2/arch\.bmp: 2 patches, .*1/arch\.bmp has 3",
    ),
    "half a patch": (
        lambda folder: Image.new("L", (20, 50)).save(folder / "G/1/arch.bmp"),
        r"1/arch\.bmp: 20x50 pixels",
    ),
    "damaged": (lambda folder: (folder / "G/1/arch.bmp").write_bytes(b"BM"), r"arch\.bmp: not a photo"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"no counterpart", "empty set"}))
def test_a_bad_folder_is_a_clear_error(damage: str, tmp_path: Path) -> None:
    layout(tmp_path)
    change, message = DAMAGES[damage]
    change(tmp_path)
    with pytest.raises(HardnetSfmError, match=message):
        [pair.read() for pair in find_columns(tmp_path)[0]]
