"""The table of descriptors and measures, as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from printed import cells, text

from hardnet_sfm.evaluation.scores import Measure, ScoreTable, append_mean

FPR = Measure(
    "fpr95",
    "FPR95, %",
    {
        "rootsift": {"liberty": 0.25, "yosemite": 0.5},
        "mine [v2]": {"liberty": 0.012, "yosemite": 0.75},
        "new": {"yosemite": 0.6},
    },
    ".2%",
    lower_is_better=True,
    marked=frozenset({("mine [v2]", "liberty")}),
    mark="trained on this very set",
)
RIGHT = Measure(
    "right", "right matches", {"rootsift": {"a": 12.4, "mean": 12.4}, "hardnet": {"a": 20.6, "mean": 20.6}}, ".0f"
)


def test_rows_are_descriptors_and_a_star_says_what_is_not_to_be_compared() -> None:
    lines = text(ScoreTable("brown", (FPR,), {}))
    assert lines[0] == "brown: FPR95, %"
    assert cells(lines[2]) == ["", "liberty", "yosemite"]
    assert [cells(line) for line in lines[4:7]] == [
        ["rootsift", "25.00", "50.00"],
        ["mine [v2]", "1.20*", "75.00"],
        ["new", "-", "60.00"],
    ]
    assert lines[8].strip() == "* trained on this very set"


def test_what_rows_were_trained_on_is_shown() -> None:
    lines = text(ScoreTable("brown", (FPR,), {"mine [v2]": {"trained_on": ["liberty", "yosemite"]}, "new": {}}))
    assert [cells(lines[at])[:2] for at in (2, 4, 5)] == [
        ["", "trained on"],
        ["rootsift", ""],
        ["mine [v2]", "liberty, yosemite"],
    ]


def test_descriptors_may_be_the_columns() -> None:
    lines = text(ScoreTable("homography", (RIGHT,), {}, across=True))
    assert [cells(lines[at]) for at in (2, 4, 6)] == [
        ["", "rootsift", "hardnet"],
        ["a", "12", "21"],
        ["mean", "12", "21"],
    ]


def test_the_best_in_a_column_is_one_that_may_be_compared() -> None:
    assert (FPR.best("liberty"), FPR.best("yosemite"), RIGHT.best("a")) == (0.25, 0.5, 20.6)
    assert math.isnan(FPR.best("notredame"))
    assert FPR.cell("rootsift", "liberty") == "[bold]25.00[/]"


def test_csv_has_a_line_for_each_value() -> None:
    rows = list(csv.DictReader(io.StringIO(ScoreTable("d", (FPR, RIGHT), {}).as_csv())))
    assert len(rows) == 9
    assert rows[2] == {
        "data_set": "d",
        "measure": "fpr95",
        "descriptor": "mine [v2]",
        "column": "liberty",
        "value": "0.012",
        "mark": "trained on this very set",
    }
    assert [row["mark"] for row in rows].count("") == 8


def test_json_has_everything() -> None:
    table = ScoreTable("d", (FPR,), {"new": {"weights_sha256": "ab"}}, {"pairs": 3}, ("a note",))
    content = json.loads(json.dumps(table.as_json()))
    assert content["measures"]["fpr95"]["mine [v2]"] == {"liberty": 0.012, "yosemite": 0.75}
    assert content["tables"] == {
        "fpr95": {"title": "FPR95, %", "form": ".2%", "lower_is_better": True, "mark": "trained on this very set"}
    }
    assert content["across"] is False
    assert content["marked"] == {"fpr95": [["mine [v2]", "liberty"]]}
    assert (content["pairs"], content["notes"], content["descriptors"]["new"]["weights_sha256"]) == (
        3,
        ["a note"],
        "ab",
    )


def test_mean_is_the_last_column() -> None:
    assert list(append_mean({"a": 1.0, "b": 2.0}).items()) == [("a", 1.0), ("b", 2.0), ("mean", pytest.approx(1.5))]
