"""Reads the facts about each photo in a store of features that the checks of `doctor` need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError, file_error
from hardnet_sfm.files.hdf5_files import open_hdf5, read_array, read_attributes
from hardnet_sfm.files.stores import FEATURES, FeatureStore
from hardnet_sfm.progress import progress

# Tolerance in pixels beyond the outermost pixel centres: half a pixel belongs to the photo, and conventions differ by
# another half.
_INSIDE = 1.0


@dataclass(frozen=True)
class PhotoFacts:
    """Facts about the arrays of one photo. The arrays of a thousand photos would not fit into memory.

    Attributes:
        name: name of the photo.
        count: number of keypoints, N.
        kind: type of the keypoints in the file.
        size: width and height; None if the file has none.
        shapes: shapes of all arrays, by name.
        not_finite: names of the arrays with NaN or infinity.
        lengths: smallest and largest length of a descriptor.
        largest: largest absolute coordinate.
        outside: number of keypoints outside the photo by more than conventions differ.
        outside_turned: the same number if the size were (height, width).
        first_half: whether any keypoint is before the first pixel's centre.
        last_half: number of keypoints beyond the last pixel's centre by more than half a pixel.
        grid: grid of the coordinates; None if a coordinate is not a multiple of half a pixel.
        least_scale: smallest scale; None if there are no scales.
        oris: smallest and largest angle; None if there are no angles.
    """

    name: str
    count: int
    kind: str
    size: tuple[int, int] | None
    shapes: dict[str, tuple[int, ...]]
    not_finite: tuple[str, ...]
    lengths: tuple[float, float]
    largest: float
    outside: int
    outside_turned: int
    first_half: bool
    last_half: int
    grid: Grid | None
    least_scale: float | None
    oris: tuple[float, float] | None


@dataclass(frozen=True)
class Grid:
    """The grid of coordinates that are all multiples of half a pixel.

    Attributes:
        count: number of coordinates.
        step: greatest common divisor of their differences, in half pixels; 0 if there are no differences.
        one: one of the coordinates, in half pixels.
    """

    count: int
    step: int
    one: int

    @classmethod
    def of(cls, xy: NDArray[np.float64]) -> Grid | None:
        """Determines the grid of (N, 2) keypoints; None if a coordinate is not a multiple of half a pixel."""
        # Larger coordinates are ignored: the steps of float16 are half a pixel or more there, so all would fit.
        doubled = 2 * xy[np.isfinite(xy) & (np.abs(xy) < 512)]
        if (doubled != np.round(doubled)).any():
            return None
        steps = np.unique(doubled).astype(np.int64)
        if not len(steps):
            return cls(0, 0, 0)
        return cls(len(doubled), int(np.gcd.reduce(np.diff(steps))), int(steps[0]))

    def joined(self, other: Grid) -> Grid:
        """Returns the grid of the coordinates of both."""
        if not self.count or not other.count:
            return self if self.count else other
        return Grid(self.count + other.count, gcd(self.step, other.step, self.one - other.one), self.one)


def read_facts(path: Path) -> tuple[list[PhotoFacts], dict[str, Any] | None]:
    """Reads facts about each photo, and the header of the store if this package wrote it.

    Raises:
        HardnetSfmError: the file is not an HDF5 file, is damaged or has no keypoints in it.
    """
    try:
        with open_hdf5(path, "Make it again, or get a copy.") as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if _is_photo(item) else None)
            ours = read_attributes(path).get("format") == FEATURES.format
            with progress("read", len(names)) as advance:
                photos = []
                for name in names:
                    photos.append(_photo(name, file[name]))
                    advance(note=name)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise file_error(path, error, "a store of features", "Make it again, or get a copy.") from error
    if not photos:
        raise HardnetSfmError(
            f"{path}: no keypoints in it",
            "A store of features has a group for each photo, with keypoints and descriptors in it.",
        )
    if not ours:
        return photos, None
    with FeatureStore(path) as store:
        missing = set(store.names()) ^ {photo.name for photo in photos}
        if missing:
            raise HardnetSfmError(
                f"{path}: damaged: {min(missing)} is in its index or among its photos, not in both",
                "Move it away and run `hardnet-sfm extract` again.",
            )
        return photos, store.header


def _is_photo(item: object) -> bool:
    return isinstance(item, h5py.Group) and isinstance(item.get("keypoints"), h5py.Dataset)


def _photo(name: str, group: h5py.Group) -> PhotoFacts:
    arrays = arrays_of(group)
    keypoints = arrays["keypoints"]
    if keypoints.ndim != 2 or keypoints.shape[1] < 2:
        raise ValueError(f"keypoints of {name} have shape {keypoints.shape}")
    xy = keypoints[:, :2].astype(np.float64)
    descriptors = arrays.get("descriptors", np.zeros((0, 0)))
    lengths = np.zeros(0)
    if descriptors.ndim == 2:
        along = 1 if is_transposed(descriptors.shape, len(xy)) else 0
        lengths = np.linalg.norm(descriptors.astype(np.float32), axis=along)
    given = arrays.get("image_size")
    size = None if given is None or given.shape != (2,) else (int(given[0]), int(given[1]))
    scales, oris = arrays.get("scales"), arrays.get("oris")
    return PhotoFacts(
        name,
        len(xy),
        str(keypoints.dtype),
        size,
        {key: array.shape for key, array in arrays.items()},
        tuple(key for key, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()),
        _range(lengths, 1.0),
        float(np.abs(xy).max(initial=0)),
        0 if size is None else _outside(xy, size),
        0 if size is None else _outside(xy, size[::-1]),
        bool((xy < -1e-3).any()),
        0 if size is None else int((xy > np.array(size) - 0.5).any(axis=1).sum()),
        Grid.of(xy),
        None if scales is None else _range(scales, 1.0)[0],
        None if oris is None else _range(oris, 0.0),
    )


def arrays_of(group: h5py.Group) -> dict[str, NDArray[Any]]:
    """Reads all arrays of numbers of a photo, by name."""
    found = {key: item for key, item in group.items() if isinstance(item, h5py.Dataset) and item.dtype.kind != "O"}
    return {key: read_array(item) for key, item in found.items()}


def _range(values: NDArray[np.floating], where_empty: float) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (where_empty, where_empty)


def is_transposed(shape: tuple[int, ...], count: int) -> bool:
    """Tells whether descriptors are rows, (N, D), instead of columns, (D, N), as hloc stores them."""
    return shape[0] == count != shape[1]


def _outside(xy: NDArray[np.float64], size: Sequence[int]) -> int:
    """Counts the keypoints that are outside a photo by more than conventions differ."""
    return int(((xy < -_INSIDE) | (xy > np.array(size) - 1 + _INSIDE)).any(axis=1).sum())
