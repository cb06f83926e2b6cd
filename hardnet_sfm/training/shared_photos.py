"""Finds photos that are in the patches for training and in those for validation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from hardnet_sfm.patch_set import PatchSet
from hardnet_sfm.photo_names import composed

# Share of a photo's positions that must be equal. Other photos of the same name have hardly any in common.
_EQUAL = 0.1


def describe_shared_photos(training: Sequence[PatchSet], held_out: Sequence[PatchSet]) -> list[str]:
    """Says for each validation set how many of its photos are trained on, as text for the user."""
    lines = []
    for one in held_out:
        for other in training:
            same = Path(one.origin).resolve() == Path(other.origin).resolve()
            count = len(one.images) if same else _count_shared(one, other)
            if count:
                lines.append(
                    f"{count} of {len(one.images)} photos of {one.origin} are also in {other.origin}. The measured "
                    "values say nothing about new photos: give --validation patches of another scene"
                )
    return lines


def _count_shared(one: PatchSet, other: PatchSet) -> int:
    """Counts photos with equal names and equal positions of patches. Positions that are not known are not equal."""
    names = {composed(name): number for number, name in enumerate(one.images)}
    both = {number: at for number, name in enumerate(other.images) if (at := names.get(composed(name))) is not None}
    if not both:
        return 0
    there, here = _positions(other, both.keys()), _positions(one, both.values())
    return sum(len(here[at] & there[number]) > _EQUAL * len(here[at]) for number, at in both.items())


def _positions(of: PatchSet, photos: Collection[int]) -> dict[int, set[tuple[float, float]]]:
    """Returns the positions of the patches of some photos, in hundredths of a pixel."""
    xy = np.round(of.frame[:, :, 2].astype(np.float64), 2)
    rows = np.flatnonzero(np.isin(of.image, list(photos)) & np.isfinite(xy).all(1))
    found: dict[int, set[tuple[float, float]]] = defaultdict(set)
    for photo, position in zip(of.image[rows].tolist(), xy[rows].tolist(), strict=True):
        found[photo].add((position[0], position[1]))
    return found
