"""MatchNet: a network that describes patches and one that compares what it says of two.

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

    ReLU follows all but the last; convolutions are padded to keep their size, and pooling looks beyond the border by a
    pixel. Feature tower 2 331 120 parameters and 96 M multiply-adds (192 MFLOP) a patch, metric network 788 482 and
    0.8 M (1.6 MFLOP) a pair. The bottleneck B and the width F are those of the paper's experiments with 512 for both;
    the Caffe files that the authors gave away have none and 1024.

    The score is the logarithm of the odds that the softmax gives: log p(same) - log p(different).

    Shape: `describe` (N, 1, 64, 64) in [0, 1] to (N, 512), `compare` two of them to (N,).
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
        # 128 is taken from grey values up to 255, and they are divided by 160, as in the paper's section 4.1.
        described: Tensor = self.features((255 * patches - 128) / 160)
        return described

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        logits: Tensor = self.metric(torch.cat([first, second], 1))
        return logits[:, 1] - logits[:, 0]


def _convolution(in_channels: int, channels: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2), nn.ReLU()


def _pooled(in_channels: int, channels: int, kernel: int) -> tuple[nn.Module, ...]:
    """With ReLU after pooling, where a quarter is left to do and the numbers are the same."""
    convolution, relu = _convolution(in_channels, channels, kernel)
    return convolution, nn.MaxPool2d(3, 2, ceil_mode=True), relu
