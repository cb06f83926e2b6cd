"""The command `retrieve`: ranked photos that show what a photo shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.markup import escape

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.photo_files import list_photos
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import MANIFEST, Workspace
from hardnet_sfm.keypoints import RankedImage
from hardnet_sfm.progress import console as errors
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.methods import DEFAULT_METHOD, Method
from hardnet_sfm.terminal import Common, output

if TYPE_CHECKING:  # faiss and numba take seconds to import
    from hardnet_sfm.pages.answer_page import Answer
    from hardnet_sfm.photo_index import Box, Index
    from hardnet_sfm.retrieval.inverted_index import InvertedIndex

# Results whose files are held against the index: reading more would take longer than the search.
_CHECKED = 20


def open_current(
    place: Workspace,
    *,
    weights: Path | None = None,
    resources: Resources | None = None,
    on_update: Callable[[], None] | None = None,
) -> Index:
    """Opens a workspace's index, once it is up to date with the features, where the workspace has any.

    Args:
        place: the workspace.
        weights: see `Index.open`.
        resources: how much of the machine.
        on_update: called before an index that is missing or older than the features is made.

    Raises:
        HardnetSfmError: there is neither an index nor features; or see `Index.open`.
    """
    from hardnet_sfm.photo_index import Index
    from hardnet_sfm.retrieval.inverted_index import InvertedIndex
    from hardnet_sfm.verbs.index import update_index

    resources = resources or Resources()
    lists = InvertedIndex(place.index, resources) if (place.index / MANIFEST).is_file() else None
    if lists is None and not place.features.is_file():
        raise HardnetSfmError(f"no index and no features in {place.root}", "Run `hardnet-sfm index IMAGES` first.")
    if lists is None or not _is_current(lists, place.features):
        if on_update:
            on_update()
        update_index(place, resources=resources)
        lists = InvertedIndex(place.index, resources)
    return Index(lists, weights, resources)


def _is_current(lists: InvertedIndex, features: Path) -> bool:
    """Whether an index has what a store of features has; one without a store cannot be brought up to date."""
    if not features.is_file():
        return True
    with FeatureStore(features) as store:
        return store.fingerprints() == lists.fingerprints and store.header["options"] == lists.manifest.options


@dataclass(frozen=True)
class RetrieveCommand:
    """Find photos that show what a photo shows."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm retrieve --query q.jpg",
        "hardnet-sfm retrieve --query q.jpg --bbox 136 34 648 955 --report found.html",
        "hardnet-sfm retrieve --query queries/ --method hqe+ma --top 1000 --json",
    )

    query: tuple[Path, ...]
    """One or more photos, or a folder of them."""
    common: Common = field(default_factory=Common)
    bbox: tuple[float, float, float, float] | None = None
    """What of the query is meant: x0 y0 x1 y1, pixels of the upright photo. One query only."""
    top: int = 20
    """At most so many photos."""
    method: Method = DEFAULT_METHOD
    """bow: bag of words. he: Hamming embedding. hqe: Hamming query expansion. +ma: several words for each feature of
    the query. +sv: spatial verification. +qe: average query expansion. asmk: aggregated selective match kernel."""
    weights: Path | None = None
    """Weights of the descriptor, where the photos were indexed with your own."""
    json: bool = False
    """Print a JSON object a query, one a line."""
    montage: Path | None = None
    """Draw the answer: .jpg, .png or .webp. One query only."""
    report: Path | None = None
    """Draw a page of the answers, .html: each query with its box, the ranked photos, and the inliers of each."""
    resources: Resources = field(default_factory=Resources)

    def run(self) -> None:
        from hardnet_sfm.pages.answer_page import Answer

        queries = _queries(self.query)
        self._check_targets(len(queries))
        place = self.common.place
        index = open_current(place, weights=self.weights, resources=self.resources, on_update=_say_it_is_made)
        answers: list[Answer] = []
        failed: list[str] = []
        with progress("retrieve", len(queries)) as advance:
            for query in queries:
                try:
                    described, results = index.answer(query, self.top, self.method, self.bbox)
                except UsageError:
                    raise
                except HardnetSfmError as error:
                    if len(queries) == 1 or not query.is_file():
                        raise
                    failed.append(error.message)
                    with advance.hidden():
                        errors.print(f"[yellow]skipped:[/] {escape(error.message)}", soft_wrap=True)
                else:
                    box = None if self.bbox is None else described.region
                    with advance.hidden():
                        self._say_what_was_cut(query, box)
                        self._print(query, results, index)
                    if self.montage is not None or self.report is not None:
                        answers.append(Answer(query, results, box))
                advance(note=query.name)
        if answers:
            self._draw(answers, index, failed)
        if failed:
            raise HardnetSfmError(
                f"{len(failed)} of {len(queries)} queries could not be answered",
                "What is wrong with each is said above; the others were answered.",
            )

    def _check_targets(self, queries: int) -> None:
        """Raises UsageError where what is asked for cannot be drawn; before anything is searched."""
        from hardnet_sfm.pages.montage import check_target
        from hardnet_sfm.pages.page import check_page

        for name in ("bbox", "montage"):
            if getattr(self, name) is not None and queries > 1:
                raise UsageError(f"--{name} is of one query, not of {queries}", "Give one photo at a time.")
        if self.montage is not None:
            check_target(self.montage)
        if self.report is not None:
            check_page(self.report)

    def _draw(self, answers: list[Answer], index: Index, failed: list[str]) -> None:
        """Writes the picture and the page that were asked for."""
        from hardnet_sfm.pages.answer_page import retrieval_page
        from hardnet_sfm.pages.montage import montage

        if self.montage is not None:
            facts = [f"{self.method}, {len(index.names)} photos"]
            asked = answers[0]
            montage(asked.query, asked.results, index.images, self.montage, bbox=asked.bbox, facts=facts)
        if self.report is not None:
            retrieval_page(
                answers,
                index.images,
                self.report,
                search={
                    "method": self.method,
                    "top": self.top,
                    "photos": len(index.names),
                    "features": index.features,
                    "words": index.words,
                },
                features=index.options,
                notes=[f"Not answered: {why}" for why in failed],
                resources=self.resources,
            )
            errors.print(escape(str(self.report)))

    def _say_what_was_cut(self, query: Path, box: Box | None) -> None:
        """Says so where the box goes beyond the photo, by more than the pixel in which conventions differ."""
        if box and self.bbox and any(abs(asked - left) > 1 for asked, left in zip(self.bbox, box, strict=True)):
            kept = " ".join(f"{at:g}" for at in box)
            errors.print(f"[yellow]cut:[/] the box goes beyond {escape(str(query))}; {kept} is left", soft_wrap=True)

    def _print(self, query: Path, results: list[RankedImage], index: Index) -> None:
        if self.json:
            rows = [
                {"rank": rank, "image": found.image, "score": round(found.score, 6), "inliers": found.inliers}
                for rank, found in enumerate(results, 1)
            ]
            answer = {"query": query.as_posix(), "method": self.method, "results": rows}
            output.print(json.dumps(answer, ensure_ascii=False), markup=False)
        else:
            output.print(f"[bold]{escape(str(query))}[/]  {self.method}")
            for rank, found in enumerate(results, 1):
                inliers = "" if found.inliers is None else f"{found.inliers} inliers"
                output.print(f"{rank:>5}  {found.score:>9.4f}  {inliers:>12}  {escape(found.image)}")
            if not results:
                output.print("       nothing in common with any photo")
        for name, what in index.changed([found.image for found in results[:_CHECKED]]).items():
            errors.print(f"[yellow]{what} since it was indexed:[/] {escape(name)}", soft_wrap=True)


def _queries(given: tuple[Path, ...]) -> list[Path]:
    """Photos given by themselves or by their folder."""
    queries: list[Path] = []
    for path in given:
        queries += [path / name for name in list_photos(path)] if path.is_dir() else [path]
    return queries


def _say_it_is_made() -> None:
    errors.print("The index is missing or older than the features: making it first.")
