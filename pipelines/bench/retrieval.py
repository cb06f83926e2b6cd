"""Builds and searches a large index of synthetic photos: time, bytes, and speed relative to memory bandwidth.

    python pipelines/bench/retrieval.py
    python pipelines/bench/retrieval.py --photos 10000

Words follow a flattened Zipf's law. Lists are then as uneven as those of real photos with a vocabulary from another
city (imbalance factor 1.6 and 1.8 measured; 1 is even). Every query has ten photos in the index that share some of its
features, with signatures that differ by a few bits. Query expansion can therefore find photos to expand with. Times are
those of ranking alone, for a query that is already described and assigned to words. The peer is faiss's IndexBinaryIVF
with the same words, signatures and queries. It finds the same matches but neither weighs nor sums them, and takes 16
bytes a feature.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hardnet_sfm.errors import UsageError
from hardnet_sfm.files.vocabulary_files import write_vocabulary
from hardnet_sfm.files.workspace import MANIFEST, PHOTOS, read_json, write_json
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.index_folder import IndexBuilder, open_index, open_vocabulary
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval import kernels
from hardnet_sfm.retrieval.inverted_index import InvertedIndex
from hardnet_sfm.retrieval.methods import Method
from hardnet_sfm.retrieval.scoring import MULTIPLE, STRICT, Query, distance_weights
from hardnet_sfm.retrieval.search import multiple_of, score
from hardnet_sfm.retrieval.segments import IndexedPhoto
from hardnet_sfm.retrieval.visual_words import Vocabulary
from hardnet_sfm.terminal import report_errors

RELEVANT, SHARED, FLIPPED = 10, 0.15, 8
SIZE = (1024, 768)
_MADE_WITH = "made-with.json"  # file next to the index with the options that decide its contents


@dataclass(frozen=True)
class Options:
    """Building and searching an index of synthetic photos."""

    photos: int = 100_000
    """In the index."""
    features: int = 2000
    """A photo."""
    words: int = 65536
    """Of the vocabulary."""
    queries: int = 10
    """To take the mean of."""
    folder: Path | None = None
    """To make the index in, and to use it again from. Default: a temporary one."""
    peer: bool = True
    """Search with faiss as well, which takes 16 bytes a feature of memory."""
    workers: int = 2
    """Threads."""


class Synthetic:
    """Photos of random features."""

    def __init__(self, options: Options) -> None:
        self._options, self._random = options, np.random.default_rng(0)
        shares = 1 / (np.arange(options.words) + options.words / 12)
        self._cumulated = np.cumsum(shares / shares.sum())
        self._order = self._random.permutation(options.words).astype(np.int32)
        self.queries = [self._features() for _ in range(options.queries)]

    def _draw(self, count: int) -> NDArray[np.int32]:
        return self._order[np.searchsorted(self._cumulated, self._random.random(count)).clip(0, len(self._order) - 1)]

    def _features(self) -> tuple[NDArray[np.int32], NDArray[np.uint64], NDArray[np.uint32]]:
        count = self._options.features
        signatures = self._random.integers(0, 2**64, count, np.uint64)
        return self._draw(count), signatures, self._random.integers(0, 2**32, count, np.uint32)

    def photos(self) -> Iterator[IndexedPhoto]:
        """All of them; the relevant ones spread evenly."""
        apart = self._options.photos // (RELEVANT * self._options.queries)
        for number in range(self._options.photos):
            words, signatures, geometry = self._features()
            which, rest = divmod(number, max(1, apart))
            if not rest and which < RELEVANT * self._options.queries:
                of = self.queries[which % self._options.queries]
                rows = np.flatnonzero(self._random.random(len(words)) < SHARED)
                flips = np.zeros(len(rows), np.uint64)
                for _ in range(FLIPPED):
                    flips ^= np.uint64(1) << self._random.integers(0, 64, len(rows), np.uint64)
                words[rows], signatures[rows], geometry[rows] = of[0][rows], of[1][rows] ^ flips, of[2][rows]
            yield IndexedPhoto(f"{number:07}.jpg", str(number), SIZE, words, signatures, geometry)

    def query(self, number: int, multiple: int) -> Query:
        """A query; its features' further words are random, with random signatures."""
        words, signatures, _ = self.queries[number]
        count = len(words)
        more = [self._draw(count) for _ in range(multiple - 1)]
        others = [self._random.integers(0, 2**64, count, np.uint64) for _ in range(multiple - 1)]
        return Query(
            np.arange(count + 1) * multiple,
            np.stack([words, *more], 1).ravel(),
            np.stack([signatures, *others], 1).ravel(),
            np.ones((count, 4), np.float32),
        )


