"""The command `retrieve` finds and ranks photos that show the same objects as a query photo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.markup import escape

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.photo_files import list_photos
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.workspace import DEFAULT, MANIFEST, Workspace
from hardnet_sfm.keypoints import RankedImage
from hardnet_sfm.progress import console as errors
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.methods import DEFAULT_METHOD, Method
from hardnet_sfm.terminal import Common, output, print_json

if TYPE_CHECKING:  # faiss and numba take seconds to import
    from hardnet_sfm.pages.answer_page import Answer
    from hardnet_sfm.photo_index import Box, Index
    from hardnet_sfm.retrieval.inverted_index import InvertedIndex

# Number of results whose files are compared with the index. Reading more would take longer than the search.
_CHECKED = 20


def retrieve(
    query: Path | str,
    workspace: Workspace | Path | str = DEFAULT,
    *,
    top: int | None = 20,
    method: Method = DEFAULT_METHOD,
    bbox: Box | None = None,
    weights: Path | None = None,
    resources: Resources | None = None,
) -> list[RankedImage]:
    """Ranks the photos of a workspace by how likely they show what a photo shows.

    The index is brought up to date with the features first. `hardnet_sfm.Index` searches without that, and answers
    several queries without opening the index again.

    Args:
        query: photo to search with.
        workspace: folder with an index, or with features to make one of.
        top: number of photos at most, or None for all that have anything in common with the query.
        method: one of `METHODS`.
        bbox: part of the query to search for: x0, y0, x1, y1 in pixels of the upright photo.
        weights: weights of the descriptor, if the photos were not described with those that come with the package.
        resources: threads and device to use. The answer does not depend on it.

    Returns:
        The photos, best first.

    Raises:
        HardnetSfmError: there is neither an index nor features, the index is damaged, or the query cannot be read.
        UsageError: the box is empty or outside the photo, or the method is unknown.
    """
    place = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    return open_current(place, weights=weights, resources=resources).search(query, top, method, bbox)


def open_current(
    place: Workspace,
    *,
    weights: Path | None = None,
    resources: Resources | None = None,
    on_update: Callable[[], None] | None = None,
) -> Index:
    """Opens a workspace's index. If the workspace has features, the index is first brought up to date with them.

    Args:
        place: the workspace.
        weights: see `Index.open`.
        resources: threads and device to use.
        on_update: called before an index is made because it is missing or older than the features.

    Raises:
        HardnetSfmError: there is neither an index nor features, or `Index.open` raises it.
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
    """Tells whether an index holds the present features. Without a store it counts as current: no update can follow."""
    if not features.is_file():
        return True
    with FeatureStore(features) as store:
        return store.fingerprints() == lists.fingerprints and store.header["options"] == lists.manifest.options


@dataclass(frozen=True)
class RetrieveCommand:
    """Find photos that show the same thing as a query photo."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm retrieve --query q.jpg",
        "hardnet-sfm retrieve --query q.jpg --bbox 136 34 648 955 --report found.html",
        "hardnet-sfm retrieve --query queries/ --method hqe+ma --top 1000 --json",
    )

    query: tuple[Path, ...]
    """One or more photos, or a folder of photos."""
    common: Common = field(default_factory=Common)
    bbox: tuple[float, float, float, float] | None = None
    """Search only for what is in this box: left top right bottom, in pixels. The box is in the upright photo. Works
    with one query only."""
    top: int = 20
    """List at most this many photos."""
    method: Method = DEFAULT_METHOD
    """How photos are ranked. bow: bag of words. he: Hamming embedding. hqe: Hamming query expansion. +ma: several words
    for each feature of the query. +sv: spatial verification. +qe: average query expansion. asmk: aggregated selective
    match kernel."""
    weights: Path | None = None
    """Weights of the descriptor, if `index` used weights of your own."""
    json: bool = False
    """Print one JSON object for each query, each on its own line."""
    montage: Path | None = None
    """Draw the result of one query as a picture: .jpg, .png or .webp."""
    report: Path | None = None
    """Write a page of the results, .html: each query with its box, the ranked photos, and the inliers of each."""
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
                "The lines above say why. The other queries were answered.",
            )

    def _check_targets(self, queries: int) -> None:
        """Raises UsageError before the search if the requested picture or page cannot be written."""
        from hardnet_sfm.pages.montage import check_target
        from hardnet_sfm.pages.page import check_page

        for name in ("bbox", "montage"):
            if getattr(self, name) is not None and queries > 1:
                raise UsageError(f"--{name} works with one query, not with {queries}", "Give one photo at a time.")
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
            print_json(answer)
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
    """Lists the query photos: single files, and all photos of given folders."""
    queries: list[Path] = []
    for path in given:
        queries += [path / name for name in list_photos(path)] if path.is_dir() else [path]
    return queries


def _say_it_is_made() -> None:
    errors.print("The index is missing or older than the features: updating it first.")
