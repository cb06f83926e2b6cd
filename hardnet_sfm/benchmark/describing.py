"""Descriptors of any number of patches, in a bounded amount of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.features.descriptors import Descriptor, PatchDescriber
from hardnet_sfm.networks.device import resolve_device
from hardnet_sfm.patches import resize_patches
from hardnet_sfm.resources import Resources
from hardnet_sfm.workers import in_order, torch_threads

Grey = NDArray[np.uint8]


class PatchStream:
    """Describes streams of patches, which are resized whole to the descriptor's size.

    Memory: the descriptors twice, 2 bytes a dimension, the block at hand and two batches more than there are threads.
    Lower bound: that of `PatchDescriber`; reading and resizing go on beside it.

    Args:
        descriptor: what to compute.
        resources: how much of the machine.

    Attributes:
        device: "cpu" or "cuda".
        threads: that describe side by side.
        batch: number of patches that are described at once.
        dimension: D.
        patch_size, measurement_size: of the descriptor.
    """

    def __init__(self, descriptor: Descriptor, resources: Resources) -> None:
        self.device = resolve_device(resources.device)
        self.threads = resources.threads if self.device == "cpu" else 1
        self._describe = PatchDescriber(descriptor, self.device)
        self.batch, self.dimension = self._describe.batch, self._describe.dimension
        self.patch_size, self.measurement_size = descriptor.patch_size, descriptor.measurement_size

    def __call__(self, blocks: Iterable[Grey]) -> NDArray[np.float16]:
        """Blocks of (n, S, S) uint8 patches to their (N, D) descriptors, in order. S may be another in each block."""
        described = [np.zeros((0, self.dimension), np.float16)]
        with torch_threads(self.threads) as pool:
            batches = in_batches(blocks, self.patch_size, self.batch)
            for _, future in in_order(pool, self._describe, batches, self.threads + 2):
                described.append(future.result())
        return np.concatenate(described)


def in_batches(blocks: Iterable[Grey], size: int, most: int) -> Iterator[Grey]:
    """The same patches, resized to (n, `size`, `size`), `most` at once, the last of them fewer."""
    left = np.zeros((0, size, size), np.uint8)
    for block in blocks:
        left = np.concatenate([left, resize_patches(block, size)])
        full = len(left) // most * most
        yield from (left[start : start + most] for start in range(0, full, most))
        left = left[full:]
    if len(left):
        yield left
