"""Networks that compare two patches, where others only describe one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hardnet_sfm.networks.device import fast_type, in_type


class PairNetwork(nn.Module):
    """Scores pairs of patches: above 0 where they are taken to show the same point, higher the surer.

    What depends on one patch alone is in `describe`, the rest in `compare`, so that a patch that is compared with many
    others is described once. No distance stands for the score: k-means, kd-trees and inverted files cannot be used.

    Attributes:
        sides: 2 where the first and the second patch of a pair are described by different layers, else 1.

    Shape: two (N, 1, S, S) in [0, 1] to (N,).
    """

    sides = 1

    def describe(self, patches: Tensor, side: int = 0) -> Tensor:
        """(N, 1, S, S) to (N, ...), for the first (0) or the second (1) place of pairs."""
        raise NotImplementedError

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Two (N, ...) of `describe` to (N,) scores."""
        raise NotImplementedError

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.compare(self.describe(first, 0), self.describe(second, 1))


class FastPairNetwork(PairNetwork):
    """A network of pairs for inference on a device, in the type that it multiplies fastest.

    With bfloat16 and channels last a CPU compares 3 to 7 times as many pairs a second; scores move by a hundredth of
    their spread.

    Args:
        network: that is moved to the device.
        device: "cpu" or "cuda".
    """

    def __init__(self, network: PairNetwork, device: str) -> None:
        super().__init__()
        self.sides = network.sides
        self._device, self._dtype = torch.device(device), fast_type(device)
        self._network = network.eval().to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def describe(self, patches: Tensor, side: int = 0) -> Tensor:
        # With one channel (N, 1, S, S) counts as both layouts; strides have to say which, or each layer converts.
        inputs = patches.contiguous(memory_format=torch.channels_last)
        with in_type(self._device, self._dtype):
            described: Tensor = self._network.describe(inputs, side)
            return described

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        with in_type(self._device, self._dtype):
            scores: Tensor = self._network.compare(first, second)
            return scores.float()
