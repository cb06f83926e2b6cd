"""ConvexOpt: gradients pooled over learned regions and projected to few dimensions.

Simonyan, Vedaldi, Zisserman: Learning local feature descriptors using convex optimisation, PAMI 2014 (and ECCV 2012).
The weights are the solutions of two convex problems, see `hardnet_sfm.literature.convex`. The paper does not specify
the smoothing, the quantile and the layout of the rings; they follow the authors' program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from hardnet_sfm.networks.rootsift import ORIENTATIONS, oriented_gradients, smoothing

# All lengths are in pixels of a patch of this side, as in the paper. For smaller patches they scale with the side.
SIDE = 64
_SMOOTHING = 1.4
# A patch is normalised by this quantile of its gradient magnitudes.
_QUANTILE = 0.8
# Pixel weights below this value do not change a float32 sum of 1, however many there are.
_NEGLIGIBLE = 1e-16


class PooledGradients(nn.Module):
    """Computes the paper's features before any learning: p = 8 orientations of the gradient, pooled by Gaussians.

    The patch is smoothed and its gradients are assigned softly to 8 orientations. The gradients are divided by one
    eighth of the 0.8 quantile of their magnitudes, which makes them invariant to brightness and contrast. They are then
    pooled and cropped at 1, which makes them robust to single strong edges. If that quantile is 0, the largest
    magnitude replaces it.

    Lower bound of the cost: 16 S^2 FLOP for each patch and region. A machine of 50 GFLOP/s pools 80 regions of 10 000
    64x64 patches a second. Memory: 32 S^2 bytes a patch for the oriented gradients, and the pooled features.

    Args:
        patch_size: side S of the patches in pixels.

    Shape: patches (N, 1, S, S) and regions (M, 3) to (N, 8, M). A region is x, y and sigma of a Gaussian, measured from
        the patch's centre in 64ths of its side.
    """

    smooth: Tensor

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.register_buffer("smooth", smoothing(patch_size, _SMOOTHING * patch_size / SIDE), persistent=False)

    def forward(self, patches: Tensor, regions: Tensor) -> Tensor:
        return self.pool(self.channels(patches), gaussians(regions, patches.shape[-1]))

    def channels(self, patches: Tensor) -> Tensor:
        """Computes (N, 8, S * S) normalised gradients of (N, 1, S, S) patches."""
        planes = oriented_gradients(patches, self.smooth).flatten(2)
        # The parts of a gradient in its two orientations add up to its magnitude.
        magnitude = planes.sum(1)
        scale = magnitude.kthvalue(math.ceil(_QUANTILE * magnitude.shape[1]), dim=1).values
        scale = torch.where(scale > 0, scale, magnitude.amax(1))
        return planes * (ORIENTATIONS / torch.where(scale > 0, scale, 1))[:, None, None]

    @staticmethod
    def pool(channels: Tensor, filters: Tensor) -> Tensor:
        """Pools (N, 8, S * S) gradients by (M, S * S) weights to (N, 8, M) cropped features."""
        return (channels @ filters.T).clamp(max=1)


def gaussians(regions: Tensor, patch_size: int) -> Tensor:
    """Computes (M, S * S) pooling weights of (M, 3) regions. The weights of a region add up to 1 within the patch."""
    place = (torch.arange(patch_size, device=regions.device) + 0.5) * (SIDE / patch_size) - SIDE / 2
    x, y, sigma = regions[:, :, None].unbind(1)
    # With softmax the weights also add up to 1 for narrow Gaussians between two pixels or outside the patch.
    across, down = ((-((place - centre) ** 2) / (2 * sigma**2)).softmax(1) for centre in (x, y))
    weights = (down[:, :, None] * across[:, None, :]).flatten(1)
    # The tails would be denormal numbers, whose multiplication on a CPU takes about thirty times as long.
    return torch.where(weights < _NEGLIGIBLE, 0, weights)


class ConvexOpt(nn.Module):
    """Maps square grey patches to D-dimensional descriptors of unit length.

    The features phi of M regions are weighted and projected: W diag(sqrt(w)) phi. Squared distances of the results are
    those of the learned Mahalanobis matrix A = W^T W. The paper's descriptor ends here. This network also scales it to
    length 1, as matching and indexes expect.

    | step | output |
    |---|---|
    | smoothing, sigma 1.4 | 64x64 |
    | gradient, 8 orientations | 8x64x64 |
    | pooling over M Gaussians | 8xM |
    | cropping, weights | 8xM |
    | projection | D |

    The network has M (4 + 8 D) learned numbers. For 80 regions and 128 dimensions these are 82 240, and a patch costs
    3.2 M multiply-adds (6.5 MFLOP). Learning determines the numbers of regions and dimensions. The initial values are
    random.

    Args:
        regions: number of regions, M.
        dimension: dimension of the descriptor, D.
        patch_size: side S of the patches in pixels.

    Shape: (N, 1, S, S) of any brightness and contrast to (N, D).

    Example:
        >>> ConvexOpt(regions=3, dimension=5)(torch.rand(4, 1, 64, 64)).shape
        torch.Size([4, 5])
    """

    def __init__(self, regions: int, dimension: int, patch_size: int = SIDE) -> None:
        super().__init__()
        self.features = PooledGradients(patch_size)
        places, sigmas = torch.rand(regions, 2) * SIDE / 2 - SIDE / 4, 2 + 6 * torch.rand(regions, 1)
        # Convex optimisation learns the parameters, so they need no gradients.
        self.regions = nn.Parameter(torch.cat([places, sigmas], 1), requires_grad=False)
        self.weights = nn.Parameter(torch.ones(regions), requires_grad=False)
        self.projection = nn.Parameter(torch.randn(dimension, ORIENTATIONS * regions), requires_grad=False)

    @classmethod
    def shaped_as(cls, tensors: Mapping[str, Tensor], patch_size: int = SIDE) -> Self:
        """Makes a network with the numbers of regions and dimensions of a state dict.

        The numbers are 0 if the tensors belong to another network. Loading the tensors then reports that they do not
        fit.
        """
        regions, dimension = (
            tensors[name].shape[0] if name in tensors and tensors[name].ndim else 0
            for name in ("regions", "projection")
        )
        return cls(regions, dimension, patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        features = self.features(patches, self.regions) * self.weights.sqrt()
        described = (features.flatten(1) @ self.projection.T).float()
        # A patch without any gradient would give 0/0. It gets a constant descriptor instead.
        flat = described.square().sum(1, keepdim=True) == 0
        return nn.functional.normalize(torch.where(flat, torch.ones_like(described), described), dim=1)
