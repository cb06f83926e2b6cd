"""HardNet under training, as a lightning module."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.evaluation.measures import average_precision, fpr95
from hardnet_sfm.networks.hardnet import PATCH_SIZE, HardNet
from hardnet_sfm.progress import progress
from hardnet_sfm.training.augment import AugmentOptions, augmented
from hardnet_sfm.training.losses import Loss, l2net
from hardnet_sfm.training.sampling import Sampler

_WARM_UP = 0.02
# Whose outputs L2-Net's loss looks at, too: the first and the last batch normalisation.
_SUPERVISED = ("features.1", "features.20")


@dataclass(frozen=True)
class Budget:
    """How long to train: whichever ends first.

    Attributes:
        minutes: of training, without validation, all runs that were resumed together.
        steps: batches.
    """

    minutes: float | None
    steps: int | None

    @property
    def total(self) -> int:
        """Steps, or seconds where no number of steps is given."""
        return self.steps if self.steps is not None else round(60 * (self.minutes or 0))

    def spent(self, seconds: float, steps: int) -> float:
        """Share of the budget that is spent, 0 to 1."""
        of_time = seconds / (60 * self.minutes) if self.minutes is not None else 0.0
        of_steps = steps / self.steps if self.steps is not None else 0.0
        return min(1.0, max(of_time, of_steps))


class Batches(IterableDataset[dict[str, Tensor]]):
    """The sampler's batches as tensors, every `step`-th from one number on, for ever; workers take turns."""

    def __init__(self, sampler: Sampler, first: int, step: int) -> None:
        super().__init__()
        self._sampler, self._first, self._step = sampler, first, step

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        number = self._first + (worker.id if worker else 0) * self._step
        while True:
            batch = self._sampler(number)
            yield {name: torch.from_numpy(getattr(batch, name)) for name in ("anchors", "positives", "allowed")}
            number += (worker.num_workers if worker else 1) * self._step


