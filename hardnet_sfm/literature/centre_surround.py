"""Two views of a patch, as networks with two streams take it."""

from __future__ import annotations

from torch import Tensor, nn


def centre_and_surround(patches: Tensor) -> tuple[Tensor, Tensor]:
    """The inner half of each patch as it is, and all of it at half the resolution: (N, C, S, S) to (N, C, S/2, S/2)."""
    quarter = patches.shape[-1] // 4
    return patches[..., quarter:-quarter, quarter:-quarter], nn.functional.avg_pool2d(patches, 2)
