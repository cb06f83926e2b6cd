"""Local affine frames of the keypoints behind a COLMAP model: finds their file and assigns them to observations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32, Float64
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.keypoints import Keypoints, within_reach
from hardnet_sfm.photos import sensor_from_upright

Rows = NDArray[np.intp]

# Largest distance from an observation to its keypoint, pixels. A model stores the positions of the keypoints that it
# was made from. They differ only by rounding and by the pixel coordinate convention.
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
        """Maps the frames to other pixels by a (2, 3) affine map."""
        xy = self.xy @ affine[:, :2].T + affine[:, 2]
        return Frames(xy.astype(np.float32), (affine[:, :2] @ self.axes).astype(np.float32))

    def select(self, rows: Rows) -> Frames:
        """Returns the frames at the given row numbers, with NaN for row -1."""
        with_nothing = (
            np.concatenate([part, np.full_like(part[:1], np.nan, shape=(1, *part.shape[1:]))])
            for part in (self.xy, self.axes)
        )
        return Frames(*(part[rows] for part in with_nothing))


def frames_of_keypoints(keypoints: Keypoints, orientation: int, size: tuple[int, int]) -> Frames:
    """Converts keypoints of an upright photo to frames in COLMAP's pixels.

    COLMAP's pixels are those of the photo as stored, with the centre of the first pixel at (0.5, 0.5).

    Args:
        keypoints: keypoints of the upright photo.
        orientation: EXIF orientation, 1 to 8.
        size: (width, height) of the upright photo.
    """
    return Frames(keypoints.xy, keypoints.frames()).through(stored_from_upright(orientation, size))


def stored_from_upright(orientation: int, size: tuple[int, int]) -> Float64:
    """Returns the (2, 3) map from our pixels of the upright photo to COLMAP's pixels."""
    affine = sensor_from_upright(orientation, size)
    affine[:, 2] += 0.5
    return affine


def upright_from_stored(orientation: int, size: tuple[int, int]) -> Float64:
    """Returns the (2, 3) map from COLMAP's pixels to our pixels of the upright photo of the given size."""
    affine = stored_from_upright(orientation, size)
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


def frames_of_table(table: Float32 | None) -> Frames | None:
    """Returns the frames of a COLMAP keypoint table, in COLMAP's pixels, or None if it has no scale and orientation.

    It has none if there is no table, if the table has 2 columns, or if all of its frames are equal. COLMAP fills in
    equal frames when it is given positions only.

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
    """Finds the keypoint of each observation of a photo, or -1 if no keypoint is within reach.

    Keypoints with several orientations share a position. So the row numbers decide if the model was made from these
    very keypoints. Otherwise the nearest keypoint is chosen, and the first one of several that are equally near.

    Args:
        xy: (N, 2) positions of the observations, pixels.
        row: (N,) row number of each observation's keypoint when the model was made.
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
    """Finds our features or COLMAP's database in the model's folder or up to two folders above it, as for sparse/0."""
    here = folder.resolve()
    candidates = (place / name for place in (here, *here.parents[:2]) for name in ("features.h5", "database.db"))
    return next((path for path in candidates if path.is_file()), None)


@contextmanager
def known_frames(path: Path | None) -> Iterator[Callable[[str], Frames | None]]:
    """Yields a function that maps a photo's name to its frames in a file, in COLMAP's pixels."""
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
