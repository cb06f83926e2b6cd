"""DeepDesc: a network with L2 pooling and subtractive normalisation, trained on the hardest of many pairs.

Simo-Serra, Trulls, Ferraz, Kokkinos, Fua, Moreno-Noguer: Discriminative learning of deep convolutional feature point
descriptors, ICCV 2015, section 3 and table 1, the architecture CNN3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hardnet_sfm.networks.inputs import standardised

# Number of maps of the previous layer from which each map of the second and the third layer is computed.
_MAPS = 8
# Sigma of the 5x5 Gaussian window in pixels: a quarter of its side, the default of the authors' library.
_SIGMA = 1.25
# Added under the root of L2 pooling, because the gradient of a flat patch would be infinite.
_EPSILON = 1e-12


class DeepDesc(nn.Module):
    """Maps 64x64 grey patches to 128-D descriptors. They are compared by L2 distance without normalisation.

    | layer | kernel | maps | L2 pooling | normalisation | output |
    |---|---|---|---|---|---|
    | 1 | 7x7 | 32 | 2x2, stride 2 | subtractive 5x5 | 29x29 |
    | 2 | 6x6 | 64, each of 8 | 3x3, stride 3 | subtractive 5x5 | 8x8 |
    | 3 | 5x5 | 128, each of 8 | 4x4, stride 4 | - | 1x1 |

    Tanh stands between convolution and pooling. The network has 45 824 parameters. The paper's 46 272 also count the
    fixed weight and bias of its library's pooling, two for each map. A map of layers 2 and 3 sees eight maps of the
    previous layer. These are drawn once and stored with the weights. The layers are multiplied as dense layers, 51 M
    multiply-adds (102 MFLOP) a patch.

    The paper normalises all patches by the mean and deviation of its training data. This network normalises each patch
    by its own mean and deviation.

    Shape: (N, 1, 64, 64) of any brightness and contrast to (N, 128), of no fixed length.
    """

    def __init__(self) -> None:
        super().__init__()
        normalise = SubtractiveNormalisation()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 7),
            nn.Tanh(),
            L2Pooling(2),
            normalise,
            SparseConvolution(32, 64, 6),
            nn.Tanh(),
            L2Pooling(3),
            normalise,
            SparseConvolution(64, 128, 5),
            nn.Tanh(),
            L2Pooling(4),
        )

    def forward(self, patches: Tensor) -> Tensor:
        described: Tensor = self.features(standardised(patches)).flatten(1)
        return described


class SparseConvolution(nn.Conv2d):
    """A convolution in which each output sees eight of the inputs. All inputs are used equally often.

    Its weight is (outputs, 8, K, K). The buffer `maps`, (outputs, 8), has the numbers of the inputs.
    """

    maps: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(_MAPS, outputs, kernel)
        self.inputs = inputs
        rng = np.random.default_rng((inputs, outputs))
        # A permutation of the inputs serves inputs / 8 outputs.
        drawn = [rng.permutation(inputs).reshape(-1, _MAPS) for _ in range(outputs * _MAPS // inputs)]
        self.register_buffer("maps", torch.from_numpy(np.concatenate(drawn)))

    def forward(self, features: Tensor) -> Tensor:
        dense = self.weight.new_zeros(self.out_channels, self.inputs, *self.kernel_size)
        dense = dense.scatter(1, self.maps[:, :, None, None].expand_as(self.weight), self.weight)
        return nn.functional.conv2d(features, dense, self.bias)


class L2Pooling(nn.Module):
    """Computes the root of the sum of squares of each window. The stride equals the side of the window."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(features.square(), self.side)
        return (means * self.side**2 + _EPSILON).sqrt()


class SubtractiveNormalisation(nn.Module):
    """Subtracts from every value the mean over all maps in a 5x5 Gaussian window.

    At the border, the mean is over the part of the window inside the map.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        profile = torch.exp(-torch.tensor([4.0, 1.0, 0.0, 1.0, 4.0]) / (2 * _SIGMA**2))
        self.register_buffer("kernel", torch.outer(profile, profile)[None, None], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        mean = nn.functional.conv2d(features.mean(1, keepdim=True), self.kernel, padding=2)
        there = nn.functional.conv2d(torch.ones_like(mean[:1]), self.kernel, padding=2)
        return features - mean / there
