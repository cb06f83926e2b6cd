"""RootSIFT computed from patches, so that any detector's frames, affine ones too, can be described.

Lowe: Distinctive image features from scale-invariant keypoints, IJCV 2004, section 6, for the histogram;
Arandjelovic, Zisserman: Three things everyone should know to improve object retrieval, CVPR 2012, section 2, for the
square root.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_BINS = 4
_ORIENTATIONS = 8
_SIGMAS_A_BIN = 3.0
_CLIP = 0.2
# Gradients below it, for grey values in [0, 1], are rounding errors.
_ROUNDING = 2e-7
# The patch is smoothed by this many sigmas before differentiation. 0.6 matched best on the homography sequences.
_SMOOTHING = 0.6


class RootSift(nn.Module):
    """Maps square grey patches to 128-D RootSIFT descriptors of unit length.

    A patch spans 15 sigmas: four spatial bins of 3 sigmas and half a bin on each side, which trilinear interpolation
    reaches into. There are no weights to learn.

    Smoothing and spatial binning are linear and separable: products with small fixed matrices, 0.3 MFLOP a patch of
    32x32. Lower bound: what is left is one pass over 8 planes of float32, 32 KB a patch, that sorts
    gradients into orientations; a core that moves 10 GB/s within its cache describes 100 000 patches a second.

    Args:
        patch_size: pixels.
        measurement_size: sigmas across the patch.

    Shape: (N, 1, S, S) of any brightness and contrast to (N, 128).
    """

    smooth: Tensor
    bins: Tensor

    def __init__(self, patch_size: int = 32, measurement_size: float = 15.0) -> None:
        super().__init__()
        smooth = _smoothing(patch_size, _SMOOTHING * patch_size / measurement_size)
        position = (torch.arange(patch_size) + 0.5) / patch_size * measurement_size - measurement_size / 2
        bins = position / _SIGMAS_A_BIN
        distance = (bins[:, None] + (_BINS - 1) / 2 - torch.arange(_BINS)).abs()
        window = torch.exp(-(bins**2) / (2 * (_BINS / 2) ** 2))
        self.register_buffer("smooth", smooth)
        self.register_buffer("bins", (1 - distance).clamp(min=0) * window[:, None])

    def forward(self, patches: Tensor) -> Tensor:
        smooth = self.smooth.T @ (patches.float().squeeze(1) @ self.smooth)
        dx = smooth[:, 1:-1, 2:] - smooth[:, 1:-1, :-2]
        dy = smooth[:, 2:, 1:-1] - smooth[:, :-2, 1:-1]
        histogram = self._histogram(dx, dy).flatten(1)
        clipped = nn.functional.normalize(histogram, dim=1).clamp(max=_CLIP)
        # A patch without any gradient would be 0/0: it gets the uniform descriptor, which is like no other.
        flat = clipped.sum(1, keepdim=True) == 0
        return nn.functional.normalize(torch.where(flat, torch.ones_like(clipped), clipped), p=1, dim=1).sqrt()

    def _histogram(self, dx: Tensor, dy: Tensor) -> Tensor:
        """(N, S, S) derivatives to the (N, 4 rows, 4 columns, 8 orientations) histogram."""
        # The threshold takes away what rounding leaves where a patch is flat, of which the square root would make much.
        magnitude = nn.functional.threshold((dx * dx + dy * dy).sqrt(), _ROUNDING, 0)
        angle = torch.atan2(dy, dx) * (_ORIENTATIONS / (2 * math.pi))
        angle = torch.where(angle < 0, angle + _ORIENTATIONS, angle)
        planes = magnitude.new_empty(len(dx), _ORIENTATIONS, *dx.shape[1:])
        for number in range(_ORIENTATIONS):
            distance = (angle - number).abs()
            if number == 0:
                distance = torch.minimum(distance, _ORIENTATIONS - distance)
            torch.mul((1 - distance).clamp(min=0), magnitude, out=planes[:, number])
        return (self.bins.T @ (planes @ self.bins)).permute(0, 2, 3, 1)


def _smoothing(size: int, sigma: float) -> Tensor:
    """(S, S + 2) matrix that smooths rows of S pixels by a Gaussian, and goes on with them by a pixel at each end.

    Beyond its ends a row goes on with its outermost pixels.
    """
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    matrix = torch.zeros(size, size + 2)
    for column in range(size + 2):
        reached = torch.arange(column - 1 - radius, column + radius).clamp(0, size - 1)
        matrix[:, column].index_add_(0, reached, weights / weights.sum())
    return matrix
