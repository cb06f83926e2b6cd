"""Descriptors on patches of scenes that they were not trained on, as they are used: at their own span and precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hardnet_sfm.benchmark.describing import PatchStream
from hardnet_sfm.errors import UsageError
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
from hardnet_sfm.training.validation import BATCH_SIZE, HeldOutBatches, measures_of

Grey = NDArray[np.uint8]


class HeldOut:
    """Pairs of a patches.h5, always the same ones, in batches within which every other pair may be a false match.

    The pairs are those that `train --validation` measures with. Of patches that span more sigmas than a descriptor
    does, the centre is described; patches that span less are taken whole.

    Lower bound: 2 * 4 * `batch_size` patches are described and 4 * `batch_size`^2 distances sorted, for 512 pairs
    a million, which takes a few tenths of a second.

    Args:
        path: of the patches.h5.
        batch_size: pairs that are compared with each other.

    Attributes:
        measurement_size: sigmas across its patches.

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
        """False positive rate at 95 % recall and mean average precision of matching, means over the batches."""
        describe = PatchStream(descriptor, resources)
        found = []
        for number in range(self._batches.count):
            batch = self._batches(number)
            sides = [self._spanning(side, descriptor.measurement_size) for side in (batch.anchors, batch.positives)]
            first, second = torch.from_numpy(describe(sides).astype(np.float32)).chunk(2)
            distances = (2 - 2 * first @ second.T).clamp(min=0).sqrt()
            same = torch.eye(len(distances), dtype=torch.bool)
            found.append(measures_of(distances, same, torch.from_numpy(batch.allowed)))
        return {name: float(np.mean([measures[name] for measures in found])) for name in found[0]}

    @torch.inference_mode()
    def measures_of_pairs(self, loaded: LoadedNetwork, resources: Resources) -> dict[str, float]:
        """False positive rate at 95 % recall of a network that compares patches, with a few of the others in the batch.

        Raises:
            UsageError: it is one that describes them.
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
            found.append(measures_of(*compared, scores=True)["fpr95"])
        return {"fpr95": float(np.mean(found))}

    def _spanning(self, patches: Grey, measurement_size: float) -> Grey:
        """The centres of (N, S, S) patches that span so many sigmas, to the nearest even number of pixels."""
        side = patches.shape[-1]
        kept = min(side, 2 * round(side * measurement_size / self.measurement_size / 2))
        margin = (side - kept) // 2
        return patches[:, margin : side - margin, margin : side - margin]
