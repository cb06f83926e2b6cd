"""The table of descriptors and methods, as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json

from printed import cells, text

from hardnet_sfm.evaluation.landmarks import ORIGINAL, QueryScore
from hardnet_sfm.evaluation.tables import Cell, LandmarkTable, heading


def score(average: float, *precisions: float) -> QueryScore:
    return QueryScore(average, precisions or (average,) * 3)


ORIGINAL_TABLE = LandmarkTable(
    "oxford5k",
    (ORIGINAL,),
    {
        "rootsift": {
            "bow": Cell({ORIGINAL: {"a_1": score(0.5), "a_2": score(0.7)}}, 0.25),
            "hqe+ma": Cell({ORIGINAL: {"a_1": score(0.8), "a_2": score(0.9)}}, 0.5),
        },
        "mine [v2]": {"bow": Cell({ORIGINAL: {"a_1": score(0.25), "a_2": score(1)}}, 0.25)},
    },
    {"rootsift": {"weights_sha256": "", "words": 1000}, "mine [v2]": {"weights_sha256": "ab", "words": 1000}},
    218,
    {"a_1": ("a_photo", (1.0, 2.0, 3.0, 4.0)), "a_2": ("other", (0.0, 0.0, 9.0, 9.0))},
    {"b_1": "its photo x is not there"},
)
REVISITED_TABLE = LandmarkTable(
    "roxford5k",
    ("easy", "hard"),
    {"rootsift": {"asmk": Cell({"easy": {"q": score(0.75, 1, 0.6, 0.5)}, "hard": {}}, 0.1)}},
    {"rootsift": {}},
    10,
    {"q": ("q", (0.0, 0.0, 9.0, 9.0))},
)


def test_rows_are_descriptors_and_columns_methods_in_per_cent() -> None:
    lines = text(ORIGINAL_TABLE)
    assert lines[0].strip() == "oxford5k: mAP of 2 queries in 218 photos, %"
    assert [cells(line) for line in lines[2:4]] == [["", "", "HQE"], ["", "BoW", "+MA"]]
    assert [cells(line) for line in lines[5:7]] == [["rootsift", "60.0", "85.0"], ["mine [v2]", "62.5", "-"]]


def test_revisited_has_a_table_for_each_setup_with_precisions() -> None:
    lines = text(REVISITED_TABLE)
    assert lines[0].strip() == "roxford5k, easy: mAP of 1 queries in 10 photos, %"
    assert [cells(line) for line in lines[4:8]] == [
        ["rootsift", "75.0"],
        ["mP@1", "100.0"],
        ["mP@5", "60.0"],
        ["mP@10", "50.0"],
    ]
    assert lines[9].strip() == "roxford5k, hard: mAP of 0 queries in 10 photos, %"
    assert cells(lines[13]) == ["rootsift", "-"]


def test_headings_are_those_of_the_literature() -> None:
    methods = ("bow", "bow+sv", "bow+sv+qe", "he", "hqe+ma", "asmk")
    names = [heading(method).replace("\n", "") for method in methods]
    assert names == ["BoW", "BoW+SV", "BoW+SV+QE", "HE", "HQE+MA", "ASMK"]


def test_csv_has_a_line_for_each_descriptor_method_and_setup() -> None:
    rows = list(csv.DictReader(io.StringIO(ORIGINAL_TABLE.as_csv())))
    assert [(row["descriptor"], row["method"], float(row["map"])) for row in rows] == [
        ("rootsift", "bow", 0.6),
        ("rootsift", "hqe+ma", 0.8500000000000001),
        ("mine [v2]", "bow", 0.625),
    ]
    rows = list(csv.DictReader(io.StringIO(REVISITED_TABLE.as_csv())))
    assert [(row["setup"], row["queries"], row["map"], row["mp_at_5"]) for row in rows] == [
        ("easy", "1", "0.75", "0.6"),
        ("hard", "0", "", ""),
    ]


def test_json_has_every_query() -> None:
    content = json.loads(json.dumps(ORIGINAL_TABLE.as_json()))
    assert (content["photos"], content["left_out"]) == (218, {"b_1": "its photo x is not there"})
    assert content["queries"]["a_1"] == {"photo": "a_photo", "box": [1, 2, 3, 4]}
    assert content["descriptors"]["mine [v2]"]["weights_sha256"] == "ab"
    first = content["results"][0]
    assert (first["descriptor"], first["method"], first["seconds_a_query"]) == ("rootsift", "bow", 0.25)
    assert first["setups"][ORIGINAL]["map"] == 0.6
    assert first["setups"][ORIGINAL]["queries"]["a_2"] == {"ap": 0.7, "p_at": {"1": 0.7, "5": 0.7, "10": 0.7}}
    hard = json.loads(json.dumps(REVISITED_TABLE.as_json()))["results"][0]["setups"]["hard"]
    assert hard == {"map": None, "mp_at": None, "queries": {}}
