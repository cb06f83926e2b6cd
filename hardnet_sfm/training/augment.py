"""Augmentation of patch pairs on the training device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hardnet_sfm.errors import UsageError, check_least

if TYPE_CHECKING:  # torch takes seconds to import; `--help` needs the options only
    from torch import Tensor


@dataclass(frozen=True)
class AugmentOptions:
    """How patches are changed at random. 0 switches a change off. Only flips and quarter turns are the same for both
    patches of a pair."""

    flip: bool = True
    """Flip pairs of patches and turn them by quarters, as in the paper's HardNet+."""
    shift: float = 0.02
    """Standard deviation of the shift, as a share of the patch's side."""
    turn: float = 3.0
    """Standard deviation of the rotation, in degrees."""
    scale: float = 0.06
    """Standard deviation of the logarithm of the scale."""
    light: float = 0.3
    """Largest change of the logarithm of gamma, up or down."""
    noise: float = 0.01
    """Largest standard deviation of the noise of a pixel, for grey values in [0, 1]. Each patch draws its own, from 0
    to this."""

    relight: float = 0.0
    """Share of the patches that get the edge of a shadow and another exposure, which may clip highlights."""

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        check_least(self, shift=0, turn=0, scale=0, light=0, noise=0, relight=0)
        if self.relight > 1:
            raise UsageError("--relight must be from 0 to 1")


def augment_pairs(anchors: Tensor, positives: Tensor, size: int, options: AugmentOptions) -> tuple[Tensor, Tensor]:
    """Augments patch pairs at random and resamples them to the network's size.

    One bilinear resampling applies the affine map of a patch. From 64 to 32 pixels it averages 2x2 pixels.

    Args:
        anchors, positives: (B, S, S) uint8 patches.
        size: side of the result in pixels.
        options: kinds and strengths of the changes. Random numbers come from torch's generator of the device.

    Returns:
        Two (B, 1, size, size) float32 tensors with values in [0, 1] before noise is added.
    """
    import torch

    count, device = len(anchors), anchors.device
    patches = torch.cat([anchors, positives]).unsqueeze(1).float() / 255

    def normal(deviation: float, *shape: int) -> Tensor:
        return deviation * torch.randn(2 * count, *shape, device=device)

    turn, scale = torch.deg2rad(normal(options.turn)), normal(options.scale).exp()
    cos, sin = scale * turn.cos(), scale * turn.sin()
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    if options.flip:
        quarters, flips = torch.randint(4, (count,), device=device), torch.randint(2, (count,), device=device)
        cos, sin = torch.cos(quarters * (torch.pi / 2)).round(), torch.sin(quarters * (torch.pi / 2)).round()
        mirror = 1 - 2 * flips.float()
        shared = torch.stack([torch.stack([cos * mirror, -sin], 1), torch.stack([sin * mirror, cos], 1)], 1)
        linear = linear @ torch.cat([shared, shared])
    # The grid spans [-1, 1], so a side has length 2 and the shift is doubled.
    theta = torch.cat([linear, normal(2 * options.shift, 2, 1)], 2)
    grid = torch.nn.functional.affine_grid(theta, [2 * count, 1, size, size], align_corners=False)
    patches = torch.nn.functional.grid_sample(patches, grid, padding_mode="reflection", align_corners=False)
    if options.relight:
        patches = _relit(patches, options.relight)
    if options.light:
        gamma = (options.light * (2 * torch.rand(2 * count, 1, 1, 1, device=device) - 1)).exp()
        patches = patches.clamp(1e-3, 1).pow(gamma)
    if options.noise:
        patches = patches + torch.rand(2 * count, 1, 1, 1, device=device) * normal(options.noise, 1, size, size)
    return patches[:count], patches[count:]


def _relit(patches: Tensor, share: float) -> Tensor:
    """Puts a share of (N, 1, S, S) patches partly into the shadow, and exposes them by up to 1.5 stops more or less.

    The shadow is a half plane whose edge crosses the patch. It takes 20 to 80 % of the light. Its edge is up to an
    eighth of the patch wide.
    """
    import torch

    count, size, device = len(patches), patches.shape[-1], patches.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, device=device)

    chosen = uniform(0, 1) < share
    along = torch.linspace(-1, 1, size, device=device)
    angle, place, width = uniform(0, 2 * torch.pi), uniform(-0.8, 0.8), uniform(0.01, 0.06)
    distance = angle.cos() * along + angle.sin() * along[:, None] - place
    shade = 1 - uniform(0.2, 0.8) * torch.sigmoid(distance / width)
    relit = (patches * shade * 2 ** uniform(-1.5, 1.5)).clamp(0, 1)
    return torch.where(chosen, relit, patches)
