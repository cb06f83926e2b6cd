"""The small frozen dataclasses that travel between stages."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32

PhotoPair = tuple[str, str]
"""Names of two photos."""
Box = tuple[float, float, float, float]
"""A part of a photo: left, top, right and bottom in pixels of the upright photo."""
# Lowe's threshold of the ratio test for SIFT (IJCV 2004, section 7.1). It serves descriptors that recommend no ratio of
# their own.
LOWES_RATIO = 0.8

# Scales in pixels are equal if they agree to this many decimals. The scales of one place with two orientations differ
# by rounding when they are computed from affine frames.
SCALE_DECIMALS = 3
# Orientations that differ by at most this angle, degrees, have nearly the same descriptor.
_TWIN = 20.0


@dataclass(frozen=True)
class Keypoints:
    """Oriented local features of one photo, in its upright (EXIF orientation applied) pixel frame.

    Attributes:
        xy: (N, 2) float32, pixels; the centre of the top-left pixel is (0, 0).
        scales: (N,) float32, sigma in pixels.
        oris: (N,) float32, degrees in [0, 360), from +x towards +y (y down), as COLMAP and OpenCV count.
        scores: (N,) float32, the detector's response, larger is better.
        affines: (N, 2, 2) float32 or None. Local affine frames: columns are the images of the x and y axes of a circle
            of one sigma. None if the detector gives similarity frames only.
    """

    xy: Float32
    scales: Float32
    oris: Float32
    scores: Float32
    affines: Float32 | None = None

    def __post_init__(self) -> None:
        n = len(self.xy)
        shapes = {"xy": (n, 2), "scales": (n,), "oris": (n,), "scores": (n,), "affines": (n, 2, 2)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"keypoints.{name} has shape {value.shape}, expected {shape}")

    def __len__(self) -> int:
        return len(self.xy)

    @classmethod
    def empty(cls) -> Keypoints:
        nothing = np.zeros(0, np.float32)
        return cls(np.zeros((0, 2), np.float32), nothing, nothing, nothing)

    def frames(self) -> Float32:
        """Returns (N, 2, 2) float32 local affine frames, pixels per sigma.

        They are similarity frames if no affine shape is known.
        """
        if self.affines is not None:
            return self.affines
        return _rotations(np.deg2rad(self.oris), self.scales)

    def select(self, rows: NDArray[np.intp]) -> Keypoints:
        """Returns the keypoints at the given row numbers, in that order."""
        affines = None if self.affines is None else self.affines[rows]
        return Keypoints(self.xy[rows], self.scales[rows], self.oris[rows], self.scores[rows], affines)

    def along(self, turn: float) -> Keypoints:
        """Returns each place once, with the same orientation for all places.

        Args:
            turn: the common orientation, degrees.
        """
        rows = np.column_stack([self.xy, self.scales.round(SCALE_DECIMALS)])
        once = self.select(np.sort(np.unique(rows, axis=0, return_index=True)[1]))
        back = _rotations(np.deg2rad(turn - once.oris))
        affines = None if once.affines is None else once.affines @ back
        return Keypoints(once.xy, once.scales, np.full_like(once.oris, turn % 360), once.scores, affines)

    def both_ways(self) -> Keypoints:
        """Returns each place at 0 degrees, followed by the places at their estimated orientations.

        Estimated orientations near 0 are left out. Their descriptors would nearly equal the upright ones, and two equal
        descriptors make each other fail the ratio test.
        """
        upright = self.along(0)
        apart = self.select(np.flatnonzero(np.abs((self.oris + 180) % 360 - 180) > _TWIN))
        joined = join_keypoints(upright, apart)
        return replace(joined, affines=None) if self.affines is None else joined

    def resized(self, from_size: tuple[int, int], to_size: tuple[int, int]) -> Keypoints:
        """Returns the keypoints in the pixels of the photo resized from one (width, height) to another.

        Pixel centres are at whole numbers, so the corner of the photo, (-1/2, -1/2), is the fixed point.
        """
        if from_size == to_size:
            return self
        factor = np.divide(to_size, from_size).astype(np.float32)
        xy = (self.xy + np.float32(0.5)) * factor - np.float32(0.5)
        # The two factors differ only because sizes are rounded. A frame keeps its shape and is scaled by their
        # geometric mean.
        scale = np.float32(np.sqrt(factor.prod()))
        affines = None if self.affines is None else self.affines * scale
        return Keypoints(xy, self.scales * scale, self.oris, self.scores, affines)


def join_keypoints(*parts: Keypoints) -> Keypoints:
    """Joins keypoints into one set, with local affine frames."""
    columns = ([getattr(part, name) for part in parts] for name in ("xy", "scales", "oris", "scores"))
    xy, scales, oris, scores = map(np.concatenate, columns)
    return Keypoints(xy, scales, oris, scores, np.concatenate([part.frames() for part in parts]))


def _rotations(radians: Float32, scales: Float32 | float = 1.0) -> Float32:
    """Returns (N, 2, 2) float32 rotations by (N,) angles, times scales."""
    cos, sin = np.cos(radians) * scales, np.sin(radians) * scales
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2).astype(np.float32)


def strongest(keypoints: Keypoints, strength: Float32, most: int) -> Keypoints:
    """Returns the rows of the strongest places, strongest first.

    A place is a position with a scale. It may have several orientations, each in its own row, and counts once.

    Args:
        keypoints: N rows.
        strength: (N,), equal for all rows of a place.
        most: number of places.
    """
    columns = np.column_stack([-strength, keypoints.xy, keypoints.scales.round(SCALE_DECIMALS)])
    # The other columns order equal strengths, so that the order is deterministic.
    order = np.lexsort((keypoints.oris, *columns.T[::-1]))
    another = (columns[order[1:]] != columns[order[:-1]]).any(1)
    places = np.concatenate([[1], 1 + np.cumsum(another)])
    return keypoints.select(order[places[: len(order)] <= most])


def within_reach(
    first: NDArray[np.floating], second: NDArray[np.floating], reach: NDArray[np.floating] | float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Lists all pairs of positions whose x coordinates differ by at most a reach.

    The caller checks the distances of these few pairs.

    Args:
        first: (N, 2), pixels.
        second: (M, 2), pixels.
        reach: largest difference, one for each row of `first` or one for all, pixels.

    Returns:
        (K,) rows of `first`, not decreasing, and (K,) rows of `second`.
    """
    by_x = np.argsort(second[:, 0], kind="stable")
    low, high = (np.searchsorted(second[by_x, 0], first[:, 0] + side * reach) for side in (-1, 1))
    row = np.repeat(np.arange(len(first)), high - low)
    return row, by_x[np.arange(len(row)) - np.repeat(np.cumsum(high - low) - high, high - low)]


@dataclass(frozen=True)
class Matches:
    """Correspondences between two photos.

    Attributes:
        pairs: (M, 2) int32, row numbers of the keypoints in the first and the second photo.
        scores: (M,) float32 in [0, 1], (1 + cosine similarity of the descriptors) / 2, as in hloc. After re-scoring,
            the network's probability that a match is right.
    """

    pairs: NDArray[np.int32]
    scores: Float32

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True, eq=False)
class RankedImage:
    """One photo in the ranked answer to a query.

    Attributes:
        image: its name in the image folder, POSIX.
        score: the score that ranks it; comparable within one answer only.
        inliers: number of spatially verified correspondences; None if verification was not tried or failed for this
            image.
        lines: (K, 4) float32 or None. The inliers: x, y in the query and x, y in the image, upright pixels.
        accepted: whether the image shows what the query shows; None if the method does not verify.
        identical: whether the image is the same file as the query.
    """

    image: str
    score: float
    inliers: int | None
    lines: Float32 | None = None
    accepted: bool | None = None
    identical: bool = False
