"""RootSIFT computed from patches, so that it can describe the frames of any detector, including affine ones.

Lowe: Distinctive image features from scale-invariant keypoints, IJCV 2004, section 6, for the histogram; Arandjelovic,
Zisserman: Three things everyone should know to improve object retrieval, CVPR 2012, section 2, for the square root.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ORIENTATIONS = 8
_BINS = 4
_SIGMAS_A_BIN = 3.0
_CLIP = 0.2
# Gradients below this, for grey values in [0, 1], are rounding errors.
_ROUNDING = 2e-7
# The patch is smoothed by this many sigmas before differentiation. 0.6 matched best on the homography sequences.
_SMOOTHING = 0.6


class RootSift(nn.Module):
    """Maps square grey patches to 128-D RootSIFT descriptors of unit length.

    A patch spans 15 sigmas. These are four spatial bins of 3 sigmas, and half a bin on each side that trilinear
    interpolation also uses. There are no weights to learn.

    Smoothing and spatial binning are linear and separable. They are products with small fixed matrices, 0.3 MFLOP for a
    patch of 32x32. Lower bound: one pass over 8 planes of float32 remains, 32 KB a patch, which sorts gradients into
    orientations. A core that moves 10 GB/s within its cache describes 100 000 patches a second.

    Args:
        patch_size: side of a patch, pixels.
        measurement_size: sigmas across the patch.

    Shape: (N, 1, S, S) of any brightness and contrast to (N, 128).
    """

    smooth: Tensor
    bins: Tensor

    def __init__(self, patch_size: int = 32, measurement_size: float = 15.0) -> None:
        super().__init__()
        smooth = smoothing(patch_size, _SMOOTHING * patch_size / measurement_size)
        position = (torch.arange(patch_size) + 0.5) / patch_size * measurement_size - measurement_size / 2
        bins = position / _SIGMAS_A_BIN
        distance = (bins[:, None] + (_BINS - 1) / 2 - torch.arange(_BINS)).abs()
        window = torch.exp(-(bins**2) / (2 * (_BINS / 2) ** 2))
        self.register_buffer("smooth", smooth)
        self.register_buffer("bins", (1 - distance).clamp(min=0) * window[:, None])

    def forward(self, patches: Tensor) -> Tensor:
        planes = oriented_gradients(patches, self.smooth)
        histogram = (self.bins.T @ (planes @ self.bins)).permute(0, 2, 3, 1).flatten(1)
        clipped = nn.functional.normalize(histogram, dim=1).clamp(max=_CLIP)
        # A patch without any gradient would give 0/0. It gets the uniform descriptor, which is unlike any other.
        flat = clipped.sum(1, keepdim=True) == 0
        return nn.functional.normalize(torch.where(flat, torch.ones_like(clipped), clipped), p=1, dim=1).sqrt()


def oriented_gradients(patches: Tensor, smooth: Tensor) -> Tensor:
    """Computes gradients of smoothed patches, and shares each linearly between its two nearest orientations.

    Args:
        patches: (N, 1, S, S), grey values in [0, 1].
        smooth: (S, S + 2), as `smoothing` returns it.

    Returns:
        (N, 8, S, S) planes. Plane k has the part of each pixel's gradient magnitude, twice the derivative, that goes to
        k * 45 degrees, from x to y.
    """
    blurred = smooth.T @ (patches.float().squeeze(1) @ smooth)
    dx = blurred[:, 1:-1, 2:] - blurred[:, 1:-1, :-2]
    dy = blurred[:, 2:, 1:-1] - blurred[:, :-2, 1:-1]
    # The threshold removes rounding errors in flat patches. Normalisation of the descriptor would amplify them.
    magnitude = nn.functional.threshold((dx * dx + dy * dy).sqrt(), _ROUNDING, 0)
    angle = torch.atan2(dy, dx) * (ORIENTATIONS / (2 * math.pi))
    angle = torch.where(angle < 0, angle + ORIENTATIONS, angle)
    planes = magnitude.new_empty(len(dx), ORIENTATIONS, *dx.shape[1:])
    for number in range(ORIENTATIONS):
        distance = (angle - number).abs()
        if number == 0:
            distance = torch.minimum(distance, ORIENTATIONS - distance)
        torch.mul((1 - distance).clamp(min=0), magnitude, out=planes[:, number])
    return planes


def smoothing(size: int, sigma: float) -> Tensor:
    """Returns the (S, S + 2) matrix that smooths rows of S pixels by a Gaussian.

    It also extends the rows by a pixel at each end. The outermost pixels are repeated beyond the ends of a row.
    """
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    matrix = torch.zeros(size, size + 2)
    for column in range(size + 2):
        reached = torch.arange(column - 1 - radius, column + radius).clamp(0, size - 1)
        matrix[:, column].index_add_(0, reached, weights / weights.sum())
    return matrix
