"""Similarity alignment of camera positions."""

from __future__ import annotations

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError

Points = NDArray[np.float64]


def aligned(points: Points, target: Points) -> Points:
    """Moves, turns and scales (N, 3) points to lie as near to the target points as least squares can bring them.

    Umeyama, PAMI 1991, as COLMAP implements it.

    Raises:
        HardnetSfmError: fewer than three points, or all on one line, which leave the similarity open.
    """
    found = pycolmap.estimate_sim3d(points, target) if len(points) >= 3 else None
    if found is None:
        raise HardnetSfmError(
            f"{len(points)} camera positions do not determine a similarity",
            "It takes three that are not on one line: register more photos.",
        )
    return np.asarray(points @ found.matrix()[:, :3].T + found.matrix()[:, 3])
