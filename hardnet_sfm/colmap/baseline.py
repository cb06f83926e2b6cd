"""COLMAP's own SIFT, matcher and mapper, the baseline for comparisons in pipelines/ and pipelines/bench/."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from collections.abc import Mapping as MappingOf
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.colmap.cameras import CameraSetup, import_photos
from hardnet_sfm.colmap.database import explain_failures, open_database
from hardnet_sfm.colmap.log import native_log
from hardnet_sfm.colmap.mapping import Mapping, map_database
from hardnet_sfm.colmap.model import Model
from hardnet_sfm.colmap.sift import distinct_rows
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.keypoints import Keypoints

Cost = TypeVar("Cost")


@dataclass(frozen=True)
class BaselineRun:
    """The result of COLMAP alone on a folder of photos.

    Attributes:
        model: the largest model.
        keypoints: mean number of keypoints of a photo.
        verified_matches: number of verified matches of all pairs together.
        seconds: run time by stage: extract, match (with verification), map.
    """

    model: Model
    keypoints: float
    verified_matches: int
    seconds: dict[str, float]


def reconstruct_with_sift(
    images: Path, folder: Path, setup: CameraSetup, mapping: Mapping, *, max_image_size: int, max_features: int
) -> BaselineRun:
    """Runs COLMAP's SIFT, exhaustive matching and mapping with its defaults, on the CPU.

    Args:
        images: folder of photos.
        folder: empty folder for the database and logs.
        setup: camera setup.
        mapping: options of mapping, the same as for our run.
        max_image_size: longest side of a photo, pixels.
        max_features: limit as COLMAP counts: each keypoint may have two orientations, which give a row each.
    """
    setup.check()
    extraction = pycolmap.FeatureExtractionOptions(max_image_size=max_image_size, use_gpu=False)
    extraction.num_threads, extraction.sift.max_num_features = mapping.threads, max_features
    matching = pycolmap.FeatureMatchingOptions(use_gpu=False, num_threads=mapping.threads)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = mapping.seed
    reader = pycolmap.ImageReaderOptions(
        camera_model=setup.model, camera_params=", ".join(map(repr, map(float, setup.params)))
    )
    mode = getattr(pycolmap.CameraMode, setup.mode.replace("-", "_").upper())
    database = folder / "database.db"
    marks = [time.perf_counter()]
    with native_log(folder / "logs"):
        with explain_failures(database):
            pycolmap.Database.open(database).close()
            pycolmap.extract_features(
                database, images, camera_mode=mode, reader_options=reader, extraction_options=extraction
            )
            marks.append(time.perf_counter())
            pycolmap.match_exhaustive(database, matching_options=matching, verification_options=verification)
            marks.append(time.perf_counter())
        models = map_database(database, images, folder / "snapshot", mapping, lambda _: None)
        shutil.rmtree(folder / "snapshot", ignore_errors=True)
        marks.append(time.perf_counter())
    if not models:
        raise HardnetSfmError(f"{images}: COLMAP made no model", "Use more photos, or photos that overlap more.")
    with open_database(database) as opened:
        keypoints = opened.num_keypoints() / opened.num_images()
        verified = int(opened.num_inlier_matches())
    seconds = dict(zip(("extract", "match", "map"), np.diff(marks).tolist(), strict=True))
    return BaselineRun(models[0], keypoints, verified, seconds)


class SiftFeatures(NamedTuple):
    """The features that COLMAP's SIFT finds in a photo.

    Attributes:
        xy: (N, 2) float32, pixels, the centre of the top-left pixel at (0, 0).
        frames: (N, 2, 2) float32, pixels per sigma.
        rootsift: (N, 128) float16 of unit length. COLMAP had rounded the values to bytes.
    """

    xy: Float32
    frames: Float32
    rootsift: NDArray[np.float16]


class ColmapSift:
    """Detects and describes with COLMAP's SIFT on the CPU. It drops duplicates of keypoints that COLMAP finds twice.

    Args:
        max_features: limit as COLMAP counts: each keypoint may have two orientations, which give a row each.

    Raises:
        UsageError: `max_features` is less than 1.
    """

    def __init__(self, max_features: int) -> None:
        if max_features < 1:
            raise UsageError("--max-features must be at least 1")
        options = pycolmap.FeatureExtractionOptions(use_gpu=False)
        options.sift.max_num_features = max_features
        with native_log(None):
            self._extractor = pycolmap.FeatureExtractor.create(options)

    def __call__(self, grey: NDArray[np.uint8]) -> SiftFeatures:
        """Returns the features of an (H, W) photo."""
        found, described = self._extractor.extract_from_uint8_array(grey)
        unique, first = distinct_rows(found)
        rows = described.data[first].astype(np.float32)
        rootsift = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
        return SiftFeatures(unique[:, :2] - np.float32(0.5), unique[:, 2:].reshape(-1, 2, 2), rootsift)


def match_with_colmap(
    images: Path,
    features: MappingOf[str, tuple[Keypoints, NDArray[np.float16]]],
    folder: Path,
    *,
    max_ratio: float,
    threads: int,
    cost_of: Callable[[Callable[[], None]], tuple[None, Cost]],
) -> tuple[dict[tuple[str, str], NDArray[np.uint32]], Cost]:
    """Matches all pairs of photos with COLMAP's default SIFT matcher on the CPU, without verification.

    Args:
        images: folder of the photos.
        features: keypoints and (N, 128) RootSIFT descriptors of unit length by photo; COLMAP takes them as bytes.
        folder: empty folder for the database and logs.
        max_ratio: as in `hardnet_sfm.matching.nearest.Acceptance`, in both directions.
        threads: number of threads.
        cost_of: calls a function and returns its cost.

    Returns:
        (M, 2) row numbers by pair of names, and the cost of matching.
    """
    matching = pycolmap.FeatureMatchingOptions(use_gpu=False, num_threads=threads, skip_geometric_verification=True)
    matching.sift.max_ratio, matching.sift.max_distance = max_ratio, 2.0
    database, names = folder / "database.db", list(features)
    with native_log(folder / "logs"):
        import_photos(database, images, names, CameraSetup("single", "SIMPLE_RADIAL"), folder / "readable")
        with open_database(database) as opened:
            ids = {image.name: image.image_id for image in opened.read_all_images()}
            for name, (keypoints, descriptors) in features.items():
                opened.write_keypoints(ids[name], keypoints.xy + np.float32(0.5))
                rounded = np.clip(np.rint(descriptors.astype(np.float32) * 512), 0, 255).astype(np.uint8)
                sift = pycolmap.FeatureDescriptors(pycolmap.FeatureExtractorType.SIFT, rounded)
                opened.write_descriptors(ids[name], sift)
        with explain_failures(database):
            _, cost = cost_of(lambda: pycolmap.match_exhaustive(database, matching_options=matching))
        with open_database(database) as opened:
            found = {(a, b): opened.read_matches(ids[a], ids[b]) for a, b in combinations(names, 2)}
    return found, cost
