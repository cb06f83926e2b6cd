"""The verb `evaluate`: a data set of the literature to the table of its measures. Each data set is a subcommand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from rich.markup import escape
from tyro.conf import Positional, arg, subcommand

from hardnet_sfm.commands.common import output, said_of
from hardnet_sfm.errors import UsageError
from hardnet_sfm.evaluation.landmark_sets import LandmarkSetName
from hardnet_sfm.evaluation.tables import LandmarkTable
from hardnet_sfm.features.stage import ExtractReport, KeypointOptions
from hardnet_sfm.progress import console as errors
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.options import METHODS, Method, VocabularyOptions
from hardnet_sfm.workspace import DEFAULT, replacing

_NAMED = 10  # photos that cannot be read; --json has them all


@dataclass(frozen=True)
class LandmarkOptions:
    """What is compared, and where it goes."""

    descriptor: tuple[str, ...] = ("rootsift", "hardnet")
    """Rows of the table. hardnet: with the weights that come with the package."""
    weights: tuple[str, ...] = ()
    """More rows: .safetensors files."""
    method: tuple[Method, ...] = METHODS
    """Columns of the table."""
    json: Path | None = None
    """Write everything here, each query's average precision included."""
    csv: Path | None = None
    """Write the table here."""
    workspace: Path = DEFAULT
    """Folder for everything that is made. Features, vocabularies and indexes of each descriptor are kept there."""
    debug: bool = False
    """Show where in the program an error came from."""
    keypoints: KeypointOptions = field(default_factory=KeypointOptions)
    words: VocabularyOptions = field(default_factory=VocabularyOptions)
    resources: Resources = field(default_factory=Resources)

    def compare(self, name: LandmarkSetName, folder: Path, vocabularies: Sequence[Path]) -> None:
        """Runs the comparison on a data set, prints the table and writes what was asked for."""
        from hardnet_sfm.benchmark import competitors, evaluate_landmarks

        for path in (self.json, self.csv):
            if path is not None and not path.parent.is_dir():
                raise UsageError(f"{path}: no such folder: {path.parent}", "Make the folder first.")
        table = evaluate_landmarks(
            name,
            folder,
            self.workspace,
            vocabularies,
            competitors(self.descriptor, self.weights),
            methods=self.method,
            keypoint_options=self.keypoints,
            vocabulary_options=self.words,
            resources=self.resources,
            on_extract=_print_extracted,
        )
        _print_missing(table)
        for title, printed in table.printed():
            output.print(escape(title))
            output.print(printed)
        if self.csv:
            _write(self.csv, table.as_csv())
        if self.json:
            _write(self.json, json.dumps(table.as_json(), indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class _LandmarkBenchmark:
    name: ClassVar[LandmarkSetName]

    folder: Annotated[Path, Positional, arg(metavar="DATASET")]
    """The data set: photos in images/ or jpg/, ground truth in gt/ or lab/ (revisited: gnd_NAME.pkl), and crops of
    queries whose photos are missing in queries/."""
    vocabulary: tuple[Path, ...]
    """What `vocabulary` made, one for each descriptor; or one data set or folder of photos to learn them from. The
    literature takes those of the other city."""
    table: LandmarkOptions = field(default_factory=LandmarkOptions)

    def run(self) -> None:
        self.table.compare(self.name, self.folder, self.vocabulary)


@dataclass(frozen=True)
class Oxford5k(_LandmarkBenchmark):
    """Philbin et al., CVPR 2007: 55 queries, 11 buildings, 5063 photos; good and ok ones count, junk is passed over."""

    name = "oxford5k"


@dataclass(frozen=True)
class Paris6k(_LandmarkBenchmark):
    """Philbin et al., CVPR 2008: 55 queries, 11 landmarks, 6392 photos."""

    name = "paris6k"


@dataclass(frozen=True)
class Roxford5k(_LandmarkBenchmark):
    """Radenovic et al., CVPR 2018: 70 queries, the photos of Oxford5k, new ground truth: easy, medium, hard."""

    name = "roxford5k"


@dataclass(frozen=True)
class Rparis6k(_LandmarkBenchmark):
    """Radenovic et al., CVPR 2018: 70 queries, the photos of Paris6k, new ground truth: easy, medium, hard."""

    name = "rparis6k"


@dataclass(frozen=True)
class Evaluate:
    """Measure descriptors and methods on Oxford5k and the like."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm evaluate oxford5k OXFORD --vocabulary PARIS --words 65536",
        "hardnet-sfm evaluate rparis6k PARIS --vocabulary OXFORD --weights my.safetensors --csv table.csv",
    )

    data_set: (
        Annotated[Oxford5k, subcommand("oxford5k", prefix_name=False)]
        | Annotated[Paris6k, subcommand("paris6k", prefix_name=False)]
        | Annotated[Roxford5k, subcommand("roxford5k", prefix_name=False)]
        | Annotated[Rparis6k, subcommand("rparis6k", prefix_name=False)]
    )

    @property
    def debug(self) -> bool:
        return self.data_set.table.debug

    def run(self) -> None:
        self.data_set.run()


def _print_extracted(what: str, report: ExtractReport) -> None:
    errors.print(f"{escape(what)}: {escape(said_of(report))}")


def _print_missing(table: LandmarkTable) -> None:
    """Says what of the data set is not there, and so is treated as if the ground truth did not name it."""
    for why in list(table.skipped.values())[:_NAMED]:
        errors.print(f"[yellow]skipped:[/] {escape(why)}", soft_wrap=True)
    if len(table.skipped) > _NAMED:
        errors.print(f"and {len(table.skipped) - _NAMED} more photos: --json FILE has their names", soft_wrap=True)
    if table.unknown:
        errors.print(
            f"[yellow]not there:[/] {_some(table.unknown)} of the photos that the ground truth names; they count as "
            "outside the collection, and the figures are not comparable with those of the whole data set",
            soft_wrap=True,
        )
    for why in dict.fromkeys(table.left_out.values()):
        names = [name for name, reason in table.left_out.items() if reason == why]
        errors.print(f"[yellow]not asked:[/] {_some(names)} of the queries: {escape(why)}", soft_wrap=True)


def _some(names: Sequence[str]) -> str:
    """How many, and the first three by name."""
    return f"{len(names)} ({escape(', '.join(names[:3]))}{' ...' if len(names) > 3 else ''})"


def _write(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    output.print(escape(str(path)))
