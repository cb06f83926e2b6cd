"""The command `retrieve` finds and ranks photos that show the same objects as a query photo."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.outputs import check_page, check_picture, write_page, write_picture
from hardnet_sfm.files.photo_files import read_colours
from hardnet_sfm.files.photo_folders import PhotoFolder, list_photos
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.files.truncated_photos import is_truncated
from hardnet_sfm.files.workspace import DEFAULT, MANIFEST, Workspace
from hardnet_sfm.keypoints import Box, RankedImage
from hardnet_sfm.progress import console as errors
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.methods import DEFAULT_METHOD, Method
from hardnet_sfm.terminal import Common, output, print_json, print_not_taken, print_truncated

if TYPE_CHECKING:  # faiss and numba take seconds to import
    from hardnet_sfm.index_folder import OpenIndex
    from hardnet_sfm.pages.answer_page import Answer
    from hardnet_sfm.photo_index import Index

# Number of results whose files are compared with the index. Reading more would take longer than the search.
_CHECKED = 20
# Exit status of the command if nothing was found for any query.
NOTHING_FOUND = 3


def retrieve(
    query: Path | str,
    workspace: Workspace | Path | str = DEFAULT,
    *,
    top: int | None = 20,
    method: Method = DEFAULT_METHOD,
    bbox: Box | None = None,
    min_inliers: int | None = None,
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
        min_inliers: number of inliers from which on a photo is accepted, see `Index.search`.
        weights: weights of the descriptor, if the photos were not described with those that come with the package.
        resources: threads and device to use. The answer does not depend on it.

    Returns:
        The photos, best first. Those with `accepted` show what the query shows; nothing was found if there are none.

    Raises:
        HardnetSfmError: there is neither an index nor features, the index is damaged, or the query cannot be read.
        UsageError: the box is empty or outside the photo, or the method is unknown.
    """
    place = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    return open_current(place, weights=weights, resources=resources).search(query, top, method, bbox, min_inliers)


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
    from hardnet_sfm.index_folder import open_index
    from hardnet_sfm.photo_index import Index
    from hardnet_sfm.verbs.index import update_index

    resources = resources or Resources()
    opened = open_index(place.index, resources) if (place.index / MANIFEST).is_file() else None
    if opened is None and not place.features.is_file():
        raise HardnetSfmError(f"no index and no features in {place.root}", "Run `hardnet-sfm index IMAGES` first.")
    if opened is None or not _is_current(opened, place.features):
        if on_update:
            on_update()
        update_index(place, resources=resources)
        opened = open_index(place.index, resources)
    return Index(opened, weights, resources)


def montage(
    query: Path | NDArray[np.uint8],
    results: Sequence[RankedImage],
    images: Path,
    target: Path,
    *,
    bbox: Box | None = None,
    facts: Sequence[str] = (),
) -> None:
    """Writes the answer to a query as one picture, see `hardnet_sfm.pages.montage.draw_montage`.

    Args:
        query: path of the photo, or its upright pixels, (H, W) or (H, W, 3) RGB.
        results, bbox, facts: see `draw_montage`.
        images: folder of the ranked photos.
        target: picture to write, .jpg, .png or .webp.

    Raises:
        HardnetSfmError: the query cannot be read, or the picture cannot be written.
        UsageError: the format of the target is unknown, or the box does not overlap the photo.
    """
    from hardnet_sfm.pages.montage import draw_montage

    check_picture(target)
    name, pixels = (query.name, read_colours(query)) if isinstance(query, Path) else ("query", query)
    drawn = draw_montage(name, pixels, results, PhotoFolder(images), bbox=bbox, facts=facts)
    write_picture(target, drawn)


def _is_current(index: OpenIndex, features: Path) -> bool:
    """Tells whether an index holds the present features. Without a store it counts as current: no update can follow."""
    if not features.is_file():
        return True
    with FeatureStore(features) as store:
        return store.fingerprints() == index.lists.fingerprints and store.header["options"] == index.manifest.options


