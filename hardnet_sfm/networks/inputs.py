"""What networks do to a patch before their first layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Added to the patch's standard deviation; the value that published HardNet weights were trained with.
_EPSILON = 1e-7


def standardised(patches: Tensor) -> Tensor:
    """Each patch of (N, 1, H, W) with mean 0 and standard deviation 1, the unbiased estimate."""
    std, mean = torch.std_mean(patches, dim=(1, 2, 3), keepdim=True)
    return (patches - mean) / (std + _EPSILON)


def centre_and_surround(patches: Tensor) -> tuple[Tensor, Tensor]:
    """The inner half of each patch as it is, and all of it at half the resolution: (N, C, S, S) to (N, C, S/2, S/2)."""
    quarter = patches.shape[-1] // 4
    return patches[..., quarter:-quarter, quarter:-quarter], nn.functional.avg_pool2d(patches, 2)
