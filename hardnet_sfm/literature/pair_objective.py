"""Training objective of networks that score patch pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from hardnet_sfm.literature.pair_scoring import PairNetwork
from hardnet_sfm.networks.architectures import Architecture
from hardnet_sfm.training.objectives import Describe, TrainingBatch
from hardnet_sfm.training.validation import measure_distances

# Number of wrong patches that each patch is compared with when measuring. Comparing with all would take hours.
RIVALS = 8


class PairLoss(Protocol):
    """Loss of pair scores: a scalar that falls as matching pairs score higher than others.

    It takes (N,) float32 scores of pairs of the same point, and (N,) scores of pairs of different points. Only entries
    for which `used`, (N,) bool, is True count.
    """

    def __call__(self, positive: Tensor, negative: Tensor, used: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PairObjective:
    """Objective for networks that score patch pairs.

    Attributes:
        function: the loss.
        watches_layers: always False, because pair losses do not use layers within the network.
    """

    function: PairLoss
    watches_layers: bool = False

    def mismatch(self, architecture: Architecture) -> str:
        if architecture.metric == "l2":
            return f"is of scores of pairs of patches, and {architecture.name} gives none: it describes patches"
        return ""

    def loss(self, network: nn.Module, architecture: Architecture, describe: Describe, batch: TrainingBatch) -> Tensor:  # noqa: ARG002
        """Computes the loss of each matching pair, and of each anchor paired with a patch drawn from its negatives."""
        assert isinstance(network, PairNetwork)
        allowed = batch.allowed
        negatives = allowed & ~torch.eye(len(allowed), dtype=torch.bool, device=allowed.device)
        chosen = draw_negatives(negatives)
        first, second = network.describe(batch.anchors, 0), network.describe(batch.positives, 1)
        scores = [network.compare(first, others) for others in (second, second[chosen])]
        with torch.autocast(batch.anchors.device.type, enabled=False):
            return self.function(scores[0].float(), scores[1].float(), negatives.any(1))

    def measures(
        self,
        network: nn.Module,
        architecture: Architecture,  # noqa: ARG002
        inputs: Tensor,
        allowed: Tensor,
    ) -> dict[str, float]:
        assert isinstance(network, PairNetwork)
        anchors, positives = inputs.chunk(2)
        return measure_distances(*scored(network, anchors, positives, allowed), scores=True)


def draw_negatives(negatives: Tensor, generator: Generator | None = None) -> Tensor:
    """(N,) column numbers, drawn uniformly from the True entries of each row.

    Args:
        negatives: (N, N) bool. A row without a True entry gets an arbitrary number.
        generator: random generator of the CPU on any device, so that all devices draw the same numbers. The default is
            torch's own.
    """
    count, so_far = len(negatives), negatives.cumsum(1, dtype=torch.int32)
    drawn = torch.rand(count, generator=generator).to(negatives.device) * so_far[:, -1]
    return torch.searchsorted(so_far, drawn.int()[:, None], right=True).squeeze(1).clamp(max=count - 1)


def scored(network: PairNetwork, anchors: Tensor, positives: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores each anchor with its own positive and with `RIVALS` others, as input for `measure_distances`.

    A sample of the rivals has the same expected false positive rate as all rivals. This is not true of mean average
    precision.

    Args:
        network: network that compares patches.
        anchors, positives: (B, 1, S, S) patches in [0, 1].
        allowed: (B, B) bool on the CPU, whether a positive shows another point than an anchor.

    Returns:
        (B, 1 + `RIVALS`) negated scores, and for each score whether the patches show the same point and whether they
        show different points.
    """
    first, second = network.describe(anchors, 0), network.describe(positives, 1)
    rows = torch.arange(len(first))
    steps = min(RIVALS, len(first) - 1) + 1
    columns = [(rows + step) % len(first) for step in range(steps)]
    # Scores are not computed in bfloat16: it has only eight significant bits, so different patches often tie.
    with torch.autocast(first.device.type, enabled=False):
        first, second = first.float(), second.float()
        scores = [network.compare(first, second[column.to(first.device)]).float().cpu() for column in columns]
    same = torch.zeros(len(first), steps, dtype=torch.bool)
    same[:, 0] = True
    return -torch.stack(scores, 1), same, torch.stack([allowed[rows, column] for column in columns], 1) & ~same
