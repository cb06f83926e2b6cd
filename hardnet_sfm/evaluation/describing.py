"""Describes any number of patches in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Grey
from hardnet_sfm.features.descriptors import Descriptor, PatchDescriber
from hardnet_sfm.networks.device import resolve_device
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
