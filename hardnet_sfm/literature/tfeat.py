"""TFeat: a shallow network trained with triplets.

Balntas, Riba, Ponsa, Mikolajczyk: Learning local feature descriptors with triplets and shallow convolutional neural
networks, BMVC 2016, section 3.
"""

from __future__ import annotations

from torch import Tensor, nn


class TFeat(nn.Module):
    """Maps 32x32 grey patches to 128-D descriptors.

    | layer | kernel | channels | output |
    |---|---|---|---|
    | convolution, tanh | 7x7 | 32 | 26x26 |
    | max pooling | 2x2, stride 2 | 32 | 13x13 |
    | convolution, tanh | 6x6 | 64 | 8x8 |
    | fully connected, tanh | - | 128 | - |

    The network has 599 808 parameters. A patch costs 6.3 M multiply-adds (13 MFLOP). It is first normalised to mean 0
    and variance 1. The modules have the names of the authors' state dict, which therefore loads unchanged.

    Shape: (N, 1, 32, 32) of any brightness and contrast to (N, 128). Each number is in [-1, 1]; the length varies.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.InstanceNorm2d(1, affine=False),
            nn.Conv2d(1, 32, 7),
            nn.Tanh(),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(32, 64, 6),
            nn.Tanh(),
        )
        self.descr = nn.Sequential(nn.Linear(64 * 8 * 8, 128), nn.Tanh())

    def forward(self, patches: Tensor) -> Tensor:
        described: Tensor = self.descr(self.features(patches).flatten(1))
        return described
