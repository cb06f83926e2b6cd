"""again.json: pairs that are matched for photos which the model left out, see `hardnet_sfm.reconstruction.left_out`."""

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
    """Pairs that are matched beyond pairs.txt, or once more with synthetic views.

    Attributes:
        made_of: the features, list and options that the model was made of; with others, this has no meaning.
        rounds: that were tried, in order.
        pairs: beyond the list.
        views: to match with synthetic views, of the list or of `pairs`.
    """

    made_of: str
    rounds: tuple[Round, ...] = ()
    pairs: tuple[PhotoPair, ...] = ()
    views: tuple[PhotoPair, ...] = ()


def read_again(path: Path, made_of: str) -> Again:
    """What `write_again` wrote for these features, this list and these options; empty where that is something else."""
    try:
        read = read_json(path) if path.is_file() else {}
        if read.get("made_of") == made_of:
            pairs, views = (tuple((str(a), str(b)) for a, b in read[name]) for name in ("pairs", "views"))
            return Again(made_of, tuple(read["rounds"]), pairs, views)
    except (HardnetSfmError, KeyError, TypeError, ValueError):
        pass  # damaged, so it is made again
    return Again(made_of)


def write_again(path: Path, again: Again) -> None:
    write_json(path, asdict(again))
