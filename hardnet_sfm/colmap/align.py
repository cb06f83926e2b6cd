"""Similarity alignment of camera positions."""

from __future__ import annotations

import numpy as np
import pycolmap
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError

Points = NDArray[np.float64]


def aligned(points: Points, target: Points) -> Points:
    """Aligns (N, 3) points to the target points by the similarity of least squares.

    Umeyama, PAMI 1991, as COLMAP implements it.

    Raises:
        HardnetSfmError: there are fewer than three points, or all are on one line, so that the similarity is not
            unique.
    """
    found = pycolmap.estimate_sim3d(points, target) if len(points) >= 3 else None
    if found is None:
        raise HardnetSfmError(
            f"{len(points)} camera positions do not determine a similarity",
            "Three positions that are not on one line are needed: register more photos.",
        )
    return np.asarray(points @ found.matrix()[:, :3].T + found.matrix()[:, 3])
