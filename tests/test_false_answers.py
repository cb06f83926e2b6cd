"""pipelines/false_answers.py as a user runs it: made-up features, whose answers are known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from collections_of_features import keypoints_of, some_photos, store_of, unit_rows
from numpy.random import default_rng

from hardnet_sfm.verbs.index import index
from hardnet_sfm.verbs.vocabulary import VocabularyOptions, vocabulary

SCRIPT = Path(__file__).parents[1] / "pipelines" / "false_answers.py"


def test_a_photo_of_the_index_is_answered_and_a_stranger_is_not(tmp_path: Path) -> None:
    photos = some_photos(4)
    store_of(tmp_path / "features.h5", photos)
    vocabulary(tmp_path / "features.h5", tmp_path / "vocabulary", VocabularyOptions(words=16, iterations=3))
    index(tmp_path / "features.h5", tmp_path, tmp_path / "index")
    random = default_rng(1)
    others = {f"o{number}.jpg": (keypoints_of(random, 60), unit_rows(random, 60)) for number in range(3)}
    store_of(tmp_path / "others" / "features.h5", {**others, "own.jpg": photos["folder/2.jpg"]})
    arguments = [SCRIPT, tmp_path, "--strangers", tmp_path / "others" / "features.h5", "--methods", "he+sv"]
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=True)
    row = next(line for line in done.stdout.splitlines() if "he+sv" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")][:4] == ["he+sv", "4", "1", "60"]
