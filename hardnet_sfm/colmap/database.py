"""A COLMAP database: keypoints, matches and their geometric verification."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.colmap.guided import Described, guided_matches
from hardnet_sfm.colmap.two_view import Verification
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.ownership import FACTS
from hardnet_sfm.keypoints import Keypoints, PhotoPair
from hardnet_sfm.photos import sensor_from_upright

# Pairs verified between two commits. A killed run loses at most these, a second's work.
_PAIRS_A_COMMIT = 64


@dataclass(frozen=True)
class Guide:
    """Descriptors and threshold for guided matching.

    Attributes:
        descriptors: returns the (M, D) float32 descriptors, of unit length, of the first M keypoints of a photo.
        max_ratio: largest ratio of the ratio test.
    """

    descriptors: Callable[[str], NDArray[np.float32]]
    max_ratio: float


class Database:
    """An open COLMAP database that contains photos. Use it as a context manager.

    Attributes:
        ids: COLMAP's number of each photo by its name.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._database = pycolmap.Database.open(path)
        except RuntimeError as error:
            raise HardnetSfmError(f"{path}: not a COLMAP database, or damaged", "Delete it and run again.") from error
        self.ids: dict[str, int] = {image.name: image.image_id for image in self._database.read_all_images()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def write_keypoints(self, photos: Iterable[tuple[str, Keypoints, int, tuple[int, int]]]) -> None:
        """Writes keypoints of many photos, and replaces those that a photo already has.

        Args:
            photos: name, keypoints, EXIF orientation and (width, height) of each upright photo.
        """
        with pycolmap.DatabaseTransaction(self._database):
            for name, keypoints, orientation, size in photos:
                number, rows = self.ids[name], colmap_keypoints(keypoints, orientation, size)
                known = self._database.exists_keypoints(number)
                (self._database.update_keypoints if known else self._database.write_keypoints)(number, rows)

    def write_matches(self, pairs: Iterable[tuple[str, str, NDArray[np.int32]]]) -> None:
        """Writes putative matches: names of two photos and (M, 2) row numbers of their keypoints."""
        with pycolmap.DatabaseTransaction(self._database):
            for first, second, rows in pairs:
                self._database.write_matches(self.ids[first], self.ids[second], rows.astype(np.uint32))

    def forget(self, pairs: Iterable[PhotoPair]) -> None:
        """Removes the matches and the two-view geometry of pairs. A pair may have none."""
        with pycolmap.DatabaseTransaction(self._database):
            for first, second in pairs:
                self._database.delete_matches(self.ids[first], self.ids[second])
                self._database.delete_two_view_geometry(self.ids[first], self.ids[second])

    def unverified(self, pairs: list[PhotoPair]) -> list[PhotoPair]:
        """Returns the pairs whose two-view geometry is not estimated yet."""
        exists = self._database.exists_two_view_geometry
        return [pair for pair in pairs if not exists(self.ids[pair[0]], self.ids[pair[1]])]

    def verify(
        self,
        pairs: list[PhotoPair],
        how: Verification,
        threads: int,
        pixels: Mapping[str, float] | None = None,
        guide: Guide | None = None,
    ) -> Iterator[PhotoPair]:
        """Estimates the two-view geometry of each pair, and yields each pair once it is safe on disk.

        Args:
            pairs: names of the photos of each pair.
            how: options of the estimation.
            threads: number of threads.
            pixels: number of pixels to which one pixel of `how.max_error` corresponds, for photos where it is not 1.
                The larger number of a pair's photos counts.
            guide: finds more matches of verified pairs.
        """
        pixels = pixels or {}
        cameras = {camera.camera_id: camera for camera in self._database.read_all_cameras()}
        camera_of = {image.name: cameras[image.camera_id] for image in self._database.read_all_images()}
        keypoints = {name: self._database.read_keypoints(number) for name, number in self.ids.items()}
        points = {name: rows[:, :2].astype(np.float64) for name, rows in keypoints.items()}

        def estimate(pair: PhotoPair, rows: NDArray[np.uint32]) -> pycolmap.TwoViewGeometry:
            first, second = pair
            scaled = how.scaled(max(pixels.get(name, 1.0) for name in pair))
            geometry = pycolmap.estimate_two_view_geometry(
                camera_of[first], points[first], camera_of[second], points[second], rows, scaled.options()
            )
            if guide is not None and len(geometry.inlier_matches) >= how.min_inliers:
                one, two = (Described(points[name], guide.descriptors(name), camera_of[name]) for name in pair)
                more = guided_matches(one, two, geometry, scaled.max_error, guide.max_ratio)
                geometry.inlier_matches = np.concatenate([geometry.inlier_matches, more.astype(np.uint32)])
            return geometry

        with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
            for start in range(0, len(pairs), _PAIRS_A_COMMIT):
                block = pairs[start : start + _PAIRS_A_COMMIT]
                matches = [self._database.read_matches(self.ids[first], self.ids[second]) for first, second in block]
                geometries = list(pool.map(estimate, block, matches))
                with pycolmap.DatabaseTransaction(self._database):
                    for (first, second), geometry in zip(block, geometries, strict=True):
                        if len(geometry.inlier_matches) < how.min_inliers:
                            geometry = pycolmap.TwoViewGeometry()
                        self._database.write_two_view_geometry(self.ids[first], self.ids[second], geometry)
                yield from block

    def verified(self) -> dict[PhotoPair, int]:
        """Returns the number of inliers of each verified pair."""
        names = {number: name for name, number in self.ids.items()}
        pair_ids, inliers = self._database.read_two_view_geometry_num_inliers()
        pairs = (pycolmap.pair_id_to_image_pair(pair_id) for pair_id in pair_ids)
        return {(names[a], names[b]): count for (a, b), count in zip(pairs, inliers, strict=True) if count}

    def inliers(self, pair: PhotoPair) -> NDArray[np.int32]:
        """Returns the (M, 2) row numbers of a verified pair's keypoints that agree with its two-view geometry."""
        geometry = self._database.read_two_view_geometry(self.ids[pair[0]], self.ids[pair[1]])
        return np.asarray(geometry.inlier_matches, np.int32).reshape(-1, 2)

    def cameras(self) -> int:
        """Returns the number of cameras."""
        return int(self._database.num_cameras())

    def guessed_cameras(self) -> int:
        """Returns the number of cameras whose focal length comes neither from EXIF data nor from the user."""
        return sum(not camera.has_prior_focal_length for camera in self._database.read_all_cameras())


def colmap_keypoints(keypoints: Keypoints, orientation: int, size: tuple[int, int]) -> Float32:
    """Converts keypoints to COLMAP's convention.

    Pixels are those of the photo as stored in the file, with the centre of the top-left pixel at (0.5, 0.5).

    Args:
        keypoints: N keypoints of the upright photo.
        orientation: EXIF orientation of the photo, 1 to 8.
        size: (width, height) of the upright photo.

    Returns:
        (N, 4) float32 x, y, scale, orientation in radians; with affine frames (N, 6) x, y, a11, a12, a21, a22.
    """
    to_sensor = sensor_from_upright(orientation, size)
    xy = keypoints.xy @ to_sensor[:, :2].T + to_sensor[:, 2] + 0.5
    frames = to_sensor[:, :2] @ keypoints.frames()
    if keypoints.affines is not None:
        return np.concatenate([xy, frames.reshape(-1, 4)], 1).astype(np.float32)
    # A mirrored photo also mirrors the frame. Scale and angle cannot express that, so the x axis keeps its direction.
    angle = np.arctan2(frames[:, 1, 0], frames[:, 0, 0])
    return np.column_stack([xy, keypoints.scales, angle]).astype(np.float32)


def read_fact(database: Path, key: str) -> str:
    """Reads a fact that `write_fact` noted; empty if there is no such fact or no database."""
    if not database.is_file():
        return ""
    try:
        with closing(sqlite3.connect(database)) as opened:
            if not opened.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (FACTS,)).fetchone():
                return ""
            row = opened.execute(f"SELECT value FROM {FACTS} WHERE key = ?", (key,)).fetchone()
    except sqlite3.DatabaseError as error:
        raise HardnetSfmError(f"{database}: not a COLMAP database, or damaged", "Delete it and run again.") from error
    return str(row[0]) if row else ""


def write_fact(database: Path, key: str, value: str) -> None:
    """Notes a fact in our own table, which COLMAP ignores and `drop_facts` removes."""
    with closing(sqlite3.connect(database)) as opened, opened:
        opened.execute(f"CREATE TABLE IF NOT EXISTS {FACTS} (key TEXT PRIMARY KEY, value TEXT)")
        opened.execute(f"INSERT OR REPLACE INTO {FACTS} VALUES (?, ?)", (key, value))


def copy_database(source: Path, target: Path) -> None:
    """Copies a database with the content of its write-ahead log."""
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as opened, closing(sqlite3.connect(target)) as beside:
        opened.backup(beside)


def replace_database(fresh: Path, database: Path) -> None:
    """Replaces a database by another closed one, and removes stale write-ahead logs."""
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    fresh.replace(database)


def drop_facts(database: Path) -> None:
    """Removes our own table, so that the database is as COLMAP would write it."""
    with closing(sqlite3.connect(database)) as opened, opened:
        opened.execute(f"DROP TABLE IF EXISTS {FACTS}")
