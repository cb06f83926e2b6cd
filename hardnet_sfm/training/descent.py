"""Trains a network on pairs of patches by gradient descent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.network_weights import not_finite
from hardnet_sfm.networks.architectures import Architecture, LoadedNetwork
from hardnet_sfm.networks.device import fast_type
from hardnet_sfm.training.batch_loss import BatchLoss
from hardnet_sfm.training.batches import feed
from hardnet_sfm.training.distillation import Teacher
from hardnet_sfm.training.processes import average_over_devices, count, largest_of, rank, share_from_first
from hardnet_sfm.training.sampling import Batch, Sampler
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.training.validation import HeldOutBatches

_GO_BACK = "Use a lower --learning-rate. Add --resume if the folder next to the output has a last.ckpt."
_WARM_UP = 0.02
_ROUNDING = 1e-9  # of the share of the budget that is spent
NORM_BATCH = {"cpu": 256, "cuda": None}
MEASURES = ("fpr95", "map")


class Descent:
    """Trains a network on pairs of patches.

    The learning rate rises over the first fiftieth of the budget and then falls linearly to zero, as in the paper. The
    random numbers of step k, for dropout and augmentation, depend only on the seed and on k. A resumed run therefore
    gives the same result as an uninterrupted run if its budget is a number of steps. With n devices, device r takes
    batch k n + r in step k. The devices average their gradients. The running statistics of batch normalisation are
    those of device 0.

    With `options.average`, the result is the mean of the weights after each step of the last part of the run (Izmailov
    et al., Averaging weights leads to wider optima and better generalization, UAI 2018). The mean does not influence
    the steps. The running statistics of batch normalisation are averaged, too.

    Args:
        architecture: network to train.
        options: complete options, see `TrainOptions.completed`.
        sampler: source of the training batches.
        held_out: validation batches, or None.
        device: "cpu" or "cuda".
        teacher: network whose descriptors to imitate, or None.

    Attributes:
        network: the network, with the weights of the last step.
        step: number of batches trained.
        seconds: training time without validation, summed over a run and its resumptions.
        stop_asked: set it to end the training after the current batch. Only device 0 needs to.
        stopped: whether the training ended for this reason.
    """

    def __init__(
        self,
        architecture: Architecture,
        options: TrainOptions,
        sampler: Sampler,
        held_out: HeldOutBatches | None,
        device: str,
        teacher: LoadedNetwork | None = None,
    ) -> None:
        assert options.learning_rate is not None
        self._options, self._sampler, self._held_out = options, sampler, held_out
        self._device = torch.device(device)
        # Half precision of a GPU has too small a range for gradients; bfloat16 has that of float32.
        self._type = torch.float32 if fast_type(device) == torch.float32 else torch.bfloat16
        own_groups = replace(options, norm_batch=options.norm_batch or NORM_BATCH[device])
        self._loss = BatchLoss(architecture, own_groups, Teacher(teacher, device) if teacher else None).to(self._device)
        self.network = self._loss.network
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), options.learning_rate, weight_decay=options.weight_decay
        )
        self._average: AveragedModel | None = None
        if options.average:
            mean = AveragedModel(architecture.build(options.dropout), avg_fn=_running_mean, use_buffers=True)
            self._average = mean.to(self._device)
        self.step, self.seconds, self.stop_asked, self.stopped = 0, 0.0, False, False

    @property
    def spent(self) -> float:
        """Share of the budget that is spent, from 0 to 1."""
        return self._options.spent(self.seconds, self.step)

    @property
    def learned(self) -> nn.Module:
        """The network as it is validated and written: with averaged weights as soon as there are some."""
        average = self._average
        return average.module if average is not None and average.n_averaged > 0 else self.network

    def steps(self) -> Iterator[dict[str, float]]:
        """Trains until the budget is spent.

        Yields the loss and the learning rate after each step, and the measures after each validation.

        Raises:
            HardnetSfmError: the loss is not a finite number.
        """
        self._loss.train()
        batches = feed(self._sampler, self.step * count() + rank(), count(), self._device)
        while self.spent < 1 and not self.stopped:
            began = time.monotonic()
            torch.manual_seed(self._options.seed * 1_000_003 + self.step * count() + rank())
            rate = self._set_learning_rate()
            batch = next(batches)
            with self._reduced_precision():
                loss = self._loss(batch)
            self._optimizer.zero_grad()
            loss.backward()
            mean = loss.detach().clone()
            gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
            average_over_devices([mean, *gradients])
            # If the loss of one device is not finite, the mean is not finite either, so all stop together.
            if not torch.isfinite(mean):
                raise HardnetSfmError(f"the loss is {mean.item()} at step {self.step}", self._go_back())
            self._optimizer.step()
            self.step += 1
            # All devices must use the same learning rate and end with the same step, so all count the slowest one's
            # time.
            took, asked = largest_of([time.monotonic() - began, float(self.stop_asked)], self._device)
            self.seconds += took
            self.stopped = asked > 0
            if self._average is not None and self.spent > 1 - self._options.average + _ROUNDING:
                self._average.update_parameters(self.network)
            yield {"loss": mean.item(), "learning rate": rate}
            due = self._held_out is not None and self.step % self._options.validate_every == 0
            if due and self.spent < 1 and not self.stopped:
                yield self.validate()

    def _reduced_precision(self) -> torch.autocast:
        # Without the cache, the gradients of a layer that several groups of patches pass add up in float32.
        reduced = self._type != torch.float32
        return torch.autocast(self._device.type, self._type, enabled=reduced, cache_enabled=False)

    def _set_learning_rate(self) -> float:
        assert self._options.learning_rate is not None
        rate = self._options.learning_rate * min((self.spent + 1e-3) / _WARM_UP, 1 - self.spent)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Returns the means of the measures over the validation batches. It is empty if there are none.

        Scenes have equal weight, whatever the size of their batches. The devices share the batches.
        """
        if self._held_out is None:
            return {}
        learned = self.learned.eval()
        share_from_first(learned.buffers())
        with self._reduced_precision():
            found = [
                self.measure(learned, self._held_out(number)) for number in range(rank(), self._held_out.count, count())
            ]
        self.network.train()
        total = torch.tensor([sum(measures[name] for measures in found) for name in MEASURES], device=self._device)
        average_over_devices([total])
        return dict(zip(MEASURES, (total * count() / self._held_out.count).tolist(), strict=True))

    def measure(self, network: nn.Module, batch: Batch) -> dict[str, float]:
        """Measures a network of this architecture on one batch, see `Objective.measures`."""
        architecture = self._loss.architecture
        patches = torch.from_numpy(np.concatenate([batch.anchors, batch.positives])).to(self._device)
        inputs = patches.unsqueeze(1).float() / 255
        inputs = nn.functional.avg_pool2d(inputs, inputs.shape[-1] // architecture.patch_size)
        return self._loss.objective.measures(network, architecture, inputs, torch.from_numpy(batch.allowed))

    def state(self) -> dict[str, Any]:
        """Returns all that a resumed run needs.

        Raises:
            HardnetSfmError: a weight is not a finite number, which may happen although the loss is finite.
        """
        weights: dict[str, Tensor] = self.network.state_dict()
        if wrong := not_finite(weights):
            raise HardnetSfmError(f"after step {self.step} not all numbers of {wrong[0]} are finite", self._go_back())
        return {
            "step": self.step,
            "seconds": self.seconds,
            "network": weights,
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.state_dict() if self._average is not None else {},
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Continues from the state of an earlier run with the same options and patches."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    def _go_back(self) -> str:
        """Says what to do about a network that is not finite any more. Its initial weights may be the cause."""
        if not self._options.init:
            return _GO_BACK
        return f"Check the initial weights {self._options.init}: they may be damaged. If they are sound: {_GO_BACK}"


def _running_mean(mean: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
    """Updates the mean of `count` values by one more. Counters of batches, which are whole numbers, are just copied."""
    return mean + (value - mean) / (count + 1) if mean.is_floating_point() else value
