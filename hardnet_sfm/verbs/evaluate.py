"""The command `evaluate` measures descriptors on a benchmark data set and prints a table of the results.

Each data set is a subcommand.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from rich.markup import escape
from tyro.conf import Positional, arg, subcommand

from hardnet_sfm.errors import UsageError
from hardnet_sfm.evaluation.landmark_sets import LandmarkSetName
from hardnet_sfm.evaluation.scores import Results, ScoreTable
from hardnet_sfm.evaluation.tables import LandmarkTable
from hardnet_sfm.features.extraction import KeypointOptions
from hardnet_sfm.files.ownership import check_output
from hardnet_sfm.files.workspace import DEFAULT, replacing
from hardnet_sfm.progress import console as errors
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.methods import METHODS, Method
from hardnet_sfm.terminal import output
from hardnet_sfm.verbs.extract import ExtractResult
from hardnet_sfm.verbs.vocabulary import VocabularyOptions

if TYPE_CHECKING:  # torch takes seconds to import; `--help` does without
    from hardnet_sfm.benchmark.competitors import Competitor

_NAMED = 10  # unreadable photos to print; --json lists all


@dataclass(frozen=True)
class TableOptions:
    """Descriptors to compare, and files to write."""

    descriptor: tuple[str, ...] = ("rootsift", "hardnet")
    """Rows of the table. hardnet uses the shipped weights; other networks use the files of --weights that belong to
    them."""
    weights: tuple[str, ...] = ()
    """.safetensors files. A file that no --descriptor uses adds a row for its own network."""
    json: Path | None = None
    """Write all results here, with the score of each query, pair or sequence."""
    csv: Path | None = None
    """Write the table here."""
    debug: bool = False
    """Show where in the program an error came from."""
    resources: Resources = field(default_factory=Resources)

    def rows(self) -> list[Competitor]:
        """Makes the rows of the table. Errors in descriptors and output files appear before the work begins."""
        from hardnet_sfm.benchmark.competitors import competitors

        given = [path for path in (self.json, self.csv) if path is not None]
        for path in given:
            if not path.parent.is_dir():
                raise UsageError(f"{path}: no such folder: {path.parent}", "Make the folder first.")
            if path.is_dir():
                raise UsageError(f"{path} is a folder", "Give the name of a file.")
            check_output(path)
        if len({path.resolve() for path in given}) < len(given):
            raise UsageError(f"--json and --csv are both {self.json}", "Give each its own file.")
        return competitors(self.descriptor, self.weights)

    def show(self, table: Results) -> None:
        """Prints a table and writes what was asked for."""
        for title, printed in table.printed():
            output.print(escape(title))
            output.print(printed)
        if self.csv:
            _write(self.csv, table.as_csv())
        if self.json:
            _write(self.json, json.dumps(table.as_json(), indent=1, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class LandmarkOptions(TableOptions):
    """Descriptors to compare, and files to write."""

    method: tuple[Method, ...] = METHODS
    """Columns of the table: methods of `retrieve`."""
    workspace: Path = DEFAULT
    """Folder for all results. It keeps the features, vocabularies and indexes of each descriptor."""
    keypoints: KeypointOptions = field(default_factory=KeypointOptions)
    words: VocabularyOptions = field(default_factory=VocabularyOptions)

    def compare(self, name: LandmarkSetName, folder: Path, vocabularies: Sequence[Path]) -> None:
        """Runs the comparison on a data set, prints the table and writes what was asked for."""
        from hardnet_sfm.benchmark.landmark_scores import evaluate_landmarks

        table = evaluate_landmarks(
            name,
            folder,
            self.workspace,
            vocabularies,
            self.rows(),
            methods=self.method,
            keypoint_options=self.keypoints,
            vocabulary_options=self.words,
            resources=self.resources,
            on_extract=_print_extracted,
        )
        _print_missing(table)
        self.show(table)


@dataclass(frozen=True)
class _LandmarkBenchmark:
    name: ClassVar[LandmarkSetName]

    folder: Annotated[Path, Positional, arg(metavar="DATASET")]
    """The data set: photos in images/ or jpg/, ground truth in gt/ or lab/ (revisited: gnd_NAME.pkl). Crops of queries
    whose photos are missing are in queries/."""
    vocabulary: tuple[Path, ...]
    """Vocabularies that `vocabulary` made, one for each descriptor; or one data set or folder of photos to learn them
    from. The literature uses the photos of the other city."""
    table: LandmarkOptions = field(default_factory=LandmarkOptions)

    def run(self) -> None:
        self.table.compare(self.name, self.folder, self.vocabulary)


@dataclass(frozen=True)
class Oxford5k(_LandmarkBenchmark):
    """Philbin et al., CVPR 2007: 55 queries, 11 buildings, 5063 photos; good and ok photos count, junk is ignored."""

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
class _ScoreBenchmark(ABC):
    """A data set of patches, or of photos whose geometry is known."""

    folder: Annotated[Path, Positional, arg(metavar="DATASET")]
    """The data set in its authors' layout."""
    table: TableOptions = field(default_factory=TableOptions)

    @abstractmethod
    def measure(self, rows: list[Competitor]) -> ScoreTable: ...

    def run(self) -> None:
        table = self.measure(self.table.rows())
        self.table.show(table)
        for note in table.notes:
            errors.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


