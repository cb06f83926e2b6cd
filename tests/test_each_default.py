"""The table of what each default gives, on the rendered scene."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.resources import Resources
from hardnet_sfm.scene import Scene
from hardnet_sfm.verbs.match import MatchOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
import each_default

CPU = Resources("cpu", 1)
FEW = ExtractOptions(descriptor="rootsift", max_keypoints=600, orientation="upright")


def test_a_variant_repeats_what_its_option_touches_and_no_more(small_scene: tuple[Path, Scene], tmp_path: Path) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    before = each_default.run(small_scene[0], first, first, {"extract_options": FEW}, CPU)
    strict = {"extract_options": FEW, "match_options": MatchOptions(max_ratio=0.6)}
    after = each_default.run(small_scene[0], other, first, strict, CPU)
    assert before["registered"] == 8 and after["keypoints"] == before["keypoints"]
    assert after["matches"] < before["matches"] and after["verified_matches"] < before["verified_matches"]
    features = [Workspace(folder).features for folder in (first, other)]
    assert features[0].stat().st_mtime_ns == features[1].stat().st_mtime_ns


def test_the_options_of_every_variant_are_what_its_name_says() -> None:
    """Each option of the name is a field that differs from the default."""
    for name, options in each_default.VARIANTS.items():
        said = {word[2:].removeprefix("no-").replace("-", "_") for word in name.split() if word.startswith("--")}
        changed = {
            field
            for one in options.values()
            for field, value in vars(one).items()
            if value != getattr(type(one)(), field)
        }
        assert said == changed, name


def test_rows_of_a_scene_are_printed_with_the_error_where_truth_is_known() -> None:
    row = {
        **{"keypoints": 4000, "photos": 4, "matches": 900, "verified_pairs": 5, "verified_matches": 800},
        **{"registered": 3, "points": 200, "mean_track_length": 2.5, "position_error": "2.6 mm"},
    }
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(each_default.table_of("statue", {"the defaults": row, "--max-ratio 0.8": {"error": "nothing"}}))
    lines = [[cell.strip() for cell in line.split("│")] for line in console.export_text().splitlines() if "│" in line]
    assert lines[0][1:-1] == ["the defaults", "1000", "900", "5", "800", "3", "200", "2.50", "2.6 mm"]
    assert lines[1][2] == "no model"


@pytest.mark.parametrize("name", each_default.VARIANTS)
def test_folders_of_variants_have_plain_names(name: str) -> None:
    assert each_default.folder_of(name).replace("-", "").replace("_", "").isalnum()
