"""The table of all descriptors on all benchmarks: figures are those of direct calls, and nothing is measured twice."""

from __future__ import annotations

import csv
import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from test_benchmarks import write_brown, write_hpatches, write_w1bs
from test_experiments import typed, write_hard_patches
from test_train import write_noisy_patches

from hardnet_sfm.competitors import competitors
from hardnet_sfm.errors import UsageError
from hardnet_sfm.evaluation import patch_scores
from hardnet_sfm.features.descriptors import make_descriptor
from hardnet_sfm.literature import held_out
from hardnet_sfm.literature.costs import cost_of
from hardnet_sfm.networks.architectures import ARCHITECTURES
from hardnet_sfm.networks.loading import load_network
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.reconstruct import reconstruct

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Resources(device="cpu", workers=1)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "pipelines"))  # type: ignore[no-untyped-call]
    return importlib.import_module("descriptor_table")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_noisy_patches(folder / "easy.h5")
    write_hard_patches(folder / "hard.h5", folder / "easy.h5", 1, 500)
    write_brown(folder / "brown" / "yosemite", 0)
    write_w1bs(folder / "w1bs")
    write_hpatches(folder / "hpatches")
    return folder


@pytest.mark.slow
def test_the_table_is_what_direct_calls_give(
    script: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--workspace", tmp_path, "--descriptor", "rootsift", "--validation", data / "hard.h5"]
    words += ["--validation-batch", "32", "--brown", data / "brown", "--w1bs", data / "w1bs"]
    words += ["--hpatches", data / "hpatches", "--device", "cpu", "--workers", "1"]
    typed(script, monkeypatch, *words)
    rows = competitors(["rootsift"], ())
    expected = {
        f"held_out_{name}": value
        for name, value in held_out.HeldOut(data / "hard.h5", 32)
        .measures(make_descriptor("rootsift", None), CPU)
        .items()
    }
    tables = (
        patch_scores.evaluate_brown(data / "brown", rows, CPU),
        patch_scores.evaluate_w1bs(data / "w1bs", rows, CPU),
        patch_scores.evaluate_hpatches(data / "hpatches", rows, CPU),
    )
    names = ("brown_fpr95", "w1bs_mauc", "hpatches_verification", "hpatches_matching", "hpatches_retrieval")
    measures = [measure for table in tables for measure in table.measures]
    expected |= {name: of.values["rootsift"]["mean"] for name, of in zip(names, measures, strict=True)}
    with (tmp_path / "descriptor-table.csv").open() as file:
        (found,) = csv.DictReader(file)
    assert found.pop("descriptor") == "rootsift"
    assert float(found.pop("patches_per_second")) > 0
    assert (found.pop("dimension"), found.pop("parameters")) == ("128", "0")
    # Smoothing along both axes, to a margin of one pixel, and eight planes of gradients into four bins along both.
    assert float(found.pop("mflop")) == 2 * (34 * 32 * 32 + 34 * 32 * 34 + 8 * 32 * 32 * 4 + 8 * 4 * 32 * 4) / 1e6
    assert {name: float(value) for name, value in found.items()} == expected
    assert 0.02 < expected["held_out_fpr95"] < 0.7
    with Image.open(tmp_path / "descriptor-table.png") as drawn:
        assert np.asarray(drawn.convert("L")).std() > 5
    head, _, row = (tmp_path / "descriptor-table.md").read_text().splitlines()
    assert len(head.split("|")) == len(row.split("|")) and row.startswith("| rootsift | 128 | 0 |")


def test_networks_that_compare_have_no_values_where_descriptors_are_needed(
    script: ModuleType,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = ARCHITECTURES["deepcompare-siam"].build()
    weights = tmp_path / "siam.safetensors"
    save_file(network.state_dict(), weights, ARCHITECTURES["deepcompare-siam"].metadata() | {"measurement_size": "12"})
    words = ["--workspace", tmp_path, "--descriptor", "rootsift", "--weights", weights, "--validation-batch", "32"]
    words += ["--validation", data / "hard.h5", "--w1bs", data / "w1bs", "--hpatches", data / "hpatches"]
    words += ["--device", "cpu", "--workers", "1"]
    typed(script, monkeypatch, *words)
    printed = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert sum("siam" in line for line in printed) == 3 and max(map(len, printed)) <= 80
    assert not any("…" in line for line in printed)
    with (tmp_path / "descriptor-table.csv").open() as file:
        rootsift, siam = csv.DictReader(file)
    assert rootsift["w1bs_mauc"] and rootsift["held_out_map"]
    assert not siam["w1bs_mauc"] and not siam["held_out_map"] and not siam["hpatches_matching"]
    of_hpatches = patch_scores.evaluate_hpatches(data / "hpatches", competitors((), [str(weights)]), CPU).measures[0]
    assert float(siam["hpatches_verification"]) == of_hpatches.values["siam"]["mean"]
    expected = held_out.HeldOut(data / "hard.h5", 32).measures_of_pairs(load_network(weights), CPU)
    assert float(siam["held_out_fpr95"]) == expected["fpr95"]
    assert siam["parameters"] == str(sum(parameter.numel() for parameter in network.parameters()))
    # Of both patches 20x20x96 of 7x7, 6x6x192 of 5x5x96, 256 of 3x3x192; then the two layers that decide.
    towers = 2 * 2 * (20 * 20 * 96 * 49 + 6 * 6 * 192 * 96 * 25 + 256 * 192 * 9)
    assert float(siam["mflop"]) == pytest.approx((towers + 2 * (512 * 512 + 512)) / 1e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "parameters", "mflop"),
    [("hardnet", 1334560, 78), ("tfeat", None, 12.6)],
)
def test_costs_are_those_of_the_layers(name: str, parameters: int | None, mflop: float, tmp_path: Path) -> None:
    """HardNet's parameters are the paper's 1.3 million; TFeat's products are counted by hand.

    TFeat: 26x26x32 of 7x7, 8x8x64 of 6x6x32, 128 of 4096, two operations each.
    """
    network = ARCHITECTURES[name].build()
    path = tmp_path / "made.safetensors"
    save_file(network.state_dict(), path, ARCHITECTURES[name].metadata())
    values = cost_of(competitors((), [str(path)])[0], CPU)
    if name == "tfeat":
        mflop = 2 * (26 * 26 * 32 * 49 + 8 * 8 * 64 * 36 * 32 + 128 * 4096) / 1e6
        parameters = (49 + 1) * 32 + (36 * 32 + 1) * 64 + (4096 + 1) * 128
    assert values["parameters"] == parameters
    assert values["mflop"] == pytest.approx(mflop, rel=0.01)
    assert values["dimension"] == 128


def recorded(script: ModuleType, values: dict[str, float]) -> tuple[Any, list[list[str]]]:
    """A benchmark of one column, and the descriptors that it was asked for, call by call."""
    asked: list[list[str]] = []

    def run(rows: list[Any]) -> Any:
        asked.append([row.name for row in rows])
        yield from ((row.name, {"x": values[row.name]}) for row in rows)

    return script.Benchmark((script.Column("x", "X", ".1f", "lower"),), ["recipe"], run), asked


def test_what_is_measured_is_not_measured_again(script: ModuleType, tmp_path: Path) -> None:
    benchmark, asked = recorded(script, {"rootsift": 1.0, "hardnet-sfm": 2.0})
    kept = tmp_path / "results.json"
    one, both = competitors(["rootsift"], ()), competitors(["rootsift", "hardnet"], ())
    assert script.measured(one, [benchmark], kept) == {"rootsift": {"x": 1.0}}
    expected = {"rootsift": {"x": 1.0}, "hardnet-sfm": {"x": 2.0}}
    assert script.measured(both, [benchmark], kept) == expected
    assert script.measured(both, [benchmark], kept) == expected
    assert asked == [["rootsift"], ["hardnet-sfm"]]


def test_what_was_finished_before_an_error_is_kept(script: ModuleType, tmp_path: Path) -> None:
    benchmark, asked = recorded(script, {"rootsift": 1.0})  # and nothing for the other
    both = competitors(["rootsift", "hardnet"], ())
    with pytest.raises(KeyError):
        script.measured(both, [benchmark], tmp_path / "results.json")
    whole, asked = recorded(script, {"rootsift": 9.0, "hardnet-sfm": 2.0})
    assert script.measured(both, [whole], tmp_path / "results.json")["rootsift"] == {"x": 1.0}
    assert asked == [["hardnet-sfm"]]


def test_changed_data_are_measured_again(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "1.txt"
    file.write_text("1")
    before = script.state_of(tmp_path / "data")
    assert script.state_of(tmp_path / "data") == before
    os.utime(file, (1, 1))
    assert script.state_of(tmp_path / "data") != before
    assert json.loads(json.dumps(script.state_of(file)))[0] == "1.txt"


def test_one_city_alone_is_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="words of the other"):
        script.benchmarks(script.Options(tmp_path, oxford5k=tmp_path))


def test_data_that_are_not_there_and_scenes_of_one_name_are_told_before_the_work(
    script: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="nowhere: no such file or folder"):
        script.benchmarks(script.Options(tmp_path, homography=tmp_path / "nowhere"))
    scenes = tuple(tmp_path / name / "door" / "images" for name in "ab")
    for images in scenes:
        images.mkdir(parents=True)
    assert len(script.benchmarks(script.Options(tmp_path, scenes=scenes[:1]))) == 2
    with pytest.raises(UsageError, match="two of the scenes would be called door"):
        script.benchmarks(script.Options(tmp_path, scenes=scenes))


def test_cells_that_are_missing_are_said_to_be(script: ModuleType) -> None:
    columns = [script.Column("a", "A, %", ".1%", "lower"), script.Column("b", "B", ".2f", "higher")]
    table = script.DescriptorTable(columns, {"one": {"a": 0.125, "b": 1}, "two": {"a": 0.5}})
    assert table.as_markdown().splitlines() == [
        "|  | A, % | B |",
        "| --- | ---: | ---: |",
        "| one | **12.5** | 1.00 |",
        "| two | 50.0 | - |",
    ]
    assert table.as_csv() == "descriptor,a,b\none,0.125,1\ntwo,0.5,\n"


@pytest.mark.slow
def test_scenes_are_reconstructed_as_by_hand(
    script: ModuleType, small_scene: tuple[Path, Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--workspace", tmp_path / "out", "--descriptor", "rootsift", "--scenes", small_scene[0]]
    typed(script, monkeypatch, *words, "--device", "cpu", "--workers", "1")
    with (tmp_path / "out" / "descriptor-table.csv").open() as file:
        (found,) = csv.DictReader(file)
    options = competitors(["rootsift"], ())[0].extract_options(script.KeypointOptions())
    model = reconstruct(small_scene[0], tmp_path / "by-hand", extract_options=options, resources=CPU, report=False)
    name = script.scene_name(small_scene[0])
    assert int(found[f"{name}_photos"]) == len(model.names) == 8
    assert float(found[f"{name}_track_length"]) == model.mean_track_length
