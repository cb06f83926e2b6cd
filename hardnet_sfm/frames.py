"""Local affine frames of the keypoints that a COLMAP model was made of: where they are known, and whose each one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.files.photo_files import sensor_from_upright
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.keypoints import Float32, Keypoints, within_reach

Float64 = NDArray[np.float64]
Rows = NDArray[np.intp]

# From an observation to its keypoint, pixels. A model holds the very positions of the keypoints it was made of, but for
# rounding and who counts from where.
REACH = 0.5


@dataclass(frozen=True)
class Frames:
    """N positions with local affine frames in one photo.

    Attributes:
        xy: (N, 2) float32, pixels.
        axes: (N, 2, 2) float32, pixels per sigma.
    """

    xy: Float32
    axes: Float32

    def through(self, affine: Float64) -> Frames:
        """The same in pixels that a (2, 3) affine map leads to."""
        xy = self.xy @ affine[:, :2].T + affine[:, 2]
        return Frames(xy.astype(np.float32), (affine[:, :2] @ self.axes).astype(np.float32))

    def select(self, rows: Rows) -> Frames:
        """The frames at the given row numbers, NaN for row -1."""
        with_nothing = (
            np.concatenate([part, np.full_like(part[:1], np.nan, shape=(1, *part.shape[1:]))])
            for part in (self.xy, self.axes)
        )
        return Frames(*(part[rows] for part in with_nothing))


def frames_of_keypoints(keypoints: Keypoints, orientation: int, size: tuple[int, int]) -> Frames:
    """Keypoints of an upright photo as frames in COLMAP's pixels: as stored, first pixel's centre at (0.5, 0.5).

    Args:
        keypoints: of the upright photo.
        orientation: EXIF orientation, 1 to 8.
        size: (width, height) of the upright photo.
    """
    return Frames(keypoints.xy, keypoints.frames()).through(stored_from_upright(orientation, size))


def stored_from_upright(orientation: int, size: tuple[int, int]) -> Float64:
    """(2, 3) map from our pixels, of the upright photo, to COLMAP's."""
    affine = sensor_from_upright(orientation, size)
    affine[:, 2] += 0.5
    return affine


def upright_from_stored(orientation: int, size: tuple[int, int]) -> Float64:
    """(2, 3) map from COLMAP's pixels to ours, of the upright photo of the given size."""
    affine = stored_from_upright(orientation, size)
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


def frames_of_table(table: Float32 | None) -> Frames | None:
    """Frames of a keypoint table of COLMAP's, in its pixels; None where it says nothing of scale and orientation.

    That is so where there is no table, or it has 2 columns, or all of its frames are the same: then they are what
    COLMAP fills in for positions alone.

    Args:
        table: (N, 2), (N, 4) x, y, scale, radians or (N, 6) x, y, a11, a12, a21, a22.
    """
    if table is None or table.shape[1] < 4 or (len(table) > 1 and np.ptp(table[:, 2:], axis=0).max() == 0):
        return None
    xy = np.ascontiguousarray(table[:, :2])
    if table.shape[1] == 6:
        return Frames(xy, table[:, 2:].reshape(-1, 2, 2))
    return Frames(xy, Keypoints(xy, table[:, 2], np.rad2deg(table[:, 3]), table[:, 2]).frames())


def associated(xy: Float64, row: NDArray[np.integer], found: Frames, reach: float) -> Rows:
    """Which keypoint each observation of a photo is, or -1 where none is within reach.

    Keypoints with several orientations share a position, so rows decide where the model was made of these very
    keypoints; else the nearest one does, the first of those that are equally near.

    Args:
        xy: (N, 2) positions of the observations, pixels.
        row: (N,) which keypoint each was when the model was made.
        found: the photo's keypoints.
        reach: largest distance, pixels.
    """
    if not len(xy) or not len(found.xy):
        return np.full(len(xy), -1)
    if row.max() < len(found.xy) and np.linalg.norm(found.xy[row] - xy, axis=1).max() <= reach:
        return row.astype(np.intp)
    observation, keypoint = within_reach(xy, found.xy, reach)
    distance = np.linalg.norm(found.xy[keypoint] - xy[observation], axis=1)
    order = np.lexsort((keypoint, distance))
    order = order[distance[order] <= reach]
    nearest = np.full(len(xy), -1)
    first_of, first = np.unique(observation[order], return_index=True)
    nearest[first_of] = keypoint[order][first]
    return nearest


def beside(folder: Path) -> Path | None:
    """Our features or COLMAP's database, in the model's folder or up to two above, as in sparse/0."""
    here = folder.resolve()
    candidates = (place / name for place in (here, *here.parents[:2]) for name in ("features.h5", "database.db"))
    return next((path for path in candidates if path.is_file()), None)


@contextmanager
def known_frames(path: Path | None) -> Iterator[Callable[[str], Frames | None]]:
    """Gives a function from a photo's name to the frames, in COLMAP's pixels, that a file has of it."""
    from hardnet_sfm.colmap.tracks import keypoint_tables

    if path is None:
        yield lambda _: None
    elif h5py.is_hdf5(path):
        with FeatureStore(path) as features:

            def of_features(name: str) -> Frames | None:
                if name not in features.index:
                    return None
                return frames_of_keypoints(features.keypoints(name), features.orientation(name), features.size(name))

            yield of_features
    else:
        with keypoint_tables(path) as tables:
            yield lambda name: frames_of_table(tables[name])
