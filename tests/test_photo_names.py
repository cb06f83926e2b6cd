"""Composed and decomposed Unicode spellings of a name are the same name."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hardnet_sfm.files.photo_files import read_photo, sha256_of
from hardnet_sfm.photo_names import KnownNames, as_on_disk

COMPOSED, DECOMPOSED = "caf\u00e9.png", "cafe\u0301.png"


@pytest.mark.parametrize(("there", "asked"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_photo_is_read_by_either_spelling(there: str, asked: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / there), np.full((8, 9), 77, np.uint8))
    assert as_on_disk(tmp_path / asked) == tmp_path / there
    assert read_photo(tmp_path / asked).size == (9, 8)
    assert sha256_of(tmp_path / asked) == sha256_of(tmp_path / there)


def test_two_photos_that_differ_in_spelling_only_stay_apart(tmp_path: Path) -> None:
    for value, name in enumerate((COMPOSED, DECOMPOSED)):
        cv2.imwrite(str(tmp_path / name), np.full((8, 9), value, np.uint8))
        assert read_photo(tmp_path / name).grey[0, 0] == value
    known = KnownNames([COMPOSED, DECOMPOSED])
    assert (known.find(COMPOSED), known.find(DECOMPOSED)) == (COMPOSED, DECOMPOSED)
    assert KnownNames([COMPOSED]).find(DECOMPOSED) == COMPOSED
    assert KnownNames([COMPOSED]).find("cafe.png") is None
