"""again.json: extra pairs to recover photos that the model left out, see `hardnet_sfm.reconstruction.left_out`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.workspace import read_json, write_json
from hardnet_sfm.keypoints import PhotoPair

Round = Literal["more pairs", "view synthesis"]


@dataclass(frozen=True)
class Again:
    """Pairs that are matched in addition to pairs.txt, or once more with synthetic views.

    Attributes:
        made_of: fingerprint of the features, list and options behind the model; the pairs apply to these only.
        rounds: rounds that were tried, in order.
        pairs: pairs that the list does not have.
        views: pairs to match with synthetic views, from the list or from `pairs`.
    """

    made_of: str
    rounds: tuple[Round, ...] = ()
    pairs: tuple[PhotoPair, ...] = ()
    views: tuple[PhotoPair, ...] = ()


def read_again(path: Path, made_of: str) -> Again:
    """Reads what `write_again` wrote for these features, list and options; empty if the file belongs to others."""
    try:
        read = read_json(path) if path.is_file() else {}
        if read.get("made_of") == made_of:
            pairs, views = (tuple((str(a), str(b)) for a, b in read[name]) for name in ("pairs", "views"))
            return Again(made_of, tuple(read["rounds"]), pairs, views)
    except (HardnetSfmError, KeyError, TypeError, ValueError):
        pass  # a damaged file is made again
    return Again(made_of)


def write_again(path: Path, again: Again) -> None:
    write_json(path, asdict(again))
