"""Networks that compare two patches, where others only describe one."""

from __future__ import annotations

from torch import Tensor, nn


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