def build(options: Options, folder: Path, synthetic: Synthetic) -> float:
    """Seconds that it takes to write the index, without making up its photos."""
    random = np.random.default_rng(1)
    centroids = random.standard_normal((options.words, 128)).astype(np.float16).astype(np.float32)
    projection = np.linalg.qr(random.standard_normal((128, 64)))[0].T.astype(np.float32)
    words = Vocabulary({}, centroids, projection, np.zeros((options.words, 64), np.float32))
    write_vocabulary(folder / "words", words.card, words.numbers)
    builder = IndexBuilder(folder / "index", open_vocabulary(folder / "words"), "", {})
    spent = 0.0
    for photo in synthetic.photos():
        start = time.perf_counter()
        builder.add(photo, 4096)
        spent += time.perf_counter() - start
    start = time.perf_counter()
    builder.finish()
    return spent + time.perf_counter() - start


def check_same(folder: Path, made_with: Mapping[str, int]) -> None:
    """Refuses an index of other synthetic photos, whose queries would find other things, or nothing."""
    then = read_json(folder / _MADE_WITH) if (folder / _MADE_WITH).is_file() else {}
    other = [f"--{name} {then.get(name, 'unknown')}" for name, now in made_with.items() if then.get(name) != now]
    if other:
        raise UsageError(f"{folder} has an index made with {', '.join(other)}", "Delete it, or give another --folder.")


