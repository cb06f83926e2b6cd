"""ROxford5k and RParis6k: new ground truth for Oxford5k and Paris6k, in three setups.

Radenovic, Iscen, Tolias, Avrithis and Chum, Revisiting Oxford and Paris: large-scale image retrieval benchmarking, CVPR
2018. The photos of the queries are not in the collection. The boxes are cropped from them before anything is computed.
Each query has easy, hard and junk photos. The setup decides which of them are positives and which are ignored:

    easy     easy photos are positives; hard and junk photos are ignored
    medium   easy and hard photos are positives; junk photos are ignored
    hard     hard photos are positives; easy and junk photos are ignored
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.parts import read_parts
from hardnet_sfm.evaluation.datasets.pickles import read_plain_pickle
from hardnet_sfm.evaluation.landmarks import LandmarkQuery, Landmarks, Relevance, check_box
from hardnet_sfm.photo_names import composed

EASY, MEDIUM, HARD = SETUPS = ("easy", "medium", "hard")
_HINT = "It is gnd_roxford5k.pkl or gnd_rparis6k.pkl, from the authors of the benchmark."


def read_revisited(path: Path) -> Landmarks:
    """Reads `gnd_roxford5k.pkl` or `gnd_rparis6k.pkl` without running code that may be hidden in it.

    Raises:
        HardnetSfmError: the file is missing, is damaged, has more than plain data in it or has other data.
    """
    content = read_plain_pickle(path)
    try:
        photos, queries, truths = content["imlist"], content["qimlist"], content["gnd"]
        _check(len(queries) == len(truths), f"{len(queries)} queries with {len(truths)} answers")
        _check(all(isinstance(name, str) for name in (*photos, *queries)), "names of photos that are no text")
        photos, queries = ([composed(name) for name in names] for names in (photos, queries))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _other_data(path, error) from error
    rows = ((name, (name, truth)) for name, truth in zip(queries, truths, strict=True))
    found, left_out = read_parts(rows, lambda row: _query(path, *row, photos=photos))
    reasons = {name: error.message for name, error in left_out.items()}
    return Landmarks(tuple(found), SETUPS, frozenset(photos), reasons)


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _query(path: Path, name: str, truth: Any, *, photos: Sequence[str]) -> LandmarkQuery:
    try:
        easy, hard, junk = (_names(truth[kind], photos) for kind in ("easy", "hard", "junk"))
        box = check_box(np.asarray(truth["bbx"], np.float64).ravel().tolist(), f"{path}: {name}: ")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _other_data(path, error) from error
    relevance = {
        EASY: Relevance(easy, (junk | hard) - easy),
        MEDIUM: Relevance(easy | hard, junk - (easy | hard)),
        HARD: Relevance(hard, (junk | easy) - hard),
    }
    return LandmarkQuery(name, name, box, relevance)


def _other_data(path: Path, error: Exception) -> HardnetSfmError:
    what = f"no {error}" if isinstance(error, KeyError) else error
    return HardnetSfmError(f"{path}: not ground truth of the revisited benchmark: {what}", _HINT)


def _names(numbers: Any, photos: Sequence[str]) -> frozenset[str]:
    rows = np.asarray(numbers, np.float64).ravel()
    _check(bool((rows == np.floor(rows)).all()), "photos that are not given by whole numbers")
    _check(bool(((rows >= 0) & (rows < len(photos))).all()), "a photo that is not in the list")
    return frozenset(photos[int(row)] for row in rows)
