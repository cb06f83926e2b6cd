"""What a descriptor costs: its dimension, parameters, multiplications and additions, and its speed on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hardnet_sfm.benchmark.describing import PatchStream
from hardnet_sfm.benchmark.rows import Competitor
from hardnet_sfm.matching.scorer import pair_network
from hardnet_sfm.networks.device import resolve_device
from hardnet_sfm.networks.pairs import FastPairNetwork
from hardnet_sfm.resources import Resources

_TIMED_BATCHES = 8  # for each thread
_TIMED_PAIRS = 256


def cost_of(row: Competitor, resources: Resources) -> Mapping[str, float]:
    """Of a descriptor: dimension, parameters, operations of convolutions and matrix products, patches a second."""
    descriptor = row.make()
    # Before normalisation is merged into the layers, as the literature counts.
    network = row.load().network if row.weights else descriptor.network
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, descriptor.patch_size, descriptor.patch_size))
    stream = PatchStream(descriptor, resources)
    side = descriptor.patch_size
    block = np.random.default_rng(0).integers(0, 256, (stream.batch * _TIMED_BATCHES * stream.threads, side, side))
    patches = block.astype(np.uint8)

    def seconds() -> float:
        start = time.perf_counter()
        stream([patches])
        return time.perf_counter() - start

    return {
        "dimension": stream.dimension,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "mflop": counter.get_total_flops() / 1e6,
        # The noise of a shared machine only adds.
        "patches_per_second": len(patches) / min(seconds() for _ in range(3)),
    }


def cost_of_pairs(row: Competitor, resources: Resources) -> Mapping[str, float]:
    """Of a network that compares patches, both of which it sees for the first time."""
    loaded, device = row.load(), resolve_device(resources.device)
    network = FastPairNetwork(pair_network(loaded), device)
    side = loaded.architecture.patch_size
    torch.set_num_threads(resources.threads)
    patches = torch.rand(_TIMED_PAIRS, 1, side, side, generator=torch.Generator().manual_seed(0)).to(device)

    def seconds() -> float:
        start = time.perf_counter()
        network(patches, patches).cpu()
        return time.perf_counter() - start

    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            network(patches[:1], patches[:1])
        fastest = min(seconds() for _ in range(3))
    dimension = {"dimension": loaded.architecture.dimension} if loaded.architecture.dimension else {}
    return {
        **dimension,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "mflop": counter.get_total_flops() / 1e6,
        "patches_per_second": _TIMED_PAIRS / fastest,
    }
