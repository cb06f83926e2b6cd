"""Draws batches of patch pairs. A pair is two patches of the same point from different photos.

A batch also records which pairs may be negatives of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import HardnetSfmError, UsageError, check_least
from hardnet_sfm.patch_set import PatchSet

# A width in pixels that no photo exceeds. It is a power of two, so that adding a position to it is exact.
_PHOTO = 2.0**20


@dataclass(frozen=True)
class SamplingOptions:
    """How pairs of patches are drawn."""

    batch_size: int = 1024
    """Number of pairs in a batch, no two of the same point. Each of several devices has its own batch of this size."""
    same_photos: float = 0.5
    """Share of the pairs that are drawn from two photos at a time. Their other points are the negatives of real
    matching."""
    a_pair_of_photos: int = 128
    """Most pairs that --same-photos draws from one pair of photos."""
    near: float = 0.002
    """Points of one data set that are closer than this share of its extent are not negatives of each other."""
    near_pixels: float = 4.0
    """Points whose keypoints in one photo are closer than this, in pixels, are not negatives of each other."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        check_least(self, batch_size=2, a_pair_of_photos=1, near=0, near_pixels=0)
        if not 0 <= self.same_photos <= 1:
            raise UsageError("--same-photos must be from 0 to 1")


@dataclass(frozen=True)
class Batch:
    """Patch pairs of a batch.

    Attributes:
        anchors: (B, S, S) uint8 patches.
        positives: (B, S, S) uint8 patches of the same points in other photos.
        allowed: (B, B) bool, whether positive j may be a negative of anchor i and vice versa. The diagonal is False.
    """

    anchors: Grey
    positives: Grey
    allowed: NDArray[np.bool_]


@dataclass(frozen=True)
class Draw:
    """Row numbers of the patches of a batch.

    Attributes:
        rows: (2, B) int64, row numbers of anchors and of positives. Rows are counted across all data sets in order.
        allowed: (B, B) bool, as in `Batch`.
    """

    rows: NDArray[np.int64]
    allowed: NDArray[np.bool_]


class Sampler:
    """Draws batches from patch sets.

    Batch k depends only on the seed and on k. A run that resumes from batch k therefore sees the same batches as an
    uninterrupted run.

    Args:
        sets: patch sets to draw from.
        weights: share of the pairs from each set; the weights are divided by their sum.
        options: options of drawing.
        seed: random seed.

    Attributes:
        batch_size: number of pairs in a batch.
        sets: the patch sets.

    Raises:
        HardnetSfmError: the sets have too few points for a batch.
    """

    def __init__(self, sets: Sequence[PatchSet], weights: Sequence[float], options: SamplingOptions, seed: int) -> None:
        options.check()
        self._options, self._seed = options, seed
        self.batch_size, self.sets = options.batch_size, tuple(sets)
        self._indexes = [_Index(patch_set) for patch_set in sets]
        self._shares = np.asarray(weights, np.float64) / np.sum(weights)
        for index, share in zip(self._indexes, self._shares, strict=True):
            if len(index.points) < share * options.batch_size:
                raise HardnetSfmError(
                    f"{index.set.origin}: {len(index.points)} points seen in two photos are too few for batches of "
                    f"{options.batch_size}",
                    "Mine more photos, or lower --batch-size.",
                )

    def __call__(self, number: int) -> Batch:
        """Returns the batch with the given number."""
        draw = self.draw(number)
        first = np.cumsum([0, *map(len, self.sets)])
        # The pairs of one data set are contiguous in a batch.
        ends = np.searchsorted(draw.rows[0], first)
        taken = [
            of.take(draw.rows[:, start:end] - before)
            for of, before, start, end in zip(self.sets, first, ends, ends[1:], strict=False)
        ]
        anchors, positives = np.concatenate(taken, 1)
        return Batch(anchors, positives, draw.allowed)

    def draw(self, number: int) -> Draw:
        """Draws the rows of the batch with the given number, without reading patches."""
        rng = np.random.default_rng((self._seed, number))
        # The number of pairs from each set is an integer whose expectation is the set's exact share.
        ends = np.floor(np.concatenate([[0], np.cumsum(self._shares)]) * self.batch_size + rng.random())
        counts = np.diff(np.clip(ends, 0, self.batch_size).astype(int))
        counts[-1] += self.batch_size - counts.sum()
        rows = np.zeros((2, self.batch_size), np.int64)
        allowed = ~np.eye(self.batch_size, dtype=bool)
        start = before = 0
        for index, count in zip(self._indexes, counts.tolist(), strict=True):
            if count:
                chosen = index.draw(count, self._options, rng)
                block = slice(start, start + count)
                rows[:, block] = before + chosen
                allowed[block, block] &= index.apart(chosen, self._options)
                start += count
            before += len(index.set)
        return Draw(rows, allowed)


