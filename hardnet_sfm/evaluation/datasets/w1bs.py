"""W1BS: patch pairs that differ by one nuisance at a time (Mishkin, Matas, Perdoch, Lenc, BMVC 2015).

The sets are `A` (appearance), `G` (geometry), `L` (lighting), `S` (sensor) and `map2photo`, a folder each. A folder has
`1/NAME.bmp` and `2/NAME.bmp`, columns of square patches. Both columns show the same points, in a photo and in its
counterpart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.datasets.columns import read_column
from hardnet_sfm.evaluation.datasets.parts import LeftOut, check_any
from hardnet_sfm.files.clutter import find_files

NUISANCES = {"A": "appearance", "G": "geometry", "L": "lighting", "S": "sensor", "map2photo": "map2photo"}
_LAYOUT = "A set has columns of patches 1/NAME.bmp and 2/NAME.bmp, in folders named A, G, L, S or map2photo."


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


def find_columns(folder: Path) -> tuple[list[ColumnPair], LeftOut]:
    """Finds all pairs of columns in the sets of a folder, in the order of set and name.

    Returns:
        The pairs, and the reasons why others are left out.

    Raises:
        HardnetSfmError: there are no sets, or they have no pairs.
    """
    sets = [name for name in NUISANCES if (folder / name).is_dir()]
    if not sets:
        raise HardnetSfmError(f"{folder}: none of the sets {', '.join(NUISANCES)} in it", _LAYOUT)
    found: list[ColumnPair] = []
    left_out: LeftOut = {}
    for name in sets:
        first, second = ({path.name: path for path in find_files(folder / name / side, "*.bmp")} for side in "12")
        if not first and not second:
            left_out[name] = HardnetSfmError(f"{folder / name}: no columns *.bmp in 1/ and 2/", _LAYOUT)
        for file in sorted(first.keys() ^ second.keys()):
            left_out[f"{name}/{file}"] = HardnetSfmError(f"{folder / name}: {file} is in 1/ or in 2/ only", _LAYOUT)
        both = sorted(first.keys() & second.keys())
        found += [ColumnPair(name, Path(file).stem, (first[file], second[file])) for file in both]
    check_any(found, left_out)
    return found, left_out
