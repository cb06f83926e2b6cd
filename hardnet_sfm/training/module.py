"""The lightning module that trains a network on patches."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.network_weights import not_finite
from hardnet_sfm.networks.architectures import Architecture
from hardnet_sfm.patch_set import PatchSet
from hardnet_sfm.training.augment import AugmentOptions, augment_pairs
from hardnet_sfm.training.losses import LOSSES
from hardnet_sfm.training.objectives import TrainingBatch
from hardnet_sfm.training.sampling import Batch, Draw, Sampler
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.training.validation import HeldOutBatches

_GO_BACK = "Use a lower --learning-rate. Add --resume if the folder next to the output has a last.ckpt."
_WARM_UP = 0.02
NORM_BATCH = {"cpu": 256, "cuda": None}
WORKERS = 4  # processes that draw batches while a GPU trains
_BLOCK = 8192  # number of patches that are copied to a GPU at once


@dataclass(frozen=True)
class Budget:
    """Limits on the length of training. The limit that is reached first ends it.

    Attributes:
        minutes: training time in minutes without validation, summed over a run and its resumptions. None: no limit.
        steps: number of batches. None: no limit.
    """

    minutes: float | None
    steps: int | None

    @property
    def total(self) -> int:
        """Number of steps, or number of seconds if steps have no limit."""
        return self.steps if self.steps is not None else round(60 * (self.minutes or 0))

    def spent(self, seconds: float, steps: int) -> float:
        """Returns the share of the budget that is spent, from 0 to 1."""
        of_time = seconds / (60 * self.minutes) if self.minutes is not None else 0.0
        of_steps = steps / self.steps if self.steps is not None else 0.0
        return min(1.0, max(of_time, of_steps))


@dataclass(frozen=True)
class TrainingPlan:
    """Settings for training a network.

    Attributes:
        loss: name of the loss in `LOSSES`.
        augment: augmentation of the patches.
        budget: length of training.
        learning_rate: highest learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        dropout: dropout probability before the last layer; None means the network's default.
        norm_batch: number of patches that share the statistics of batch normalisation; None means all.
        seed: random seed.
        fingerprint: fingerprint of everything that must stay the same when a run is resumed.
        init: name of the initial weights, for messages; empty if they are random.
    """

    loss: str
    augment: AugmentOptions
    budget: Budget
    learning_rate: float
    weight_decay: float = 0.0
    dropout: float | None = None
    norm_batch: int | None = None
    seed: int = 0
    fingerprint: str = ""
    init: str = ""

    @classmethod
    def of(cls, options: TrainOptions, minutes: float | None, fingerprint: str, device: str) -> TrainingPlan:
        """Takes the settings from complete options, see `TrainOptions.completed`.

        Args:
            options: options of training.
            minutes: limit on the time, see `Budget`.
            fingerprint: see `TrainingPlan`.
            device: "cpu" or "cuda".
        """
        assert options.loss is not None and options.learning_rate is not None
        return cls(
            options.loss,
            options.augment,
            Budget(minutes, options.steps),
            options.learning_rate,
            options.weight_decay,
            options.dropout,
            options.norm_batch or NORM_BATCH[device],
            options.seed,
            fingerprint,
            str(options.init or ""),
        )


class Batches(IterableDataset[dict[str, Tensor]]):
    """Endless stream of every `step`-th batch. Each batch is a dict of tensors by attribute name. Workers take turns.

    Args:
        batch: returns the batch of a number: the patches of a sampler or, for `Resident`, the rows that it draws.
        first: number of the first batch.
        step: difference between the numbers of consecutive batches.
    """

    def __init__(self, batch: Callable[[int], Batch | Draw], first: int, step: int) -> None:
        super().__init__()
        self._batch, self._first, self._step = batch, first, step

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        number = self._first + (worker.id if worker else 0) * self._step
        while True:
            yield {name: torch.from_numpy(array) for name, array in vars(self._batch(number)).items()}
            number += (worker.num_workers if worker else 1) * self._step


class Resident:
    """Holds all patches of the data sets in the memory of a GPU, and assembles batches there.

    A patch takes 4 KB, so a million take 4 GB. For each pair, only 16 bytes and its row of `allowed` then cross the bus
    instead of 8 KB, and the CPU copies nothing.

    Args:
        sets: patch sets in the order of the sampler.
        device: device that trains.
    """

    # Share of the free memory that patches may take. The network's activations need the rest.
    _SHARE = 0.5

    def __init__(self, sets: Sequence[PatchSet], device: torch.device) -> None:
        count = sum(map(len, sets))
        self._patches = torch.empty((count, *sets[0].patches.shape[1:]), dtype=torch.uint8, device=device)
        first = 0
        for of in sets:
            for start in range(0, len(of), _BLOCK):
                block = torch.from_numpy(np.array(of.patches[start : start + _BLOCK]))
                self._patches[first + start : first + start + len(block)] = block
            first += len(of)

    @classmethod
    def where_it_fits(cls, sets: Sequence[PatchSet], device: torch.device) -> Resident | None:
        """Copies the patches to a GPU. Returns None if its memory is too small, or on a CPU, which maps the files."""
        if device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(device)
        return cls(sets, device) if sum(of.patches.nbytes for of in sets) <= cls._SHARE * free else None

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        """Returns the patches of (2, B) rows on the device: anchors and positives, each (B, 64, 64) uint8."""
        return dict(zip(("anchors", "positives"), self._patches[rows], strict=True))


def make_loader(batches: Batches, workers: int) -> DataLoader[dict[str, Tensor]]:
    """Makes a loader that draws batches in `workers` processes; with 0, this process draws them."""
    return _Loader(
        batches, batch_size=None, num_workers=workers, worker_init_fn=_ignore_interrupts if workers else None
    )


class _Loader(DataLoader[dict[str, Tensor]]):
    """Data loader whose workers survive Ctrl-C.

    Ctrl-C reaches all processes of a terminal, but the workers must live until the current batch has ended. They ignore
    the signal as soon as they run code of this package. The signal is blocked while they start, because a new process
    inherits the blocked signals. This process receives a blocked signal afterwards. Windows cannot block signals.
    """

    def __iter__(self) -> Any:
        if sys.platform == "win32":
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_interrupts(worker: int) -> None:  # noqa: ARG001
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class NetworkTraining(lightning.LightningModule):
    """Trains a network on pairs of patches.

    The learning rate rises over the first fiftieth of the budget and then falls linearly to zero, as in the paper. The
    random numbers of step k, for dropout and augmentation, depend only on the seed and on k. A resumed run therefore
    gives the same result as an uninterrupted run if its budget is a number of steps. With n devices, device r takes
    batch k n + r in step k. The devices average their gradients. The running statistics of batch normalisation are
    those of device 0.

    Args:
        architecture: network to train.
        sampler: source of the training batches.
        held_out: validation batches, or None.
        plan: settings of the training.
    """

    MEASURES = ("fpr95", "map")

    def __init__(
        self,
        architecture: Architecture,
        sampler: Sampler,
        held_out: HeldOutBatches | None,
        plan: TrainingPlan,
    ) -> None:
        super().__init__()
        torch.manual_seed(plan.seed)
        self.network = architecture.build(plan.dropout)
        for module in self.network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.orthogonal_(module.weight, architecture.gain)
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)
        # The inputs have this memory format. Otherwise each convolution would convert its weights and their gradients
        # for every batch.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._architecture, self._sampler, self._held_out = architecture, sampler, held_out
        self._plan, self.budget, self._objective = plan, plan.budget, LOSSES.find(plan.loss)
        self._devices = 1
        self.seconds, self._began = 0.0, 0.0
        self._resident: Resident | None = None
        self._layers: list[Tensor] = []
        if self._objective.watches_layers:
            for name in architecture.supervised:
                self.network.get_submodule(name).register_forward_hook(self._keep_layer)

    def _keep_layer(self, module: torch.nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG002
        if self.training:
            self._layers.append(output.flatten(1))

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        workers = WORKERS if self.device.type == "cuda" else 0
        self._resident = Resident.where_it_fits(self._sampler.sets, self.device)
        batch = self._sampler if self._resident is None else self._sampler.draw
        return make_loader(Batches(batch, self._number, self.trainer.world_size), workers)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        if self._resident is not None and "rows" in batch:
            return {**self._resident(batch["rows"]), "allowed": batch["allowed"]}
        return batch

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[Any]:
        if self._held_out is None:
            return []
        self._devices = self.trainer.world_size
        return DataLoader(Batches(self._held_out, self.global_rank, self._devices), batch_size=None)

    @property
    def validation_batches(self) -> int:
        """Number of validation batches; 0 if there are no validation patches."""
        return 0 if self._held_out is None else self._held_out.count

    @property
    def _number(self) -> int:
        """Number of the next batch of this device."""
        return self.global_step * self.trainer.world_size + self.global_rank

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.network.parameters(), self._plan.learning_rate, weight_decay=self._plan.weight_decay
        )

    def on_train_start(self) -> None:
        self._began = time.monotonic()
        if self.budget.spent(self.seconds, self.global_step) >= 1:  # the run was stopped after its last step
            self.trainer.should_stop = True

    def on_validation_end(self) -> None:
        self._began = time.monotonic()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        torch.manual_seed(self._plan.seed * 1_000_003 + self._number)
        spent = self.budget.spent(self.seconds, self.global_step)
        rate = self._plan.learning_rate * min((spent + 1e-3) / _WARM_UP, 1 - spent)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = rate
        self.log("learning rate", rate)

    def _described(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns (B, D) descriptors, and the (B, K) outputs of the watched layers if there are any.

        The patches go through the network in k groups, so that a group's activations stay in a CPU's cache. Batch
        normalisation uses the statistics of each group alone (Hoffer, Hubara, Soudry, Train longer, generalize better,
        NIPS 2017, section 4). A group takes every k-th patch. It thus has patches of each data set. It also has both
        patches of a pair if k divides the number of pairs.
        """
        groups = max(1, len(patches) // (self._plan.norm_batch or len(patches)))
        every = torch.arange(len(patches), device=patches.device)
        order = torch.cat([every[first::groups] for first in range(groups)]).argsort()
        described = torch.cat([self.network(patches[first::groups]) for first in range(groups)])[order]
        # The list holds all layers of the first group, then all layers of the second, and so on.
        count = len(self._layers) // groups
        layers = [torch.cat(self._layers[number::count])[order] for number in range(count)]
        self._layers.clear()
        return described, layers

    def loss_of(self, batch: dict[str, Tensor]) -> Tensor:
        """Computes the loss of a batch of `Batches`: a whole step except the gradient and the update."""
        size = self._architecture.patch_size
        anchors, positives = augment_pairs(batch["anchors"], batch["positives"], size, self._plan.augment)
        paired = TrainingBatch(anchors, positives, batch["allowed"])
        return self._objective.loss(self.network, self._architecture, self._described, paired)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        loss = self.loss_of(batch)
        # If the loss of one device is not finite, the mean over all devices is not finite either, so all stop together.
        mean = self.trainer.strategy.reduce(loss.detach().clone())
        if not torch.isfinite(mean):
            raise HardnetSfmError(f"the loss is {mean.item()} at step {self.global_step}", self._go_back())
        self.log("loss", mean)
        return loss

    def _go_back(self) -> str:
        """Says what to do about a network that is not finite any more. Its initial weights may be the cause."""
        if not self._plan.init:
            return _GO_BACK
        return f"Check the initial weights {self._plan.init}: they may be damaged. If they are sound: {_GO_BACK}"

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        patches = torch.cat([batch["anchors"], batch["positives"]]).unsqueeze(1).float() / 255
        inputs = torch.nn.functional.avg_pool2d(patches, patches.shape[-1] // self._architecture.patch_size)
        measures = self._objective.measures(self.network, self._architecture, inputs, batch["allowed"].cpu())
        # Scenes have equal weight, whatever the size of their batches. Every device must take the same number of
        # batches; batches that only fill up the last round have weight 0.
        counts = batch_idx * self._devices + self.global_rank < self.validation_batches
        # Lightning averages the sum of the weights over the devices in integers; the weight `_devices` keeps it exact.
        self.log_dict(measures, batch_size=self._devices if counts else 0, sync_dist=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        # The time since the end of the last batch: waiting for a batch counts as training.
        now = time.monotonic()
        seconds = torch.tensor(now - self._began, dtype=torch.float64, device=self.device)
        self._began = now
        # All devices must use the same learning rate and end with the same step, so all count the slowest one's time.
        self.seconds += float(self.trainer.strategy.reduce(seconds, reduce_op="max"))
        if self.budget.spent(self.seconds, self.global_step) >= 1:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Weights may become NaN or infinite although the loss is finite. An error here keeps the last good checkpoint.
        wrong = not_finite(self.network.state_dict())
        if wrong:
            raise HardnetSfmError(
                f"after step {self.global_step} not all numbers of {wrong[0]} are finite", self._go_back()
            )
        checkpoint["seconds"], checkpoint["recipe"] = self.seconds, self._plan.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint["recipe"] != self._plan.fingerprint:
            raise HardnetSfmError(
                "the checkpoint is of a run on other patches or with other options",
                "Use the same. Only --minutes, --steps, --validate-every, --learning-rate and --licence may change.",
            )
        self.seconds = checkpoint["seconds"]
