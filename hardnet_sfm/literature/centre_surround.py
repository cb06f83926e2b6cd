"""Splits a patch into the two inputs of networks with two streams."""

from __future__ import annotations

from torch import Tensor, nn


def centre_and_surround(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the inner half of each patch, and the whole patch at half the resolution.

    Shape: (N, C, S, S) to two (N, C, S/2, S/2).
    """
    quarter = patches.shape[-1] // 4
    return patches[..., quarter:-quarter, quarter:-quarter], nn.functional.avg_pool2d(patches, 2)
