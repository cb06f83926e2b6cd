"""Lightning callbacks of a training run: the progress bar, the writing of checkpoints, and the handling of Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from hardnet_sfm.progress import console, progress
from hardnet_sfm.training.module import NetworkTraining
from hardnet_sfm.training.processes import rank

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


class SafeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint next to its place and renames it, so that a full disk leaves the previous one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ARG002
        path = Path(path)
        beside, buffer = path.with_name(f"{path.name}.partial"), io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


class Progress(lightning.Callback):
    """Shows the package's own progress bar. It counts steps, or seconds if the budget is only a time."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._shown = 0

    def _done(self, module: NetworkTraining) -> int:
        return module.global_step if module.budget.steps is not None else round(module.seconds)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:  # noqa: ARG002
        assert isinstance(module, NetworkTraining)
        self._shown, in_seconds = self._done(module), module.budget.steps is None
        shown = progress("train", module.budget.total, self._shown, seconds=in_seconds)
        self._advance = self._stack.enter_context(shown)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        assert isinstance(module, NetworkTraining)
        done = min(self._done(module), module.budget.total)
        measures = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "learning rate"}
        notes = [f"{name} {value:.3f}" for name, value in measures.items()]
        self._advance(done - self._shown, ", ".join([*notes, f"step {module.global_step}"]))
        self._shown = done

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:  # noqa: ARG002
        self._stack.close()  # lightning does not call teardown after an exception, so the bar would stay

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:  # noqa: ARG002
        self._stack.close()


class Interruptible(lightning.Callback):
    """Ends a run on Ctrl-C or `kill` after the current batch and writes a checkpoint. A second signal ends it at once.

    During validation, the run ends after the next training batch. If no training batch is left, the run finishes as
    usual.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._asked = False

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:  # noqa: ARG002
        # This replaces lightning's handler for SIGTERM. That handler contacts the other devices while they may be
        # exchanging something else, and then all of them hang.
        if threading.current_thread() is threading.main_thread():
            for number in INTERRUPTS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and rank() > 0:
            return  # rank 0 decides and ends the other processes
        if self._asked:
            signal.default_int_handler(number, frame)
        self._asked = True
        console.print("Stopping after this batch, with a checkpoint. Ask again to stop at once.")

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:  # noqa: ARG002
        # Keep the checkpoint of a finished run: writing the weights may still fail on a full disk. The weights need
        # less space than a checkpoint, so a checkpoint that does not fit is no reason to stop.
        try:
            trainer.save_checkpoint(self._checkpoint)
        except OSError as error:
            if trainer.world_size > 1:
                raise  # the other devices wait for the checkpoint
            console.print(f"cannot write the last checkpoint: {error}; writing the weights next")

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        # All devices must stop after the same batch. Otherwise one would wait for the others in the next batch or while
        # saving this one.
        asked = torch.tensor(float(self._asked), device=module.device)
        if trainer.strategy.reduce(asked, reduce_op="max"):
            trainer.save_checkpoint(self._checkpoint)
            raise KeyboardInterrupt
