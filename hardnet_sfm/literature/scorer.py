"""Scores patch pairs by a network that compares patches."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.literature.pair_scoring import FastPairNetwork, PairNetwork
from hardnet_sfm.networks.architectures import LoadedNetwork

# With 64 pairs, the largest layer of deepcompare-2ch2stream, 96x28x28 in bfloat16, takes 10 MB a thread and stays in
# the cache of its core.
_BATCH = {"cpu": 64, "cuda": 4096}


class NetworkScorer:
    """Scores patch pairs by a network, see `hardnet_sfm.networks.architectures.PairScorer`.

    A network with separate descriptions computes them beforehand and keeps 1 to 2 KB for each patch. A network that
    sees both patches at once keeps the patches themselves, 4 KB each.

    Args:
        loaded: network that compares patches.
        device: "cpu" or "cuda".

    Attributes:
        sides: 2 if the first and the second patch of a pair are prepared differently, else 1.
        patch_size: side S of the patches in pixels.
        measurement_size: width of the patches in sigmas of the keypoint.
        batch: number of patches or pairs that the network processes at once.
    """

    def __init__(self, loaded: LoadedNetwork, device: str = "cpu") -> None:
        self._network = FastPairNetwork(pair_network(loaded), device)
        self._describes_first = loaded.architecture.metric == "metric network"
        self._device, self.batch = torch.device(device), _BATCH[device]
        self.sides, self.patch_size = self._network.sides, loaded.architecture.patch_size
        self.measurement_size = loaded.measurement_size

    @torch.inference_mode()
    def prepare(self, patches: NDArray[np.uint8], side: int = 0) -> Tensor:
        """Prepares (N, S, S) uint8 patches for the first (0) or the second (1) side of pairs."""
        kept = torch.from_numpy(patches).unsqueeze(1).to(self._device)
        if not self._describes_first:
            return kept
        return torch.cat([self._network.describe(batch.float() / 255, side) for batch in torch.split(kept, self.batch)])

    @torch.inference_mode()
    def __call__(self, first: Tensor, second: Tensor, pairs: Tensor) -> NDArray[np.float32]:
        """(M,) scores of (M, 2) pairs of rows. Rows number the results of `prepare` for the first and second side."""
        scores = [np.zeros(0, np.float32)]
        for rows in torch.split(pairs, self.batch):
            pair = [kept.index_select(0, rows[:, side]) for side, kept in enumerate((first, second))]
            if not self._describes_first:
                pair = [self._network.describe(patches.float() / 255, side) for side, patches in enumerate(pair)]
            scores.append(self._network.compare(*pair).cpu().numpy())
        return np.concatenate(scores)


def pair_network(loaded: LoadedNetwork) -> PairNetwork:
    """Returns the network, which must be one that compares patches."""
    assert isinstance(loaded.network, PairNetwork)
    return loaded.network
