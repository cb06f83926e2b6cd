"""Describes any number of patches, or scores any number of patch pairs by networks that compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardnet_sfm.arrays import Grey, Ints
from hardnet_sfm.features.descriptors import Descriptor, PatchDescriber
from hardnet_sfm.networks.architectures import LoadedNetwork
from hardnet_sfm.networks.device import resolve_device
from hardnet_sfm.networks.loading import scorer_of
from hardnet_sfm.patches import resize_patches
from hardnet_sfm.resources import Resources
from hardnet_sfm.workers import threaded, torch_threads


class PatchStream:
    """Describes streams of patches. Whole patches are resized to the descriptor's size.

    Memory: the descriptors twice at 2 bytes a dimension, the current block, and `threads + 2` batches. The lower bound
    of the cost is that of `PatchDescriber`, because patches are read and resized in parallel.

    Args:
        descriptor: descriptor to compute.
        resources: threads and device to use.

    Attributes:
        device: "cpu" or "cuda".
        threads: number of threads that describe in parallel.
        batch: number of patches that a thread describes at once.
        dimension: dimension of the descriptor, D.
        patch_size: side of the descriptor's patches in pixels.
        measurement_size: width of the descriptor's patches in sigmas of the keypoint.
    """

    def __init__(self, descriptor: Descriptor, resources: Resources) -> None:
        self.device = resolve_device(resources.device)
        self.threads = resources.threads if self.device == "cpu" else 1
        self._describe = PatchDescriber(descriptor, self.device)
        self.batch, self.dimension = self._describe.batch, self._describe.dimension
        self.patch_size, self.measurement_size = descriptor.patch_size, descriptor.measurement_size

    def __call__(self, blocks: Iterable[Grey]) -> NDArray[np.float16]:
        """Computes (N, D) descriptors of blocks of (n, S, S) uint8 patches, in order. S may differ between blocks."""
        described = [np.zeros((0, self.dimension), np.float16)]
        batches = in_batches(blocks, self.patch_size, self.batch)
        with threaded(self._describe, batches, self.threads, torch_threads) as stream:
            described += [future.result() for _, future in stream]
        return np.concatenate(described)


def in_batches(blocks: Iterable[Grey], size: int, most: int) -> Iterator[Grey]:
    """Regroups patches into batches of `most`, resized to (n, `size`, `size`). The last batch may have fewer."""
    left = np.zeros((0, size, size), np.uint8)
    for block in blocks:
        left = np.concatenate([left, resize_patches(block, size)])
        full = len(left) // most * most
        yield from (left[start : start + most] for start in range(0, full, most))
        left = left[full:]
    if len(left):
        yield left


class PairStream:
    """Compares patch pairs on several threads. Whole patches are resized to the network's size.

    Memory: the data that `PairScorer` keeps of each patch, and 16 bytes a pair. A network whose two sides differ keeps
    the data twice. The lower bound of the cost is that of `hardnet_sfm.matching.rescore.Rescorer`.

    Args:
        loaded: network that compares patches.
        resources: threads and device to use.

    Attributes:
        threads: number of threads that compare in parallel.
        batch: number of patches or pairs that a thread processes at once.
        patch_size: side of the network's patches in pixels.
        measurement_size: width of the network's patches in sigmas of the keypoint.

    Raises:
        UsageError: the network describes patches instead of comparing them.
    """

    def __init__(self, loaded: LoadedNetwork, resources: Resources) -> None:
        device = resolve_device(resources.device)
        self._scorer, self._device = scorer_of(loaded, device), torch.device(device)
        self.threads = resources.threads if device == "cpu" else 1
        self.patch_size, self.measurement_size = self._scorer.patch_size, self._scorer.measurement_size
        self.batch = self._scorer.batch

    def prepare(self, blocks: Iterable[Grey], count: int, side: int) -> Tensor:
        """Prepares patches for one side of the pairs. The blocks, (n, S, S) uint8, have `count` patches in total."""
        kept = self._scorer.prepare(np.zeros((0, self.patch_size, self.patch_size), np.uint8))
        start = 0
        prepare = partial(self._scorer.prepare, side=side % self._scorer.sides)
        batches = in_batches(blocks, self.patch_size, self.batch)
        with threaded(prepare, batches, self.threads, torch_threads) as stream:
            for _, future in stream:
                part = future.result()
                if not start:  # the first part shows the shape and type to allocate
                    kept = part.new_empty((count, *part.shape[1:]))
                kept[start : start + len(part)] = part
                start += len(part)
        return kept

    def scores(
        self, first: Tensor, second: Tensor, pairs: Tensor, advance: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float32]:
        """(M,) scores of (M, 2) pairs of rows. The rows number the patches prepared for the first and second side."""
        batches = torch.split(pairs.to(self._device), self.batch)
        found = []
        with threaded(partial(self._scorer, first, second), batches, self.threads, torch_threads) as stream:
            for batch, future in stream:
                found.append(future.result())
                advance(len(batch))
        return np.concatenate(found)

    def __call__(
        self, blocks: Callable[[], Iterable[Grey]], pairs: Ints, advance: Callable[[int], None] = lambda _: None
    ) -> NDArray[np.float32]:
        """(M,) scores of (M, 2) pairs of patches. Patches are numbered consecutively through all blocks.

        Patches that are in no pair are skipped.

        Args:
            blocks: returns the blocks of (n, S, S) uint8 patches; S may differ between blocks.
            pairs: (M, 2) numbers of patches.
            advance: called with the number of pairs that were just finished.
        """
        numbers = [np.unique(pairs)] * 2 if self._scorer.sides == 1 else [np.unique(side) for side in pairs.T]
        prepared = [
            self.prepare(_chosen(blocks(), numbers[side]), len(numbers[side]), side)
            for side in range(self._scorer.sides)
        ]
        rows = np.stack([np.searchsorted(numbers[side], pairs[:, side]) for side in (0, 1)], 1)
        return self.scores(prepared[0], prepared[-1], torch.from_numpy(rows), advance)


def _chosen(blocks: Iterable[Grey], numbers: Ints) -> Iterator[Grey]:
    """Yields the patches with the given rising numbers. Patches are numbered consecutively through the blocks."""
    start = 0
    for block in blocks:
        first, last = np.searchsorted(numbers, (start, start + len(block)))
        yield block[numbers[first:last] - start]
        start += len(block)
