"""TFeat: a shallow network trained with triplets, as kornia has it.

Balntas, Riba, Ponsa, Mikolajczyk: Learning local feature descriptors with triplets and shallow convolutional neural
networks, BMVC 2016, section 3.
"""

from __future__ import annotations

from torch import nn


def tfeat() -> nn.Module:
    """TFeat with weights drawn by chance.

    | layer | kernel | channels | output |
    |---|---|---|---|
    | convolution, tanh | 7x7 | 32 | 26x26 |
    | max pooling | 2x2, stride 2 | 32 | 13x13 |
    | convolution, tanh | 6x6 | 64 | 8x8 |
    | fully connected, tanh | - | 128 | - |

    599 808 parameters, 6.3 M multiply-adds (13 MFLOP) a patch. The patch gets mean 0 and variance 1 first. The module
    names are those of the authors' state dict, which loads as it is.

    Shape: (N, 1, 32, 32) of any brightness and contrast to (N, 128), each number within [-1, 1], of no fixed length.
    """
    from kornia.feature import TFeat  # takes a second to import

    network: nn.Module = TFeat(pretrained=False)
    return network
