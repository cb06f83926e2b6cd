"""The command `evaluate` measures descriptors on a benchmark data set and prints a table of the results.

Each data set is a subcommand.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from rich.markup import escape
from tyro.conf import OmitSubcommandPrefixes, Positional, arg

from hardnet_sfm.competitors import DESCRIPTORS, Competitor, competitors, find_vocabularies
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.datasets.landmark_sets import LandmarkSet, LandmarkSetName, find_images, open_landmark_set
from hardnet_sfm.evaluation.landmarks import Question, rank_photos, score_rankings
from hardnet_sfm.evaluation.scores import ScoreTable
from hardnet_sfm.evaluation.tables import Cell, LandmarkTable
from hardnet_sfm.features.extraction import KeypointOptions
from hardnet_sfm.files.outputs import check_target
from hardnet_sfm.files.workspace import CARD, DEFAULT, digest, read_json, replacing
from hardnet_sfm.progress import console as errors
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.methods import METHODS, Method
from hardnet_sfm.stages import OnStage, StageResult, ignore
from hardnet_sfm.terminal import output, print_findings
from hardnet_sfm.verbs.extract import ExtractResult, extract
from hardnet_sfm.verbs.index import index
from hardnet_sfm.verbs.vocabulary import VocabularyOptions, vocabulary


@dataclass(frozen=True)
class TableOptions:
    """Descriptors to compare, and files to write."""

    descriptor: tuple[str, ...] = DESCRIPTORS
    """Rows of the table. hardnet and hardnet-fast use the shipped weights; other networks use the files of --weights
    that belong to them."""
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
        given = [path for path in (self.json, self.csv) if path is not None]
        for path in given:
            check_target(path)
        if len({path.resolve() for path in given}) < len(given):
            raise UsageError(f"--json and --csv are both {self.json}", "Give each its own file.")
        return competitors(self.descriptor, self.weights)

    def show(self, table: ScoreTable | LandmarkTable) -> None:
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
        for remark in table.remarks():
            errors.print(remark)
        self.show(table)


@dataclass(frozen=True)
class _LandmarkBenchmark:
    """A data set of landmarks. Its class has its name."""

    folder: Annotated[Path, Positional, arg(metavar="DATASET")]
    """The data set: photos in images/ or jpg/, ground truth in gt/ or lab/ (revisited: gnd_NAME.pkl). Crops of queries
    whose photos are missing are in queries/."""
    vocabulary: tuple[Path, ...]
    """Vocabularies that `vocabulary` made, one for each descriptor; or one data set or folder of photos to learn them
    from. The literature uses the photos of the other city."""
    table: LandmarkOptions = field(default_factory=LandmarkOptions)

    def run(self) -> None:
        name = cast(LandmarkSetName, type(self).__name__.lower())
        self.table.compare(name, self.folder, self.vocabulary)


@dataclass(frozen=True)
class Oxford5k(_LandmarkBenchmark):
    """Philbin et al., CVPR 2007: 55 queries, 11 buildings, 5063 photos; good and ok photos count, junk is ignored."""


@dataclass(frozen=True)
class Paris6k(_LandmarkBenchmark):
    """Philbin et al., CVPR 2008: 55 queries, 11 landmarks, 6392 photos."""


@dataclass(frozen=True)
class Roxford5k(_LandmarkBenchmark):
    """Radenovic et al., CVPR 2018: 70 queries, the photos of Oxford5k, new ground truth: easy, medium, hard."""


@dataclass(frozen=True)
class Rparis6k(_LandmarkBenchmark):
    """Radenovic et al., CVPR 2018: 70 queries, the photos of Paris6k, new ground truth: easy, medium, hard."""


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
            errors.print(f"[dim]{escape(note)}[/]")


@dataclass(frozen=True)
class Brown(_ScoreBenchmark):
    """Brown et al., PAMI 2011: patches of liberty, notredame and yosemite, if they are there; FPR at 95 % recall of the
    official pairs. A star marks rows that were trained on the set, as their name or metadata says."""

    def measure(self, rows: list[Competitor]) -> ScoreTable:
        from hardnet_sfm.evaluation.patch_scores import evaluate_brown

        return evaluate_brown(self.folder, rows, self.table.resources)


@dataclass(frozen=True)
class W1bs(_ScoreBenchmark):
    """Mishkin et al., BMVC 2015: patches with one nuisance at a time (A, G, L, S, map2photo); mAUC by nuisance."""

    def measure(self, rows: list[Competitor]) -> ScoreTable:
        from hardnet_sfm.evaluation.patch_scores import evaluate_w1bs

        return evaluate_w1bs(self.folder, rows, self.table.resources)


@dataclass(frozen=True)
class Hpatches(_ScoreBenchmark):
    """Balntas et al., CVPR 2017: verification, matching and retrieval of patches with easy, hard and tough errors."""

    tasks: Path | None = None
    """Folder of the task files and splits.json, from the authors' repository. Default: tasks/ in the data set."""
    split: str = "full"
    """Sequences to test: a, b, c or full; illum or view for changes of illumination or of viewpoint alone."""

    def measure(self, rows: list[Competitor]) -> ScoreTable:
        from hardnet_sfm.evaluation.patch_scores import evaluate_hpatches

        return evaluate_hpatches(self.folder, rows, self.table.resources, tasks=self.tasks, split=self.split)