class HardNetTraining(lightning.LightningModule):
    """Trains HardNet on pairs of patches.

    The learning rate rises over the first fiftieth of the budget and then falls linearly to zero, as in the paper. What
    is drawn by chance in step k, dropout and augmentation, depends on the seed and on k alone: a run that is resumed
    ends as if it had not been stopped, if its budget is counted in steps. Of n devices, device r takes batch k n + r in
    step k; gradients are averaged, the running statistics of batch normalisation are those of device 0.

    Args:
        sampler: of what is trained on.
        held_out: of what is validated with, if anything.
        loss: of anchors and positives (B, 128) and the (B, B) mask of allowed negatives.
        augment: of the patches.
        budget: how long.
        learning_rate: of AdamW at its highest.
        weight_decay: of AdamW.
        dropout: before the last layer.
        norm_batch: number of patches that share the statistics of batch normalisation; all where None.
        seed: of what is drawn by chance.
        recipe: fingerprint of all that a run must not change when it is resumed.
    """

    MEASURES = ("fpr95", "map")

    def __init__(
        self,
        sampler: Sampler,
        held_out: Sampler | None,
        loss: Loss,
        augment: AugmentOptions,
        budget: Budget,
        learning_rate: float,
        weight_decay: float,
        dropout: float,
        norm_batch: int | None,
        seed: int,
        recipe: str,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = HardNet(dropout)
        for module in self.network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.orthogonal_(module.weight, gain=0.6)
        # As the inputs are laid out, or each convolution converts its weights, and their gradients, for every batch.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._sampler, self._held_out = sampler, held_out
        self._loss, self._augment, self.budget, self._seed = loss, augment, budget, seed
        self._learning_rate, self._weight_decay, self._recipe = learning_rate, weight_decay, recipe
        self._norm_batch = norm_batch
        self.seconds, self._began = 0.0, 0.0
        self._layers: list[Tensor] = []
        if loss is l2net:
            for name in _SUPERVISED:
                self.network.get_submodule(name).register_forward_hook(self._keep_layer)

    def _keep_layer(self, module: torch.nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG002
        if self.training:
            self._layers.append(output.flatten(1))

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        workers = 4 if self.device.type == "cuda" else 0
        batches = Batches(self._sampler, self._number, self.trainer.world_size)
        return DataLoader(batches, batch_size=None, num_workers=workers)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[Any]:
        if self._held_out is None:
            return []
        return DataLoader(Batches(self._held_out, self.global_rank, self.trainer.world_size), batch_size=None)

    @property
    def validates(self) -> bool:
        """Whether there is anything to validate with."""
        return self._held_out is not None

    @property
    def _number(self) -> int:
        """Of the next batch of this device."""
        return self.global_step * self.trainer.world_size + self.global_rank

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), self._learning_rate, weight_decay=self._weight_decay)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self._began = time.monotonic()
        torch.manual_seed(self._seed * 1_000_003 + self._number)
        spent = self.budget.spent(self.seconds, self.global_step)
        rate = self._learning_rate * min((spent + 1e-3) / _WARM_UP, 1 - spent)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = rate
        self.log("learning rate", rate)

    def _described(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 128) descriptors, and the (B, K) outputs of the layers that are kept, if any.

        The patches go through the network in groups, each normalised by itself (Hoffer, Hubara, Soudry, Train longer,
        generalize better, NIPS 2017, section 4), so that a group's activations stay in a CPU's cache. A group takes
        every k-th patch: some of each data set, and both of a pair where k divides their number.
        """
        groups = max(1, len(patches) // (self._norm_batch or len(patches)))
        order = torch.cat([torch.arange(first, len(patches), groups) for first in range(groups)]).argsort()
        described = torch.cat([self.network(patches[first::groups]) for first in range(groups)])[order]
        # Of each group all layers, one after the other: every k-th belongs to the same layer.
        count = len(self._layers) // groups
        layers = [torch.cat(self._layers[number::count])[order] for number in range(count)]
        self._layers.clear()
        return described, layers

    def loss_of(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch of `Batches`; all of a step but the gradient and the update."""
        anchors, positives = augmented(batch["anchors"], batch["positives"], PATCH_SIZE, self._augment)
        described, layers = self._described(torch.cat([anchors, positives]))
        extra = {"features": [tuple(layer.float().chunk(2)) for layer in layers]} if layers else {}
        with torch.autocast(described.device.type, enabled=False):
            first, second = described.float().chunk(2)
            return self._loss(first, second, batch["allowed"], **extra)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        loss = self.loss_of(batch)
        # The mean of all devices is no number if that of one is none: they stop together.
        mean = self.trainer.strategy.reduce(loss.detach().clone())
        if not torch.isfinite(mean):
            raise HardnetSfmError(
                f"the loss is {mean.item()} at step {self.global_step}",
                "Go on from the last good checkpoint with --resume and a lower --learning-rate.",
            )
        self.log("loss", mean)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        patches = torch.cat([batch["anchors"], batch["positives"]]).unsqueeze(1).float() / 255
        described = self.network(torch.nn.functional.avg_pool2d(patches, patches.shape[-1] // PATCH_SIZE)).float()
        with torch.autocast(described.device.type, enabled=False):
            anchors, positives = described.chunk(2)
            distances = (2 - 2 * anchors @ positives.T).clamp(min=0).sqrt().cpu()
        same, allowed = torch.eye(len(anchors), dtype=torch.bool), batch["allowed"].cpu()
        pairs = distances[same | allowed].numpy()
        self.log("fpr95", fpr95(pairs, same[same | allowed].numpy()), sync_dist=True)
        # Matching: every anchor takes its nearest, ranked by the ratio of the distances to the nearest two.
        candidates = distances.masked_fill(~(same | allowed), torch.inf)
        nearest, second = candidates.topk(2, dim=1, largest=False).values.unbind(1)
        right = candidates.diagonal() == nearest
        self.log("map", average_precision((nearest / second).numpy(), right.numpy(), len(right)), sync_dist=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        seconds = torch.tensor(time.monotonic() - self._began, dtype=torch.float64, device=self.device)
        # All devices must learn at one rate and end with one step, so that they count the slowest one's time.
        self.seconds += float(self.trainer.strategy.reduce(seconds, reduce_op="max"))
        if self.budget.spent(self.seconds, self.global_step) >= 1:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seconds"], checkpoint["recipe"] = self.seconds, self._recipe

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["recipe"] != self._recipe:
            raise HardnetSfmError(
                "the checkpoint is of a run on other patches or with other options",
                "Go on with the same ones; only --minutes, --steps, --validate-every and --learning-rate may change.",
            )
        self.seconds = checkpoint["seconds"]


class Progress(lightning.Callback):
    """The package's own progress bar: of steps, or of seconds where the budget is time."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._shown = 0

    def _done(self, module: HardNetTraining) -> int:
        return module.global_step if module.budget.steps is not None else round(module.seconds)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:  # noqa: ARG002
        assert isinstance(module, HardNetTraining)
        self._shown = self._done(module)
        self._advance = self._stack.enter_context(progress("train", module.budget.total, self._shown))

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        assert isinstance(module, HardNetTraining)
        done = min(self._done(module), module.budget.total)
        measures = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "learning rate"}
        self._advance(done - self._shown, ", ".join(f"{name} {value:.3f}" for name, value in measures.items()))
        self._shown = done

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:  # noqa: ARG002
        self._stack.close()
