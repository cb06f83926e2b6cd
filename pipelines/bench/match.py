"""Measures pairs matched a second, compared with COLMAP's matcher and with the matrix product alone.

    python pipelines/bench/match.py IMAGES

Both matchers find mutual nearest neighbours of the same RootSIFT descriptors, with a ratio test of 0.8 in both
directions. COLMAP's matcher takes descriptors as bytes and uses an index by default. Its brute force takes a minute a
pair and is left out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from hardnet_sfm.colmap.baseline import match_with_colmap
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.matching.nearest import Acceptance, mutual_nearest_neighbours, prepare, rounded_product, rounding_for
from hardnet_sfm.networks.device import resolve_device
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.workers import torch_threads

RATIO = 0.8
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """Pairs matched a second, beside COLMAP's matcher and the matrix product alone."""

    images: Annotated[Path, tyro.conf.Positional]
    """Folder of photos; `photos` of them, spread evenly, are matched, all with all."""
    photos: int = 12
    """How many."""
    max_keypoints: int = 8192
    """At most so many descriptors a photo."""
    device: str = "auto"
    """For ours; COLMAP's wheel has no CUDA."""


class Cost(NamedTuple):
    """Seconds on the clock, and of all cores together: the latter hardly mind what else the machine does."""

    wall: float
    cpu: float


def cost_of(call: Callable[[], T]) -> tuple[T, Cost]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, Cost(time.perf_counter() - wall, time.process_time() - cpu)


def least_cost_of(call: Callable[[], object]) -> Cost:
    """The least of three calls, after one that warms up: the noise of a shared machine only adds."""
    costs = [cost_of(call)[1] for _ in range(4)][1:]
    return Cost(min(cost.wall for cost in costs), min(cost.cpu for cost in costs))


def main() -> None:
    options = tyro.cli(Options, registry=flag_rules())
    device = resolve_device(options.device)
    accept, threads = Acceptance(max_ratio=RATIO), Resources().threads
    with tempfile.TemporaryDirectory() as scratch:
        store_path = Path(scratch) / "features.h5"
        extract(options.images, store_path, ExtractOptions(max_keypoints=options.max_keypoints))
        with FeatureStore(store_path) as store:
            names = store.names()[:: max(1, len(store.names()) // options.photos)][: options.photos]
            features = {name: (store.keypoints(name), store.descriptors(name)) for name in names}
        pairs = list(combinations(names, 2))
        rounding = rounding_for(features[names[0]][1], device)
        ours = {name: prepare(rows, rounding) for name, (_, rows) in features.items()}

        def match_pair(pair: tuple[str, str]) -> int:
            return len(mutual_nearest_neighbours(ours[pair[0]], ours[pair[1]], accept))

        def multiply_pair(pair: tuple[str, str]) -> None:
            columns = ours[pair[1]].columns
            rows = ours[pair[0]].rounded.split(256)
            out = rounded_product(rows[0], columns)
            for block in rows:
                rounded_product(block, columns, out[: len(block)])

        with torch_threads(threads if device == "cpu" else 1) as pool:
            counts = {"ours, exact": sum(pool.map(match_pair, pairs))}
            costs = {
                "the product alone": least_cost_of(lambda: list(pool.map(multiply_pair, pairs))),
                "ours, exact": least_cost_of(lambda: list(pool.map(match_pair, pairs))),
            }
        (Path(scratch) / "colmap").mkdir()
        found, costs["COLMAP, its default"] = match_with_colmap(
            options.images, features, Path(scratch) / "colmap", max_ratio=RATIO, threads=threads, cost_of=cost_of
        )
        counts["COLMAP, its default"] = sum(map(len, found.values()))
    mean = sum(len(rows) for _, rows in features.values()) / len(features)
    precision = str(rounding.kind).removeprefix("torch.")
    table = Table(title=f"{len(pairs)} pairs of {mean:.0f} descriptors, {device} {precision}, {threads} threads")
    for column in ("", "matches", "ms a pair", "pairs/s", "cost / ours", "CPU ms a pair", "CPU cost / ours"):
        table.add_column(column, justify="right" if column else "left")
    ours_cost = costs["ours, exact"]
    for name, cost in costs.items():
        wall, cpu = (1000 * seconds / len(pairs) for seconds in cost)
        ratios = cost.wall / ours_cost.wall, cost.cpu / ours_cost.cpu
        found_text = str(counts.get(name, "-"))
        table.add_row(
            name, found_text, f"{wall:.1f}", f"{1000 / wall:.1f}", f"{ratios[0]:.2f}", f"{cpu:.1f}", f"{ratios[1]:.2f}"
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    with report_errors():
        main()
