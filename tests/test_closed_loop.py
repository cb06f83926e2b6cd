"""pipelines/closed_loop.py as a user runs it: what its table says, and that a second run does nothing."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pycolmap
import pytest
from printed import cells

from hardnet_sfm.files.patch_sets import read_patches
from hardnet_sfm.files.weight_files import find_weights, read_weights
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.scene import Scene

SCRIPT = Path(__file__).parents[1] / "pipelines" / "closed_loop.py"
# A rate at which two steps change the weights, and hardly what they describe.
BRIEF = (
    "--steps 2 --batch-size 16 --learning-rate 1e-5 --validate-every 1 --device cpu --workers 1 "
    "--extract.descriptor rootsift --extract.max-keypoints 500 --map.camera-mode single"
)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_loop_prints_what_both_reconstructions_are_and_does_nothing_twice(
    small_scene: tuple[Path, Scene],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, str(small_scene[0]), "--workspace", str(tmp_path), *BRIEF.split()])

    def run() -> list[str]:
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    printed = run()
    places = [Workspace(tmp_path / name) for name in ("before", "after")]
    summaries: list[dict[str, Any]] = [json.loads(place.summary.read_text()) for place in places]
    learned, patches = tmp_path / "learned.safetensors", read_patches(tmp_path / "patches.h5")

    # The learned weights are the shipped ones, trained on the patches, and those that described the second time.
    described = [summary["options"]["extract"] for summary in summaries]
    assert [chosen["descriptor"] for chosen in described] == ["rootsift", "hardnet"]
    assert described[1]["weights_sha256"] == hashlib.sha256(learned.read_bytes()).hexdigest()
    weights, shipped = read_weights(learned), read_weights(find_weights("hardnet-sfm"))
    trained = json.loads(weights.metadata["options"])
    assert (trained["init"], trained["steps"], weights.metadata["steps"]) == ("hardnet-sfm", 2, "2")
    change = (weights.tensors["features.0.weight"] - shipped.tensors["features.0.weight"]).abs().max()
    assert 0 < change < 1e-3

    said = " ".join(printed)
    assert f"mined: {len(patches)} patches of {len(patches.xyz)} points in {len(patches.images)} photos" in said
    assert "learned: 2 steps" in said
    rows = {row[0]: row[1:] for row in map(cells, printed) if len(row) == 4}
    assert rows.pop("") == ["before (rootsift)", "after (learned)", "after / before"]
    models = [summary["models"][0] for summary in summaries]
    expected = {
        "photos": [summary["photos"] for summary in summaries],
        "photos registered": [model["photos"] for model in models],
        "keypoints": [summary["keypoints"] for summary in summaries],
        "matches": [summary["matches"] for summary in summaries],
        "verified pairs": [summary["verified_pairs"] for summary in summaries],
        "verified matches": [summary["verified_matches"] for summary in summaries],
        "points": [model["points"] for model in models],
        "observations": [model["observations"] for model in models],
        "mean track length": [model["mean_track_length"] for model in models],
        "mean reprojection error, px": [model["mean_reprojection_error"] for model in models],
    }
    assert rows == {name: [f"{a:.7g}", f"{b:.7g}", f"{b / a:.2f}"] for name, (a, b) in expected.items()}
    for column, place in enumerate(places):
        model = pycolmap.Reconstruction(place.sparse / "0")
        figures = (model.num_reg_images(), model.num_points3D(), model.compute_num_observations())
        assert figures == tuple(expected[name][column] for name in ("photos registered", "points", "observations"))

    before = written(tmp_path)
    assert run() == printed
    assert written(tmp_path) == before


def written(folder: Path) -> dict[Path, int]:
    """When each file of results was written; locks are of the run alone."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--network matchnet --init None", "matchnet compares patches and describes none"),
        ("--network tfeat", "weights of hardnet, not of tfeat"),
        ("--network convexopt --init None", "minutes has no effect"),
        ("--validation nowhere.h5", "nowhere.h5"),
    ],
)
def test_what_cannot_be_learned_is_said_before_hours_of_work(
    options: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The folder of photos, which is not there, is not looked at yet."""
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, str(tmp_path / "nowhere"), *options.split()])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert said in " ".join(capsys.readouterr().err.split())
