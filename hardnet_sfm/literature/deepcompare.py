"""DeepCompare: several architectures of networks that compare two patches.

Zagoruyko, Komodakis: Learning to compare image patches via convolutional neural networks, CVPR 2015, sections 3 and 4.
The layers are those of the authors' published weights. They differ from the paper's text in three places. 2ch ends in
one fully connected layer, not in F(256)-ReLU-F(1). The decision of siam-2stream has 1024 units, not 512. No ReLU
follows the last convolution of siam-2stream.

The -l2 forms were not trained separately. The authors take the towers of a trained siam or siam-2stream, and compare
their outputs by L2 distance. Weights of siam and siam-2stream therefore also load as weights of the -l2 forms, without
the decision.

C(n, k, s) is a convolution to n channels with kernel k and stride s, P(2, 2) is max pooling, and F(n) is a fully
connected layer. Patches have 64x64 pixels, and each patch's mean is subtracted from it. ReLU is computed after max
pooling instead of before it. The result is the same, but only a quarter of the values need it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardnet_sfm.literature.centre_surround import centre_and_surround
from hardnet_sfm.literature.pair_scoring import PairNetwork


class TwoChannel(PairNetwork):
    """2ch: the two patches are the channels of one image.

    C(96,7,3)-ReLU-P(2,2)-C(192,5,1)-ReLU-P(2,2)-C(256,3,1)-ReLU-F(1). The network has 913 377 parameters. A pair costs
    21 M multiply-adds (42 MFLOP), and a patch alone costs none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = _tower(2)
        self.decision = nn.Linear(256, 1)

    def describe(self, patches: Tensor, side: int = 0) -> Tensor:  # noqa: ARG002
        return _centred(patches)

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        score: Tensor = self.decision(self.features(torch.cat([first, second], 1)))
        return score.squeeze(1)


class TwoChannelTwoStream(PairNetwork):
    """2ch-2stream: two networks like 2ch, one for the surround at half the resolution, one for the centre.

    Each is C(96,5,1)-ReLU-P(2,2)-C(96,3,1)-ReLU-P(2,2)-C(192,3,1)-ReLU-C(192,3,1)-ReLU, followed by F(768)-ReLU-F(1) of
    both. The network has 2 353 153 parameters. A pair costs 41 M multiply-adds (81 MFLOP), and a patch alone costs
    none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.surround, self.centre = (
            nn.Sequential(
                nn.Conv2d(2, 96, 5),
                nn.MaxPool2d(2),
                nn.ReLU(),
                nn.Conv2d(96, 96, 3),
                nn.MaxPool2d(2),
                nn.ReLU(),
                nn.Conv2d(96, 192, 3),
                nn.ReLU(),
                nn.Conv2d(192, 192, 3),
                nn.ReLU(),
                nn.Flatten(),
            )
            for _ in range(2)
        )
        self.decision = _decision(2 * 4 * 192, 768)

    def describe(self, patches: Tensor, side: int = 0) -> Tensor:  # noqa: ARG002
        return _centred(patches)

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        centre, surround = centre_and_surround(torch.cat([first, second], 1))
        score: Tensor = self.decision(torch.cat([self.surround(surround), self.centre(centre)], 1))
        return score.squeeze(1)


class SiameseL2(nn.Module):
    """siam-l2: the tower of siam. Its output is scaled to unit length and compared by L2 distance.

    C(96,7,3)-ReLU-P(2,2)-C(192,5,1)-ReLU-P(2,2)-C(256,3,1)-ReLU. The network has 908 416 parameters. A patch costs 19 M
    multiply-adds (38 MFLOP).

    Shape: (N, 1, 64, 64) in [0, 1] to (N, 256).
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = _tower(1)

    def forward(self, patches: Tensor) -> Tensor:
        return nn.functional.normalize(self.features(_centred(patches)).float(), dim=1)


class Siamese(PairNetwork):
    """siam: the tower of siam-l2 for each patch, and F(512)-ReLU-F(1) of both outputs.

    The network has 1 171 585 parameters. A patch costs 19 M multiply-adds (38 MFLOP), and a pair 0.3 M (0.5 MFLOP).
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = _tower(1)
        self.decision = _decision(2 * 256, 512)

    def describe(self, patches: Tensor, side: int = 0) -> Tensor:  # noqa: ARG002
        described: Tensor = self.features(_centred(patches))
        return described

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        return _decided(self.decision, first, second)


class PseudoSiamese(PairNetwork):
    """pseudo-siam: siam with two towers that share no weights. It has 2 080 001 parameters and the cost of siam."""

    sides = 2

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _tower(1), _tower(1)
        self.decision = _decision(2 * 256, 512)

    def describe(self, patches: Tensor, side: int = 0) -> Tensor:
        described: Tensor = (self.second if side else self.first)(_centred(patches))
        return described

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        return _decided(self.decision, first, second)


class SiameseTwoStreamL2(nn.Module):
    """siam-2stream-l2: the towers of siam-2stream, one for the centre and one for the surround.

    The two outputs are concatenated, scaled to unit length and compared by L2 distance.

    Each tower is C(96,4,2)-ReLU-P(2,2)-C(192,3,1)-ReLU-C(256,3,1)-ReLU-C(256,3,1). The network has 2 400 832
    parameters. A patch costs 18 M multiply-adds (36 MFLOP).

    Shape: (N, 1, 64, 64) in [0, 1] to (N, 512).
    """

    def __init__(self) -> None:
        super().__init__()
        self.centre, self.surround = _stream(), _stream()

    def forward(self, patches: Tensor) -> Tensor:
        return nn.functional.normalize(_two_streams(self.centre, self.surround, patches).float(), dim=1)


class SiameseTwoStream(PairNetwork):
    """siam-2stream: the towers of siam-2stream-l2 for each patch, and F(1024)-ReLU-F(1) of all outputs.

    The network has 3 451 457 parameters. A patch costs 18 M multiply-adds (36 MFLOP), and a pair 1.0 M (2.1 MFLOP).
    """

    def __init__(self) -> None:
        super().__init__()
        self.centre, self.surround = _stream(), _stream()
        self.decision = _decision(4 * 256, 1024)

    def describe(self, patches: Tensor, side: int = 0) -> Tensor:  # noqa: ARG002
        return _two_streams(self.centre, self.surround, patches)

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        return _decided(self.decision, first, second)


def _centred(patches: Tensor) -> Tensor:
    return patches - patches.mean((1, 2, 3), keepdim=True)


def _tower(channels: int) -> nn.Sequential:
    """Makes the layers from 64x64 pixels to 256 numbers."""
    return nn.Sequential(
        nn.Conv2d(channels, 96, 7, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(96, 192, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(192, 256, 3),
        nn.ReLU(),
        nn.Flatten(),
    )


def _stream() -> nn.Sequential:
    """Makes the layers from 32x32 pixels to 256 numbers."""
    return nn.Sequential(
        nn.Conv2d(1, 96, 4, 2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(96, 192, 3),
        nn.ReLU(),
        nn.Conv2d(192, 256, 3),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3),
        nn.Flatten(),
    )


def _two_streams(centre_tower: nn.Module, surround_tower: nn.Module, patches: Tensor) -> Tensor:
    centre, surround = centre_and_surround(_centred(patches))
    return torch.cat([centre_tower(centre), surround_tower(surround)], 1)


def _decision(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def _decided(decision: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    score: Tensor = decision(torch.cat([first, second], 1))
    return score.squeeze(1)
