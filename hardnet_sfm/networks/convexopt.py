"""ConvexOpt: gradients pooled over learned regions, and projected to few dimensions.

Simonyan, Vedaldi, Zisserman: Learning local feature descriptors using convex optimisation, PAMI 2014 (and ECCV 2012).
The weights are the solutions of two convex problems, see `hardnet_sfm.training.convex`. What the paper leaves open here
is as in the authors' program: the smoothing, the quantile and the layout of the rings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.networks.rootsift import ORIENTATIONS, oriented_gradients, smoothing

# All lengths are in pixels of a patch of this side, the paper's; smaller patches are measured by the same rule.
SIDE = 64
_SMOOTHING = 1.4
# Of a patch's gradient magnitudes this share is below the one that it is normalised by.
_QUANTILE = 0.8


class PooledGradients(nn.Module):
    """Low-level features of the paper's section on the descriptor: p = 8 oriented gradients, pooled by Gaussians.

    The patch is smoothed, its gradients are assigned softly to 8 orientations, divided by one eighth of the 0.8 quantile
    of their magnitudes, which makes them invariant to affine changes of the intensity, pooled, and cropped at 1, which
    makes them robust to single strong gradients. Where more than that share of the patch has no gradient at all, the
    largest magnitude stands in for the quantile.

    Lower bound: 16 S^2 FLOP a patch and region; a machine of 50 GFLOP/s pools 80 regions of 10 000 64x64 patches a
    second. Memory: 32 S^2 bytes a patch for the oriented gradients, and the pooled features.

    Args:
        patch_size: S, pixels.

    Shape: patches (N, 1, S, S) and regions (M, 3) as x, y and sigma of Gaussians, from the patch's centre and in 64ths
        of its side, to (N, M, 8).
    """

    smooth: Tensor

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.register_buffer("smooth", smoothing(patch_size, _SMOOTHING * patch_size / SIDE), persistent=False)

    def forward(self, patches: Tensor, regions: Tensor) -> Tensor:
        return self.pool(self.channels(patches), gaussians(regions, patches.shape[-1]))

    def channels(self, patches: Tensor) -> Tensor:
        """(N, 1, S, S) to (N, S * S, 8) normalised gradients."""
        planes = oriented_gradients(patches, self.smooth).flatten(2)
        # What a gradient gives to its two orientations adds up to its magnitude.
        magnitude = planes.sum(1)
        scale = magnitude.kthvalue(math.ceil(_QUANTILE * magnitude.shape[1]), dim=1).values
        scale = torch.where(scale > 0, scale, magnitude.amax(1))
        return (planes * (ORIENTATIONS / torch.where(scale > 0, scale, 1))[:, None, None]).transpose(1, 2)

    @staticmethod
    def pool(channels: Tensor, filters: Tensor) -> Tensor:
        """(N, S * S, 8) and (M, S * S) to the (N, M, 8) pooled and cropped features."""
        return (filters @ channels).clamp(max=1)


def gaussians(regions: Tensor, patch_size: int) -> Tensor:
    """(M, 3) regions to (M, S * S) pooling weights, which add up to 1 within the patch."""
    place = (torch.arange(patch_size, device=regions.device) + 0.5) * (SIDE / patch_size) - SIDE / 2
    x, y, sigma = regions[:, :, None].unbind(1)
    # Taken from the exponent, the largest of each side keeps narrow regions between pixels from vanishing.
    across, down = (-((place - centre) ** 2) / (2 * sigma**2) for centre in (x, y))
    across, down = (side.softmax(1) for side in (across, down))
    return (down[:, :, None] * across[:, None, :]).flatten(1)


class ConvexOpt(nn.Module):
    """Maps square grey patches to D-dimensional descriptors of unit length.

    Features phi of M regions are weighted and projected, W diag(sqrt(w)) phi: their squared distances are those of the
    Mahalanobis matrix A = W^T W that was learned. The paper leaves it at that; here the result is divided by its length,
    as whatever matches or indexes descriptors expects.

    Args:
        regions: M.
        dimension: D.
        patch_size: S, pixels.

    Shape: (N, 1, S, S) of any brightness and contrast to (N, D).

    Example:
        >>> ConvexOpt(regions=3, dimension=5)(torch.rand(4, 1, 64, 64)).shape
        torch.Size([4, 5])
    """

    regions: Tensor
    weights: Tensor
    projection: Tensor

    def __init__(self, regions: int, dimension: int, patch_size: int = SIDE) -> None:
        super().__init__()
        self.features = PooledGradients(patch_size)
        self.register_buffer("regions", torch.ones(regions, 3))
        self.register_buffer("weights", torch.ones(regions))
        self.register_buffer("projection", torch.ones(dimension, ORIENTATIONS * regions))

    @classmethod
    def shaped_as(cls, tensors: Mapping[str, Tensor], patch_size: int = SIDE) -> Self:
        """A network that has room for the given state dict, whose numbers of regions and dimensions are its own.

        Raises:
            HardnetSfmError: they are no tensors of this network.
        """
        try:
            return cls(len(tensors["regions"]), len(tensors["projection"]), patch_size)
        except (KeyError, TypeError) as error:
            raise HardnetSfmError(
                f"weights of another network, not of convexopt ({error} is missing or no matrix)",
                "Choose the --descriptor that these weights belong to.",
            ) from error

    def forward(self, patches: Tensor) -> Tensor:
        features = self.features(patches, self.regions) * self.weights.sqrt()[:, None]
        described = features.flatten(1) @ self.projection.T
        # A patch without any gradient would be 0/0: it gets a descriptor of its own.
        flat = described.square().sum(1, keepdim=True) == 0
        return nn.functional.normalize(torch.where(flat, torch.ones_like(described), described), dim=1)
