"""The page about an evaluation on landmarks, on patches, or on photos of known geometry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardnet_sfm.pages.landmark_charts import collect_landmarks
from hardnet_sfm.pages.page import make_page
from hardnet_sfm.pages.score_charts import collect_scores
from hardnet_sfm.photos import PhotoSource


def shows_photos(table: Mapping[str, Any]) -> bool:
    """Says whether the page about an evaluation can show photos: whether it ranked photos."""
    return "measures" not in table


def make_evaluation_page(table: Mapping[str, Any], photos: PhotoSource | None, threads: int) -> str:
    """Makes the HTML about the results of `evaluate --json`, for any data set.

    Args:
        table: contents of the .json file.
        photos: for an evaluation on landmarks, gives the photos of the data set; the page then shows the photos found.
        threads: number of threads to decode photos with.

    Raises:
        HardnetSfmError: there are no photos.
        KeyError, TypeError, ValueError, AttributeError: the table has other contents.
    """
    title = f"{table['data_set']}: evaluation"
    if shows_photos(table):
        return make_page(title, "landmarks", collect_landmarks(table, photos, threads))
    return make_page(title, "scores", collect_scores(table))
