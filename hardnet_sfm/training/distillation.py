"""Distillation: a trained network, the teacher, shows another network which descriptors to give.

The distance of the descriptors is measured in one space of unit vectors, so that stores of both networks can be mixed.
Romero et al., FitNets: Hints for thin deep nets, ICLR 2015, equation 3, applied to the last layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.networks.architectures import Architecture, LoadedNetwork
from hardnet_sfm.networks.device import fast_type, in_type
from hardnet_sfm.training.objectives import scale_as_used

_BATCH = {"cpu": 256, "cuda": 8192}  # patches that fit a CPU's cache, or a GPU's memory


class Teacher:
    """Describes patches as a trained network does, without gradients and in the type that the device computes fastest.

    Args:
        loaded: the trained network. It must not be used otherwise.
        device: "cpu" or "cuda".
    """

    def __init__(self, loaded: LoadedNetwork, device: str) -> None:
        self._architecture = loaded.architecture
        network = loaded.network.eval()
        # Batch normalisation is folded into the convolutions.
        network = network.fused() if loaded.architecture.normalised else network  # type: ignore[operator]
        self._network = network.to(device).to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore
        self._type = fast_type(device) if loaded.architecture.reduced_precision else torch.float32
        self._batch = _BATCH[device]

    @torch.no_grad()
    def __call__(self, patches: Tensor) -> Tensor:
        """Maps (B, 1, S, S) patches to (B, D) float32 descriptors of unit length."""
        with in_type(patches.device, self._type):
            described = torch.cat([self._network(part) for part in torch.split(patches, self._batch)])
        return scale_as_used(described.float(), self._architecture)


def distance_to_teacher(described: Tensor, taught: Tensor) -> Tensor:
    """Mean of the squared L2 distances between the rows of two (B, D) matrices of unit vectors; 0 to 4."""
    return (described - taught).square().sum(1).mean()


def check_teacher(teacher: LoadedNetwork, name: str, student: Architecture, measurement_size: float) -> None:
    """Checks that a network can imitate the descriptors of a teacher.

    Args:
        teacher: the trained network.
        name: its file, for messages.
        student: the network that is trained.
        measurement_size: sigmas across the patches of the training.

    Raises:
        UsageError: one of both has no descriptors, or their descriptors or patches differ in size.
        HardnetSfmError: the teacher was trained on patches of another width.
    """
    for network in (student, teacher.architecture):
        if network.metric != "l2":
            raise UsageError(f"--teacher {name}: {network.name} scores pairs of patches and has no descriptors")
    sizes = [(of.dimension, of.patch_size) for of in (teacher.architecture, student)]
    if sizes[0] != sizes[1]:
        texts = [f"{dimension} numbers from {size} pixels" for dimension, size in sizes]
        raise UsageError(
            f"--teacher {name}: {teacher.architecture.name} makes {texts[0]}, but {student.name} makes {texts[1]}",
            "Use a teacher with descriptors and patches of the same size.",
        )
    if teacher.measurement_size != measurement_size:
        raise HardnetSfmError(
            f"--teacher {name} describes patches of {teacher.measurement_size:g} sigmas, but these have "
            f"{measurement_size:g}",
            f"Mine them again with --measurement-size {teacher.measurement_size:g}.",
        )
