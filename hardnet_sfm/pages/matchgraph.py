"""The verified pairs of photos as a matrix, and as a graph that shows connected groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.keypoints import PhotoPair
from hardnet_sfm.pages.page import pack_array

MOST_ROWS = 250
MOST_EDGES = 1500


def make_match_graph(names: Sequence[str], verified: Mapping[PhotoPair, int]) -> dict[str, Any]:
    """Collects the verified matches between photos. Above 250 photos, rows are groups of consecutive photos.

    Args:
        names: names of all photos, in the order of rows and columns.
        verified: number of inliers of each verified pair.

    Returns:
        `group` is the number of photos in a row. `first`, `second` and `matches` have an entry for each pair of rows
        with matches, packed. `places` are the positions of the graph's vertices, mostly in -1 to 1. `edges` are the
        numbers of the pairs to draw: the strongest pair of each row, and the strongest of all.
    """
    group = -(-len(names) // MOST_ROWS)
    row_of = {name: number // group for number, name in enumerate(names)}
    cells: dict[tuple[int, int], int] = {}
    for (one, other), matches in verified.items():
        a, b = sorted((row_of[one], row_of[other]))
        cells[a, b] = cells.get((a, b), 0) + matches
    ordered = sorted(cells.items(), key=lambda cell: (-cell[1], cell[0]))
    ends = np.array([ends for ends, _ in ordered], np.uint16).reshape(-1, 2)
    counts = np.array([count for _, count in ordered], np.uint32)
    rows = -(-len(names) // group) if names else 0
    return {
        "group": group,
        "first": pack_array(ends[:, 0]),
        "second": pack_array(ends[:, 1]),
        "matches": pack_array(counts),
        "places": _place_rows(rows, ends, counts).round(4).tolist(),
        "edges": _choose_edges(ends),
    }


def _choose_edges(ends: NDArray[np.uint16]) -> list[int]:
    """Chooses edges to draw, strongest first. Every row keeps its strongest edge; others fill up to `MOST_EDGES`."""
    met: set[int] = set()
    chosen: list[int] = []
    spare: list[int] = []
    for number, (a, b) in enumerate(ends.tolist()):
        if a != b:
            (spare if a in met and b in met else chosen).append(number)
            met |= {a, b}
    return sorted(chosen + spare[: max(0, MOST_EDGES - len(chosen))])


def _place_rows(rows: int, ends: NDArray[np.uint16], counts: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Places each row by the spring layout of Fruchterman and Reingold. Rows without an edge form a line below."""
    import networkx

    places = np.zeros((rows, 2))
    graph = networkx.Graph()
    graph.add_weighted_edges_from(
        (a, b, float(np.log1p(count))) for (a, b), count in zip(ends.tolist(), counts.tolist(), strict=True) if a != b
    )
    if graph:
        for row, place in networkx.spring_layout(graph, seed=0, iterations=80).items():
            places[row] = place
    alone = [row for row in range(rows) if row not in graph]
    places[alone] = np.column_stack([np.linspace(-0.9, 0.9, len(alone)), np.full(len(alone), -1.25)])
    return places
