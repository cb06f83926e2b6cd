"""Visual words and binary signatures of descriptors, and how they are learned."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.inverted_lists import Signatures, Words
from hardnet_sfm.retrieval.kmeans import Checkpoint, kmeans, search_in_blocks

BITS = 64
# Up to this many words, the nearest is found by comparing all. With more, it is searched in the nearest of about 2 *
# sqrt(words) cells. With 4000 descriptors and 20k words this takes 0.1 s instead of 0.5 s, and 99.9 % of the answers
# are the same.
_EXACT_WORDS = 4096
_PROBES = 32


class Vocabulary:
    """Visual words, and the binary signatures of Hamming embedding within each word.

    Attributes:
        card: facts about its origin: descriptor, weights sha256, data, words, objective ...
        centroids: (W, D) float32.
        projection: (64, D) float32, orthonormal rows (Jegou, Douze, Schmid, ECCV 2008, section 4.1). If D is less than
            64, each set of D rows is orthonormal, and bits of different sets are correlated.
        thresholds: (W, 64) float32, medians of the projected descriptors of each word.
    """

    def __init__(self, card: dict[str, Any], centroids: Float32, projection: Float32, thresholds: Float32) -> None:
        self.card, self.centroids, self.projection, self.thresholds = card, centroids, projection, thresholds

    @cached_property
    def _nearest(self) -> Any:
        """Search index over the words, made on first use.

        It needs its own k-means, which readers of an index do not need.
        """
        return _nearest_index(self.centroids)

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def dimension(self) -> int:
        """D, the length of the descriptors."""
        return int(self.centroids.shape[1])

    @property
    def fingerprint(self) -> str:
        """Sha256 of the vocabulary's numbers, once it has been written."""
        return str(self.card["sha256"])

    @property
    def numbers(self) -> dict[str, Float32]:
        """The arrays by name, as its file has them."""
        return {name: getattr(self, name) for name in ("centroids", "projection", "thresholds")}

    def check_fits(self, options: dict[str, Any], what: str) -> None:
        """Raises an error if features do not have the descriptors of the vocabulary.

        Args:
            options: options that the features were made with, as in their store.
            what: owner of the descriptors, for the message.

        Raises:
            HardnetSfmError: the features have another descriptor or other weights.
        """
        for name, words in (("descriptor", "descriptors"), ("weights_sha256", "weights")):
            ours, theirs = self.card[name], options.get(name, "")
            if ours != theirs:
                raise HardnetSfmError(
                    f"{what}: other {words} than the vocabulary's: {_shown(theirs)} instead of {_shown(ours)}",
                    "A vocabulary fits only the descriptor that it was made with. Use its --descriptor and --weights, "
                    "or make a new vocabulary.",
                )

    def assign(self, descriptors: NDArray[np.floating], count: int = 1) -> Words:
        """Finds the nearest words of each descriptor, nearest first.

        Args:
            descriptors: (N, D).
            count: number of words for each descriptor.

        Returns:
            (N, count) int32.
        """
        rows = np.ascontiguousarray(descriptors, np.float32)
        if not len(rows):
            return np.zeros((0, count), np.int32)
        return np.asarray(search_in_blocks(self._nearest, rows, count)[1], np.int32)

    def signatures(self, descriptors: NDArray[np.floating], words: Words) -> Signatures:
        """Computes binary signatures within given words.

        A bit says whether a projection exceeds the word's median (ECCV 2008, equation 8).

        Args:
            descriptors: (N, D).
            words: (N,) word of each descriptor.

        Returns:
            (N,) uint64; bit b belongs to projection b.
        """
        projected = np.asarray(descriptors, np.float32) @ self.projection.T
        bits = np.packbits(projected > self.thresholds[words], axis=1, bitorder="little")
        return np.ascontiguousarray(bits).view("<u8").reshape(len(bits)).astype(np.uint64)

    def measure_recall(self, sample: Float32) -> float:
        """Returns the share of (N, D) descriptors whose assigned word is the nearest of all."""
        exact = faiss.IndexFlatL2(self.dimension)
        exact.add(self.centroids)
        return float((search_in_blocks(exact, sample, 1)[1] == self.assign(sample)).mean())


def _shown(value: object) -> str:
    return str(value)[:16] or "none"


def _nearest_index(centroids: Float32) -> Any:
    """Makes a faiss index over the words, exact or by cells. The result does not depend on the number of threads."""
    index = _empty_index(*centroids.shape)
    if not index.is_trained:
        index.train(centroids)
    index.add(centroids)
    return index


def _empty_index(words: int, dimension: int) -> Any:
    flat: Any = faiss.IndexFlatL2(dimension)
    if words <= _EXACT_WORDS:
        return flat
    cells = 2 ** round(np.log2(np.sqrt(words)) + 1)
    index = faiss.IndexIVFFlat(flat, dimension, cells)
    flat.this.disown()
    index.own_fields = True
    index.nprobe = _PROBES
    index.cp.seed, index.cp.min_points_per_centroid = 1, 1
    return index


def learn_words(
    sample: Float32, words: int, iterations: int, seed: int, *, gpus: bool, checkpoint: Checkpoint | None = None
) -> Vocabulary:
    """Learns a vocabulary: words by k-means, an orthogonal projection, and medians of the sample.

    Args:
        sample: (N, D) descriptors.
        words: number of words.
        iterations: iterations of k-means.
        seed: random seed of the first words and of the projection.
        gpus: whether GPUs may assign the descriptors.
        checkpoint: keeps the words of an interrupted run. A run that resumes gives the same words.
    """
    count, dimension = sample.shape
    index = _empty_index(words, dimension)
    if not index.is_trained:
        index.train(sample[:words])
    if gpus and faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    chosen = np.empty(count, np.int32)
    faiss.rand_perm(faiss.swig_ptr(chosen), count, seed + 1)  # type: ignore[attr-defined]
    centroids, distances = kmeans(sample, sample[chosen[:words]], index, iterations, checkpoint)
    projection = _random_projection(dimension, seed)
    # Words are stored in 16 bits, like all descriptors.
    centroids = centroids.astype(np.float16).astype(np.float32)
    learned = Vocabulary({"objective": distances / count}, centroids, projection, np.zeros((words, BITS), np.float32))
    nearest = learned.assign(sample)[:, 0]
    thresholds = _medians(sample @ projection.T, nearest, centroids @ projection.T)
    learned.thresholds[:] = thresholds.astype(np.float16)
    return learned


def _random_projection(dimension: int, seed: int) -> Float32:
    """Returns (64, D) orthonormal rows. If D is less than 64, the rows are several orthonormal sets of D."""
    random, rows = np.random.default_rng(seed), min(dimension, BITS)
    sets = [np.linalg.qr(random.standard_normal((dimension, rows)))[0].T for _ in range(-(-BITS // rows))]
    return np.concatenate(sets)[:BITS].astype(np.float32)


def _medians(projected: Float32, words: Words, fallback: Float32) -> Float32:
    """Returns (W, 64) medians of the projected descriptors of each word.

    A word without descriptors gets the projection of its centroid.
    """
    order = np.argsort(words, kind="stable")
    bounds = np.searchsorted(words[order], np.arange(len(fallback) + 1))
    medians = fallback.copy()
    for word in np.flatnonzero(np.diff(bounds)):
        medians[word] = np.median(projected[order[bounds[word] : bounds[word + 1]]], axis=0)
    return medians
