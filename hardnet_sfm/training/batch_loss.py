"""The loss of a batch of patch pairs: everything in a step of training except the gradient and the update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hardnet_sfm.networks.architectures import Architecture
from hardnet_sfm.training.augment import augment_pairs
from hardnet_sfm.training.distillation import Teacher, distance_to_teacher
from hardnet_sfm.training.losses import LOSSES
from hardnet_sfm.training.objectives import TrainingBatch, scale_as_used
from hardnet_sfm.training.train_options import TrainOptions


class BatchLoss(nn.Module):
    """Maps a batch of `hardnet_sfm.training.batches` to its loss.

    Args:
        architecture: network to train. It starts from random orthogonal weights, which the seed determines.
        options: complete options, see `TrainOptions.completed`. Batch normalisation uses the statistics of all patches
            if `norm_batch` is None.
        teacher: network whose descriptors to imitate, or None. `distil` times the squared distance to its descriptors
            is added to the loss.

    Attributes:
        architecture: the same.
        network: the network.
        objective: the entry of the registry for `--loss`.
    """

    def __init__(self, architecture: Architecture, options: TrainOptions, teacher: Teacher | None = None) -> None:
        super().__init__()
        assert options.loss is not None
        self._teacher = teacher
        self.architecture, self._options, self.objective = architecture, options, LOSSES.find(options.loss)
        torch.manual_seed(options.seed)
        self.network = architecture.build(options.dropout)
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(module.weight, architecture.gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # The inputs have this memory format. Otherwise each convolution would convert its weights and their gradients
        # for every batch.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._layers: list[Tensor] = []
        if self.objective.watches_layers:
            for name in architecture.supervised:
                self.network.get_submodule(name).register_forward_hook(self._keep_layer)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Augments the patches of a batch and computes its loss."""
        size = self.architecture.patch_size
        anchors, positives = augment_pairs(batch["anchors"], batch["positives"], size, self._options.augment)
        paired, described = TrainingBatch(anchors, positives, batch["allowed"]), list[Tensor]()

        def describe(patches: Tensor) -> tuple[Tensor, list[Tensor]]:
            found = self.describe(patches)
            described.append(found[0])
            return found

        loss = self.objective.loss(self.network, self.architecture, describe, paired)
        if self._teacher is None:
            return loss
        # An objective describes the anchors first, then the positives.
        ours = scale_as_used(torch.cat(described).float(), self.architecture)
        taught = self._teacher(torch.cat([anchors, positives]))
        return loss + self._options.distil * distance_to_teacher(ours, taught)

    def describe(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns (B, D) descriptors, and the (B, K) outputs of the watched layers if there are any.

        The patches go through the network in k groups, so that a group's activations stay in a CPU's cache. Batch
        normalisation uses the statistics of each group alone (Hoffer, Hubara, Soudry, Train longer, generalize better,
        NIPS 2017, section 4). A group takes every k-th patch. It thus has patches of each data set. It also has both
        patches of a pair if k divides the number of pairs.
        """
        groups = max(1, len(patches) // (self._options.norm_batch or len(patches)))
        every = torch.arange(len(patches), device=patches.device)
        order = torch.cat([every[first::groups] for first in range(groups)]).argsort()
        described = torch.cat([self.network(patches[first::groups]) for first in range(groups)])[order]
        # The list holds all layers of the first group, then all layers of the second, and so on.
        count = len(self._layers) // groups
        layers = [torch.cat(self._layers[number::count])[order] for number in range(count)]
        self._layers.clear()
        return described, layers

    def _keep_layer(self, module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG002
        if self.training:
            self._layers.append(output.flatten(1))
