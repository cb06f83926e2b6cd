"""Runs `evaluate` on Oxford5k, Paris6k and their revisited forms: extract, vocabulary, index, search, score."""

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

    The workspace keeps features, vocabularies and indexes of each descriptor separately. A second call makes only what
    is missing and searches again. An additional descriptor therefore costs only its own time.

    Args:
        name: name of the data set.
        folder: folder of the data set, see `hardnet_sfm.evaluation.landmark_sets`.
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
    given = _given_vocabularies(sources, rows)
    if given and vocabulary_options not in (None, VocabularyOptions()):
        raise UsageError(
            "options of a new vocabulary have no effect if --vocabulary names an existing one",
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
            raise HardnetSfmError(
                f"{folder}: none of the queries of {name} can be used", next(iter(left_out.values()), "")
            )
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
    """Finds the given vocabularies by the name of the row they fit. Returns none if a folder of photos is given."""
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
            what = f"of {made_of[0]}, which has no row" if name is None else f"of {name}, which has one already"
            raise UsageError(f"{path}: a vocabulary {what}", "Give one for each --descriptor and --weights.")
        found[name] = home
    if missing := [row.name for row in rows if row.name not in found]:
        raise UsageError(f"no vocabulary of {missing[0]} is given", "Give one for each, or photos to learn them from.")
    return found


@dataclass(frozen=True)
class _Maker:
    """Makes the features, vocabulary and index of a descriptor, unless they are up to date."""

    place: Path
    row: Competitor
    keypoints: KeypointOptions
    resources: Resources
    on_extract: OnExtract | None

    def _of(self, images: Path) -> Path:
        """Returns the output folder for a folder of photos. It is unique even if folders have the same name."""
        folder = images.parent if images.name in ("images", "jpg") else images
        return self.place / f"{folder.resolve().name}-{digest(str(images.resolve()))[:6]}"

    def features(self, images: Path) -> tuple[Path, ExtractResult]:
        path = self._of(images) / "features.h5"
        # The features of a data set are made again at will, so its photos may come and go.
        report = extract(images, path, self.row.extract_options(self.keypoints), self.resources, prune=True)
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
    """Searches for every query by every method, and scores the rankings."""
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
