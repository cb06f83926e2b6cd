"""Training data of ConvexOpt: candidate pooling regions, and features of patch pairs pooled over regions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hardnet_sfm.literature.convexopt import PooledGradients, gaussians
from hardnet_sfm.training.sampling import Sampler

# Number of pairs whose features are in memory at once. Pairs that do not match are drawn among them.
_TOGETHER = 64
# Smallest and largest radii of rings and sigmas of regions, in pixels of a 64x64 patch.
_RADII = (0.0, 31.0)
_SIGMAS = (0.5, 16.0)


@dataclass(frozen=True)
class Rings:
    """Candidate rings of pooling regions: Gaussians of one size, placed symmetrically about the patch's centre.

    A ring has a region at some radius and angle, and its mirror images across the axes and diagonals of the patch.
    These are 8 regions, or 4 if the angle is 0 or 45 degrees, or 1 if the radius is 0.

    Attributes:
        regions: (M, 3) float32, x, y and sigma in pixels of a 64x64 patch, measured from its centre; ring after ring.
        ring: (M,) int64, number of the ring of each region, from 0 to K - 1.
    """

    regions: Tensor
    ring: Tensor

    def sum(self, values: Tensor) -> Tensor:
        """Sums (N, M) values of regions to (N, K) values of rings."""
        return values.new_zeros(len(values), int(self.ring[-1]) + 1).index_add_(1, self.ring, values)

    def to(self, device: str) -> Rings:
        return Rings(self.regions.to(device), self.ring.to(device))


def candidate_rings(radii: int, angles: int, sigmas: int) -> Rings:
    """Makes the rings of all combinations of evenly spaced radii, angles and sigmas.

    The ranges are those of the authors' program: radii from 0 to 31 pixels, angles from 0 to 45 degrees, and sigmas
    from 0.5 to 16 pixels of a 64x64 patch. At the centre all angles are equivalent, so there is one ring for each
    sigma.

    Args:
        radii, angles, sigmas: number of values of each.
    """
    regions, ring, number = [], [], 0
    for sigma in np.linspace(*_SIGMAS, sigmas):
        for radius in np.linspace(*_RADII, radii):
            for angle in np.linspace(0, math.pi / 4, angles if radius else 1):
                places = _mirrored(radius * math.cos(angle), radius * math.sin(angle))
                regions += [(x, y, sigma) for x, y in places]
                ring += [number] * len(places)
                number += 1
    return Rings(torch.tensor(regions, dtype=torch.float32), torch.tensor(ring))


def _mirrored(x: float, y: float) -> list[tuple[float, float]]:
    """Lists the distinct images of a point under the symmetries of the square."""
    x, y = round(x, 9), round(y, 9)  # cos and sin of 45 degrees differ in the last bit
    return sorted({(u * i, v * j) for u, v in ((x, y), (y, x)) for i in (1, -1) for j in (1, -1)})


class PooledPairs:
    """Computes pooled features of matching pairs and of other pairs, for one batch of a sampler at a time.

    Another pair has anchor i and positive j of two pairs that were drawn shortly after each other, often from the same
    two photos. The choice depends only on the seed and the number of the batch.

    Args:
        sampler: source of matching pairs.
        count: number of matching pairs; the last batch is cut.
        patch_size: side S to which patches are averaged, a divisor of 64.
        seed: random seed.
        device: "cpu" or "cuda".
    """

    def __init__(self, sampler: Sampler, count: int, patch_size: int, seed: int, device: str) -> None:
        self._sampler, self._count, self._patch_size, self._seed = sampler, count, patch_size, seed
        self._device = device
        self._features = PooledGradients(patch_size).to(device)

    @property
    def batches(self) -> int:
        """Number of batches that give all pairs."""
        return -(-self._count // self._sampler.batch_size)

    def distances(self, number: int, rings: Rings) -> tuple[Tensor, Tensor]:
        """Computes the squared distances within each ring: (P, K) of matching and (N, K) of other pairs of a batch."""
        filters = gaussians(rings.regions, self._patch_size)
        near, far = [], []
        for patches, (first, second) in self._groups(number):
            anchors, positives = (self._features.pool(side, filters) for side in patches)
            near.append(rings.sum((anchors - positives).square().sum(1)))
            far.append(rings.sum((anchors[first] - positives[second]).square().sum(1)))
        return torch.cat(near), torch.cat(far)

    def features(self, number: int, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes features of one batch, pooled over (M, 3) regions.

        Returns:
            (P, 8, M) features of anchors, (P, 8, M) features of positives, and (2, N) rows of anchors and of positives
            that do not match.
        """
        filters = gaussians(regions, self._patch_size)
        anchors: list[Tensor] = []
        positives: list[Tensor] = []
        others, count = [], 0
        for patches, rows in self._groups(number):
            for side, gradients in zip((anchors, positives), patches, strict=True):
                side.append(self._features.pool(gradients, filters))
            others.append(rows + count)
            count += len(patches[0])
        return torch.cat(anchors), torch.cat(positives), torch.cat(others, 1)

    def _groups(self, number: int) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
        """Yields (P, 8, S * S) gradients of anchors and positives, and (2, N) rows of pairs that do not match."""
        batch = self._sampler(number)
        rng = np.random.default_rng((self._seed, number))
        count = min(len(batch.anchors), self._count - number * self._sampler.batch_size)
        for start in range(0, count, _TOGETHER):
            block = slice(start, min(start + _TOGETHER, count))
            allowed = batch.allowed[block, block]
            drawn = (allowed * rng.random(allowed.shape)).argmax(1)
            rows = np.stack([np.arange(len(drawn)), drawn])[:, allowed.any(1)]
            sides = (self._gradients(side[block]) for side in (batch.anchors, batch.positives))
            first, second = sides
            yield (first, second), torch.from_numpy(rows).to(self._device)

    def _gradients(self, patches: np.ndarray) -> Tensor:
        grey = torch.from_numpy(patches).to(self._device).unsqueeze(1).float() / 255
        return self._features.channels(torch.nn.functional.avg_pool2d(grey, grey.shape[-1] // self._patch_size))
