"""The command `vocabulary` learns visual words from a folder of photos."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from hardnet_sfm.arrays import Float32
from hardnet_sfm.errors import HardnetSfmError, UsageError, check_least
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.fingerprints import what_changed
from hardnet_sfm.files.ledger import Ledger, say_again
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import CARD, locked
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import Common, Images, Prune, output, print_result
from hardnet_sfm.verbs.extract import extract_photos

_RECALL_SAMPLE = 4096
_DEFAULT_WORDS = 65536
_DESCRIPTORS_A_WORD = 32


@dataclass(frozen=True)
class VocabularyOptions:
    """How visual words are learned."""

    words: int | None = None
    """Number of visual words, 2 to 1048576. Default: the largest power of two that leaves 32 descriptors for each word,
    at most 65536."""
    sample: int | None = None
    """Number of descriptors to learn from, drawn at random from all photos. Default: 32 for each word, or all if there
    are fewer."""
    iterations: int = 12
    """Iterations of k-means."""
    vocabulary_seed: int = 0
    """Random seed for the sample, the first words and the projection."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        if self.words is not None and not 2 <= self.words <= 2**20:
            raise UsageError("--words must be from 2 to 1048576")
        if self.sample is not None and self.sample < (self.words or 2):
            raise UsageError("--sample must be at least the number of words")
        check_least(self, iterations=1, vocabulary_seed=0)


@dataclass(frozen=True)
class VocabularyResult:
    """Result of the stage.

    Attributes:
        words: number of visual words.
        descriptors: number of descriptors that the words were learned from.
        recall: share of descriptors that are assigned to their nearest word; below 1 if assignment is approximate.
        objective: mean squared distance of the sampled descriptors to their words.
        computed: False if the vocabulary was up to date.
    """

    words: int
    descriptors: int
    recall: float
    objective: float
    computed: bool

    def summary(self) -> str:
        """One line about the vocabulary."""
        found = f"{100 * self.recall:.1f} % of descriptors get their nearest word"
        words = f"{self.words} words of {self.descriptors} descriptors, objective {self.objective:.4f}; {found}"
        return words if self.computed else f"{words}; up to date"


def vocabulary(
    features: Path | str,
    output: Path | str,
    options: VocabularyOptions | None = None,
    resources: Resources | None = None,
    *,
    announce: bool = True,
) -> VocabularyResult:
    """Learns visual words from a store of features by k-means (Sivic and Zisserman, ICCV 2003).

    From 4096 words on, k-means assigns descriptors approximately, as Philbin et al. (CVPR 2007) do. The stage measures
    the share of descriptors that are still assigned to their nearest word, and records it in the vocabulary's card. If
    the installed faiss supports GPUs (conda's faiss-gpu), the GPUs assign. A GPU sums in another order than the CPU, so
    rounding then gives slightly different words. An interrupted run resumes after its last finished iteration.

    Args:
        features: store with the features of the photos.
        output: folder to create.
        options: options of the vocabulary. None means those that the workspace remembers, or the defaults.
        resources: threads and device to use.
        announce: say why an existing vocabulary is learned again. False if the caller has said so.

    Raises:
        HardnetSfmError: there are fewer descriptors than words, or the disk is full.
        UsageError: the options contradict each other.
    """
    import faiss

    from hardnet_sfm.files.vocabulary_files import CentroidFile, read_card, write_vocabulary
    from hardnet_sfm.retrieval.visual_words import learn_words

    features, output, resources = Path(features), Path(output), resources or Resources()
    ledger = Ledger(output.parent)
    options = options or ledger.recall("vocabulary", VocabularyOptions) or VocabularyOptions()
    options.check()
    with locked(output.parent), FeatureStore(features) as store:
        made_of = _made_of(store, options)
        if (output / CARD).is_file():
            card = read_card(output)
            if card.get("made_of") == made_of and (output / str(card.get("file"))).is_file():
                return _result(card, computed=False)
            before, now = ({**of, "features": None} for of in (card.get("made_of", {}), made_of))
            why = what_changed({"options": before}, now) or "photos changed"
            if announce:
                say_again(ledger, "vocabulary", f"{made_of['descriptors']} descriptors", why)
        start = time.perf_counter()
        sample = _sample(store, made_of["descriptors"], options.vocabulary_seed)
        faiss.omp_set_num_threads(resources.threads)
        learned = learn_words(
            sample,
            made_of["words"],
            options.iterations,
            options.vocabulary_seed,
            gpus=resources.device != "cpu",
            checkpoint=CentroidFile(output, made_of),
        )
        made_with = store.header["options"]
        learned.card |= {
            "descriptor": made_with.get("descriptor", ""),
            "photos": len(store.names()),
            "weights_sha256": made_with.get("weights_sha256", ""),
            "data": store.header["images"],
            "words": len(learned),
            "dimension": learned.dimension,
            "words_chosen": options.words is not None,
            "recall": learned.measure_recall(sample[:_RECALL_SAMPLE]),
            "made_of": made_of,
        }
        card = write_vocabulary(output, learned.card, learned.numbers)
        ledger.note_seconds("vocabulary", time.perf_counter() - start, made_of["descriptors"], made_of["descriptors"])
        ledger.remember("vocabulary", options)
    return _result(card, computed=True)


def _result(card: dict[str, Any], *, computed: bool) -> VocabularyResult:
    return VocabularyResult(card["words"], card["made_of"]["descriptors"], card["recall"], card["objective"], computed)


def _made_of(store: FeatureStore, options: VocabularyOptions) -> dict[str, Any]:
    """Collects everything that determines the vocabulary, in a form that JSON can hold."""
    there = sum(store.counts().values())
    words = default_words(there) if options.words is None else options.words
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


def default_words(descriptors: int) -> int:
    """Returns the number of words that a number of descriptors gives without `--words`."""
    return min(_DEFAULT_WORDS, 1 << (max(2, descriptors // _DESCRIPTORS_A_WORD).bit_length() - 1))


def _sample(store: FeatureStore, count: int, seed: int) -> Float32:
    """Draws (count, D) descriptors from the whole store without repetition, in random order."""
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


@dataclass(frozen=True)
class VocabularyCommand:
    """Options of `hardnet-sfm vocabulary`.

    Examples:
        hardnet-sfm vocabulary photos/ --words 65536
        hardnet-sfm vocabulary photos/ --workspace other-city
    """

    images: Images
    """Folder of photos, searched recursively, never written to."""
    common: Common = field(default_factory=Common)
    prune: Prune = False
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    vocabulary: VocabularyOptions = field(default_factory=VocabularyOptions)
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        place = self.common.place
        self.vocabulary.check()
        outputs = [place.vocabulary.name]
        result = extract_photos(self.images, place, self.extract, self.resources, later=outputs, prune=self.prune)
        print_result("extract", result)
        print_result("vocabulary", vocabulary(place.features, place.vocabulary, self.vocabulary, self.resources))
        output.print(escape(str(place.vocabulary)))
