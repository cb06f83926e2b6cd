"""Measures the cost of a descriptor: dimension, parameters, floating-point operations, and speed on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hardnet_sfm.competitors import Competitor
from hardnet_sfm.evaluation.patch_streams import PairStream, PatchStream
from hardnet_sfm.literature.scorer import pair_network
from hardnet_sfm.resources import Resources

_TIMED_BATCHES = 8  # number of timed batches for each thread


def measure_cost(row: Competitor, resources: Resources) -> Mapping[str, float]:
    """Measures the cost of a descriptor.

    The result has the dimension, the number of parameters, the operations of convolutions and matrix products, and the
    number of patches a second.
    """
    descriptor = row.make()
    # The literature counts operations before normalisation is merged into the layers.
    network = row.load().network if row.weights else descriptor.network
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, descriptor.patch_size, descriptor.patch_size))
    stream = PatchStream(descriptor, resources)
    side = descriptor.patch_size
    count = stream.batch * _TIMED_BATCHES * stream.threads
    patches = np.random.default_rng(0).integers(0, 256, (count, side, side), np.uint8)

    def seconds() -> float:
        start = time.perf_counter()
        stream([patches])
        return time.perf_counter() - start

    return {
        "dimension": stream.dimension,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "mflop": counter.get_total_flops() / 1e6,
        # Noise of a shared machine only increases times, so the minimum is the best estimate.
        "patches_per_second": len(patches) / min(seconds() for _ in range(3)),
    }


def measure_pair_cost(row: Competitor, resources: Resources) -> Mapping[str, float]:
    """Measures the cost of a network that compares patches, for pairs in which both patches are new.

    `patches_per_second` is then the number of pairs a second.
    """
    loaded = row.load()
    network, side = pair_network(loaded), loaded.architecture.patch_size
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(*torch.zeros(2, 1, 1, side, side))
    stream = PairStream(loaded, resources)
    pairs = np.arange(2 * stream.batch * _TIMED_BATCHES * stream.threads).reshape(-1, 2)
    patches = np.random.default_rng(0).integers(0, 256, (pairs.size, side, side), np.uint8)

    def seconds() -> float:
        start = time.perf_counter()
        stream(lambda: [patches], pairs)
        return time.perf_counter() - start

    dimension = {"dimension": loaded.architecture.dimension} if loaded.architecture.dimension else {}
    return {
        **dimension,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "mflop": counter.get_total_flops() / 1e6,
        "patches_per_second": len(pairs) / min(seconds() for _ in range(3)),
    }