@dataclass(frozen=True)
class RetrieveCommand:
    """Options of `hardnet-sfm retrieve`.

    Examples:
        hardnet-sfm retrieve --query q.jpg
        hardnet-sfm retrieve --query q.jpg --bbox 136 34 648 955 --report found.html
        hardnet-sfm retrieve --query queries/ --method hqe+ma --top 1000 --json
    """

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
    for each feature of the query. +sv: spatial verification, which can tell that nothing was found. +qe: average query
    expansion. asmk: aggregated selective match kernel."""
    min_inliers: int | None = None
    """Accept photos with this many inliers or more. By default the number depends on the photo: chance must not explain
    it. Lower it to see more doubtful photos."""
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
        nothing_found = True
        with progress("retrieve", len(queries)) as advance:
            for query in queries:
                try:
                    described, results = index.answer(query, self.top, self.method, self.bbox, self.min_inliers)
                except UsageError:
                    raise
                except HardnetSfmError as error:
                    if len(queries) == 1 or not query.is_file():
                        raise
                    failed.append(error.message)
                    with advance.hidden():
                        errors.print(f"[yellow]skipped:[/] {escape(error.message)}")
                else:
                    box = None if self.bbox is None else described.region
                    with advance.hidden():
                        print_truncated([query.as_posix()] if is_truncated(query) else [])
                        self._say_what_was_cut(query, box)
                        self._print(query, results, index)
                    nothing_found &= not any(found.accepted is not False for found in results)
                    if self.montage is not None or self.report is not None:
                        answers.append(Answer(query.as_posix(), results, box))
                advance(note=query.name)
        if answers:
            self._draw(answers, index, failed)
        if failed:
            raise HardnetSfmError(
                f"{len(failed)} of {len(queries)} queries could not be answered",
                "The lines above say why. The other queries were answered.",
            )
        if nothing_found:
            sys.exit(NOTHING_FOUND)

    def _check_targets(self, queries: int) -> None:
        """Raises UsageError before the search if the requested picture or page cannot be written."""
        for name in ("bbox", "montage"):
            if getattr(self, name) is not None and queries > 1:
                raise UsageError(f"--{name} works with one query, not with {queries}", "Give one photo at a time.")
        if self.montage is not None:
            check_picture(self.montage)
        if self.report is not None:
            check_page(self.report)

    def _draw(self, answers: list[Answer], index: Index, failed: list[str]) -> None:
        """Writes the picture and the page that were asked for."""
        from hardnet_sfm.files.weight_files import describe_weights
        from hardnet_sfm.pages.answer_page import SearchFacts, make_retrieval_page

        if self.montage is not None:
            facts = [f"{self.method}, {len(index.names)} photos"]
            asked = answers[0]
            montage(Path(asked.query), asked.results, index.images, self.montage, bbox=asked.bbox, facts=facts)
        if self.report is not None:
            search = {
                "method": self.method,
                "top": self.top,
                **({} if self.min_inliers is None else {"min_inliers": self.min_inliers}),
                "photos": len(index.names),
                "features": index.features,
                "words": index.words,
            }
            notes = [f"Not answered: {why}" for why in failed]
            about = SearchFacts(search, index.options, describe_weights(index.options), notes)
            photos, queries = PhotoFolder(index.images), PhotoFolder(Path())
            write_page(self.report, make_retrieval_page(answers, about, photos, queries, self.resources.threads))
            errors.print(escape(str(self.report)))

    def _say_what_was_cut(self, query: Path, box: Box | None) -> None:
        """Says so where the box goes beyond the photo, by more than the pixel in which conventions differ."""
        if box and self.bbox and any(abs(asked - left) > 1 for asked, left in zip(self.bbox, box, strict=True)):
            kept = " ".join(f"{at:g}" for at in box)
            errors.print(f"[yellow]cut:[/] the box goes beyond {escape(str(query))}; {kept} is left")

    def _print(self, query: Path, results: list[RankedImage], index: Index) -> None:
        if self.json:
            self._print_json(query, results)
        else:
            output.print(f"[bold]{escape(str(query))}[/]  {self.method}: {_summary(results)}")
            for rank, found in enumerate(results, 1):
                inliers = "" if found.inliers is None else f"{found.inliers} inliers"
                state = "same file" if found.identical else "accepted" if found.accepted else ""
                line = f"{rank:>5}  {found.score:>9.4f}  {inliers:>12}  {state:<9}  {escape(found.image)}"
                output.print(f"[dim]{line}[/]" if found.accepted is False else line)
        for name, what in index.changed([found.image for found in results[:_CHECKED]]).items():
            errors.print(f"[yellow]{what} since it was indexed:[/] {escape(name)}")

    def _print_json(self, query: Path, results: list[RankedImage]) -> None:
        rows = [
            {"rank": rank, **{name: value for name, value in vars(found).items() if name != "lines"}}
            for rank, found in enumerate(results, 1)
        ]
        for row in rows:
            row["score"] = round(row["score"], 6)
        print_json({"query": query.as_posix(), "method": self.method, "found": _count(results), "results": rows})


def _count(results: list[RankedImage]) -> int | None:
    """Returns the number of accepted photos; None if the method does not verify."""
    accepted = [found.accepted for found in results]
    return None if None in accepted else sum(map(bool, accepted))


def _summary(results: list[RankedImage]) -> str:
    """Says how many photos were found, or that there are none."""
    if not results:
        return "nothing found: no photo has anything in common with the query"
    count = _count(results)
    if count is None:
        return "most similar photos, not verified"
    if not count:
        return "nothing found: none of the most similar photos has more inliers than chance gives"
    return f"{count} of {len(results)} photos accepted"


def _queries(given: tuple[Path, ...]) -> list[Path]:
    """Lists the query photos: single files, and all photos of given folders."""
    queries: list[Path] = []
    for path in given:
        if path.is_dir():
            listed = list_photos(path)
            print_not_taken(listed.not_taken)
            queries += [path / name for name in listed.names]
        else:
            queries.append(path)
    return queries


def _say_it_is_made() -> None:
    errors.print("The index is missing or older than the features: updating it first.")
