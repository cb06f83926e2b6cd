"""Stores of made-up features for the tests of retrieval: photos that share some of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FEATURES, feature_arrays
from hardnet_sfm.keypoints import Keypoints

SIZE = (640, 480)
OPTIONS = {"descriptor": "made-up", "weights_sha256": "abc"}

Photos = Mapping[str, tuple[Keypoints, NDArray[np.float16]]]


def unit_rows(random: np.random.Generator, count: int, dimension: int = 128) -> NDArray[np.float16]:
    rows = random.standard_normal((count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def keypoints_of(random: np.random.Generator, count: int) -> Keypoints:
    xy = (random.random((count, 2)) * (np.array(SIZE) - 1)).astype(np.float32)
    scales, oris, scores = (random.random((3, count)) * [[20], [360], [1]] + [[1], [0], [0]]).astype(np.float32)
    return Keypoints(xy, scales, oris, scores)


def some_photos(
    count: int, features: int = 60, seed: int = 0, dimension: int = 128
) -> dict[str, tuple[Keypoints, NDArray[np.float16]]]:
    """Photos that draw their descriptors, a little disturbed, from a common stock; the first has none."""
    random = np.random.default_rng(seed)
    stock = unit_rows(random, 4 * features, dimension)
    photos = {}
    for number in range(count):
        rows = stock[random.integers(0, len(stock), features if number else 0)]
        noisy = rows.astype(np.float32) + 0.03 * random.standard_normal(rows.shape)
        noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
        photos[f"folder/{number}.jpg"] = keypoints_of(random, len(rows)), noisy.astype(np.float16)
    return photos


def store_of(path: Path, photos: Photos, options: Mapping[str, str] = OPTIONS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with StoreWriter(path, FEATURES) as writer:
        for name, (keypoints, descriptors) in photos.items():
            facts: dict[str, str | int] = {"photo_sha256": "", "exif_orientation": 1, "keypoints": len(keypoints)}
            mark = f"{name} {descriptors.astype(np.float64).sum()}"
            writer.put(name, mark, feature_arrays(keypoints, descriptors, SIZE), facts)
        header = {"names": list(photos), "images": str(path.parent), "options": dict(options), "skipped": {}}
        writer.commit(list(photos), header)
    return path
