"""Which photos were verified with which: a matrix, and a graph to see what hangs together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.pages.page import packed

MOST_ROWS = 250
MOST_EDGES = 1500
Pair = tuple[str, str]


def match_graph(names: Sequence[str], verified: Mapping[Pair, int]) -> dict[str, Any]:
    """The verified matches between photos, or between groups of neighbouring photos where there are over 250.

    Args:
        names: of all photos, in the order of rows and columns.
        verified: number of inliers of each verified pair.

    Returns:
        `group`: photos a row. `first`, `second`, `matches`: of each two rows with any, packed. `places`: of the graph's
        vertices, -1 to 1. `edges`: which of the two are drawn: the strongest of each row, and the strongest of all.
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
        "first": packed(ends[:, 0]),
        "second": packed(ends[:, 1]),
        "matches": packed(counts),
        "places": _places(rows, ends, counts).round(4).tolist(),
        "edges": _drawn(ends),
    }


def _drawn(ends: NDArray[np.uint16]) -> list[int]:
    """Numbers of the edges to draw, strongest first: no row is without its strongest, the rest while there is room."""
    met: set[int] = set()
    chosen: list[int] = []
    spare: list[int] = []
    for number, (a, b) in enumerate(ends.tolist()):
        if a != b:
            (spare if a in met and b in met else chosen).append(number)
            met |= {a, b}
    return sorted(chosen + spare[: max(0, MOST_EDGES - len(chosen))])


def _places(rows: int, ends: NDArray[np.uint16], counts: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Where to draw each row, by Fruchterman's and Reingold's springs; rows without any edge stand below in a line."""
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
