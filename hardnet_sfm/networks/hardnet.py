"""HardNet: the L2-Net network trained with the hardest negative in the batch.

Mishchuk, Mishkin, Radenovic, Matas: Working hard to know your neighbor's margins, NIPS 2017, section 3.3 and figure 2;
the layers are those of Tian, Fan, Wu: L2-Net, CVPR 2017, figure 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hardnet_sfm.networks.inputs import standardised

PATCH_SIZE = 32
DIMENSION = 128


class HardNet(nn.Module):
    """Maps 32x32 grey patches to 128-D descriptors of unit length.

    | layer | kernel | channels | stride | output |
    |---|---|---|---|---|
    | 1, 2 | 3x3 | 32 | 1 | 32x32 |
    | 3 | 3x3 | 64 | 2 | 16x16 |
    | 4 | 3x3 | 64 | 1 | 16x16 |
    | 5 | 3x3 | 128 | 2 | 8x8 |
    | 6 | 3x3 | 128 | 1 | 8x8 |
    | 7 | 8x8 | 128 | 1 | 1x1 |

    No convolution has a bias. Batch normalisation without affine parameters follows each convolution, and ReLU follows
    each but the last. Dropout precedes the last convolution. The network has 1 334 560 parameters and takes 39 M
    multiply-adds (78 MFLOP) a patch. The modules have the names of the authors' and kornia's state dicts, which load
    unchanged.

    Args:
        dropout: probability during training; 0.3 in the paper, 0.1 in the authors' later code.

    Shape: (N, 1, 32, 32) of any brightness and contrast to (N, 128).

    Examples:
        >>> HardNet().eval()(torch.rand(4, 1, 32, 32)).shape
        torch.Size([4, 128])
    """

    layers: ClassVar[tuple[tuple[int, int, int, int], ...]] = (
        *((1, 32, 3, 1), (32, 32, 3, 1), (32, 64, 3, 2)),
        *((64, 64, 3, 1), (64, 128, 3, 2), (128, 128, 3, 1)),
    )
    """Channels in and out, kernel and stride of the convolutions but the last, which covers all of its input."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        side = PATCH_SIZE
        for channels_in, channels, kernel, stride in self.layers:
            modules += [
                nn.Conv2d(channels_in, channels, kernel, stride, padding=(kernel - 1) // 2, bias=False),
                nn.BatchNorm2d(channels, affine=False),
                nn.ReLU(),
            ]
            side //= stride
        modules += [
            nn.Dropout(dropout),
            nn.Conv2d(self.layers[-1][1], DIMENSION, side, bias=False),
            nn.BatchNorm2d(DIMENSION, affine=False),
        ]
        self.features = nn.Sequential(*modules)

    def forward(self, patches: Tensor) -> Tensor:
        return _described(self.features, patches)

    def fused(self) -> FusedHardNet:
        """Returns the same function for inference, with batch normalisation folded into the convolutions."""
        return FusedHardNet(self)


class HardNetFast(HardNet):
    """HardNet with fewer operations: the two strides come first, and all later layers work on 8x8 pixels.

    | layer | kernel | channels | stride | output |
    |---|---|---|---|---|
    | 1 | 4x4 | 32 | 2 | 16x16 |
    | 2 | 3x3 | 64 | 2 | 8x8 |
    | 3, 4, 5 | 3x3 | 64 | 1 | 8x8 |
    | 6 | 8x8 | 128 | 1 | 1x1 |

    Everything else is as in `HardNet`. The network has 653 824 parameters and takes 8.9 M multiply-adds (18 MFLOP) a
    patch, which is 4.4 times less.

    Args:
        dropout: probability during training.

    Shape: (N, 1, 32, 32) of any brightness and contrast to (N, 128).
    """

    layers: ClassVar[tuple[tuple[int, int, int, int], ...]] = (
        *((1, 32, 4, 2), (32, 64, 3, 2)),
        *((64, 64, 3, 1), (64, 64, 3, 1), (64, 64, 3, 1)),
    )


class FusedHardNet(nn.Module):
    """HardNet for inference: seven convolutions with bias and ReLU.

    Layers in bfloat16 move a descriptor by 0.02 on average and by 0.04 at most if weights are random
    (tests/test_hardnet.py). Better trained weights give smaller differences. Two cores with AVX-512 bf16 describe 9000
    patches a second instead of 1500.
    """

    def __init__(self, network: HardNet) -> None:
        super().__init__()
        layers = list(network.eval().features)
        fused: list[nn.Module] = []
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                fused.append(fuse_conv_bn_eval(layer, following))
            elif isinstance(layer, nn.ReLU):
                fused.append(layer)
        self.features = nn.Sequential(*fused)

    def forward(self, patches: Tensor) -> Tensor:
        return _described(self.features, patches)


def _described(features: nn.Sequential, patches: Tensor) -> Tensor:
    """Standardises patches and normalises descriptors in float32, whatever type the layers use."""
    # With one channel, (N, 1, H, W) counts as both layouts. The strides must state the layout, or each layer converts
    # it.
    inputs = standardised(patches.float()).contiguous(memory_format=torch.channels_last)
    return nn.functional.normalize(features(inputs).flatten(1).float(), dim=1)
