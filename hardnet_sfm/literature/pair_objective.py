"""Training of networks that score pairs of patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from hardnet_sfm.literature.pair_scoring import PairNetwork
from hardnet_sfm.networks.architectures import Architecture
from hardnet_sfm.training.objectives import Describe, TrainingBatch
from hardnet_sfm.training.validation import measures_of

# Patches that a network of pairs compares each patch with, besides the right one. All would take hours.
RIVALS = 8


class PairLoss(Protocol):
    """A scalar that falls as matching pairs score higher than others.

    Of (N,) float32 scores of pairs of the same point and of as many pairs of other points, where `used`, (N,) bool, is
    True; what it is elsewhere does not matter.
    """

    def __call__(self, positive: Tensor, negative: Tensor, used: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PairObjective:
    """A loss of the scores that a network gives to pairs of patches."""

    function: PairLoss
    watches_layers: bool = False

    def mismatch(self, architecture: Architecture) -> str:
        if architecture.metric == "l2":
            return f"is of scores of pairs of patches, and {architecture.name} gives none: it describes patches"
        return ""

    def loss(self, network: nn.Module, architecture: Architecture, describe: Describe, batch: TrainingBatch) -> Tensor:  # noqa: ARG002
        """That of each pair and of each anchor with the patch of another point, drawn from its negatives."""
        assert isinstance(network, PairNetwork)
        allowed = batch.allowed
        negatives = allowed & ~torch.eye(len(allowed), dtype=torch.bool, device=allowed.device)
        chosen = drawn_negatives(negatives)
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
        return measures_of(*scored(network, anchors, positives, allowed), scores=True)


def drawn_negatives(negatives: Tensor, generator: Generator | None = None) -> Tensor:
    """(N,) numbers drawn evenly from where each row of (N, N) bool is True; any number for rows without.

    Args:
        generator: of the CPU, wherever `negatives` are, so that all devices draw the same; by default torch's own.
    """
    count, so_far = len(negatives), negatives.cumsum(1, dtype=torch.int32)
    drawn = torch.rand(count, generator=generator).to(negatives.device) * so_far[:, -1]
    return torch.searchsorted(so_far, drawn.int()[:, None], right=True).squeeze(1).clamp(max=count - 1)


def scored(network: PairNetwork, anchors: Tensor, positives: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of a network of pairs for `measures_of`, of each anchor with its own positive and `RIVALS` others.

    A false positive rate is the same of all rivals and of a sample of them; mean average precision is not.

    Args:
        network: that compares.
        anchors, positives: (B, 1, S, S) in [0, 1].
        allowed: (B, B) bool, which positives are of another point than the anchor, on the CPU.

    Returns:
        (B, 1 + `RIVALS`) scores, turned about, and which of them are of one point and of two.
    """
    first, second = network.describe(anchors, 0), network.describe(positives, 1)
    rows = torch.arange(len(first))
    steps = min(RIVALS, len(first) - 1) + 1
    columns = [(rows + step) % len(first) for step in range(steps)]
    # Not in bfloat16, in whose eight digits the scores of different patches are often the same.
    with torch.autocast(first.device.type, enabled=False):
        first, second = first.float(), second.float()
        scores = [network.compare(first, second[column.to(first.device)]).float().cpu() for column in columns]
    same = torch.zeros(len(first), steps, dtype=torch.bool)
    same[:, 0] = True
    return -torch.stack(scores, 1), same, torch.stack([allowed[rows, column] for column in columns], 1) & ~same
