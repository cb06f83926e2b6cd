"""What happens beside the steps of a training: the progress bar, and the answer to Ctrl-C."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as lightning
import torch

from hardnet_sfm.progress import console, progress
from hardnet_sfm.training.module import NetworkTraining
from hardnet_sfm.training.processes import rank

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


class Progress(lightning.Callback):
    """The package's own progress bar: of steps, or of seconds where the budget is time."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._shown = 0

    def _done(self, module: NetworkTraining) -> int:
        return module.global_step if module.budget.steps is not None else round(module.seconds)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:  # noqa: ARG002
        assert isinstance(module, NetworkTraining)
        self._shown = self._done(module)
        self._advance = self._stack.enter_context(progress("train", module.budget.total, self._shown))

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        assert isinstance(module, NetworkTraining)
        done = min(self._done(module), module.budget.total)
        measures = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "learning rate"}
        self._advance(done - self._shown, ", ".join(f"{name} {value:.3f}" for name, value in measures.items()))
        self._shown = done

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:  # noqa: ARG002
        self._stack.close()  # or the bar stays, as lightning then leaves out the hook below

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:  # noqa: ARG002
        self._stack.close()


class Interruptible(lightning.Callback):
    """Ctrl-C or `kill` ends a run after the batch that is under way, with a checkpoint of it; a second one at once.

    Where it is validating, that is the batch after; when that is all that is left, the run is finished.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._asked = False

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:  # noqa: ARG002
        # In the place of lightning's answer to SIGTERM, which tells the other devices in the midst of whatever they
        # exchange: all hang.
        if threading.current_thread() is threading.main_thread():
            for number in INTERRUPTS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and rank() > 0:
            return  # that is for rank 0 to say, which ends the others
        if self._asked:
            signal.default_int_handler(number, frame)
        self._asked = True
        console.print("Stopping after this batch, with a checkpoint; again, and it stops at once.")

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:  # noqa: ARG002
        # Of a finished run, whose weights may find no place on the disk; or which need less of it than this does.
        try:
            trainer.save_checkpoint(self._checkpoint)
        except OSError as error:
            if trainer.world_size > 1:
                raise  # the other devices wait for it
            console.print(f"no last checkpoint: {error}; the weights are written next")

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        # All devices stop after the same batch: each would wait for the others in the next, or in saving this one.
        asked = torch.tensor(float(self._asked), device=module.device)
        if trainer.strategy.reduce(asked, reduce_op="max"):
            trainer.save_checkpoint(self._checkpoint)
            raise KeyboardInterrupt