@dataclass(frozen=True)
class Brown(_ScoreBenchmark):
    """Brown et al., PAMI 2011: patches of liberty, notredame and yosemite, if they are there; FPR at 95 % recall of the
    official pairs. A star marks rows that were trained on the set, as their name or metadata says."""

    def measure(self, rows: list[Competitor]) -> ScoreTable:
        from hardnet_sfm.benchmark.patch_scores import evaluate_brown

        return evaluate_brown(self.folder, rows, self.table.resources)


@dataclass(frozen=True)
class W1bs(_ScoreBenchmark):
    """Mishkin et al., BMVC 2015: patches with one nuisance at a time (A, G, L, S, map2photo); mAUC by nuisance."""

    def measure(self, rows: list[Competitor]) -> ScoreTable:
        from hardnet_sfm.benchmark.patch_scores import evaluate_w1bs

        return evaluate_w1bs(self.folder, rows, self.table.resources)


@dataclass(frozen=True)
class Hpatches(_ScoreBenchmark):
    """Balntas et al., CVPR 2017: verification, matching and retrieval of patches with easy, hard and tough errors."""

    tasks: Path | None = None
    """Folder of the task files and splits.json, from the authors' repository. Default: tasks/ in the data set."""
    split: str = "full"
    """Sequences to test: a, b, c or full; illum or view for changes of illumination or of viewpoint alone."""

    def measure(self, rows: list[Competitor]) -> ScoreTable:
        from hardnet_sfm.benchmark.patch_scores import evaluate_hpatches

        return evaluate_hpatches(self.folder, rows, self.table.resources, tasks=self.tasks, split=self.split)


@dataclass(frozen=True)
class Homography(_ScoreBenchmark):
    """Sequences of six photos that are related by homographies, as in Oxford affine or HPatches: MMA, right matches and
    mAP, all on COLMAP's keypoints. COLMAP's own RootSIFT is always compared, too."""

    max_features: int = 4000
    """COLMAP's limit on keypoints per photo. A keypoint with two orientations counts once and gives two rows."""

    def measure(self, rows: list[Competitor]) -> ScoreTable:
        from hardnet_sfm.benchmark.photo_scores import evaluate_homographies

        return evaluate_homographies(self.folder, rows, self.table.resources, max_features=self.max_features)


@dataclass(frozen=True)
class Pairs(_ScoreBenchmark):
    """Pairs of photos with a wide baseline. In the layout of EVD (1/, 2/, h/): right matches and mAP by the homography.
    In the layout of WxBS (GROUP/NAME/01.png, 02.png, corrs.txt): recall of true correspondences by the epipolar
    geometry."""

    max_features: int = 4000
    """COLMAP's limit on keypoints per photo. A keypoint with two orientations counts once and gives two rows."""

    def measure(self, rows: list[Competitor]) -> ScoreTable:
        from hardnet_sfm.benchmark.photo_scores import evaluate_pairs

        return evaluate_pairs(self.folder, rows, self.table.resources, max_features=self.max_features)


@dataclass(frozen=True)
class EvaluateCommand:
    """Measure descriptors on the data sets of the literature."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm evaluate oxford5k OXFORD --vocabulary PARIS --words 65536",
        "hardnet-sfm evaluate rparis6k PARIS --vocabulary OXFORD --csv table.csv",
        "hardnet-sfm evaluate brown PHOTOTOUR --weights my.safetensors",
        "hardnet-sfm evaluate hpatches HPATCHES --tasks BENCHMARK/tasks --split a",
        "hardnet-sfm evaluate pairs WXBS --json scores.json",
    )

    data_set: (
        Annotated[Oxford5k, subcommand("oxford5k", prefix_name=False)]
        | Annotated[Paris6k, subcommand("paris6k", prefix_name=False)]
        | Annotated[Roxford5k, subcommand("roxford5k", prefix_name=False)]
        | Annotated[Rparis6k, subcommand("rparis6k", prefix_name=False)]
        | Annotated[Brown, subcommand("brown", prefix_name=False)]
        | Annotated[W1bs, subcommand("w1bs", prefix_name=False)]
        | Annotated[Hpatches, subcommand("hpatches", prefix_name=False)]
        | Annotated[Homography, subcommand("homography", prefix_name=False)]
        | Annotated[Pairs, subcommand("pairs", prefix_name=False)]
    )

    @property
    def debug(self) -> bool:
        return self.data_set.table.debug

    def run(self) -> None:
        self.data_set.run()


def _print_extracted(what: str, result: ExtractResult) -> None:
    errors.print(f"{escape(what)}: {escape(result.summary())}")


def _print_missing(table: LandmarkTable) -> None:
    """Prints which parts of the data set are missing; the evaluation ignores the ground truth about them."""
    for why in list(table.skipped.values())[:_NAMED]:
        errors.print(f"[yellow]skipped:[/] {escape(why)}", soft_wrap=True)
    if len(table.skipped) > _NAMED:
        errors.print(f"and {len(table.skipped) - _NAMED} more photos: --json FILE has their names", soft_wrap=True)
    if table.unknown:
        errors.print(
            f"[yellow]missing:[/] {_some(table.unknown)} of the photos in the ground truth. They count as outside the "
            "collection, so the results are not comparable with those of the whole data set",
            soft_wrap=True,
        )
    for why in dict.fromkeys(table.left_out.values()):
        names = [name for name, reason in table.left_out.items() if reason == why]
        errors.print(f"[yellow]not used:[/] {_some(names)} of the queries: {escape(why)}", soft_wrap=True)


def _some(names: Sequence[str]) -> str:
    """Formats the number of names and the first three of them."""
    return f"{len(names)} ({escape(', '.join(names[:3]))}{' ...' if len(names) > 3 else ''})"


def _write(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    output.print(escape(str(path)))