@dataclass(frozen=True)
class Homography(_ScoreBenchmark):
    """Sequences of six photos that are related by homographies, as in Oxford affine or HPatches: MMA, right matches and
    mAP, all on COLMAP's keypoints. COLMAP's own RootSIFT is always compared, too."""

    max_features: int = 4000
    """COLMAP's limit on keypoints per photo. A keypoint with two orientations counts once and gives two rows."""

    def measure(self, rows: list[Competitor]) -> ScoreTable:
        from hardnet_sfm.evaluation.photo_scores import evaluate_homographies

        return evaluate_homographies(self.folder, rows, self.table.resources, max_features=self.max_features)


@dataclass(frozen=True)
class Pairs(_ScoreBenchmark):
    """Pairs of photos with a wide baseline. In the layout of EVD (1/, 2/, h/): right matches and mAP by the homography.
    In the layout of WxBS (GROUP/NAME/01.png, 02.png, corrs.txt): recall of true correspondences by the epipolar
    geometry."""

    max_features: int = 4000
    """COLMAP's limit on keypoints per photo. A keypoint with two orientations counts once and gives two rows."""

    def measure(self, rows: list[Competitor]) -> ScoreTable:
        from hardnet_sfm.evaluation.photo_scores import evaluate_pairs

        return evaluate_pairs(self.folder, rows, self.table.resources, max_features=self.max_features)


@dataclass(frozen=True)
class EvaluateCommand:
    """Options of `hardnet-sfm evaluate`.

    Examples:
        hardnet-sfm evaluate oxford5k OXFORD --vocabulary PARIS --words 65536
        hardnet-sfm evaluate rparis6k PARIS --vocabulary OXFORD --csv table.csv
        hardnet-sfm evaluate brown PHOTOTOUR --weights my.safetensors
        hardnet-sfm evaluate hpatches HPATCHES --tasks BENCHMARK/tasks --split a
        hardnet-sfm evaluate pairs WXBS --json scores.json
    """

    data_set: OmitSubcommandPrefixes[
        Oxford5k | Paris6k | Roxford5k | Rparis6k | Brown | W1bs | Hpatches | Homography | Pairs
    ]

    @property
    def debug(self) -> bool:
        return self.data_set.table.debug

    def run(self) -> None:
        self.data_set.run()


