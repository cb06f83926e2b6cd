"""Gradient descent with lightning: runs the trainer and silences its messages."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

from hardnet_sfm.networks.device import fast_type
from hardnet_sfm.training.callbacks import INTERRUPTS, Interruptible, Progress, SafeCheckpoints
from hardnet_sfm.training.module import NetworkTraining
from hardnet_sfm.training.processes import rank
from hardnet_sfm.training.train_options import TrainOptions

LAST = "last.ckpt"
_CURVES = "curves"


def fit(module: NetworkTraining, folder: Path, options: TrainOptions, device: str, threads: int) -> dict[str, float]:
    """Trains until the budget is spent, and writes checkpoints and curves to the folder. Returns the last measures."""
    if rank() == 0 and not options.resume and (folder / _CURVES).exists():
        shutil.rmtree(folder / _CURVES)  # the curves belong to an earlier run, whose weights this run replaces
    trainer = _trainer(module, folder, options, device)
    torch.set_num_threads(threads)
    before = [(number, signal.getsignal(number)) for number in INTERRUPTS]
    try:
        trainer.fit(module, ckpt_path=folder / LAST if options.resume else None, weights_only=True)
        if module.validation_batches and not trainer.callback_metrics.keys() & set(module.MEASURES):
            trainer.validate(module, verbose=False)  # a run that was stopped at its very end has not validated
    except SystemExit as error:  # lightning turns Ctrl-C into SystemExit
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, answer in before:
                if answer is not None:  # None is a handler that Python did not install and cannot restore
                    signal.signal(number, answer)
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name in module.MEASURES}


def _trainer(module: NetworkTraining, folder: Path, options: TrainOptions, device: str) -> lightning.Trainer:
    every = ({"every_n_train_steps": options.validate_every}, {"train_time_interval": timedelta(minutes=5)})
    return lightning.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        precision="32-true" if fast_type(device) == torch.float32 else "bf16-mixed",
        max_epochs=-1,
        max_steps=-1 if options.steps is None else options.steps,
        val_check_interval=options.validate_every,
        check_val_every_n_epoch=None,
        # The devices share the same validation batches, whatever their number.
        limit_val_batches=-(-module.validation_batches // options.devices),
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        logger=TensorBoardLogger(folder, name=_CURVES, version=""),
        callbacks=[
            *(ModelCheckpoint(folder, Path(LAST).stem, enable_version_counter=False, **how) for how in every),
            *([Progress()] if rank() == 0 else []),
            Interruptible(folder / LAST),
        ],
        plugins=[SafeCheckpoints()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def silence_lightning() -> Iterator[None]:
    """Hides lightning's hints and its deprecation warnings on the terminal. Errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
