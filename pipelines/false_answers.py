"""Counts how many photos of other places get an accepted answer from an index, and how many right answers are accepted.

    python pipelines/false_answers.py INDEX --strangers FEATURES... --step 3
    python pipelines/false_answers.py INDEX --strangers FEATURES... --own FEATURES --landmarks oxford5k OXFORD

INDEX is an index or a workspace with one, for instance one that `hardnet-sfm evaluate oxford5k` left. FEATURES are
`features.h5` with the descriptor of the index. Each photo in them is a query, in the turn in which it was described.

With --own and --landmarks, photos of the collection are queries, too. A right answer is a photo that answers the same
query of the ground truth. The share is that of the right answers with five inliers or more, which are the candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from hardnet_sfm.errors import UsageError, check_least
from hardnet_sfm.evaluation.datasets.landmark_sets import LandmarkSetName, open_landmark_set
from hardnet_sfm.files.stores import FeatureStore
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.keypoints import RankedImage
from hardnet_sfm.photo_index import Index
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.retrieval.methods import DEFAULT_METHOD, Method
from hardnet_sfm.retrieval.search import Described
from hardnet_sfm.retrieval.segments import geometry_of
from hardnet_sfm.terminal import report_errors


@dataclass(frozen=True)
class Options:
    """Answers to photos that show nothing of a collection, and to photos that do."""

    index: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """Folder of the index, or a workspace that has one."""
    strangers: tuple[Path, ...]
    """Features of photos of other places."""
    own: Path | None = None
    """Features of the photos of the collection. Needs --landmarks."""
    landmarks: tuple[LandmarkSetName, Path] | None = None
    """Name and folder of the ground truth of the collection."""
    step: int = 1
    """Take one photo in this many as a query."""
    methods: tuple[Method, ...] = (DEFAULT_METHOD,)
    """Methods of `hardnet-sfm retrieve` that verify."""
    min_inliers: int | None = None
    """As in `hardnet-sfm retrieve`."""
    resources: Resources = field(default_factory=Resources)


def described(path: Path, step: int) -> Iterator[tuple[str, Described]]:
    """The photos of a store as queries, with their names."""
    with FeatureStore(path) as store:
        for name in islice(store.names(), 0, None, step):
            keypoints, (width, height) = store.keypoints(name), store.size(name)
            if len(keypoints):
                region = (-0.5, -0.5, width - 0.5, height - 0.5)
                yield name, Described(store.descriptors(name), geometry_of(keypoints), region)


def right_answers(name: LandmarkSetName, folder: Path) -> dict[str, set[str]]:
    """The photos that answer the same query of the ground truth as a photo, by its name without suffix."""
    truth = open_landmark_set(name, folder).truth
    right: dict[str, set[str]] = {}
    for query in truth.queries:
        together = set(query.relevance[truth.setups[0]].positives)
        for photo in together:
            right.setdefault(photo, set()).update(together - {photo})
    return right


def answers(index: Index, path: Path, method: Method, options: Options) -> Iterator[tuple[str, list[RankedImage]]]:
    with progress(method, 0) as advance:
        for name, query in described(path, options.step):
            yield name, index.search(query, None, method, min_inliers=options.min_inliers)
            advance(note=name)


def count_false(index: Index, method: Method, options: Options) -> tuple[int, int, int]:
    """The number of queries of other places, of those with an accepted answer, and the most inliers of an answer."""
    queries, answered, most = 0, 0, 0
    for path in options.strangers:
        for _, results in answers(index, path, method, options):
            queries += 1
            answered += any(one.accepted for one in results)
            most = max([most, *(one.inliers or 0 for one in results)])
    return queries, answered, most


def count_right(index: Index, method: Method, options: Options) -> tuple[int, int]:
    """The number of right answers with inliers, and of accepted ones."""
    assert options.own is not None and options.landmarks is not None
    right = right_answers(*options.landmarks)
    candidates, accepted = 0, 0
    for name, results in answers(index, options.own, method, options):
        of_query = right.get(PurePosixPath(name).stem, set())
        found = [one for one in results if PurePosixPath(one.image).stem in of_query and one.inliers]
        candidates += len(found)
        accepted += sum(bool(one.accepted) for one in found)
    return candidates, accepted


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,), registry=flag_rules())
    check_least(options, step=1)
    if (options.own is None) != (options.landmarks is None):
        raise UsageError("--own and --landmarks need each other", "Give both or none.")
    index = Index.open(options.index, resources=options.resources)
    table = Table(title=f"queries of other places in {len(index.names)} photos", title_justify="left")
    for column in ("method", "queries", "with an accepted answer", "most inliers", "right answers", "accepted"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method in options.methods:
        queries, answered, most = count_false(index, method, options)
        candidates, accepted = (0, 0) if options.own is None else count_right(index, method, options)
        share = f"{100 * accepted / candidates:.1f} %" if candidates else ""
        table.add_row(method, str(queries), str(answered), str(most), str(candidates or ""), share)
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    with report_errors():
        main()