class _Index:
    """Looks up the patches of a point or of a photo.

    Attributes:
        set: the patch set.
        points: numbers of the points that two or more photos see.
    """

    def __init__(self, patch_set: PatchSet) -> None:
        self.set = patch_set
        point, image = patch_set.point, patch_set.image
        count = int(point[-1]) + 1
        self._starts = np.searchsorted(point, np.arange(count + 1))
        self.points = patch_set.matchable
        self._usable = np.zeros(count, bool)
        self._usable[self.points] = True
        self._by_image = np.argsort(image, kind="stable")
        self._image_starts = np.searchsorted(image[self._by_image], np.arange(int(image.max()) + 2))

    def draw(self, count: int, options: SamplingOptions, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draws (2, count) rows: pairs of `count` different points."""
        rows = np.zeros((2, 0), np.int64)
        wanted = round(count * options.same_photos)
        # Photos may share few points. The rest is then drawn from all photos.
        for _ in range(4 * wanted // options.a_pair_of_photos + 1):
            if rows.shape[1] >= wanted:
                break
            size = min(options.a_pair_of_photos, wanted - rows.shape[1])
            rows = self._with(rows, self._of_two_photos(size, rng))
        while rows.shape[1] < count:
            rows = self._with(rows, self._of_any_photos(2 * (count - rows.shape[1]), rng))[:, :count]
        return rows

    def _with(self, rows: NDArray[np.int64], more: NDArray[np.int64]) -> NDArray[np.int64]:
        """Appends pairs, and drops each pair whose point already occurred."""
        both = np.concatenate([rows, more], 1)
        first = np.unique(self.set.point[both[0]], return_index=True)[1]
        return both[:, np.sort(first)]

    def _of_any_photos(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        point = rng.choice(self.points, count)
        low, high = self._starts[point], self._starts[point + 1]
        rows = low + np.floor(rng.random((2, count)) * (high - low)).astype(np.int64)
        return np.asarray(rows[:, self.set.image[rows[0]] != self.set.image[rows[1]]])

    def _of_two_photos(self, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draws pairs of points that two photos share. The two photos come from a pair drawn from all points."""
        seed = self._of_any_photos(8, rng)
        if not seed.shape[1]:
            return seed
        first, second = (self._rows_of(int(self.set.image[row])) for row in seed[:, 0])
        _, at_first, at_second = np.intersect1d(self.set.point[first], self.set.point[second], return_indices=True)
        chosen = rng.permutation(len(at_first))[:most]
        return np.stack([first[at_first[chosen]], second[at_second[chosen]]])

    def _rows_of(self, image: int) -> NDArray[np.int64]:
        return self._by_image[self._image_starts[image] : self._image_starts[image + 1]]

    def apart(self, rows: NDArray[np.int64], options: SamplingOptions) -> NDArray[np.bool_]:
        """(B, B) bool: whether two pairs are far enough from each other to be negatives."""
        count = rows.shape[1]
        apart = np.ones((count, count), bool)
        xyz = self.set.xyz[self.set.point[rows[0]]]
        reach = options.near * self.set.extent
        one, other = _within(xyz[:, 0].astype(np.float64), reach)
        near = ((xyz[one] - xyz[other]) ** 2).sum(1) < reach**2
        apart[one[near], other[near]] = apart[other[near], one[near]] = False
        image, xy = self.set.image[rows].ravel(), self.set.frame[rows, :, 2].reshape(-1, 2)
        one, other = _within(_PHOTO * image.astype(np.float64) + xy[:, 0], options.near_pixels)
        close = ((xy[one] - xy[other]) ** 2).sum(1) < options.near_pixels**2
        one, other = one[close] % count, other[close] % count
        apart[one, other] = apart[other, one] = False
        return apart


def _within(values: NDArray[np.float64], reach: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Finds all pairs of (N,) values that differ by at most `reach`. Returns the rows of both values of each pair.

    Unknown values (NaN) are in no pair. An unknown reach gives no pairs. The cost is one sort plus the number of pairs.
    """
    known = np.flatnonzero(np.isfinite(values)) if np.isfinite(reach) else np.zeros(0, np.intp)
    order = known[np.argsort(values[known])]
    ordered = values[order]
    after = np.arange(1, len(order) + 1)
    count = np.searchsorted(ordered, ordered + reach, "right") - after
    one = np.repeat(after - 1, count)
    other = np.arange(count.sum()) + np.repeat(after - (np.cumsum(count) - count), count)
    return order[one], order[other]
