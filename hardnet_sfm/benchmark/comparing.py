"""Scores of any number of pairs of patches, by networks that compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.benchmark.describing import in_batches
from hardnet_sfm.networks.architectures import LoadedNetwork
from hardnet_sfm.networks.device import resolve_device
from hardnet_sfm.networks.loading import scorer_of
from hardnet_sfm.resources import Resources
from hardnet_sfm.workers import in_order, torch_threads

Grey = NDArray[np.uint8]
Ints = NDArray[np.int64]


class PairStream:
    """Compares pairs of patches, which are resized whole to the network's size, over threads.

    Memory: what `PairScorer` keeps of a patch, once, or twice with networks whose two sides differ; 16 bytes a pair.
    Lower bound: that of `hardnet_sfm.matching.rescore.Rescorer`.

    Args:
        loaded: the network.
        resources: how much of the machine.

    Attributes:
        threads: that compare side by side.
        batch: number of patches or pairs that each sees at once.
        patch_size, measurement_size: of the network.

    Raises:
        UsageError: the network is one that describes patches.
    """

    def __init__(self, loaded: LoadedNetwork, resources: Resources) -> None:
        device = resolve_device(resources.device)
        self._scorer, self._device = scorer_of(loaded, device), torch.device(device)
        self.threads = resources.threads if device == "cpu" else 1
        self.patch_size, self.measurement_size = self._scorer.patch_size, self._scorer.measurement_size
        self.batch = self._scorer.batch

    def prepare(self, blocks: Iterable[Grey], count: int, side: int) -> Tensor:
        """What is kept of the `count` patches of all blocks, (n, S, S) uint8 each, for one place of pairs."""
        kept = self._scorer.prepare(np.zeros((0, self.patch_size, self.patch_size), np.uint8))
        start = 0
        with torch_threads(self.threads) as pool:
            prepare = partial(self._scorer.prepare, side=side % self._scorer.sides)
            batches = in_batches(blocks, self.patch_size, self.batch)
            for _, future in in_order(pool, prepare, batches, self.threads + 2):
                part = future.result()
                if not start:  # whose shape and type are known now
                    kept = part.new_empty((count, *part.shape[1:]))
                kept[start : start + len(part)] = part
                start += len(part)
        return kept

    def scores(
        self, first: Tensor, second: Tensor, pairs: Tensor, advance: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float32]:
        """(M,) scores of (M, 2) pairs of rows of what was prepared for the first and for the second place."""
        batches = torch.split(pairs.to(self._device), self.batch)
        found = []
        with torch_threads(self.threads) as pool:
            for batch, future in in_order(pool, partial(self._scorer, first, second), batches, self.threads + 2):
                found.append(future.result())
                advance(len(batch))
        return np.concatenate(found)

    def __call__(
        self, blocks: Callable[[], Iterable[Grey]], pairs: Ints, advance: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float32]:
        """(M,) scores of (M, 2) pairs of patches, which are numbered through the blocks that a call gives.

        Patches that are in no pair are passed over.

        Args:
            blocks: of (n, S, S) uint8 patches; S may be another in each block.
            pairs: numbers of patches.
            advance: told the number of pairs that are done.
        """
        numbers = [np.unique(pairs)] * 2 if self._scorer.sides == 1 else [np.unique(side) for side in pairs.T]
        prepared = [
            self.prepare(_chosen(blocks(), numbers[side]), len(numbers[side]), side)
            for side in range(self._scorer.sides)
        ]
        rows = np.stack([np.searchsorted(numbers[side], pairs[:, side]) for side in (0, 1)], 1)
        return self.scores(prepared[0], prepared[-1], torch.from_numpy(rows), advance)


def _chosen(blocks: Iterable[Grey], numbers: Ints) -> Iterator[Grey]:
    """Of patches that are numbered through the blocks those with the given rising numbers."""
    start = 0
    for block in blocks:
        first, last = np.searchsorted(numbers, (start, start + len(block)))
        yield block[numbers[first:last] - start]
        start += len(block)
