"""The preparation of patches before the first layer of a network."""

from __future__ import annotations

import torch
from torch import Tensor

# Added to the patch's standard deviation; the value that published HardNet weights were trained with.
_EPSILON = 1e-7


def standardised(patches: Tensor) -> Tensor:
    """Gives each patch of (N, 1, H, W) mean 0 and standard deviation 1, by the unbiased estimate."""
    std, mean = torch.std_mean(patches, dim=(1, 2, 3), keepdim=True)
    return (patches - mean) / (std + _EPSILON)
