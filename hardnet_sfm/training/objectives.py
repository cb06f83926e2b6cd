"""Training objectives: the loss of a batch, and the quality of the network on held-out patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from hardnet_sfm.networks.architectures import Architecture
from hardnet_sfm.training.validation import measure_distances

Describe = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
"""Maps (B, 1, S, S) patches to (B, D) descriptors and the (B, K) outputs of the watched layers."""


class Objective(Protocol):
    """Interface of an entry in the registry for `--loss`."""

    @property
    def watches_layers(self) -> bool:
        """Whether the loss also uses the outputs of the layers in `Architecture.supervised`."""

    def mismatch(self, architecture: Architecture) -> str:
        """Says why a network cannot be trained for this objective, as the end of a sentence; empty if it can."""

    def loss(self, network: nn.Module, architecture: Architecture, describe: Describe, batch: TrainingBatch) -> Tensor:
        """Computes the loss of a batch, a scalar."""

    def measures(
        self, network: nn.Module, architecture: Architecture, inputs: Tensor, allowed: Tensor
    ) -> dict[str, float]:
        """Measures the false positive rate at 95 % recall, "fpr95", and the mean average precision of matching, "map".

        Args:
            network: network under training.
            architecture: architecture of the network.
            inputs: (2 B, 1, S, S) patches in [0, 1]: B anchors, then their positives.
            allowed: (B, B) bool on the CPU, whether a positive shows another point than an anchor.
        """


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of matching patches.

    Attributes:
        anchors, positives: (B, 1, S, S) patches in [0, 1]; row i of both shows the same point.
        allowed: (B, B) bool, whether two pairs may be negatives of each other.
    """

    anchors: Tensor
    positives: Tensor
    allowed: Tensor


class DescriptorLoss(Protocol):
    """Loss of descriptors: a scalar that falls as matching descriptors get closer to each other than to others.

    See `hardnet_sfm.training.losses`.
    """

    def __call__(self, anchors: Tensor, positives: Tensor, allowed: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class DescriptorObjective:
    """Objective for descriptors that are compared by their L2 distance.

    Attributes:
        function: the loss.
        any_length: if True, the loss takes descriptors at the length that the network gives; otherwise they are scaled
            to unit length first.
        watches_layers: if True, the loss also takes `features`, pairs of (B, K) outputs of `Architecture.supervised`.
    """

    function: DescriptorLoss
    any_length: bool = False
    watches_layers: bool = False

    def mismatch(self, architecture: Architecture) -> str:
        if architecture.metric != "l2":
            return f"is of distances between descriptors, and {architecture.name} has none: it scores pairs of patches"
        if self.watches_layers and not architecture.supervised:
            return f"looks at normalised layers within the network, and {architecture.name} has none"
        return ""

    def loss(self, network: nn.Module, architecture: Architecture, describe: Describe, batch: TrainingBatch) -> Tensor:  # noqa: ARG002
        described, layers = describe(torch.cat([batch.anchors, batch.positives]))
        extra = {"features": [tuple(layer.float().chunk(2)) for layer in layers]} if layers else {}
        with torch.autocast(described.device.type, enabled=False):
            described = described.float()
            first, second = (described if self.any_length else scale_as_used(described, architecture)).chunk(2)
            return self.function(first, second, batch.allowed, **extra)

    def measures(
        self, network: nn.Module, architecture: Architecture, inputs: Tensor, allowed: Tensor
    ) -> dict[str, float]:
        described = scale_as_used(network(inputs).float(), architecture)
        with torch.autocast(described.device.type, enabled=False):
            anchors, positives = described.chunk(2)
            distances = (2 - 2 * anchors @ positives.T).clamp(min=0).sqrt().cpu()
        return measure_distances(distances, torch.eye(len(distances), dtype=torch.bool), allowed)


def scale_as_used(described: Tensor, architecture: Architecture) -> Tensor:
    """Scales descriptors to unit length, as matching uses them."""
    return described if architecture.unit_length else nn.functional.normalize(described, dim=1)
