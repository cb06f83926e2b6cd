"""Patches of points that several photos see: what training learns from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32, Grey
from hardnet_sfm.errors import HardnetSfmError

PATCH_SIZE = 64


@dataclass(frozen=True)
class PatchSet:
    """Patches of points seen in several photos.

    Attributes:
        origin: file or folder that it was read from, for messages.
        source: sfm, warps, brown or hpatches.
        measurement_size: sigmas of the keypoint across a patch.
        images: names of the photos.
        patches: (N, 64, 64) uint8; from a patches.h5, a memory-mapped view of the file.
        point: (N,) int64, number of the point from 0 to P - 1, not decreasing.
        image: (N,) int32, row in `images`.
        frame: (N, 2, 3) float32, local affine frame [A | xy]: pixels per sigma and position in the upright photo, the
            centre of the top-left pixel at (0, 0). NaN where unknown.
        angle: (N,) float32, degrees between the ray of this patch and the mean ray of its point. NaN where unknown.
        xyz: (P, 3) float32, position of each point in the units of its model. NaN where unknown.
        extent: size of the model in these units. NaN where unknown.
        options: options that it was made with.
        point_id: (P,) int64, COLMAP's number of each point in the model that it was mined from; None for other sources.
    """

    origin: str
    source: str
    measurement_size: float
    images: tuple[str, ...]
    patches: Grey
    point: NDArray[np.int64]
    image: NDArray[np.int32]
    frame: Float32
    angle: Float32
    xyz: Float32
    extent: float = math.nan
    options: Mapping[str, Any] = field(default_factory=dict)
    point_id: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.point)

    @property
    def matchable(self) -> NDArray[np.int64]:
        """Numbers of the points that are seen in two photos or more."""
        # The photo changes between two rows of such a point.
        changes = (np.diff(self.point) == 0) & (np.diff(self.image) != 0)
        return np.unique(self.point[1:][changes])

    def identity(self) -> tuple[object, ...]:
        """Identifies the set by the options that made it.

        Sets in other programs' layouts do not record their options. They are identified by a hash of their contents.
        """
        made_of = dict(self.options) or [
            sha256(np.ascontiguousarray(array).data).hexdigest() for array in (self.patches, self.point)
        ]
        return self.source, self.measurement_size, len(self), made_of

    def take(self, rows: NDArray[np.integer[Any]]) -> Grey:
        """Returns a copy of the patches at the given row numbers, (..., 64, 64) uint8 for rows of any shape."""
        return np.asarray(self.patches[rows])

    def check(self) -> Self:
        """Checks the set and returns it.

        Raises:
            HardnetSfmError: an array has the wrong shape, points are not sorted, numbers of points or photos are out of
                range, or no point has two patches.
        """
        problem = self._problem()
        if problem:
            raise HardnetSfmError(f"{self.origin}: {problem}", "It was not written by hardnet-sfm, or is damaged.")
        if not (np.diff(self.point) == 0).any():
            raise HardnetSfmError(
                f"{self.origin}: too few points: none has two patches",
                "Use more photos or sharper ones, or weaker filters in `mine`.",
            )
        return self

    def _problem(self) -> str:
        patches, points = len(self.point), len(self.xyz)
        shapes = {
            "patches": (patches, PATCH_SIZE, PATCH_SIZE),
            "image": (patches,),
            "frame": (patches, 2, 3),
            "angle": (patches,),
            "xyz": (points, 3),
        }
        if self.point_id is not None:
            shapes["point_id"] = (points,)
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape:
                return f"{name} is of shape {found}, expected {shape}"
        if (np.diff(self.point) < 0).any():
            return "patches are not sorted by point"
        if patches and (self.point[0] < 0 or self.point[-1] >= points):
            return f"numbers of points from {self.point[0]} to {self.point[-1]}, but there are {points} points"
        if patches and (self.image.min() < 0 or self.image.max() >= len(self.images)):
            found = f"from {self.image.min()} to {self.image.max()}"
            return f"numbers of photos {found}, but there are {len(self.images)} photos"
        return ""
