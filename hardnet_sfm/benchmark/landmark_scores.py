"""The chain behind `evaluate oxford5k` and its relatives: extract, vocabulary, index, search, score."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rich.markup import escape

from hardnet_sfm.benchmark.competitors import DESCRIPTORS, Competitor, competitors
from hardnet_sfm.errors import HardnetSfmError, NoKeypoints, UsageError
from hardnet_sfm.evaluation.landmark_sets import (
    LandmarkSet,
    LandmarkSetName,
    Question,
    find_images,
    open_landmark_set,
)
from hardnet_sfm.evaluation.landmarks import score_rankings
from hardnet_sfm.evaluation.tables import Cell, LandmarkTable
from hardnet_sfm.features.extraction import KeypointOptions
from hardnet_sfm.files.workspace import CARD, digest, read_json
from hardnet_sfm.photo_index import Index
from hardnet_sfm.progress import console, progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.methods import METHODS
from hardnet_sfm.verbs.extract import ExtractResult, extract
from hardnet_sfm.verbs.index import index
from hardnet_sfm.verbs.vocabulary import VocabularyOptions, vocabulary

OnExtract = Callable[[str, ExtractResult], None]


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
    on_extract: OnExtract | None = None,
) -> LandmarkTable:
    """Measures descriptors and methods on one data set.

    Features, vocabularies and indexes are kept below the workspace, those of each descriptor apart: a second call makes
    what is missing and searches again, so that another descriptor costs its own time and nothing else.

    Args:
        name: of the data set.
        folder: of the data set, see `hardnet_sfm.evaluation.landmark_sets`.
        workspace: folder for all that is made.
        vocabularies: what the stage `vocabulary` made, one for each descriptor; or one data set or folder of photos to
            learn those from. In the benchmark of the literature they are of the other city.
        rows: the descriptors, see `competitors`; RootSIFT and HardNet with its shipped weights where None.
        methods: of `hardnet_sfm.retrieval`.
        keypoint_options: the same for all descriptors and both cities.
        vocabulary_options: for learning vocabularies.
        resources: how much of the machine.
        on_extract: told for each store which descriptor and folder it is of and what was extracted.

    Raises:
        HardnetSfmError: the data set is incomplete, nothing of it can be asked, or a vocabulary does not fit.
        UsageError: contradictory options.

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
    given = _given_vocabularies(sources, rows)
    if given and vocabulary_options not in (None, VocabularyOptions()):
        raise UsageError(
            "options of a new vocabulary have no effect where --vocabulary is one",
            "Leave them out, or give photos to learn a new one from.",
        )
    cells: dict[str, dict[str, Cell]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for row in rows:
        maker = _Maker(workspace / "evaluation" / row.folder, row, keypoints, resources, on_extract)
        words = given.get(row.name) or maker.vocabulary(find_images(sources[0]), vocabulary_options)
        features, extracted = maker.features(whole.images)
        landmarks = whole.without(extracted.skipped)
        asked, left_out = landmarks.questions()
        if not asked:
            raise HardnetSfmError(f"{folder}: no query of {name} can be asked", next(iter(left_out.values()), ""))
        cells[row.name] = _search(maker.index(features, words, landmarks), landmarks, asked, methods, row.name)
        facts[row.name] = {
            "weights_sha256": row.weights_sha256,
            "keypoints": extracted.keypoints,
            "vocabulary": read_json(words / CARD),
        }
    return LandmarkTable(
        name,
        landmarks.truth.setups,
        cells,
        facts,
        len(landmarks.photos),
        {question.query.name: (question.query.photo, question.query.box) for question in asked},
        left_out,
        extracted.skipped,
        tuple(landmarks.unknown),
    )


def _given_vocabularies(paths: Sequence[Path], rows: Sequence[Competitor]) -> dict[str, Path]:
    """Vocabularies by the descriptor they are of; none where there is a folder of photos instead."""
    homes = [next((home for home in (path, path / "vocabulary") if (home / CARD).is_file()), None) for path in paths]
    if len(homes) == 1 and homes[0] is None:
        find_images(paths[0])
        return {}
    found: dict[str, Path] = {}
    for path, home in zip(paths, homes, strict=True):
        if home is None:
            raise HardnetSfmError(
                f"no vocabulary at {path}", "Give one for each descriptor, or one folder of photos to learn them from."
            )
        card = read_json(home / CARD)
        made_of = card.get("descriptor"), card.get("weights_sha256")
        name = next((row.name for row in rows if (row.descriptor, row.weights_sha256) == made_of), None)
        if name is None or name in found:
            what = f"of {made_of[0]}, of which there is no row" if name is None else f"of {name}, as another one"
            raise UsageError(f"{path}: a vocabulary {what}", "Give one for each --descriptor and --weights.")
        found[name] = home
    if missing := [row.name for row in rows if row.name not in found]:
        raise UsageError(f"no vocabulary of {missing[0]} is given", "Give one for each, or photos to learn them from.")
    return found


@dataclass(frozen=True)
class _Maker:
    """Makes what a descriptor needs, or finds that it is there."""

    place: Path
    row: Competitor
    keypoints: KeypointOptions
    resources: Resources
    on_extract: OnExtract | None

    def _of(self, images: Path) -> Path:
        """Where things of a folder of photos are kept; folders of the same name have another each."""
        folder = images.parent if images.name in ("images", "jpg") else images
        return self.place / f"{folder.resolve().name}-{digest(str(images.resolve()))[:6]}"

    def features(self, images: Path) -> tuple[Path, ExtractResult]:
        path = self._of(images) / "features.h5"
        report = extract(images, path, self.row.extract_options(self.keypoints), self.resources)
        if self.on_extract:
            self.on_extract(f"{self.row.name} {path.parent.name}", report)
        return path, report

    def vocabulary(self, images: Path, options: VocabularyOptions | None) -> Path:
        features, _ = self.features(images)
        folder = features.with_name("vocabulary")
        vocabulary(features, folder, options, self.resources)
        return folder

    def index(self, features: Path, words: Path, landmarks: LandmarkSet) -> Index:
        folder = features.with_name(f"index-{landmarks.name}")
        index(features, words, folder, resources=self.resources, names=set(landmarks.photos.values()))
        return Index.open(folder, weights=self.row.weights, resources=self.resources)


def _search(
    index: Index, landmarks: LandmarkSet, questions: Sequence[Question], methods: Sequence[str], what: str
) -> dict[str, Cell]:
    """Asks everything by every method."""
    rankings: dict[str, dict[str, list[str]]] = {method: {} for method in methods}
    seconds = dict.fromkeys(methods, 0.0)
    with progress("search", len(questions) * len(methods)) as advance:
        for question in questions:
            try:
                described = index.describe(question.image, question.box)
            except NoKeypoints:
                described = None
                console.print(f"{escape(question.query.name)}: no keypoints in this query, so it finds nothing")
            for method in methods:
                start = time.perf_counter()
                results = [] if described is None else index.search(described, top=None, method=method)
                seconds[method] += time.perf_counter() - start
                rankings[method][question.query.name] = [PurePosixPath(result.image).stem for result in results]
                advance(note=f"{what} {method}")
    scores = {method: score_rankings(landmarks.truth, ranked, landmarks.photos) for method, ranked in rankings.items()}
    return {method: Cell(scores[method], seconds[method] / len(questions)) for method in methods}
