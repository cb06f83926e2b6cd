"""ConvexOpt: gradients pooled over learned regions, and projected to few dimensions.

Simonyan, Vedaldi, Zisserman: Learning local feature descriptors using convex optimisation, PAMI 2014 (and ECCV 2012).
The weights are the solutions of two convex problems, see `hardnet_sfm.literature.convex`. What the paper leaves open
here is as in the authors' program: the smoothing, the quantile and the layout of the rings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from hardnet_sfm.networks.rootsift import ORIENTATIONS, oriented_gradients, smoothing

# All lengths are in pixels of a patch of this side, the paper's; smaller patches are measured by the same rule.
SIDE = 64
_SMOOTHING = 1.4
# Of a patch's gradient magnitudes this share is below the one that it is normalised by.
_QUANTILE = 0.8
# Weights of pixels that are lost in a float32 sum of 1, however many they are.
_NEGLIGIBLE = 1e-16


class PooledGradients(nn.Module):
    """The features of the paper before any learning: p = 8 orientations of the gradient, pooled by Gaussians.

    The patch is smoothed and its gradients are assigned softly to 8 orientations. They are divided by one eighth of the
    0.8 quantile of their magnitudes, which makes them invariant to brightness and contrast, pooled, and cropped at 1,
    which makes them robust to single strong edges. Where more than that share of the patch has no gradient at all, the
    largest magnitude stands in for the quantile.

    Lower bound: 16 S^2 FLOP a patch and region; a machine of 50 GFLOP/s pools 80 regions of 10 000 64x64 patches a
    second. Memory: 32 S^2 bytes a patch for the oriented gradients, and the pooled features.

    Args:
        patch_size: S, pixels.

    Shape: patches (N, 1, S, S) and regions (M, 3) as x, y and sigma of Gaussians, from the patch's centre and in 64ths
        of its side, to (N, 8, M).
    """

    smooth: Tensor

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.register_buffer("smooth", smoothing(patch_size, _SMOOTHING * patch_size / SIDE), persistent=False)

    def forward(self, patches: Tensor, regions: Tensor) -> Tensor:
        return self.pool(self.channels(patches), gaussians(regions, patches.shape[-1]))

    def channels(self, patches: Tensor) -> Tensor:
        """(N, 1, S, S) to (N, 8, S * S) normalised gradients."""
        planes = oriented_gradients(patches, self.smooth).flatten(2)
        # What a gradient gives to its two orientations adds up to its magnitude.
        magnitude = planes.sum(1)
        scale = magnitude.kthvalue(math.ceil(_QUANTILE * magnitude.shape[1]), dim=1).values
        scale = torch.where(scale > 0, scale, magnitude.amax(1))
        return planes * (ORIENTATIONS / torch.where(scale > 0, scale, 1))[:, None, None]

    @staticmethod
    def pool(channels: Tensor, filters: Tensor) -> Tensor:
        """(N, 8, S * S) and (M, S * S) to the (N, 8, M) pooled and cropped features."""
        return (channels @ filters.T).clamp(max=1)


def gaussians(regions: Tensor, patch_size: int) -> Tensor:
    """(M, 3) regions to (M, S * S) pooling weights, which add up to 1 within the patch."""
    place = (torch.arange(patch_size, device=regions.device) + 0.5) * (SIDE / patch_size) - SIDE / 2
    x, y, sigma = regions[:, :, None].unbind(1)
    # By softmax the weights of narrow Gaussians between two pixels, or beyond the last, add up to 1, too.
    across, down = ((-((place - centre) ** 2) / (2 * sigma**2)).softmax(1) for centre in (x, y))
    weights = (down[:, :, None] * across[:, None, :]).flatten(1)
    # The tails would be denormal numbers, which a CPU multiplies some thirty times as slowly.
    return torch.where(weights < _NEGLIGIBLE, 0, weights)


class ConvexOpt(nn.Module):
    """Maps square grey patches to D-dimensional descriptors of unit length.

    Features phi of M regions are weighted and projected, W diag(sqrt(w)) phi: their squared distances are those of the
    Mahalanobis matrix A = W^T W that was learned. The paper leaves it at that. Here the result is scaled to length 1,
    as matching and indexes expect.

    | step | output |
    |---|---|
    | smoothing, sigma 1.4 | 64x64 |
    | gradient, 8 orientations | 8x64x64 |
    | pooling over M Gaussians | 8xM |
    | cropping, weights | 8xM |
    | projection | D |

    M (4 + 8 D) numbers are learned, 82 240 of 80 regions and 128 dimensions, which cost 3.2 M multiply-adds (6.5 MFLOP)
    a patch; regions and dimensions are as many as the learning leaves. Until weights are loaded they are drawn by
    chance.

    Args:
        regions: M.
        dimension: D.
        patch_size: S, pixels.

    Shape: (N, 1, S, S) of any brightness and contrast to (N, D).

    Example:
        >>> ConvexOpt(regions=3, dimension=5)(torch.rand(4, 1, 64, 64)).shape
        torch.Size([4, 5])
    """

    def __init__(self, regions: int, dimension: int, patch_size: int = SIDE) -> None:
        super().__init__()
        self.features = PooledGradients(patch_size)
        places, sigmas = torch.rand(regions, 2) * SIDE / 2 - SIDE / 4, 2 + 6 * torch.rand(regions, 1)
        # What is learned is no matter of gradients that come from behind the network.
        self.regions = nn.Parameter(torch.cat([places, sigmas], 1), requires_grad=False)
        self.weights = nn.Parameter(torch.ones(regions), requires_grad=False)
        self.projection = nn.Parameter(torch.randn(dimension, ORIENTATIONS * regions), requires_grad=False)

    @classmethod
    def shaped_as(cls, tensors: Mapping[str, Tensor], patch_size: int = SIDE) -> Self:
        """A network with room for a state dict, which has its own numbers of regions and of dimensions.

        They are 0 where the tensors are those of another network; what loads them finds that they do not fit.
        """
        regions, dimension = (
            tensors[name].shape[0] if name in tensors and tensors[name].ndim else 0
            for name in ("regions", "projection")
        )
        return cls(regions, dimension, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        features = self.features(patches, self.regions) * self.weights.sqrt()
        described = (features.flatten(1) @ self.projection.T).float()
        # A patch without any gradient would be 0/0: it gets a descriptor of its own.
        flat = described.square().sum(1, keepdim=True) == 0
        return nn.functional.normalize(torch.where(flat, torch.ones_like(described), described), dim=1)
