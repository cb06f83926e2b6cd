"""The registry of descriptors, which map patches to vectors of unit length.

Another package adds a descriptor by an entry point in the group `hardnet_sfm.descriptors`. The name of the entry point
is the value for `--descriptor`. Its object is a factory: `factory(weights: Path | None) -> Descriptor`. Networks that
describe patches are descriptors without an entry point, see `hardnet_sfm.networks.architectures`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.keypoints import LOWES_RATIO, Keypoints
from hardnet_sfm.networks.architectures import ARCHITECTURES, Architecture
from hardnet_sfm.networks.device import fast_type, in_type
from hardnet_sfm.networks.loading import load_network_or_shipped
from hardnet_sfm.networks.rootsift import RootSift
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.registry import Registry

_ROOTSIFT_SIZE, _ROOTSIFT_MEASUREMENT = 32, 15.0
_ROOTSIFT_RATIO = 0.9  # measured by pipelines/acceptance.py
# Patches described at once. The number is fixed, so that a patch gets the same bits no matter which patches share its
# batch. With 128, HardNet's largest layer, 32x32x32 in bfloat16, takes 8 MB and stays within the last-level cache of a
# laptop's CPU.
_BATCH = {"cpu": 128, "cuda": 4096}
# Patches for checking the length of a plug-in's descriptors, and the tolerance.
_PROBED, _OF_UNIT_LENGTH = 4, 0.01


@dataclass(frozen=True)
class Descriptor:
    """A descriptor of patches.

    Attributes:
        network: maps (N, 1, patch_size, patch_size) float32 in [0, 1] to (N, D) of unit length under the L2 metric.
        patch_size: side of a patch, pixels.
        measurement_size: sigmas of the keypoint across the patch.
        weights_sha256: sha256 of the weights file; empty if nothing was learned.
        reduced_precision: whether the network keeps its accuracy if torch's autocast computes its layers in bfloat16
            (CPU) or float16 (CUDA).
        max_ratio: default of `match` for the ratio test, above 0 and at most 1. It is the largest accepted ratio of the
            distances to the nearest and the second nearest neighbour.
    """

    network: nn.Module
    patch_size: int
    measurement_size: float
    weights_sha256: str = ""
    reduced_precision: bool = False
    max_ratio: float = LOWES_RATIO


Factory = Callable[[Path | None], Descriptor]


def rootsift(weights: Path | None) -> Descriptor:
    """Makes RootSIFT on patches of 32x32 pixels and 15 sigmas."""
    if weights is not None:
        raise UsageError(
            "--weights has no effect with --descriptor rootsift, which has no weights",
            "Leave it out, or choose --descriptor hardnet.",
        )
    network = RootSift(_ROOTSIFT_SIZE, _ROOTSIFT_MEASUREMENT)
    return Descriptor(network, _ROOTSIFT_SIZE, _ROOTSIFT_MEASUREMENT, max_ratio=_ROOTSIFT_RATIO)


def learned(architecture: Architecture, weights: Path | None) -> Descriptor:
    """Makes a descriptor of a network, with the given weights or those in the package.

    Descriptors without a fixed length, such as TFeat's and DeepDesc's, are scaled to length 1.
    """
    if architecture.metric != "l2":
        raise UsageError(
            f"{architecture.title} compares patches with a network. Nearest neighbours, visual words and indexes need "
            "descriptors with a distance",
            "It can re-score what another descriptor finds: hardnet-sfm match --rescore FILE.safetensors. Measure "
            "it with hardnet-sfm evaluate brown | hpatches | homography | pairs, --weights FILE.safetensors.",
        )
    loaded = load_network_or_shipped(weights, architecture)
    return Descriptor(
        _for_inference(loaded.network, architecture),
        architecture.patch_size,
        loaded.measurement_size,
        loaded.sha256,
        architecture.reduced_precision,
        loaded.max_ratio,
    )


def _for_inference(network: nn.Module, architecture: Architecture) -> nn.Module:
    if architecture.normalised:
        fused: nn.Module = network.fused()  # type: ignore[operator]
        return fused
    return network if architecture.unit_length else nn.Sequential(network, UnitLength())


class UnitLength(nn.Module):
    """Scales the rows of (N, D) to length 1, in float32."""

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.normalize(rows.float(), dim=1)


DESCRIPTORS: Registry[Factory] = Registry(
    "descriptor", "descriptors", {"rootsift": rootsift, "hardnet": partial(learned, ARCHITECTURES["hardnet"])}
)


def make_descriptor(name: str, weights: Path | None) -> Descriptor:
    """Makes a descriptor by its registered name.

    Raises:
        UsageError: no descriptor has this name, or it takes no weights.
        HardnetSfmError: the weights cannot be used, the descriptor recommends an impossible ratio, or a plug-in gives
            descriptors that are not of unit length.
    """
    if name not in DESCRIPTORS and name in ARCHITECTURES:
        return learned(ARCHITECTURES[name], weights)
    descriptor = DESCRIPTORS.find(name)(weights)
    if name not in DESCRIPTORS.built_in:
        _check_unit_length(name, descriptor)
    if not 0 < descriptor.max_ratio <= 1:
        raise HardnetSfmError(
            f"the descriptor {name} recommends the ratio {descriptor.max_ratio}",
            "Its max_ratio must be above 0 and at most 1. Report this to the authors of the descriptor.",
        )
    return descriptor


def _check_unit_length(name: str, descriptor: Descriptor) -> None:
    """Describes a few random patches. Matching compares descriptors by their cosine, so it finds nothing otherwise."""
    side = descriptor.patch_size
    patches = torch.rand((_PROBED, 1, side, side), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        described = descriptor.network.eval()(patches).float()
    lengths = torch.linalg.vector_norm(described.reshape(_PROBED, -1), dim=1)
    if not bool((torch.abs(lengths - 1) < _OF_UNIT_LENGTH).all()):
        raise HardnetSfmError(
            f"the plug-in {name} gives descriptors of length {lengths.min():.3g} to {lengths.max():.3g}, but "
            "matching needs unit length",
            "Its network must scale each descriptor to length 1, for example with torch.nn.functional.normalize. Tell "
            "the authors of the plug-in.",
        )


class PatchDescriber:
    """Describes patches in batches of a fixed size on one device.

    Lower bound for HardNet: a patch takes 78 MFLOP. So a machine that multiplies matrices at F FLOP/s describes at most
    F / 78e6 patches a second. `pipelines/bench/extract.py` measures both. Layers are computed in the type that the
    device multiplies fastest, if the descriptor allows it. Channels come last, which is fastest for convolutions on a
    CPU. Together this makes the networks of the literature 3 to 6 times as fast on a CPU with bfloat16.

    Args:
        descriptor: the descriptor to compute.
        device: "cpu" or "cuda".

    Attributes:
        batch: number of patches that are described at once.
        device: "cpu" or "cuda".
        precision: "float32", "bfloat16" or "float16".
        patch_size: side of a patch, pixels.
        dimension: D, the length of a descriptor.
    """

    def __init__(self, descriptor: Descriptor, device: str) -> None:
        self.batch = _BATCH[device]
        self.patch_size, self._measurement_size = descriptor.patch_size, descriptor.measurement_size
        self.device, self._device = device, torch.device(device)
        self._dtype = fast_type(device) if descriptor.reduced_precision else torch.float32
        self.precision = str(self._dtype).removeprefix("torch.")
        network = descriptor.network.eval().to(self._device)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dimension = self(np.zeros((0, self.patch_size, self.patch_size), np.uint8)).shape[1]

    @torch.inference_mode()
    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Maps (N, S, S) uint8 patches, N at most `batch`, to (N, D) float16 descriptors of unit length."""
        padded = np.zeros((self.batch, 1, *patches.shape[1:]), np.uint8)
        padded[: len(patches), 0] = patches
        inputs = torch.from_numpy(padded).to(self._device).float() / 255
        with in_type(self._device, self._dtype):
            # With one channel, (N, 1, S, S) counts as both layouts. The strides must state the layout, or each layer
            # converts it.
            described = self._network(inputs.contiguous(memory_format=torch.channels_last))
        return np.asarray(described[: len(patches)].half().cpu().numpy())

    def at(self, grey: NDArray[np.uint8], keypoints: Keypoints) -> NDArray[np.float16]:
        """Returns the (N, D) descriptors of the N keypoints of an (H, W) photo."""
        patches = extract_patches(grey, keypoints.xy, keypoints.frames(), self.patch_size, self._measurement_size)
        starts = range(0, max(1, len(patches)), self.batch)
        return np.concatenate([self(patches[start : start + self.batch]) for start in starts])
