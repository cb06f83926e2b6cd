"""A COLMAP database: keypoints, matches and their geometric verification."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.colmap.guided import Described, guided_matches
from hardnet_sfm.colmap.two_view import Verification
from hardnet_sfm.errors import HardnetSfmError, file_error, find_cause, write_error
from hardnet_sfm.files.ownership import FACTS
from hardnet_sfm.keypoints import Keypoints, PhotoPair
from hardnet_sfm.photos import sensor_from_upright

# Pairs verified between two commits. A killed run loses at most these, a second's work.
_PAIRS_A_COMMIT = 64
# COLMAP's number of a pair is that of the one photo times this, plus that of the other.
_MOST_PHOTOS = 2**31 - 1
_OF_PAIRS = ("matches", "two_view_geometries")
# Tables that SQLite numbers, and the columns of the numbers.
_NUMBERED = {"rigs": "rig_id", "cameras": "camera_id", "frames": "frame_id", "images": "image_id"}
_REMEDY = "Move it away and run `hardnet-sfm map` again: it makes a new one."
# SQLite and pycolmap raise these for damaged databases, and RuntimeError for a full disk as well. The number of a photo
# that is missing gives a LookupError.
_FAILURES = (sqlite3.DatabaseError, RuntimeError, ValueError, LookupError, MemoryError, OverflowError)


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

    While it is open, no function of this module that takes the path of a database may be called with its path. pycolmap
    and Python have a copy of SQLite each, and one would remove the write-ahead log of the other.

    Attributes:
        ids: COLMAP's number of each photo by its name.

    Raises:
        HardnetSfmError: any method raises it if the database is damaged, or if it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with explain_failures(path):
            self._database = pycolmap.Database.open(path)
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
        with self._transaction():
            for name, keypoints, orientation, size in photos:
                number, rows = self.ids[name], colmap_keypoints(keypoints, orientation, size)
                known = self._database.exists_keypoints(number)
                (self._database.update_keypoints if known else self._database.write_keypoints)(number, rows)

    def write_matches(self, pairs: Iterable[tuple[str, str, NDArray[np.int32]]]) -> None:
        """Writes putative matches: names of two photos and (M, 2) row numbers of their keypoints."""
        with self._transaction():
            for first, second, rows in pairs:
                self._database.write_matches(self.ids[first], self.ids[second], rows.astype(np.uint32))

    def unverified(self, pairs: list[PhotoPair]) -> list[PhotoPair]:
        """Returns the pairs whose two-view geometry is not estimated yet."""
        exists, with_inliers = self._database.exists_two_view_geometry, {frozenset(pair) for pair in self.verified()}
        rest = [pair for pair in pairs if frozenset(pair) not in with_inliers]
        with explain_failures(self._path):
            return [pair for pair in rest if not exists(self.ids[pair[0]], self.ids[pair[1]])]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with explain_failures(self._path), pycolmap.DatabaseTransaction(self._database):
            yield

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
        with explain_failures(self._path):
            cameras = {camera.camera_id: camera for camera in self._database.read_all_cameras()}
            camera_of = {image.name: cameras[image.camera_id] for image in self._database.read_all_images()}
            keypoints = {name: self._database.read_keypoints(self.ids[name]) for pair in pairs for name in pair}
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
                with explain_failures(self._path):
                    matches = [self._database.read_matches(self.ids[a], self.ids[b]) for a, b in block]
                for (a, b), rows in zip(block, matches, strict=True):
                    self._check_rows((a, b), rows, len(points[a]), len(points[b]))
                geometries = list(pool.map(estimate, block, matches))
                with self._transaction():
                    for (first, second), geometry in zip(block, geometries, strict=True):
                        if len(geometry.inlier_matches) < how.min_inliers:
                            geometry = pycolmap.TwoViewGeometry()
                        self._database.write_two_view_geometry(self.ids[first], self.ids[second], geometry)
                yield from block

    def verified(self) -> dict[PhotoPair, int]:
        """Returns the number of inliers of each verified pair."""
        with explain_failures(self._path):
            pair_ids, inliers = self._database.read_two_view_geometry_num_inliers()
            counts = zip(self._named(pair_ids), inliers, strict=True)
            return {pair: count for pair, count in counts if count}

    def _named(self, pair_ids: list[int]) -> list[PhotoPair]:
        """Returns the names of the photos of each pair."""
        names = {number: name for name, number in self.ids.items()}
        numbers = map(pycolmap.pair_id_to_image_pair, pair_ids)
        return [(names[first], names[second]) for first, second in numbers]

    def inliers(self, pair: PhotoPair) -> NDArray[np.int32]:
        """Returns the (M, 2) row numbers of a verified pair's keypoints that agree with its two-view geometry."""
        with explain_failures(self._path):
            geometry = self._database.read_two_view_geometry(self.ids[pair[0]], self.ids[pair[1]])
        return np.asarray(geometry.inlier_matches, np.int32).reshape(-1, 2)

    def check_inliers(self) -> None:
        """Checks that inliers of verified pairs are rows of keypoints. COLMAP would read beyond the keypoints."""
        with explain_failures(self._path):
            counts = {name: self._database.num_keypoints_for_image(number) for name, number in self.ids.items()}
            pair_ids, geometries = self._database.read_two_view_geometries()
            named = self._named(pair_ids)
        for (first, second), geometry in zip(named, geometries, strict=True):
            self._check_rows((first, second), geometry.inlier_matches, counts[first], counts[second])

    def _check_rows(self, pair: PhotoPair, rows: NDArray[np.uint32], *counts: int) -> None:
        """Raises HardnetSfmError if (M, 2) row numbers are beyond the number of keypoints of a pair's photos."""
        if rows.size and (rows.max(0) >= counts).any():
            what = ValueError(f"matches of {pair[0]} and {pair[1]} are beyond their keypoints")
            raise database_error(self._path, what)

    def cameras(self) -> int:
        """Returns the number of cameras."""
        with explain_failures(self._path):
            return int(self._database.num_cameras())

    def guessed_cameras(self) -> int:
        """Returns the number of cameras whose focal length comes neither from EXIF data nor from the user."""
        with explain_failures(self._path):
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


