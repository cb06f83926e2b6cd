"""Pages about evaluations on patches and photos of known geometry: tables and curves are those of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_report import data_of

import hardnet_sfm
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.scores import Measure, ScoreTable, append_mean

RATES = {"rootsift": [0.002 * step for step in range(100)], "mine": [0.0001 * step for step in range(100)]}
BROWN = ScoreTable(
    "brown",
    (
        Measure(
            "fpr95",
            "FPR95, %",
            {"rootsift": {"liberty": 0.188, "mean": 0.188}, "mine": {"liberty": 0.0094, "yosemite": 0.5}},
            ".2%",
            lower_is_better=True,
            marked=frozenset({("mine", "liberty")}),
            mark="trained on this very set",
        ),
    ),
    {"rootsift": {"weights_sha256": ""}, "mine": {"trained_on": ["liberty"]}},
    {"pairs": {"liberty": 100}, "false_positives_by_recall": {name: {"liberty": of} for name, of in RATES.items()}},
    ("a note",),
)
ACCURACY = {
    "colmap rootsift": {"graf": [0.1 * at for at in range(1, 11)], "wall": [0.5] * 10},
    "hardnet": {"graf": [0.05 * at for at in range(1, 11)], "wall": [0.7] * 10},
}
HOMOGRAPHY = ScoreTable(
    "homography",
    (
        Measure("mma", "MMA @ 3 px", {name: {s: of[s][2] for s in of} for name, of in ACCURACY.items()}),
        Measure("right", "right matches a pair", {name: {"graf": 12.4} for name in ACCURACY}, ".0f"),
    ),
    {"hardnet": {}},
    {"accuracy_by_threshold": ACCURACY},
    across=True,
)
POOLS = (100, 500, 20000)
HPATCHES = ScoreTable(
    "hpatches, split a",
    (
        Measure(
            "matching_map", "matching, mAP, %", {"rootsift": append_mean({"view easy": 0.5, "view hard": 0.25})}, ".1%"
        ),
    ),
    {"rootsift": {}},
    {
        "verification_auc": {"rootsift": {"easy intra": 0.9, "mean": 0.9}},
        "matching_by_sequence": {"rootsift": {"v_a": {"easy": 0.5, "hard": 0.25}, "i_b": {"easy": 0.75, "hard": 0.5}}},
        "retrieval_by_pool": {
            "rootsift": {
                f"{lv} {pool}": v / (1 + i) for lv, v in (("easy", 0.9), ("hard", 0.6)) for i, pool in enumerate(POOLS)
            }
        },
    },
)
W1BS = ScoreTable(
    "w1bs",
    (Measure("mauc", "mAUC by nuisance", {"rootsift": append_mean({"appearance": 0.1, "sensor": 0.3})}),),
    {"rootsift": {}},
    {"pairs": {"rootsift": {"A/one": 0.1, "S/two": 0.3}}},
)


def shown(table: ScoreTable, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "scores.json").write_text(json.dumps(table.as_json()))
    return data_of(hardnet_sfm.write_report(tmp_path / "scores.json"))


@pytest.mark.parametrize("table", [BROWN, HOMOGRAPHY, HPATCHES, W1BS], ids=lambda table: table.data_set)
def test_tables_have_the_values_of_the_file(table: ScoreTable, tmp_path: Path) -> None:
    data = shown(table, tmp_path)
    assert data["data_set"] == table.data_set and data["notes"] == list(table.notes)
    for drawn, measure in zip(data["measures"], table.measures, strict=True):
        assert (drawn["title"], drawn["columns"]) == (measure.title, measure.columns)
        assert (drawn["across"], drawn["lower_is_better"]) == (table.across, measure.lower_is_better)
        assert f".{drawn['digits']}{'%' if drawn['per_cent'] else 'f'}" == measure.form
        for descriptor, values, marks in zip(drawn["descriptors"], drawn["values"], drawn["marked"], strict=True):
            row = measure.values[descriptor]
            assert dict(zip(drawn["columns"], values, strict=True)) == {c: row.get(c) for c in measure.columns}
            assert marks == [(descriptor, column) in measure.marked for column in measure.columns]
    assert data["descriptors"] == {name: dict(facts) for name, facts in table.facts.items()}


def test_roc_of_brown_ends_beyond_95_per_cent(tmp_path: Path) -> None:
    (curve,) = shown(BROWN, tmp_path)["curves"]
    assert curve["x"]["high"] == pytest.approx(2 * RATES["rootsift"][94])
    assert list(curve["series"]) == ["liberty"]
    for line in curve["series"]["liberty"]:
        points = dict(zip(line["y"], line["x"], strict=True))
        assert points[0.95] == pytest.approx(RATES[line["name"]][94])
        assert points[0.01] == 0 and points[1.0] == pytest.approx(RATES[line["name"]][99])


def test_accuracy_is_drawn_over_1_to_10_pixels_with_the_mean_first(tmp_path: Path) -> None:
    (curve,) = shown(HOMOGRAPHY, tmp_path)["curves"]
    assert list(curve["series"]) == ["mean", "graf", "wall"]
    of = {line["name"]: dict(zip(line["x"], line["y"], strict=True)) for line in curve["series"]["mean"]}
    assert list(of["hardnet"]) == list(range(1, 11))
    assert of["colmap rootsift"][3] == pytest.approx((0.3 + 0.5) / 2)
    assert of["hardnet"][10] == pytest.approx((0.5 + 0.7) / 2)


def test_recall_of_pairs_is_drawn_over_0_to_19_pixels(tmp_path: Path) -> None:
    recalls = {"hardnet": {"A/one": [at / 20 for at in range(20)]}}
    table = ScoreTable("pairs", W1BS.measures, {}, {"recall_by_threshold": recalls}, across=True)
    (curve,) = shown(table, tmp_path)["curves"]
    (line,) = curve["series"]["A/one"]
    assert line["x"] == list(range(20)) and line["y"] == recalls["hardnet"]["A/one"]


def test_hpatches_has_retrieval_by_pool_and_each_sequence(tmp_path: Path) -> None:
    data = shown(HPATCHES, tmp_path)
    (curve,) = data["curves"]
    assert list(curve["series"]) == ["mean", "easy", "hard"] and curve["x"]["ticks"] == list(POOLS)
    assert curve["series"]["hard"][0] == {"name": "rootsift", "x": list(POOLS), "y": [0.6, 0.3, 0.2]}
    assert curve["series"]["mean"][0]["y"] == [0.75, 0.375, 0.25]
    area, sequences = data["details"]
    assert area["values"] == [[0.9, 0.9]]
    assert dict(zip(sequences["columns"], sequences["values"][0], strict=True)) == {
        "v_a easy": 0.5,
        "v_a hard": 0.25,
        "i_b easy": 0.75,
        "i_b hard": 0.5,
    }


def test_w1bs_has_each_pair(tmp_path: Path) -> None:
    (pairs,) = shown(W1BS, tmp_path)["details"]
    assert pairs["columns"] == ["A/one", "S/two"] and pairs["values"] == [[0.1, 0.3]]
    # Brown's `pairs` are numbers of pairs, and no scores.
    assert shown(BROWN, tmp_path)["details"] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.pop("tables"),
        lambda table: table["measures"].update(fpr95=3),
        lambda table: table["tables"]["fpr95"].update(form="per cent"),
        lambda table: table.update(false_positives_by_recall={"rootsift": {}}),
    ],
)
def test_a_file_that_is_something_else(change: Any, tmp_path: Path) -> None:
    table = json.loads(json.dumps(BROWN.as_json()))
    change(table)
    (tmp_path / "scores.json").write_text(json.dumps(table))
    with pytest.raises(HardnetSfmError, match="not what `evaluate --json` writes"):
        hardnet_sfm.write_report(tmp_path / "scores.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_left_empty(value: float, tmp_path: Path) -> None:
    table = json.loads(json.dumps(W1BS.as_json()))
    table["measures"]["mauc"]["rootsift"]["sensor"] = value
    (tmp_path / "scores.json").write_text(json.dumps(table))
    measure = data_of(hardnet_sfm.write_report(tmp_path / "scores.json"))["measures"][0]
    row = dict(zip(measure["columns"], measure["values"][0], strict=True))
    assert row["sensor"] is None and row["appearance"] == 0.1


def test_photos_have_no_effect_on_a_page_without_any(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(BROWN.as_json()))
    with pytest.raises(UsageError, match="--images has no effect"):
        hardnet_sfm.write_report(tmp_path / "scores.json", images=tmp_path)


@pytest.mark.parametrize(("name", "said"), [("page.txt", "not a page"), ("nowhere/page.html", "no such folder")])
def test_a_page_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        hardnet_sfm.write_report(tmp_path / "nothing.json", tmp_path / name)


def test_what_is_missing_in_a_file_is_named(tmp_path: Path) -> None:
    other = tmp_path / "summary.json"
    other.write_text("{}")
    with pytest.raises(HardnetSfmError, match="it has no 'data_set'"):
        hardnet_sfm.write_report(other)
