"""Options and reports of the stages, and the names of the methods: what `--help` needs, without faiss and numba."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hardnet_sfm.errors import UsageError

Method = Literal["bow", "bow+sv", "bow+sv+qe", "he", "he+sv", "hqe", "hqe+ma", "hqe+ma+sv", "asmk"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_METHOD: Method = "hqe+ma+sv"
MOST_PHOTOS = 65536  # of a segment: their numbers in it have 16 bits


@dataclass(frozen=True)
class VocabularyOptions:
    """How visual words are learned."""

    words: int | None = None
    """How many visual words, 2 to 1048576. Default: the power of two that leaves 32 descriptors or more for each, at
    most 65536."""
    sample: int | None = None
    """How many descriptors to learn from, drawn at random from all photos alike. Default: 32 a word, or all."""
    iterations: int = 12
    """Of k-means."""
    vocabulary_seed: int = 0
    """Of the sample, the first words and the projection."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        if self.words is not None and not 2 <= self.words <= 2**20:
            raise UsageError("--words must be from 2 to 1048576")
        if self.sample is not None and self.sample < (self.words or 2):
            raise UsageError("--sample must be at least the number of words")
        if self.iterations < 1:
            raise UsageError("--iterations must be at least 1")
        if self.vocabulary_seed < 0:
            raise UsageError("--vocabulary-seed must be at least 0")


@dataclass(frozen=True)
class VocabularyReport:
    """What the stage did.

    Attributes:
        words: how many.
        descriptors: that they were learned from.
        recall: share of descriptors that get their nearest word; less than 1 where assignment is approximate.
        objective: mean squared distance of the sample to its words.
        computed: False where the vocabulary was up to date.
    """

    words: int
    descriptors: int
    recall: float
    objective: float
    computed: bool


@dataclass(frozen=True)
class IndexOptions:
    """How photos are put into an index. None of it changes what a query finds."""

    checkpoint: int = 256
    """Photos between two states that a killed run goes on from."""

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        if not 1 <= self.checkpoint <= MOST_PHOTOS:
            raise UsageError(f"--checkpoint must be from 1 to {MOST_PHOTOS}")


@dataclass(frozen=True)
class IndexReport:
    """What the stage did.

    Attributes:
        photos: number of photos in the index.
        features: of them all.
        added, removed: number of photos; a changed one counts as both.
        bytes_a_feature: of all files of the index but the vocabulary.
    """

    photos: int
    features: int
    added: int
    removed: int
    bytes_a_feature: float


@dataclass(frozen=True)
class ProposeReport:
    """What the stage did: the number of photos and of pairs."""

    photos: int
    pairs: int
