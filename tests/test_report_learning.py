"""Pages about trainings and evaluations: their curves, hardest patches and precision, against brute force."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_report import data_of
from test_report_retrieval import decoded, photo

import hardnet_sfm
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.landmarks import ORIGINAL, Relevance, score_ranking
from hardnet_sfm.evaluation.tables import Cell, LandmarkTable
from hardnet_sfm.files.patch_sets import PatchSet, write_patches
from hardnet_sfm.files.training_curves import CurveWriter, read_curves
from hardnet_sfm.files.weight_files import read_weights, write_weights
from hardnet_sfm.networks.hardnet import HardNet
from hardnet_sfm.networks.loading import load_network
from hardnet_sfm.pages.landmark_charts import RECALLS, interpolate_precision
from hardnet_sfm.pages.training_page import find_hardest
from hardnet_sfm.verbs.report import read_patch_pairs

pytestmark = pytest.mark.usefixtures("one_thread")
POINTS = 30


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    options = {"steps": 70, "sampling": {"near": 0.1}}
    metadata = {"architecture": "hardnet", "steps": "70", "options": json.dumps(options), "data": '["<b>sfm</b> a.h5"]'}
    write_weights(tmp_path / "my.safetensors", HardNet().state_dict(), metadata)
    return tmp_path / "my.safetensors"


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """Points in a row a unit apart in three photos; two neighbours are too near to each other for a negative."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (POINTS, 1, 16, 16)) + rng.integers(-60, 60, (POINTS, 3, 16, 16))
    frames = np.zeros((3 * POINTS, 2, 3), np.float32)
    frames[:, 0, 2] = 50 * np.arange(3 * POINTS)
    made = PatchSet(
        str(tmp_path / "patches.h5"),
        "sfm",
        20.0,
        ("a.jpg", "b.jpg", "c.jpg"),
        np.kron(grey.clip(0, 255).reshape(-1, 16, 16), np.ones((4, 4))).astype(np.uint8),
        point=np.repeat(np.arange(POINTS), 3),
        image=np.tile(np.arange(3), POINTS).astype(np.int32),
        frame=frames,
        angle=np.zeros(3 * POINTS, np.float32),
        xyz=np.column_stack([np.arange(POINTS), np.zeros((POINTS, 2))]).astype(np.float32),
        extent=1.5 / 0.002,
    )
    write_patches(tmp_path / "patches.h5", made)
    return tmp_path / "patches.h5"


def test_curves_are_what_was_logged(tmp_path: Path) -> None:
    with closing(CurveWriter(tmp_path / "curves.csv", 0)) as writer:
        for step in range(2000):
            writer.add(step + 1, {"loss": 1 / (step + 1)})
        writer.add(2000, {"fpr95": 0.25, "map": math.nan})
    curves = read_curves(tmp_path / "curves.csv")
    assert set(curves) == {"loss", "fpr95"}
    assert curves["fpr95"] == {"step": [2000], "value": [0.25]}
    steps = curves["loss"]["step"]
    assert len(steps) == 600 and steps[0] == 1 and steps[-1] == 2000
    np.testing.assert_allclose(curves["loss"]["value"], 1 / np.array(steps), rtol=1e-5)


def test_curves_of_a_resumed_run_drop_what_it_repeats_and_a_row_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    with closing(CurveWriter(path, 0)) as writer:
        for step in (10, 20, 30):
            writer.add(step, {"loss": step / 100, "learning rate": 1e-3})
    path.write_text(path.read_text() + "40,0.4")
    assert read_curves(path)["loss"]["step"] == [10, 20, 30]
    with closing(CurveWriter(path, 20)) as writer:
        writer.add(30, {"loss": 0.7})
    assert read_curves(path)["loss"] == {"step": [10, 20, 30], "value": [0.1, 0.2, 0.7]}
    events = EventAccumulator(str(tmp_path / "curves")).Reload()
    assert [(one.step, round(one.value, 6)) for one in events.Scalars("loss")] == [(10, 0.1), (20, 0.2), (30, 0.7)]
    path.write_text("photos,of\n1,2\n")
    with pytest.raises(HardnetSfmError, match=r"curves\.csv: not a table of learning curves"):
        read_curves(path)


def test_hardest_patches_are_those_of_a_loop_over_all(weights: Path, patches: Path) -> None:
    found = find_hardest(load_network(weights), read_patch_pairs(patches))
    network = HardNet()
    network.load_state_dict(read_weights(weights).tensors)
    with h5py.File(patches) as file, torch.inference_mode():
        small = torch.from_numpy(file["patches"][()].reshape(-1, 1, 32, 2, 32, 2).mean((3, 5)) / 255).float()
        described = network.eval()(small).numpy().reshape(POINTS, 3, -1)
        everything = file["patches"][()].reshape(POINTS, 3, 64, 64)
    first, last = described[:, 0], described[:, 2]
    apart = [float(np.linalg.norm(first[i] - last[i])) for i in range(POINTS)]
    worst = sorted(range(POINTS), key=lambda i: -apart[i])[:12]
    np.testing.assert_allclose(found.positive_distances, [apart[i] for i in worst], atol=1e-5)
    np.testing.assert_array_equal(found.positives, everything[worst][:, [0, 2]])
    candidates = sorted(
        (float(np.linalg.norm(first[i] - last[k])), i, k)
        for i in range(POINTS)
        for k in range(POINTS)
        if abs(i - k) > 1  # neighbours are too near
    )
    taken: list[tuple[float, int, int]] = []
    for distance, i, k in candidates:
        if all(i != a and k != b for _, a, b in taken):
            taken.append((distance, i, k))
    np.testing.assert_allclose(found.negative_distances, [distance for distance, _, _ in taken[:12]], atol=1e-5)
    np.testing.assert_array_equal(found.negatives[0], [everything[taken[0][1], 0], everything[taken[0][2], 2]])
    assert found.points == POINTS