def bandwidth(workers: int) -> float:
    """Bytes a second that the threads read from memory together: the best of five passes over 512 MB each."""
    block = np.ones(2**26, np.uint64)
    parts = [block.copy() for _ in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        return max(
            workers * block.nbytes / seconds(lambda: list(pool.map(np.bitwise_or.reduce, parts))) for _ in range(5)
        )


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cost(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of all cores together: the latter hardly mind what else the machine does."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


class Peer:
    """faiss's binary inverted lists, filled with an index's."""

    def __init__(self, index: InvertedIndex, words: int) -> None:
        self._quantizer = faiss.IndexBinaryFlat(64)
        self._quantizer.add(np.arange(words, dtype=np.uint64).view(np.uint8).reshape(-1, 8))
        self._index = faiss.IndexBinaryIVF(self._quantizer, 64, words)
        self._index.is_trained = True
        for segment, start in zip(index.segments, index.starts[:-1], strict=True):
            of_word = np.repeat(np.arange(words), np.diff(segment.columns.offsets))
            for begin in range(0, segment.entries, 2**24):
                rows = slice(begin, begin + 2**24)
                codes = np.ascontiguousarray(segment.columns.signatures[rows])
                ids = segment.columns.images[rows].astype(np.int64) + start
                chosen = np.ascontiguousarray(of_word[rows])
                pointers = [faiss.swig_ptr(array) for array in (codes.view(np.uint8), ids, chosen)]
                self._index.add_core(len(codes), *pointers)

    def search(self, query: Query) -> int:
        """Number of matches within the reach of Hamming embedding."""
        multiple, found = int(query.starts[1]), 0
        self._index.nprobe = 1
        reach = int(np.flatnonzero(distance_weights())[-1]) + 1
        # faiss takes one signature for each query, so several words need a call for each.
        for turn in range(multiple):
            words = np.ascontiguousarray(query.words[turn::multiple, None].astype(np.int64))
            signatures = np.ascontiguousarray(query.signatures[turn::multiple]).view(np.uint8).reshape(-1, 8)
            limits, _, _ = self._index.range_search_preassigned(
                signatures, reach, words, np.zeros_like(words, np.int32)
            )
            found += int(limits[-1])
        return found


def entries_read(index: InvertedIndex, query: Query) -> int:
    """Length of all lists that a query looks through."""
    return sum(int(np.diff(segment.columns.offsets)[query.words].sum()) for segment in index.segments)


def main() -> None:
    options = tyro.cli(Options, registry=flag_rules())
    faiss.omp_set_num_threads(options.workers)
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        measure(options, folder)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def measure(options: Options, folder: Path) -> None:
    console = Console(width=110)
    synthetic = Synthetic(options)
    made_with = {name: getattr(options, name) for name in ("photos", "features", "words", "queries")}
    if (folder / "index" / MANIFEST).is_file():
        check_same(folder, made_with)
    else:
        spent = build(options, folder, synthetic)
        write_json(folder / _MADE_WITH, made_with)
        console.print(f"built in {spent:.0f} s, {1e6 * spent / options.photos / options.features:.2f} us a feature")
    index = open_index(folder / "index", Resources(workers=options.workers)).lists
    files = sum(path.stat().st_size for path in (folder / "index").glob("segment-*/*"))
    lists = np.sum([np.diff(segment.columns.offsets) for segment in index.segments], 0).astype(np.float64)
    imbalance = options.words * (lists**2).sum() / lists.sum() ** 2
    offsets, facts = (
        sum(path.stat().st_size for path in (folder / "index").glob(f"segment-*/{name}")) / index.features
        for name in ("offsets.npy", PHOTOS)
    )
    console.print(
        f"{index.features} features in {len(index.segments)} segments, {files / index.features:.3f} bytes a feature "
        f"({files / index.features - offsets - facts:.3f} of features, {offsets:.3f} of words, {facts:.3f} of photos), "
        f"imbalance factor {imbalance:.2f}"
    )
    console.print(f"statistics when first asked for: {seconds(lambda: index.norms):.2f} s")
    random = np.random.default_rng(2).standard_normal((options.features, 128)).astype(np.float32)
    assigning = min(seconds(lambda: index.vocabulary.assign(random, MULTIPLE)) for _ in range(3))
    console.print(f"assigning the {options.features} descriptors of a query to words: {1000 * assigning:.0f} ms")
    speed = bandwidth(options.workers)
    table = Table(title=f"{options.photos} photos, {options.workers} threads, memory reads {speed / 1e9:.1f} GB/s")
    for column in ("", "ms a query", "least", "CPU ms, all threads", "M entries", "share of bandwidth"):
        table.add_column(column, justify="right" if column else "left")

    def row(name: str, call: Callable[[Query], Any], queries: list[Query], width: int) -> float:
        call(queries[0])
        costs = [min(cost(lambda query=query: call(query)) for _ in range(3)) for query in queries]
        times, cpu = zip(*costs, strict=True)
        entries = np.mean([entries_read(index, query) for query in queries])
        mean = float(np.mean(times))
        share = f"{100 * entries * width / mean / speed:.0f} %" if width else "-"
        figures = (1000 * mean, 1000 * min(times), 1000 * np.mean(cpu), entries / 1e6)
        table.add_row(name, *(f"{figure:.1f}" for figure in figures), share)
        return mean

    single, several = ([synthetic.query(number, many) for number in range(options.queries)] for many in (1, MULTIPLE))
    region = (-1.0, -1.0, float(SIZE[0]), float(SIZE[1]))
    methods: tuple[tuple[str, Method, int, list[Query]], ...] = (
        ("bow", "bow", 2, single),
        ("he", "he", 8, single),
        ("he, several words", "he", 8, several),
        ("hqe", "hqe", 0, single),
        ("hqe+ma", "hqe+ma", 0, several),
        ("asmk", "asmk", 10, several),
    )
    for name, method, width, queries in methods:
        assert multiple_of(method) in (1, MULTIPLE)
        row(name, lambda query, method=method: score(index, query, region, method), queries, width)
    if options.peer:
        peer = Peer(index, options.words)
        ours = row("our matches alone", lambda query: our_matches(index, query), single, 8)
        theirs = row("faiss IndexBinaryIVF", peer.search, single, 8)
        console.print(f"faiss takes {theirs / ours:.2f} times as long as we do to find the same matches")
    console.print(table)


def our_matches(index: InvertedIndex, query: Query) -> int:
    """What the peer does: matches within reach, by thread over features."""
    cuts = np.linspace(0, len(query), 4 * index.threads + 1).astype(int).tolist()
    rows = (query.starts, query.words, query.signatures)
    weights = distance_weights()
    tasks = [
        (first, last, *rows, weights, STRICT, index.idf, *segment.lists, segment.alive)
        for segment in index.segments
        for first, last in pairwise(cuts)
    ]
    return sum(len(found[0]) for found in index.threaded(kernels.embedded_matches, tasks))


if __name__ == "__main__":
    with report_errors():
        main()
