"""Visual words and binary signatures of descriptors: the stage `vocabulary`, and its folder.

A vocabulary is a folder: `card.json` says what it was made of and names the file with the numbers, whose name has its
checksum in it, so that a vocabulary is replaced by replacing its card.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.images import sha256_of
from hardnet_sfm.keypoints import Float32
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.options import VocabularyOptions, VocabularyReport
from hardnet_sfm.stores import FeatureStore
from hardnet_sfm.workspace import CARD, locked, prepare_folder, read_json, replacing, write_json

FORMAT = "hardnet-sfm vocabulary"
VERSION = 1
BITS = 64
# Up to so many words the nearest is found by comparing all; beyond, words are looked for in the nearest of
# 2 sqrt(words) cells: 0.1 s instead of 0.5 s for 4000 descriptors and 20k words, and 99.9 % of the answers the same.
_EXACT_WORDS = 4096
_PROBES = 32
_RECALL_SAMPLE = 4096
_DEFAULT_WORDS = 65536
_DESCRIPTORS_A_WORD = 32

Words = NDArray[np.int32]
Signatures = NDArray[np.uint64]


class Vocabulary:
    """Visual words, and the binary signatures of Hamming embedding within each.

    Attributes:
        card: what it was made of: descriptor, weights sha256, data, words, objective ...
        centroids: (W, D) float32.
        projection: (64, D) float32, orthonormal rows (Jegou, Douze, Schmid, ECCV 2008, section 4.1). Of fewer
            than 64 dimensions each D rows are a set of their own; bits of different sets are correlated.
        thresholds: (W, 64) float32, medians of the projected descriptors of each word.
    """

    def __init__(self, card: dict[str, Any], centroids: Float32, projection: Float32, thresholds: Float32) -> None:
        self.card, self.centroids, self.projection, self.thresholds = card, centroids, projection, thresholds

    @cached_property
    def _nearest(self) -> Any:
        """Made when first asked for: it takes a k-means of its own, which who only reads an index does without."""
        return _nearest_index(self.centroids)

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def dimension(self) -> int:
        """D, of the descriptors."""
        return int(self.centroids.shape[1])

    @property
    def fingerprint(self) -> str:
        """Sha256 of its numbers."""
        return str(self.card["sha256"])

    @classmethod
    def open(cls, folder: Path) -> Vocabulary:
        """Reads a vocabulary.

        Args:
            folder: of the vocabulary, or a workspace that has one.

        Raises:
            HardnetSfmError: there is none, or it is damaged or of another version.
        """
        folder = folder if (folder / CARD).is_file() else folder / "vocabulary"
        if not (folder / CARD).is_file():
            raise HardnetSfmError(f"no vocabulary at {folder}", "Run `hardnet-sfm vocabulary IMAGES` first.")
        card = read_json(folder / CARD)
        if card.get("format") != FORMAT or card.get("version") != VERSION:
            raise HardnetSfmError(
                f"{folder}: not a vocabulary of hardnet-sfm (version {VERSION})",
                "Make it again with `hardnet-sfm vocabulary IMAGES`.",
            )
        path = folder / str(card.get("file"))
        try:
            whole = sha256_of(path) == card["sha256"]
            tensors = load_file(path) if whole else {}
            numbers = [tensors[name].astype(np.float32) for name in ("centroids", "projection", "thresholds")]
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise HardnetSfmError(
                f"{path}: missing, damaged or changed", "Make the vocabulary again with `hardnet-sfm vocabulary`."
            ) from error
        return cls(card, *numbers)

    def save(self, folder: Path) -> None:
        """Writes the vocabulary, or nothing; an earlier one in the folder stays until this one is complete.

        Raises:
            HardnetSfmError: the disk is full or cannot be written.
        """
        prepare_folder(folder)
        tensors = {"centroids": self.centroids, "thresholds": self.thresholds}
        halves = {name: np.ascontiguousarray(value, np.float16) for name, value in tensors.items()}
        content = save({**halves, "projection": np.ascontiguousarray(self.projection)})
        mark = sha256(content).hexdigest()
        target = folder / f"words-{mark[:8]}.safetensors"
        try:
            with replacing(target) as beside:
                beside.write_bytes(content)
            self.card.update({"format": FORMAT, "version": VERSION, "file": target.name, "sha256": mark})
            write_json(folder / CARD, self.card)
        except OSError as error:
            raise HardnetSfmError(f"cannot write {folder}: {error}", "Make room on the disk and run again.") from error
        for old in folder.glob("words-*.safetensors"):
            if old != target:
                old.unlink()

    def check_fits(self, options: dict[str, Any], what: str) -> None:
        """Refuses descriptors that are not the vocabulary's.

        Args:
            options: that the features were made with, as their store has them.
            what: whose descriptors, for the message.

        Raises:
            HardnetSfmError: they are of another descriptor or other weights.
        """
        for name, words in (("descriptor", "descriptors"), ("weights_sha256", "weights")):
            ours, theirs = self.card[name], options.get(name, "")
            if ours != theirs:
                raise HardnetSfmError(
                    f"{what}: other {words} than the vocabulary's: {_shown(theirs)} instead of {_shown(ours)}",
                    "Words of one descriptor mean nothing to another. Use --descriptor and --weights of the "
                    "vocabulary, or make a vocabulary of these.",
                )

    def assign(self, descriptors: NDArray[np.floating], count: int = 1) -> Words:
        """The nearest words of each descriptor, nearest first.

        Args:
            descriptors: (N, D).
            count: how many.

        Returns:
            (N, count) int32.
        """
        rows = np.ascontiguousarray(descriptors, np.float32)
        if not len(rows):
            return np.zeros((0, count), np.int32)
        return np.asarray(self._nearest.search(rows, count)[1], np.int32)

    def signatures(self, descriptors: NDArray[np.floating], words: Words) -> Signatures:
        """Binary signatures within given words: which projections exceed the word's median (ECCV 2008, equation 8).

        Args:
            descriptors: (N, D).
            words: (N,) of each.

        Returns:
            (N,) uint64; bit b is that of projection b.
        """
        projected = np.asarray(descriptors, np.float32) @ self.projection.T
        bits = np.packbits(projected > self.thresholds[words], axis=1, bitorder="little")
        return np.ascontiguousarray(bits).view("<u8").reshape(len(bits)).astype(np.uint64)

    def measure_recall(self, sample: Float32) -> float:
        """Share of (N, D) descriptors whose assigned word is the nearest of all."""
        exact = faiss.IndexFlatL2(self.dimension)
        exact.add(self.centroids)
        return float((exact.search(sample, 1)[1] == self.assign(sample)).mean())


def _shown(value: object) -> str:
    return str(value)[:16] or "none"


def _nearest_index(centroids: Float32) -> Any:
    """A faiss index over the words, exact or by cells; the same for the same words, whatever the number of threads."""
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


def vocabulary(
    features: Path | str,
    output: Path | str,
    options: VocabularyOptions | None = None,
    resources: Resources | None = None,
) -> VocabularyReport:
    """Learns visual words from a store of features by k-means (Sivic and Zisserman, ICCV 2003).

    From 4096 words on, k-means assigns approximately, as Philbin et al. (CVPR 2007) do; the share of descriptors that
    get their nearest word all the same is measured, and is part of the card. Where the faiss that is installed has GPUs
    (conda's faiss-gpu), they assign; sums in another order then give other words than the CPU, by rounding.

    Args:
        features: store of the photos.
        output: folder to make.
        options: how.
        resources: how much of the machine.

    Raises:
        HardnetSfmError: there are fewer descriptors than words; or the disk is full.
        UsageError: contradictory options.
    """
    options, resources = options or VocabularyOptions(), resources or Resources()
    options.check()
    features, output = Path(features), Path(output)
    with locked(output.parent), FeatureStore(features) as store:
        made_of = _made_of(store, options)
        if (output / CARD).is_file():
            card = read_json(output / CARD)
            if card.get("made_of") == made_of and (output / str(card.get("file"))).is_file():
                return _report(card, computed=False)
        sample = _sample(store, made_of["descriptors"], options.vocabulary_seed)
        faiss.omp_set_num_threads(resources.threads)
        learned = _learn(sample, made_of, options, gpus=resources.device != "cpu")
        facts = {"descriptor": store.header["options"].get("descriptor", ""), "photos": len(store.names())}
        learned.card.update(
            {
                **facts,
                "weights_sha256": store.header["options"].get("weights_sha256", ""),
                "data": store.header["images"],
                "words": len(learned),
                "dimension": learned.dimension,
                "recall": learned.measure_recall(sample[:_RECALL_SAMPLE]),
                "made_of": made_of,
            }
        )
        learned.save(output)
    return _report(learned.card, computed=True)


def _report(card: dict[str, Any], *, computed: bool) -> VocabularyReport:
    return VocabularyReport(card["words"], card["made_of"]["descriptors"], card["recall"], card["objective"], computed)


def _made_of(store: FeatureStore, options: VocabularyOptions) -> dict[str, Any]:
    """Everything that decides what the vocabulary is, fit for JSON."""
    there = sum(store.counts().values())
    words = options.words
    if words is None:
        words = min(_DEFAULT_WORDS, 2 ** int(np.log2(max(2, there // _DESCRIPTORS_A_WORD))))
    if there < words:
        raise HardnetSfmError(
            f"{store.path}: {there} descriptors cannot make {words} words",
            "Ask for fewer --words, or add photos.",
        )
    sample = min(there, words * _DESCRIPTORS_A_WORD if options.sample is None else options.sample)
    return {
        "words": words,
        "descriptors": sample,
        "iterations": options.iterations,
        "seed": options.vocabulary_seed,
        "features": store.fingerprints(),
    }


def _sample(store: FeatureStore, count: int, seed: int) -> Float32:
    """(count, D) descriptors, drawn from all of the store without repetition, in random order."""
    counts = store.counts()
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(sum(counts.values()))[:count])
    ends = np.cumsum(list(counts.values()))
    rows: Float32 | None = None
    done = 0
    with progress("sample", len(counts)) as advance:
        for (name, size), end in zip(counts.items(), ends, strict=True):
            stop = int(np.searchsorted(chosen, end))
            if stop > done:
                picked = store.descriptors(name)[chosen[done:stop] - (end - size)]
                rows = np.empty((count, picked.shape[1]), np.float32) if rows is None else rows
                rows[done:stop] = picked
            done = stop
            advance(note=name)
    assert rows is not None
    return rows[random.permutation(count)]


def _learn(sample: Float32, made_of: dict[str, Any], options: VocabularyOptions, *, gpus: bool) -> Vocabulary:
    """k-means, an orthogonal projection, and medians of the sample."""
    count, dimension = sample.shape
    clustering = faiss.Clustering(dimension, made_of["words"])
    clustering.niter, clustering.seed = 1, options.vocabulary_seed
    clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, count
    index = _empty_index(made_of["words"], dimension)
    if not index.is_trained:
        index.train(sample[: made_of["words"]])
    if gpus and faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    # An iteration a call, so that people see progress and Ctrl-C is heard.
    with progress("k-means", options.iterations) as advance:
        for _ in range(options.iterations):
            clustering.train(sample, index)
            objective = _objective(clustering) / count
            index.reset()
            advance()
    centroids = faiss.vector_to_array(clustering.centroids).reshape(-1, dimension).copy()
    projection = _random_projection(dimension, options.vocabulary_seed)
    # What is kept has 16 bits, and so have all descriptors.
    centroids = centroids.astype(np.float16).astype(np.float32)
    learned = Vocabulary({"objective": objective}, centroids, projection, np.zeros((len(centroids), BITS), np.float32))
    words = learned.assign(sample)[:, 0]
    thresholds = _medians(sample @ projection.T, words, centroids @ projection.T)
    learned.thresholds[:] = thresholds.astype(np.float16)
    return learned


def _random_projection(dimension: int, seed: int) -> Float32:
    """(64, D) orthonormal rows, or where D is less than 64 as many sets of D as that takes."""
    random, rows = np.random.default_rng(seed), min(dimension, BITS)
    sets = [np.linalg.qr(random.standard_normal((dimension, rows)))[0].T for _ in range(-(-BITS // rows))]
    return np.concatenate(sets)[:BITS].astype(np.float32)


def _objective(clustering: Any) -> float:
    """Sum of squared distances after the last iteration."""
    statistics = clustering.iteration_stats
    return float(statistics.at(statistics.size() - 1).obj)


def _medians(projected: Float32, words: Words, fallback: Float32) -> Float32:
    """(W, 64) medians of the projected descriptors of each word; of a word without any, those of its centroid."""
    order = np.argsort(words, kind="stable")
    bounds = np.searchsorted(words[order], np.arange(len(fallback) + 1))
    medians = fallback.copy()
    for word in np.flatnonzero(np.diff(bounds)):
        medians[word] = np.median(projected[order[bounds[word] : bounds[word + 1]]], axis=0)
    return medians
