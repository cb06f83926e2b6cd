"""Measures descriptors on patches of held-out scenes, at the span and precision at which they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import UsageError
from hardnet_sfm.evaluation.patch_streams import PatchStream
from hardnet_sfm.features.descriptors import Descriptor
from hardnet_sfm.files.patch_sets import read_patches
from hardnet_sfm.literature.pair_objective import scored
from hardnet_sfm.literature.pair_scoring import FastPairNetwork
from hardnet_sfm.literature.scorer import pair_network
from hardnet_sfm.networks.architectures import LoadedNetwork
from hardnet_sfm.networks.device import resolve_device
from hardnet_sfm.networks.loading import check_compares
from hardnet_sfm.patches import resize_patches
from hardnet_sfm.resources import Resources
from hardnet_sfm.training.validation import BATCH_SIZE, HeldOutBatches, measure_distances


class HeldOut:
    """A fixed set of pairs of a patches.h5, in batches. Each other pair of a batch may be a false match.

    `train --validation` measures with the same pairs. If a patch spans more sigmas than the descriptor, its centre is
    described. A patch that spans less is taken whole.

    Lower bound of the cost: 2 * 4 * `batch_size` patches are described and 4 * `batch_size`^2 distances are sorted. For
    512 pairs these are a million distances, which takes a few tenths of a second.

    Args:
        path: path of the patches.h5.
        batch_size: number of pairs that are compared with each other.

    Attributes:
        measurement_size: width of the file's patches in sigmas.

    Raises:
        HardnetSfmError: the file is damaged, or has too few points for a batch.
        UsageError: the batches are too small.
    """

    def __init__(self, path: Path, batch_size: int = BATCH_SIZE) -> None:
        if batch_size < 3:
            raise UsageError("batches to validate on need three pairs or more")
        patches = read_patches(path)
        self.measurement_size = patches.measurement_size
        self._batches = HeldOutBatches([patches], batch_size)

    def measures(self, descriptor: Descriptor, resources: Resources) -> dict[str, float]:
        """Computes false positive rate at 95 % recall and mean average precision of matching, as means over batches."""
        describe = PatchStream(descriptor, resources)
        found = []
        for number in range(self._batches.count):
            batch = self._batches(number)
            sides = [self._spanning(side, descriptor.measurement_size) for side in (batch.anchors, batch.positives)]
            first, second = torch.from_numpy(describe(sides).astype(np.float32)).chunk(2)
            distances = (2 - 2 * first @ second.T).clamp(min=0).sqrt()
            same = torch.eye(len(distances), dtype=torch.bool)
            found.append(measure_distances(distances, same, torch.from_numpy(batch.allowed)))
        return {name: float(np.mean([measures[name] for measures in found])) for name in found[0]}

    @torch.inference_mode()
    def measures_of_pairs(self, loaded: LoadedNetwork, resources: Resources) -> dict[str, float]:
        """Computes the false positive rate at 95 % recall of a network that compares patches.

        The network compares each patch only with a few others of the batch.

        Raises:
            UsageError: the network describes patches instead of comparing them.
        """
        check_compares(loaded)
        device, size = resolve_device(resources.device), loaded.architecture.patch_size
        network = FastPairNetwork(pair_network(loaded), device)
        found = []
        for number in range(self._batches.count):
            batch = self._batches(number)
            sides = [
                resize_patches(self._spanning(side, loaded.measurement_size), size)
                for side in (batch.anchors, batch.positives)
            ]
            patches = [torch.from_numpy(side).to(device).unsqueeze(1).float() / 255 for side in sides]
            compared = scored(network, patches[0], patches[1], torch.from_numpy(batch.allowed))
            found.append(measure_distances(*compared, scores=True)["fpr95"])
        return {"fpr95": float(np.mean(found))}

    def _spanning(self, patches: Grey, measurement_size: float) -> Grey:
        """Crops the centres of (N, S, S) patches to the given width in sigmas, rounded to an even number of pixels."""
        side = patches.shape[-1]
        kept = min(side, 2 * round(side * measurement_size / self.measurement_size / 2))
        margin = (side - kept) // 2
        return patches[:, margin : side - margin, margin : side - margin]
