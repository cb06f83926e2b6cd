"""Scores of any number of pairs of patches, by networks that compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.matching.scorer import PairScorer
from hardnet_sfm.networks.device import resolve_device
from hardnet_sfm.patches import resize_patches
from hardnet_sfm.resources import Resources
from hardnet_sfm.weights import LoadedNetwork
from hardnet_sfm.workers import in_order, torch_threads

Grey = NDArray[np.uint8]
Ints = NDArray[np.int64]


class PairStream:
    """Compares pairs of patches, which are resized whole to the network's size, over threads.

    Memory: what `PairScorer` keeps of a patch, once, or twice with networks whose two sides differ. Lower bound: that
    of `hardnet_sfm.matching.rescore.Rescorer`.

    Args:
        loaded: the network.
        resources: how much of the machine.

    Attributes:
        patch_size, measurement_size: of the network.

    Raises:
        UsageError: the network is one that describes patches.
    """

    def __init__(self, loaded: LoadedNetwork, resources: Resources) -> None:
        device = resolve_device(resources.device)
        self._scorer, self._device = PairScorer(loaded, device), torch.device(device)
        self._threads = resources.threads if device == "cpu" else 1
        self.patch_size, self.measurement_size = self._scorer.patch_size, self._scorer.measurement_size

    def prepare(self, blocks: Iterable[Grey], side: int) -> Tensor:
        """What is kept of the patches of all blocks, (n, S, S) uint8 each, for one place of pairs. S may differ."""
        kept = []
        with torch_threads(self._threads) as pool:
            prepare = partial(self._scorer.prepare, side=side % self._scorer.sides)
            for _, future in in_order(pool, prepare, self._batches(blocks), self._threads + 2):
                kept.append(future.result())
        return torch.cat(kept)

    def scores(self, first: Tensor, second: Tensor, pairs: Tensor) -> NDArray[np.float32]:
        """(M,) scores of (M, 2) pairs of rows of what was prepared for the first and for the second place."""
        batches = torch.split(pairs.to(self._device), self._scorer.batch)
        with torch_threads(self._threads) as pool:
            compared = in_order(pool, partial(self._scorer, first, second), batches, self._threads + 2)
            return np.concatenate([future.result() for _, future in compared])

    def __call__(self, blocks: Callable[[], Iterable[Grey]], pairs: Ints) -> NDArray[np.float32]:
        """(M,) scores of (M, 2) pairs of patches, which are numbered through the blocks that a call gives.

        Patches that are in no pair are passed over.
        """
        numbers = [np.unique(pairs)] * 2 if self._scorer.sides == 1 else [np.unique(side) for side in pairs.T]
        prepared = [self.prepare(_chosen(blocks(), numbers[side]), side) for side in range(self._scorer.sides)]
        rows = np.stack([np.searchsorted(numbers[side], pairs[:, side]) for side in (0, 1)], 1)
        return self.scores(prepared[0], prepared[-1], torch.from_numpy(rows))

    def _batches(self, blocks: Iterable[Grey]) -> Iterator[Grey]:
        size, most = self.patch_size, self._scorer.batch
        for block in blocks:
            for start in range(0, max(1, len(block)), most):
                yield resize_patches(block[start : start + most], size)


def _chosen(blocks: Iterable[Grey], numbers: Ints) -> Iterator[Grey]:
    """Of patches that are numbered through the blocks those with the given rising numbers."""
    start = 0
    for block in blocks:
        first, last = np.searchsorted(numbers, (start, start + len(block)))
        yield block[numbers[first:last] - start]
        start += len(block)
