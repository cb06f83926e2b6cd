"""MatchNet: a feature network that describes patches and a metric network that compares two descriptions.

Han, Leung, Jia, Sukthankar, Berg: MatchNet, unifying feature and metric learning for patch-based matching, CVPR 2015,
section 3 and table 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardnet_sfm.literature.pair_scoring import PairNetwork

DIMENSION = 512
_HIDDEN = 512


class MatchNet(PairNetwork):
    """Scores pairs of 64x64 grey patches.

    | layer | kernel | channels | output |
    |---|---|---|---|
    | conv0 | 7x7 | 24 | 64x64 |
    | pool0 | 3x3, stride 2 | 24 | 32x32 |
    | conv1 | 5x5 | 64 | 32x32 |
    | pool1 | 3x3, stride 2 | 64 | 16x16 |
    | conv2, conv3 | 3x3 | 96 | 16x16 |
    | conv4 | 3x3 | 64 | 16x16 |
    | pool4 | 3x3, stride 2 | 64 | 8x8 |
    | bottleneck | fully connected | 512 | - |
    | fc1 of both patches | fully connected | 512 | - |
    | fc2 | fully connected | 512 | - |
    | fc3, softmax | fully connected | 2 | - |

    ReLU follows all layers except the last. Convolutions are padded to keep their size, and pooling windows extend one
    pixel beyond the border. The feature tower has 2 331 120 parameters and costs 96 M multiply-adds (192 MFLOP) a
    patch. The metric network has 788 482 parameters and costs 0.8 M (1.6 MFLOP) a pair. The bottleneck B and the width
    F are both 512, as in some of the paper's experiments. The authors' Caffe files have no bottleneck and F = 1024.

    The score is the logarithm of the odds of the softmax: log p(same) - log p(different).

    Shape: `describe` maps (N, 1, 64, 64) in [0, 1] to (N, 512); `compare` maps two of these to (N,).
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_pooled(1, 24, 7),
            *_pooled(24, 64, 5),
            *_convolution(64, 96, 3),
            *_convolution(96, 96, 3),
            *_pooled(96, 64, 3),
            nn.Flatten(),
            nn.Linear(8 * 8 * 64, DIMENSION),
            nn.ReLU(),
        )
        self.metric = nn.Sequential(
            nn.Linear(2 * DIMENSION, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 2)
        )

    def describe(self, patches: Tensor, side: int = 0) -> Tensor:  # noqa: ARG002
        # Grey values from 0 to 255 minus 128, divided by 160, as in the paper's section 4.1.
        described: Tensor = self.features((255 * patches - 128) / 160)
        return described

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        logits: Tensor = self.metric(torch.cat([first, second], 1))
        return logits[:, 1] - logits[:, 0]


def _convolution(in_channels: int, channels: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2), nn.ReLU()


def _pooled(in_channels: int, channels: int, kernel: int) -> tuple[nn.Module, ...]:
    """Makes a convolution with pooling. ReLU after pooling gives the same result on a quarter of the values."""
    convolution, relu = _convolution(in_channels, channels, kernel)
    return convolution, nn.MaxPool2d(3, 2, ceil_mode=True), relu
