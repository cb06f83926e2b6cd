"""CS L2-Net: L2-Net with a second tower for the centre of the patch. With one tower, L2-Net has HardNet's layers.

Tian, Fan, Wu: L2-Net, deep learning of discriminative patch descriptor in Euclidean space, CVPR 2017, section 3.1 and
figure 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardnet_sfm.literature.centre_surround import centre_and_surround
from hardnet_sfm.networks.hardnet import FusedHardNet, HardNet


class CentreSurroundL2Net(nn.Module):
    """Maps 64x64 grey patches to 256-D descriptors of unit length.

    `surround` gets the patch at half the resolution, and `centre` gets its inner 32x32 pixels. Each is the network
    `hardnet_sfm.networks.hardnet.HardNet`, whose table of layers is the paper's. The network has 2 669 120 parameters.
    A patch costs 78 M multiply-adds (156 MFLOP).

    The paper trains the surround first, copies it to the centre, and then trains the centre alone. This package trains
    both towers together, or starts from given weights.

    Args:
        dropout: probability during training.

    Shape: (N, 1, 64, 64) of any brightness and contrast to (N, 256).
    """

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.surround, self.centre = HardNet(dropout), HardNet(dropout)

    def forward(self, patches: Tensor) -> Tensor:
        return _both(self.surround, self.centre, patches)

    def fused(self) -> FusedCentreSurroundL2Net:
        """Returns the same function for inference, with batch normalisation folded into the convolutions."""
        return FusedCentreSurroundL2Net(self)


class FusedCentreSurroundL2Net(nn.Module):
    """`CentreSurroundL2Net` for inference. Like `FusedHardNet`, it may run in half precision."""

    def __init__(self, network: CentreSurroundL2Net) -> None:
        super().__init__()
        self.surround, self.centre = (FusedHardNet(tower) for tower in (network.surround, network.centre))

    def forward(self, patches: Tensor) -> Tensor:
        return _both(self.surround, self.centre, patches)


def _both(surround_tower: nn.Module, centre_tower: nn.Module, patches: Tensor) -> Tensor:
    centre, surround = centre_and_surround(patches.float())
    # Each output has unit length, so the factor gives their concatenation unit length.
    return torch.cat([surround_tower(surround), centre_tower(centre)], 1).mul(0.5**0.5)
