"""Spatial verification: finds correspondences of a query and a photo that fit one transformation of the plane.

The method follows Philbin et al. (CVPR 2007, section 4). Each correspondence alone gives a similarity, from the
positions, scales and orientations of its two features. If the index has affine frames, it gives an affine
transformation. Each transformation is scored by the number of correspondences that agree. The best are refined several
times to an affine transformation, by least squares on the correspondences that agree. The method is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.retrieval import kernels
from hardnet_sfm.retrieval.acceptance import cells_of, log_false_alarms
from hardnet_sfm.retrieval.consensus import best_transformation
from hardnet_sfm.retrieval.inverted_index import InvertedIndex
from hardnet_sfm.retrieval.scoring import Query

# Largest distance of an inlier from its predicted position, as a share of the photo's diagonal.
_TOLERANCE = 0.02
# Largest number of correspondences of a photo, those with the nearest signatures; and of hypotheses among them.
_MOST = 1000
_HYPOTHESES = 300
_REFINED = 8
LEAST_INLIERS = 5


@dataclass(frozen=True, eq=False)
class Verified:
    """The agreement between the query and one photo.

    Attributes:
        photo: number of the photo.
        query_features: (K,) int64, rows of the query.
        entries: (K,) int64, rows of the segment's lists.
        points: (K, 2) float32, positions in the photo, pixels.
        transformation: (2, 3) float64, from pixels of the query to those of the photo.
        false_alarms: log10 of the number of agreements as good as this one that chance gives in all photos that were
            verified, see `hardnet_sfm.retrieval.acceptance`.
    """

    photo: int
    query_features: NDArray[np.int64]
    entries: NDArray[np.int64]
    points: Float32
    transformation: NDArray[np.float64]
    false_alarms: float

    @property
    def inliers(self) -> int:
        """Number of features that agree. Each feature of the query and of the photo counts once."""
        return len(self.query_features)

    @property
    def accepted(self) -> bool:
        """Whether chance does not explain the agreement."""
        return self.false_alarms < 0


def verify(index: InvertedIndex, query: Query, photos: list[int], reach: int) -> dict[int, Verified]:
    """Verifies photos of an index.

    Args:
        index: index of the photos.
        query: query with geometry.
        photos: numbers of the photos.
        reach: largest Hamming distance of a correspondence; with 64, words alone decide.

    Returns:
        The agreement by the photo's number. Photos with fewer than 5 agreeing correspondences are left out.
    """
    verified: dict[int, Verified] = {}
    for number, segment in enumerate(index.segments):
        wanted = index.wanted(number, photos)
        if not wanted.any() or not len(query):
            continue
        rows = kernels.correspondences(query.starts, query.words, query.signatures, reach, *segment.lists, wanted)
        of_photo, geometry = index.photos_of(number, rows[:, 1]), index.geometry_of(number, rows[:, 1])
        # Nearest signatures come first. The distance means the same for rare and frequent words.
        order = np.lexsort((rows[:, 1], rows[:, 0], rows[:, 2], of_photo))
        rows, of_photo, geometry = rows[order], of_photo[order], geometry[order]
        bounds = np.append(np.flatnonzero(np.diff(of_photo, prepend=-1)), len(of_photo))
        sizes = segment.sizes
        tasks = [
            (
                int(of_photo[begin]),
                query.geometry,
                rows[begin:end][:_MOST],
                geometry[begin:end][:_MOST],
                _TOLERANCE * float(np.hypot(*sizes[of_photo[begin] - index.starts[number]])),
                len(photos),
            )
            for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
        for found in index.threaded(_verify_photo, tasks):
            if found is not None:
                verified[found.photo] = found
    return verified


def _verify_photo(
    photo: int, of_query: Float32, rows: NDArray[np.int64], geometry: Float32, tolerance: float, photos: int
) -> Verified | None:
    if len(rows) < LEAST_INLIERS:
        return None
    features, entries = np.unique(rows[:, 0], return_inverse=True)[1], np.unique(rows[:, 1], return_inverse=True)[1]
    mine = of_query[rows[:, 0]].astype(np.float64)
    step = max(1, -(-len(rows) // _HYPOTHESES))
    inside, transformation = best_transformation(
        mine, geometry.astype(np.float64), features, entries, tolerance, step, _REFINED
    )
    # Each feature is kept once on either side, the nearest signatures first.
    kept: list[int] = []
    seen: tuple[set[int], set[int]] = (set(), set())
    for row in np.flatnonzero(inside).tolist():
        if features[row] not in seen[0] and entries[row] not in seen[1]:
            seen[0].add(features[row])
            seen[1].add(entries[row])
            kept.append(row)
    if len(kept) < LEAST_INLIERS:
        return None
    at = np.array(kept)
    extent = max(1.0, float(np.hypot(*np.ptp(of_query[:, :2], 0))))
    cells = np.stack([cells_of(mine[:, :2], 2 * _TOLERANCE * extent), cells_of(geometry[:, :2], 2 * tolerance)])
    false_alarms = float(np.log10(photos)) + log_false_alarms(rows[:, 2], cells, at)
    return Verified(photo, rows[at, 0], rows[at, 1], geometry[at, :2], transformation, false_alarms)