def evaluate_landmarks(
    name: LandmarkSetName,
    folder: Path | str,
    workspace: Path | str,
    vocabularies: Sequence[Path | str],
    rows: Sequence[Competitor] | None = None,
    *,
    methods: Sequence[str] = METHODS,
    keypoint_options: KeypointOptions | None = None,
    vocabulary_options: VocabularyOptions | None = None,
    resources: Resources | None = None,
    on_extract: OnStage = ignore,
) -> LandmarkTable:
    """Measures descriptors and methods on one data set.

    The workspace keeps features, vocabularies and indexes of each descriptor separately. A second call makes only what
    is missing and searches again. An additional descriptor therefore costs only its own time.

    Args:
        name: name of the data set.
        folder: folder of the data set, see `hardnet_sfm.evaluation.datasets.landmark_sets`.
        workspace: folder for all outputs.
        vocabularies: vocabularies made by the stage `vocabulary`, one for each descriptor; or one data set or folder of
            photos from which to learn them. The literature learns them from the other city.
        rows: descriptors, see `competitors`. None means RootSIFT, and HardNet with its shipped weights.
        methods: methods of `hardnet_sfm.retrieval`.
        keypoint_options: options of the keypoints, the same for all descriptors and both cities.
        vocabulary_options: options for learning vocabularies.
        resources: threads and device to use.
        on_extract: called for each store with the names of its descriptor and folder, and the result of the extraction.

    Raises:
        HardnetSfmError: the data set is incomplete, none of its queries can be used, or a vocabulary does not fit.
        UsageError: the options contradict each other.

    Examples:
        >>> table = hardnet_sfm.evaluate_landmarks("oxford5k", oxford, "out", [paris])  # doctest: +SKIP
        >>> list(table.rows), table.photos  # doctest: +SKIP
        (['rootsift', 'hardnet-sfm'], 5063)
    """
    rows = competitors(DESCRIPTORS, ()) if rows is None else rows
    folder, workspace, sources = Path(folder), Path(workspace), [Path(path) for path in vocabularies]
    keypoints, resources = keypoint_options or KeypointOptions(), resources or Resources()
    for options in (keypoints, vocabulary_options or VocabularyOptions()):
        options.check()
    if not methods:
        raise UsageError("nothing to evaluate", "Give a --method.")
    whole = open_landmark_set(name, folder)
    given = find_vocabularies(sources, rows)
    if given and vocabulary_options not in (None, VocabularyOptions()):
        raise UsageError(
            "options of a new vocabulary have no effect if --vocabulary names an existing one",
            "Leave them out, or give photos to learn a new one from.",
        )
    made: list[tuple[_Maker, Path, Path]] = []
    facts: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for row in rows:
        maker = _Maker(workspace / "evaluation" / row.folder, row, keypoints, resources, on_extract)
        words = given.get(row.name) or maker.vocabulary(find_images(sources[0]), vocabulary_options)
        features, extracted = maker.features(whole.images)
        made.append((maker, features, words))
        skipped |= extracted.skipped
        facts[row.name] = {
            "weights_sha256": row.weights_sha256,
            "keypoints": extracted.keypoints,
            "vocabulary": read_json(words / CARD),
        }
    # All descriptors search in the same photos, also if one of them could read more than another.
    landmarks = whole.without(skipped)
    asked, left_out = landmarks.questions()
    if not asked:
        raise HardnetSfmError(f"{folder}: none of the queries of {name} can be used", next(iter(left_out.values()), ""))
    return LandmarkTable(
        name,
        landmarks.truth.setups,
        {of.row.name: of.search(features, words, landmarks, asked, methods) for of, features, words in made},
        facts,
        len(landmarks.photos),
        {question.query.name: (question.query.photo, question.query.box) for question in asked},
        left_out,
        skipped,
        tuple(landmarks.unknown),
    )


@dataclass(frozen=True)
class _Maker:
    """Makes the features, vocabulary and index of a descriptor, unless they are up to date."""

    place: Path
    row: Competitor
    keypoints: KeypointOptions
    resources: Resources
    on_extract: OnStage

    def _of(self, images: Path) -> Path:
        """Returns the output folder for a folder of photos. It is unique even if folders have the same name."""
        folder = images.parent if images.name in ("images", "jpg") else images
        return self.place / f"{folder.resolve().name}-{digest(str(images.resolve()))[:6]}"

    def features(self, images: Path) -> tuple[Path, ExtractResult]:
        path = self._of(images) / "features.h5"
        # The features of a data set are made again at will, so its photos may come and go.
        result = extract(images, path, self.row.extract_options(self.keypoints), self.resources, prune=True)
        self.on_extract(f"{self.row.name} {path.parent.name}", result)
        return path, result

    def vocabulary(self, images: Path, options: VocabularyOptions | None) -> Path:
        features, _ = self.features(images)
        folder = features.with_name("vocabulary")
        vocabulary(features, folder, options, self.resources)
        return folder

    def search(
        self, features: Path, words: Path, landmarks: LandmarkSet, asked: Sequence[Question], methods: Sequence[str]
    ) -> dict[str, Cell]:
        """Searches for the queries by each method in an index of the photos, and scores the rankings."""
        from hardnet_sfm.photo_index import Index

        folder = features.with_name(f"index-{landmarks.name}")
        index(features, words, folder, resources=self.resources, names=set(landmarks.photos.values()))
        opened = Index.open(folder, weights=self.row.weights, resources=self.resources)
        rankings, seconds = rank_photos(opened, asked, methods, self.row.name)
        scores = {name: score_rankings(landmarks.truth, of, landmarks.photos) for name, of in rankings.items()}
        return {name: Cell(scores[name], seconds[name] / len(asked)) for name in methods}


def _print_extracted(what: str, result: StageResult) -> None:
    errors.print(f"{escape(what)}: {escape(result.summary())}")
    print_findings(result)


def _write(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")
    output.print(escape(str(path)))
