"""DeepCompare: ways to compare two patches by a network, beside each other.

Zagoruyko, Komodakis: Learning to compare image patches via convolutional neural networks, CVPR 2015, sections 3 and 4.
The layers are those of the weights that the authors published. In three places these differ from the paper's text: 2ch
ends in one fully connected layer, not in F(256)-ReLU-F(1); the decision of siam-2stream has 1024 units, not 512, and no
ReLU follows its last convolution.

The -l2 forms were not trained by themselves: the authors take the towers of a trained siam or siam-2stream, and compare
their outputs by L2 distance. Weights of those load here as weights of these, without the decision.

C(n, k, s) is a convolution to n channels with kernel k and stride s, P(2, 2) max pooling, F(n) fully connected. Patches
have 64x64 pixels; each one's mean is taken from it. ReLU before max pooling is computed after it, of a quarter of the
values: the result is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardnet_sfm.literature.centre_surround import centre_and_surround
from hardnet_sfm.literature.pair_scoring import PairNetwork


class TwoChannel(PairNetwork):
    """2ch: the two patches are the channels of one image.

    C(96,7,3)-ReLU-P(2,2)-C(192,5,1)-ReLU-P(2,2)-C(256,3,1)-ReLU-F(1). 913 377 parameters, 21 M multiply-adds (42 MFLOP)
    a pair, none a patch.
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

    Each C(96,5,1)-ReLU-P(2,2)-C(96,3,1)-ReLU-P(2,2)-C(192,3,1)-ReLU-C(192,3,1)-ReLU, then F(768)-ReLU-F(1) of both.
    2 353 153 parameters, 41 M multiply-adds (81 MFLOP) a pair, none a patch.
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
    """siam-l2: the tower of siam, whose output, scaled to unit length, is compared by its L2 distance.

    C(96,7,3)-ReLU-P(2,2)-C(192,5,1)-ReLU-P(2,2)-C(256,3,1)-ReLU. 908 416 parameters, 19 M multiply-adds (38 MFLOP).

    Shape: (N, 1, 64, 64) in [0, 1] to (N, 256).
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = _tower(1)

    def forward(self, patches: Tensor) -> Tensor:
        return nn.functional.normalize(self.features(_centred(patches)).float(), dim=1)


class Siamese(PairNetwork):
    """siam: the tower of siam-l2 for each patch, and F(512)-ReLU-F(1) of both.

    1 171 585 parameters, 19 M multiply-adds (38 MFLOP) a patch and 0.3 M (0.5 MFLOP) a pair.
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
    """pseudo-siam: siam whose two towers share no weights. 2 080 001 parameters; it costs what siam costs."""

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

    Both outputs together have unit length, and are compared by their L2 distance.

    Each C(96,4,2)-ReLU-P(2,2)-C(192,3,1)-ReLU-C(256,3,1)-ReLU-C(256,3,1). 2 400 832 parameters, 18 M multiply-adds
    (36 MFLOP) a patch.

    Shape: (N, 1, 64, 64) in [0, 1] to (N, 512).
    """

    def __init__(self) -> None:
        super().__init__()
        self.centre, self.surround = _stream(), _stream()

    def forward(self, patches: Tensor) -> Tensor:
        return nn.functional.normalize(_two_streams(self.centre, self.surround, patches).float(), dim=1)


class SiameseTwoStream(PairNetwork):
    """siam-2stream: the towers of siam-2stream-l2 for each patch, and F(1024)-ReLU-F(1) of both.

    3 451 457 parameters, 18 M multiply-adds (36 MFLOP) a patch and 1.0 M (2.1 MFLOP) a pair.
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
    """64x64 to 256 numbers."""
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
    """32x32 to 256 numbers."""
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
