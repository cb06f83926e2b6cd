"""Checks that a store of features or matches holds what its readers rely on, before the numbers are used.

HDF5 notices damage only in compressed arrays and in its own structures. Other damage, and mistakes of programs that
write into a store, would surface far from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TEXTS = ("fingerprint", "name0", "name1", "photo_sha256")
_COUNTS = ("keypoints", "matches", "view_steps")


def check_facts(header: object, index: object) -> None:
    """Checks the facts about a store and about its entries.

    Args:
        header: facts about the whole file.
        index: facts about each entry by its key.

    Raises:
        ValueError: a fact is missing or has a wrong type or value.
    """
    if not isinstance(header, dict) or not isinstance(header.get("options", {}), dict):
        raise ValueError("its header is not an object with options")
    if not isinstance(index, dict):
        raise ValueError("its index is not an object")
    for key, facts in index.items():
        if not isinstance(facts, dict) or "fingerprint" not in facts:
            raise ValueError(f"its index has no fingerprint of {key}")
        wrong = [name for name, value in facts.items() if not _is_right(name, value)]
        if wrong:
            raise ValueError(f"its index has {wrong[0]} {facts[wrong[0]]!r} of {key}")
    names = header.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its header does not list names")


def _is_right(name: str, value: object) -> bool:
    if name in _TEXTS:
        return isinstance(value, str)
    if name in _COUNTS:
        return type(value) is int and value >= 0
    if name == "exif_orientation":
        return type(value) is int and 1 <= value <= 8
    return name != "turn" or (type(value) is int and value in (0, 90, 180, 270))


def check_numbers(name: str, array: NDArray[Any], shape: tuple[int | None, ...]) -> None:
    """Checks that an array has finite floating-point numbers and a shape, in which None stands for any length.

    Raises:
        ValueError: it is something else.
    """
    if array.dtype.kind != "f" or array.ndim != len(shape):
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    if any(wanted not in (None, length) for wanted, length in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} has shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has numbers that are not finite")


def check_keypoints(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Checks the arrays of one photo's keypoints against each other and against the facts about them.

    Raises:
        ValueError: an array has another type or length, or a number is not finite or a scale not positive.
    """
    count = facts.get("keypoints", len(arrays["scales"]))
    for name, array in arrays.items():
        check_numbers(name, array, {"keypoints": (count, 2), "affines": (count, 2, 2)}.get(name, (count,)))
    if not (arrays["scales"] > 0).all():
        raise ValueError("a scale is not positive")


def check_matches(of_first: NDArray[Any], scores: NDArray[Any], facts: Mapping[str, Any]) -> None:
    """Checks the arrays of one pair's matches against each other and against the facts about them.

    Raises:
        ValueError: an array has another type or length, or there is another number of matches.
    """
    if of_first.dtype.kind not in "iu" or of_first.ndim != 1 or (of_first < -1).any():
        raise ValueError(f"matches0 is {of_first.dtype} of shape {of_first.shape}")
    check_numbers("matching_scores0", scores, of_first.shape)
    found = int(np.count_nonzero(of_first >= 0))
    if facts.get("matches", found) != found:
        raise ValueError(f"{found} matches, but the index says {facts['matches']}")