@contextmanager
def explain_failures(path: Path, remedy: str = _REMEDY) -> Iterator[None]:
    """Turns an error of pycolmap or SQLite in the block into one that names the database and the cause.

    Every access of this package to a database is in such a block, also by COLMAP's mappers.

    Raises:
        HardnetSfmError: the database is damaged, or it cannot be read or written.
    """
    try:
        yield
    except _FAILURES as error:
        raise database_error(path, error, remedy) from error


@contextmanager
def open_database(path: Path) -> Iterator[pycolmap.Database]:
    """Opens a database while the block runs; made if missing.

    Raises:
        HardnetSfmError: the database is damaged, or it cannot be read or written.
    """
    with explain_failures(path), pycolmap.Database.open(path) as opened:
        yield opened


def database_error(path: Path, error: Exception, remedy: str = _REMEDY) -> HardnetSfmError:
    """Turns a failed access to a database into an error with its cause. COLMAP does not state it, but SQLite does."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", timeout=0, uri=True)) as opened:
            opened.execute("SELECT name FROM sqlite_master").fetchall()
    except sqlite3.Error as cause:
        return file_error(path, cause, "a COLMAP database", remedy)
    if isinstance(error, MemoryError):
        return HardnetSfmError(f"{path}: damaged, or there is not enough memory for it", remedy)
    return file_error(path, error, "a COLMAP database", remedy)


def read_fact(database: Path, key: str) -> str:
    """Reads a fact that `write_facts` noted; empty if there is no such fact or no database."""
    return read_facts(database, key).get("", "")


def read_facts(database: Path, prefix: str) -> dict[str, str]:
    """Reads the facts whose keys begin with a prefix, by the rest of their keys; none if there is no database."""
    columns, after = f"substr(key, {len(prefix) + 1}), value", prefix + "\U0010ffff"
    rows = _select(database, columns, FACTS, "WHERE key >= ? AND key < ?", prefix, after)
    return {str(key): str(value) for key, value in rows}


def write_facts(database: Path, facts: Mapping[str, str | None]) -> None:
    """Notes facts in our own table, in one transaction. COLMAP ignores the table, and `drop_facts` removes it.

    Args:
        database: path of the database; made if missing.
        facts: values by key; None removes a fact.
    """
    with _changing(database) as opened:
        opened.execute(f"CREATE TABLE IF NOT EXISTS {FACTS} (key TEXT PRIMARY KEY, value TEXT)")
        gone = [(key,) for key, value in facts.items() if value is None]
        opened.executemany(f"DELETE FROM {FACTS} WHERE key = ?", gone)
        noted = [(key, value) for key, value in facts.items() if value is not None]
        opened.executemany(f"INSERT OR REPLACE INTO {FACTS} VALUES (?, ?)", noted)


def matched_pairs(database: Path) -> list[PhotoPair]:
    """Returns the pairs that have matches, also those with zero matches; none if there is no database."""
    names = dict(_select(database, "image_id, name", "images"))
    numbers = _select(database, "pair_id", "matches")
    with explain_failures(database):
        pairs = (pycolmap.pair_id_to_image_pair(int(number or 0)) for (number,) in numbers)
        return [(names[first], names[second]) for first, second in pairs]


def forget_pairs(database: Path, pairs: Collection[PhotoPair]) -> None:
    """Removes the matches and the two-view geometry of pairs, in one transaction. A pair may have none.

    pycolmap can do this, but then copies the whole database.
    """
    if not pairs:
        return
    ids = {name: number for number, name in _select(database, "image_id, name", "images")}
    numbers = [(pycolmap.image_pair_to_pair_id(ids[first], ids[second]),) for first, second in pairs]
    with _changing(database) as opened:
        for table in _OF_PAIRS:
            opened.executemany(f"DELETE FROM {table} WHERE pair_id = ?", numbers)


def forget_verification(database: Path) -> None:
    """Removes the two-view geometry of all pairs."""
    with _changing(database) as opened:
        opened.execute("DELETE FROM two_view_geometries")


def remove_photos(database: Path, names: Collection[str]) -> None:
    """Removes photos with their keypoints, matches, two-view geometry and unshared cameras, in one transaction.

    Numbers at the end become free again. So photos that a killed run imported in part get the same numbers anew.
    """
    if not names:
        return
    with _changing(database) as opened:
        opened.execute("PRAGMA foreign_keys = ON")
        opened.execute("CREATE TEMP TABLE gone (name TEXT PRIMARY KEY)")
        opened.executemany("INSERT INTO gone VALUES (?)", [(name,) for name in names])
        numbers = "(SELECT image_id FROM images WHERE name IN gone)"
        for table in _OF_PAIRS:
            first, second = f"pair_id / {_MOST_PHOTOS}", f"pair_id % {_MOST_PHOTOS}"  # as COLMAP numbers pairs
            opened.execute(f"DELETE FROM {table} WHERE {first} IN {numbers} OR {second} IN {numbers}")
        opened.execute(f"DELETE FROM pose_priors WHERE corr_sensor_type = 0 AND corr_data_id IN {numbers}")
        frames = f"(SELECT frame_id FROM frame_data WHERE sensor_type = 0 AND data_id IN {numbers})"
        opened.execute(f"DELETE FROM frames WHERE frame_id IN {frames}")  # data of a frame go with it
        opened.execute("DELETE FROM images WHERE name IN gone")  # keypoints of a photo go with it
        unused = "(SELECT camera_id FROM cameras WHERE camera_id NOT IN (SELECT camera_id FROM images))"
        opened.execute(f"DELETE FROM rigs WHERE ref_sensor_type = 0 AND ref_sensor_id IN {unused}")
        opened.execute(f"DELETE FROM cameras WHERE camera_id IN {unused}")
        for table, number in _NUMBERED.items():
            last = f"(SELECT COALESCE(MAX({number}), 0) FROM {table})"
            opened.execute(f"UPDATE sqlite_sequence SET seq = {last} WHERE name = ?", (table,))


def camera_numbers(database: Path) -> dict[str, int]:
    """Returns the number of each photo's camera by the photo's name; none if there is no database."""
    rows = _select(database, "name, camera_id", "images")
    with explain_failures(database):
        return {str(name): int(number or 0) for name, number in rows}


@contextmanager
def _changing(database: Path) -> Iterator[sqlite3.Connection]:
    """Opens a database for the changes of one transaction; makes it if it is missing."""
    with explain_failures(database), closing(sqlite3.connect(database)) as opened, opened:
        yield opened


def _select(database: Path, columns: str, table: str, where: str = "", *values: str) -> list[tuple[Any, ...]]:
    """Reads rows of a table; none if there is no such table or no database."""
    if not database.is_file():
        return []
    with explain_failures(database), closing(sqlite3.connect(database)) as opened:
        if not opened.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            return []
        return opened.execute(f"SELECT {columns} FROM {table} {where}", values).fetchall()


def copy_database(source: Path, target: Path) -> None:
    """Copies a database with the content of its write-ahead log."""
    try:
        target.unlink(missing_ok=True)
        with closing(sqlite3.connect(source)) as opened, closing(sqlite3.connect(target)) as beside:
            opened.backup(beside)
    except (sqlite3.DatabaseError, OSError) as error:
        if find_cause(error) is None:
            raise database_error(source, error) from error
        raise write_error(target, error) from error


def replace_database(fresh: Path, database: Path) -> None:
    """Replaces a database by another closed one, and removes stale write-ahead logs."""
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    fresh.replace(database)


def drop_facts(database: Path) -> None:
    """Removes our own table, so that the database is as COLMAP would write it.

    Raises:
        HardnetSfmError: the database is damaged, or the disk is full.
    """
    with _changing(database) as opened:
        opened.execute(f"DROP TABLE IF EXISTS {FACTS}")
