"""Measures what a few new photos cost in each stage, alone and added to many others.

    python pipelines/bench/growth.py IMAGES

The new photos are real ones. The photos that they are added to are generated: small files with random features and
matches that agree with each other. The new photos are paired with each other only, so that the work on them is the same
in both cases. What is left is the cost of the old photos. Mapping is left out, because it starts anew.

Bytes are those that the process wrote (`wchar`) and that went to the disk (`write_bytes`), from /proc/self/io.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from hardnet_sfm.colmap.database import replace_database
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.fingerprints import feature_fingerprint, match_fingerprints
from hardnet_sfm.files.pair_list import write_pairs
from hardnet_sfm.files.photo_folders import list_photos
from hardnet_sfm.files.store_writer import StoreWriter
from hardnet_sfm.files.stores import FEATURES, MATCHES, FeatureStore, MatchStore, feature_arrays, match_arrays, pair_key
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.keypoints import Keypoints, Matches, PhotoPair
from hardnet_sfm.reconstruction.database_maker import DatabaseMaker
from hardnet_sfm.reconstruction.map_options import MapOptions
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.verbs.index import index
from hardnet_sfm.verbs.match import match_photos
from hardnet_sfm.verbs.pair import PairOptions, pair
from hardnet_sfm.verbs.vocabulary import VocabularyOptions, vocabulary

SIZE = (64, 48)
# Generated photos are paired with this many that follow them.
NEIGHBOURS = 10
MATCHED = 100
MAPPING = MapOptions(camera_mode="per-folder")


@dataclass(frozen=True)
class Options:
    """What new photos cost in each stage, alone and added to many others."""

    images: Annotated[Path, tyro.conf.Positional]
    """Folder of photos of one place. The first ones are the new photos."""
    photos: tuple[int, ...] = (25, 128, 2000)
    """Number of photos that the new ones are added to."""
    new: int = 5
    """Number of new photos."""
    keypoints: int = 1000
    """Number of keypoints of a photo."""
    scratch: Path | None = None
    """Folder for temporary files. Default: that of the system."""


@dataclass
class Cost:
    """Cost of a stage: seconds by the clock and of the processor, and megabytes written by the process and to disk."""

    seconds: float
    processor: float
    written: float
    to_disk: float


def measure(stage: Callable[[], object]) -> Cost:
    def now() -> tuple[float, ...]:
        lines = Path("/proc/self/io").read_text().splitlines()
        counted = {name: int(value) / 1e6 for name, value in (line.split(": ") for line in lines)}
        return time.perf_counter(), time.process_time(), counted["wchar"], counted["write_bytes"]

    before = now()
    stage()
    return Cost(*(after - start for after, start in zip(now(), before, strict=True)))


@dataclass(frozen=True)
class Trial:
    """A workspace, its photos, and the pairs that are listed."""

    place: Workspace
    images: Path
    words: Path
    options: Options

    def stages(self, pairs: list[PhotoPair]) -> dict[str, Callable[[], object]]:
        extracting = ExtractOptions(max_keypoints=self.options.keypoints, orientation="upright")
        listed = self.place.root / "listed.txt"
        return {
            "extract": lambda: extract(self.images, self.place.features, extracting),
            "pair": lambda: (
                write_pairs(listed, pairs),
                pair(self.place.features, self.place.pairs, PairOptions(pairs_file=listed)),
            ),
            "match": lambda: match_photos(self.place),
            "database": self.make_database,
            "index": lambda: index(self.place.features, self.words, self.place.index),
        }

    def make_database(self) -> None:
        with FeatureStore(self.place.features) as features, MatchStore(self.place.matches) as matches:
            made = DatabaseMaker(self.place, self.images, features, matches, MAPPING, Resources().threads).make()
        if made != self.place.database:  # `map` does this when there is a model
            replace_database(made, self.place.database)

    def add_photos(self) -> list[PhotoPair]:
        """Puts the new photos into the folder, and returns their pairs."""
        (self.images / "new").mkdir(parents=True)
        names = list_photos(self.options.images).names[: self.options.new]
        for name in names:
            shutil.copy(self.options.images / name, self.images / "new" / Path(name).name)
        return list(combinations([f"new/{Path(name).name}" for name in names], 2))

    def generate(self, count: int, recipe: dict[str, Any], matching: dict[str, Any]) -> list[PhotoPair]:
        """Makes files, features and matches of `count` photos, and returns their pairs."""
        random, keypoints = np.random.default_rng(0), self.options.keypoints
        points = (random.random((keypoints, 2)) * SIZE).astype(np.float32)
        vectors = random.normal(size=(keypoints, 128)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ones, rows = np.ones(keypoints, np.float32), np.arange(MATCHED, dtype=np.int32)
        names, prints = [f"old/{number:05}.png" for number in range(count)], dict[str, str]()
        (self.images / "old").mkdir(parents=True)
        with StoreWriter(self.place.features, FEATURES) as writer:
            for number, name in enumerate(names):
                pixels = random.integers(0, 255, SIZE[::-1], np.uint8)
                cv2.imwrite(str(self.images / name), pixels)
                sha256 = hashlib.sha256((self.images / name).read_bytes()).hexdigest()
                prints[name] = feature_fingerprint(recipe, sha256)
                arrays = feature_arrays(
                    Keypoints(points, ones, 0 * ones, ones), np.roll(vectors, number, 0).astype(np.float16), SIZE
                )
                facts = {"photo_sha256": sha256, "exif_orientation": 1, "keypoints": keypoints, "turn": 0}
                writer.put(name, prints[name], arrays, facts)
            header = {"images": str(self.images), "names": names, "options": recipe, "skipped": {}}
            writer.commit(names, header)
        pairs = [(a, b) for at, a in enumerate(names) for b in names[at + 1 : at + 1 + NEIGHBOURS]]
        arrays = match_arrays(Matches(np.column_stack([rows, rows]), np.ones(MATCHED, np.float32)), keypoints)
        fingerprint = match_fingerprints(matching)
        with StoreWriter(self.place.matches, MATCHES) as writer:
            for a, b in pairs:
                facts = {"name0": a, "name1": b, "matches": MATCHED}
                writer.put(pair_key(a, b), fingerprint(prints[a], prints[b]), arrays, facts)
            writer.commit([pair_key(*both) for both in pairs], {"options": matching, "pairs": "", "rounds": []})
        return pairs


@contextmanager
def scratch(options: Options, words: Path) -> Iterator[Trial]:
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        (Path(folder) / "work").mkdir()
        yield Trial(Workspace(Path(folder) / "work"), Path(folder) / "images", words, options)


def main() -> None:
    options = tyro.cli(Options, registry=flag_rules())
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        words = Path(folder) / "words"
        for _ in range(2):  # the first run also loads libraries
            with scratch(options, words) as alone:
                costs: dict[str, Cost] = {}
                for name, stage in alone.stages(alone.add_photos()).items():
                    if name == "index" and not words.exists():
                        vocabulary(alone.place.features, words, VocabularyOptions(words=256))
                    costs[name] = measure(stage)
                with FeatureStore(alone.place.features) as features, MatchStore(alone.place.matches) as matches:
                    recipes = features.header["options"], matches.header["options"]
        for count in options.photos:
            table = Table(title=f"{options.new} photos of {options.keypoints} keypoints, added to {count} others")
            for column in (
                "stage",
                "s alone",
                "s",
                "CPU s alone",
                "CPU s",
                "CPU ratio",
                "MB alone",
                "MB",
                "MB to disk",
            ):
                table.add_column(column, justify="left" if column == "stage" else "right")
            with scratch(options, words) as grown:
                old = grown.generate(count, *recipes)
                grown.make_database()
                index(grown.place.features, words, grown.place.index)
                for name, stage in grown.stages([*old, *grown.add_photos()]).items():
                    cost, base = measure(stage), costs[name]
                    ratio = cost.processor / max(base.processor, 0.01)  # the clock of the processor has ticks of 10 ms
                    times = base.seconds, cost.seconds, base.processor, cost.processor, ratio
                    sizes = f"{base.written:.1f}", f"{cost.written:.1f}", f"{cost.to_disk:.1f}"
                    table.add_row(name, *(f"{figure:.2f}" for figure in times), *sizes)
            Console(width=110).print(table)


if __name__ == "__main__":
    with report_errors():
        main()
