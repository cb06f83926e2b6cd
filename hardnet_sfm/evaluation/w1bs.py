"""W1BS: patch pairs that differ by one nuisance at a time (Mishkin, Matas, Perdoch, Lenc, BMVC 2015).

The sets are `A` (appearance), `G` (geometry), `L` (lighting), `S` (sensor) and `map2photo`, a folder each. A folder has
`1/NAME.bmp` and `2/NAME.bmp`, columns of square patches. Both columns show the same points, in a photo and in its
counterpart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.columns import read_column
from hardnet_sfm.evaluation.measures import squared_distances, threshold_area

NUISANCES = {"A": "appearance", "G": "geometry", "L": "lighting", "S": "sensor", "map2photo": "map2photo"}
_LAYOUT = "A set has columns of patches 1/NAME.bmp and 2/NAME.bmp, in folders named A, G, L, S or map2photo."
# Added to the second distance, as the authors do. If two patches equal the query, the ratio is then 0 and not 0 / 0.
_EPSILON = 1e-12
# Number of queries that are processed at once.
_ROWS = 1024


@dataclass(frozen=True)
class ColumnPair:
    """Two columns of patches of the same points.

    Attributes:
        nuisance: name of the set, see `NUISANCES`.
        name: name of the files without suffix.
        paths: paths of the first and the second column.
    """

    nuisance: str
    name: str
    paths: tuple[Path, Path]

    def read(self) -> tuple[Grey, Grey]:
        """Reads the (N, S, S) patches of both columns.

        Raises:
            HardnetSfmError: a file is damaged, the columns differ in length, or they have fewer than two patches.
        """
        first, second = map(read_column, self.paths)
        if not len(first) == len(second) >= 2:
            raise HardnetSfmError(
                f"{self.paths[1]}: {len(second)} patches, but {self.paths[0]} has {len(first)}",
                "Both must have the same points, at least two. Copy or unpack the data set again.",
            )
        return first, second


def find_columns(folder: Path) -> list[ColumnPair]:
    """Finds all pairs of columns in the sets of a folder, in the order of set and name.

    Raises:
        HardnetSfmError: there are no sets, one is empty, or a file has no counterpart.
    """
    sets = [name for name in NUISANCES if (folder / name).is_dir()]
    if not sets:
        raise HardnetSfmError(f"{folder}: none of the sets {', '.join(NUISANCES)} in it", _LAYOUT)
    found = []
    for name in sets:
        first, second = ({path.name: path for path in (folder / name / side).glob("*.bmp")} for side in "12")
        if alone := sorted(first.keys() ^ second.keys()):
            raise HardnetSfmError(f"{folder / name}: {alone[0]} is in 1/ or in 2/ only", _LAYOUT)
        if not first:
            raise HardnetSfmError(f"{folder / name}: no columns *.bmp in 1/ and 2/", _LAYOUT)
        found += [ColumnPair(name, Path(file).stem, (first[file], second[file])) for file in sorted(first)]
    return found


def column_score(first: NDArray[np.float16], second: NDArray[np.float16]) -> float:
    """Computes the area under recall over 1 - precision of nearest neighbours.

    The matches are ranked by the ratio of the distances to the nearest and the second nearest neighbour.

    Args:
        first: (N, D) descriptors of the points in one photo.
        second: (N, D) descriptors of the same points in the other photo.
    """
    rows, columns = first.astype(np.float32), second.astype(np.float32)
    right, ratios = np.empty(len(rows), bool), np.empty(len(rows))
    for start in range(0, len(rows), _ROWS):
        block = slice(start, start + _ROWS)
        distances = np.sqrt(squared_distances(rows[block], columns), dtype=np.float64)
        right[block] = distances.argmin(1) == np.arange(len(rows))[block]
        nearest = np.partition(distances, 1, 1)
        ratios[block] = nearest[:, 0] / (nearest[:, 1] + _EPSILON)
    return threshold_area(ratios, right)
