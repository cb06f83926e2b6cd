"""k-means that stops within a second and resumes from its centroids.

The steps are those of `faiss.Clustering`, and give the same centroids. faiss does not return to Python before an
iteration over millions of descriptors ends, and keeps no centroids then.
"""

from __future__ import annotations

from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.progress import progress

# Descriptors that are searched for in one call. Ctrl-C works between two calls.
_BLOCK = 8192
# faiss moves the two halves of a split cluster apart by this share.
_APART = np.float32(1 / 1024)
_SPLIT_SEED = 1234


class Checkpoint(Protocol):
    """Keeps the centroids of an unfinished k-means."""

    def load(self) -> tuple[int, Float32] | None:
        """Returns the number of finished iterations and the (K, D) centroids after them, if there are any."""

    def save(self, iterations: int, centroids: Float32) -> None:
        """Keeps the (K, D) centroids after a number of iterations."""


def search_in_blocks(index: Any, rows: Float32, count: int) -> tuple[Float32, NDArray[np.int64]]:
    """Returns the (N, count) squared distances and numbers of the nearest vectors of a faiss index, nearest first."""
    parts = [index.search(rows[start : start + _BLOCK], count) for start in range(0, len(rows), _BLOCK)]
    distances, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
    return distances, numbers


def kmeans(
    sample: Float32, first: Float32, index: Any, iterations: int, checkpoint: Checkpoint | None = None
) -> tuple[Float32, float]:
    """Moves centroids to the means of the vectors that are nearest to them.

    Args:
        sample: (N, D) vectors.
        first: (K, D) centroids to begin with.
        index: trained faiss index for the search, exact or approximate.
        iterations: number of iterations, at least 1.
        checkpoint: keeps the centroids after each iteration. If it has some, they replace `first`.

    Returns:
        (K, D) float32 centroids, and the sum of squared distances to the centroids before the last iteration.
    """
    done, centroids = (checkpoint and checkpoint.load()) or (0, first)
    with progress("k-means", iterations, done) as advance:
        for iteration in range(done, iterations):
            index.reset()
            index.add(centroids)
            distances, nearest = search_in_blocks(index, sample, 1)
            centroids = _means(sample, nearest[:, 0], centroids)
            if checkpoint and iteration + 1 < iterations:
                checkpoint.save(iteration + 1, centroids)
            advance()
    return centroids, float(distances.sum(dtype=np.float64))


def _means(sample: Float32, nearest: NDArray[np.int64], centroids: Float32) -> Float32:
    """Returns the (K, D) means of the vectors of each cluster. An empty cluster takes half of a large one."""
    counts = np.bincount(nearest, minlength=len(centroids))
    order = np.argsort(nearest, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(counts)])
    means = np.zeros_like(centroids)
    for cluster in np.flatnonzero(counts):
        rows = sample[order[bounds[cluster] : bounds[cluster + 1]]]
        means[cluster] = np.add.reduce(rows, 0) * (np.float32(1) / np.float32(counts[cluster]))
    _split_large_clusters(means, counts.astype(np.float64), len(sample))
    return means


def _split_large_clusters(means: Float32, counts: NDArray[np.float64], total: int) -> None:
    """Gives each empty cluster half of another one, which is drawn with a probability that rises with its size."""
    random = faiss.RandomGenerator(_SPLIT_SEED)  # type: ignore[attr-defined]
    signs = np.where(np.arange(means.shape[1]) % 2 == 0, _APART, -_APART)
    for empty in np.flatnonzero(counts == 0):
        large = 0
        while random.rand_float() >= (counts[large] - 1) / (total - len(means)):
            large = (large + 1) % len(means)
        means[empty] = means[large] * (1 + signs)
        means[large] *= 1 - signs
        counts[empty] = counts[large] // 2
        counts[large] -= counts[empty]