def test_page_about_a_training(weights: Path, patches: Path) -> None:
    written = hardnet_sfm.write_report(weights, patches=patches)
    assert written == weights.with_suffix(".html")
    data = data_of(written)
    assert data["metadata"]["options"]["sampling"] == {"near": 0.1} and data["metadata"]["data"] == ["<b>sfm</b> a.h5"]
    assert "<b>" not in written.read_text("utf-8")
    assert len(data["hardest"]["positives"]) == 12 and data["hardest"]["points"] == POINTS
    assert data["curves"] == {} and data["notes"][0].startswith("No learning curves")


def test_bad_input_is_told(weights: Path, patches: Path, tmp_path: Path) -> None:
    with pytest.raises(HardnetSfmError, match="neither"):
        hardnet_sfm.write_report(tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="--images has no effect"):
        hardnet_sfm.write_report(weights, images=tmp_path)
    with pytest.raises(UsageError, match="--patches has no effect"):
        hardnet_sfm.write_report(tmp_path, patches=patches)
    with pytest.raises(HardnetSfmError, match="no patches at"):
        hardnet_sfm.write_report(weights, patches=tmp_path / "gone.h5")
    patches.write_bytes(b"no HDF5")
    with pytest.raises(HardnetSfmError, match="damaged"):
        hardnet_sfm.write_report(weights, patches=patches)
    (tmp_path / "other.json").write_text('{"results": 3}')
    with pytest.raises(HardnetSfmError, match="not what `evaluate --json` writes"):
        hardnet_sfm.write_report(tmp_path / "other.json")


def test_interpolated_precision_is_the_highest_at_that_recall_or_later() -> None:
    ranks, positives = [1, 2, 5, 6, 20], 8
    for recall, precision in zip(RECALLS, interpolate_precision(ranks, positives), strict=True):
        at = [(n + 1) / rank for n, rank in enumerate(ranks) if (n + 1) / positives >= recall - 1e-9]
        assert precision == pytest.approx(max(at, default=0.0))
    assert interpolate_precision([], 3).max() == 0


def landmark_table() -> LandmarkTable:
    """Six photos; `two` is of a photo that is not among them."""
    relevance = Relevance(frozenset("abc"), frozenset("j"))
    scores = {ORIGINAL: {"one": score_ranking("jaxbyc", relevance), "two": score_ranking("xa", relevance)}}
    asked = {"one": ("a", (9.5, 4.5, 29.5, 14.5)), "two": ("z", (0.0, 0.0, 9.0, 9.0))}
    return LandmarkTable("oxford5k", (ORIGINAL,), {"hardnet": {"bow": Cell(scores, 0.5)}}, {"hardnet": {}}, 6, asked)


def test_page_about_an_evaluation_has_the_tables_figures(tmp_path: Path) -> None:
    table = landmark_table()
    (tmp_path / "table.json").write_text(json.dumps(table.as_json()))
    data = data_of(hardnet_sfm.write_report(tmp_path / "table.json"))
    row = data["rows"][0]["setups"][ORIGINAL]
    assert row["map"] == pytest.approx(table.rows["hardnet"]["bow"].mean(ORIGINAL).average_precision)  # type: ignore[union-attr]
    # Positives at ranks 1, 3, 5 of the first, at 2 of the second, without the junk.
    expected = (interpolate_precision([1, 3, 5], 3) + interpolate_precision([2], 3)) / 2
    np.testing.assert_allclose(row["precision"], expected, atol=1e-5)
    assert data["photos"] == 6 and data["queries"] == ["one", "two"] and data["found"] is None


def test_page_about_an_evaluation_shows_what_was_found_where_the_photos_are(tmp_path: Path) -> None:
    colours = {"images/deep/a.png": (200, 30, 30), "images/x.png": (30, 200, 30), "queries/two.png": (30, 30, 200)}
    for name, colour in colours.items():
        photo(tmp_path / "oxford" / name, colour, (40, 20))
    (tmp_path / "table.json").write_text(json.dumps(landmark_table().as_json()))
    found = data_of(hardnet_sfm.write_report(tmp_path / "table.json", images=tmp_path / "oxford"))["found"]
    assert found["first"][0][ORIGINAL]["one"] == [
        ["j", "junk"],
        ["a", "positive"],
        ["x", "negative"],
        ["b", "positive"],
        ["y", "negative"],
        ["c", "positive"],
    ]
    assert found["pictures"].keys() == {"a", "x", "two"}
    for address, colour in zip(map(found["pictures"].get, ("a", "x", "two")), colours.values(), strict=True):
        assert np.abs(decoded(address).astype(int) - colour).max() < 8
    assert found["asked"]["one"]["box"] == pytest.approx([0.25, 0.25, 0.75, 0.75], abs=2e-5)
    assert found["asked"]["two"] == {"photo": "two", "size": [40, 20], "box": None}
