"""Runs one training with its files: the checkpoint and the curves while it lasts, and the weights at its end."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
from rich.markup import escape

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.checkpoints import read_checkpoint, write_checkpoint
from hardnet_sfm.files.journal import Journal
from hardnet_sfm.files.training_curves import CurveWriter, curves_file
from hardnet_sfm.files.weight_files import write_weights
from hardnet_sfm.files.workspace import locked
from hardnet_sfm.network_weights import Weights
from hardnet_sfm.networks.architectures import ARCHITECTURES, LearnerOptions
from hardnet_sfm.networks.loading import load_into, load_network
from hardnet_sfm.progress import console, progress
from hardnet_sfm.training.descent import Descent
from hardnet_sfm.training.processes import rank, run_on_devices
from hardnet_sfm.training.sampling import Sampler
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.training.validation import HeldOutBatches, validate_network

_CURVE_STEPS = 10  # number of steps between two points of the loss's curve
_SECONDS_BETWEEN_CHECKPOINTS = 300.0


@dataclass(frozen=True)
class TrainResult:
    """Result of the stage.

    Attributes:
        steps: number of batches trained, including those before the run was resumed.
        minutes: training time in minutes.
        measures: results of the last validation: false positive rate at 95 % recall and mean average precision of
            matching. Empty if there are no validation patches.
        computed: True if this call trained; False if the weights file was up to date.
    """

    steps: int
    minutes: float
    measures: dict[str, float]
    computed: bool = True

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata to store in the weights file."""
        return {"minutes": f"{self.minutes:.2f}", "steps": str(self.steps), "measures": json.dumps(self.measures)}


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """One training.

    Attributes:
        output: the .safetensors file to create.
        options: complete options, see `TrainOptions.completed`.
        sampler: source of the training batches.
        held_out: validation batches, or None.
        start: initial weights, or None.
        teacher: weights of the network to imitate, or None.
        recipe: fingerprint of everything that must stay the same when the run is resumed.
        facts: metadata for the weights file.
        device: "cpu" or "cuda".
        threads: number of threads of all devices together.
    """

    output: Path
    options: TrainOptions
    sampler: Sampler
    held_out: HeldOutBatches | None
    start: Weights | None
    teacher: Weights | None
    recipe: str
    facts: dict[str, str]
    device: str
    threads: int

    @property
    def folder(self) -> Path:
        """Folder of the checkpoint and the curves."""
        return self.output.with_name(f"{self.output.stem}.training")

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.ckpt"

    def unfinished(self) -> HardnetSfmError:
        return HardnetSfmError(
            f"{self.folder}: a run that did not finish",
            "Add --resume to continue it, or start a new run with another --output.",
        )


def descend(run: TrainingRun, follow: Callable[[], TrainResult]) -> TrainResult:
    """Trains a network by gradient descent and writes its weights.

    Args:
        run: the training.
        follow: runs the same training in the process of an additional device. There, this function writes nothing.
    """
    leads, options = rank() == 0, run.options
    torch.set_num_threads(max(1, run.threads // options.devices))
    teacher = load_network(run.teacher.path) if run.teacher is not None else None
    network = ARCHITECTURES.find(options.network)
    training = Descent(network, options, run.sampler, run.held_out, run.device, teacher)
    if run.start is not None:
        load_into(training.network, run.start, options.network)
    with locked(run.folder) if leads else nullcontext():
        if options.resume:
            training.resume(read_checkpoint(run.checkpoint, run.recipe))
        elif leads and run.checkpoint.exists():
            raise run.unfinished()
        with run_on_devices(options.devices, run.device, follow):
            measures = _lead(training, run) if leads else _follow(training)
        result = TrainResult(training.step, training.seconds / 60, measures)
        if leads:
            write_weights(run.output, training.learned.state_dict(), run.facts | result.metadata)
            run.checkpoint.unlink(missing_ok=True)
    return result


def _lead(training: Descent, run: TrainingRun) -> dict[str, float]:
    """Trains, shows the progress, and writes curves and checkpoints. Returns the measures of the trained network."""
    options, shown, saved = run.options, dict[str, float](), time.monotonic()
    total = options.steps or round(60 * (options.minutes or 0))
    before = _done(training, options)
    bar = progress("train", total, before, seconds=options.steps is None)
    curves = CurveWriter(curves_file(run.output), training.step)
    with closing(curves), _stoppable(training), bar as advance:
        for values in training.steps():
            measured, shown = "loss" not in values, shown | values
            if measured or training.step % _CURVE_STEPS == 0:
                curves.add(training.step, values)
            if measured:
                continue
            if training.step % options.validate_every == 0 or time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                write_checkpoint(run.checkpoint, training.state(), run.recipe)
                saved = time.monotonic()
            notes = [f"{name} {value:.3f}" for name, value in shown.items() if name != "learning rate"]
            done = min(total, _done(training, options))
            advance(done - before, ", ".join([*notes, f"step {training.step}"]))
            before = done
        _write_last(training, run)
        measures = training.validate()
        if measures:
            curves.add(training.step, measures)
    return measures


def _done(training: Descent, options: TrainOptions) -> int:
    """Number of steps, or of seconds if the budget is only a time."""
    return training.step if options.steps is not None else round(training.seconds)


def _write_last(training: Descent, run: TrainingRun) -> None:
    """Writes the last checkpoint. Raises KeyboardInterrupt if the training was stopped.

    A finished run needs it, too: writing the weights may still fail on a full disk. The weights need less space than a
    checkpoint, so a checkpoint that does not fit is no reason to stop.
    """
    state = training.state()
    try:
        write_checkpoint(run.checkpoint, state, run.recipe)
    except HardnetSfmError as error:
        if training.stopped:
            raise
        console.print(f"{escape(error.message)}; writing the weights next")
    if training.stopped:
        raise KeyboardInterrupt


def _follow(training: Descent) -> dict[str, float]:
    """Trains on an additional device. Only the first device writes and prints."""
    for _ in training.steps():
        pass
    if training.stopped:
        raise KeyboardInterrupt
    return training.validate()


@contextmanager
def _stoppable(training: Descent) -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM end a training after the current batch. A second signal ends it at once.

    During validation, the run ends after the next training batch. If no training batch is left, the run finishes as
    usual.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if training.stop_asked:
            signal.default_int_handler(number, frame)
        training.stop_asked = True
        console.print("Stopping after this batch, with a checkpoint. Ask again to stop at once.")

    # Only the main thread may set handlers. None is a handler that Python did not install and cannot restore.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    ours = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = [(number, signal.signal(number, ask)) for number in ours]
    try:
        yield
    finally:
        for number, answer in before:
            signal.signal(number, answer)


def learn(run: TrainingRun, learner_options: LearnerOptions) -> TrainResult:
    """Trains a network by its own learner and writes its weights. The result has the minutes of this run only."""
    began, seed, device = time.monotonic(), run.options.seed, run.device
    torch.set_num_threads(run.threads)
    architecture = ARCHITECTURES[run.options.network]
    learner, size = architecture.learner, architecture.patch_size
    assert learner is not None
    with locked(run.folder), closing(_journal(run)) as journal:
        tensors = learner.learn(
            run.sampler, learner_options, journal, patch_size=size, seed=seed, device=device, recipe=run.recipe
        )
        measures = {}
        if run.held_out is not None:
            network = architecture.build(tensors=tensors).to(device)
            network.load_state_dict(tensors)
            measures = validate_network(network, run.held_out, size, device)
        result = TrainResult(learner_options.steps, (time.monotonic() - began) / 60, measures)
        facts = {"learner": json.dumps(asdict(learner_options))}
        write_weights(run.output, tensors, run.facts | facts | result.metadata)
        journal.drop()
    return result


def _journal(run: TrainingRun) -> Journal:
    """Opens the journal of a resumed run, or a new journal.

    Raises:
        HardnetSfmError: there is no journal to resume from, or there is one and the run is not resumed.
    """
    path, resume = run.folder / "journal", run.options.resume
    if path.exists() and not resume:
        raise run.unfinished()
    if resume and not path.is_file():
        raise HardnetSfmError(f"no journal at {path}", "Leave out --resume to start a new run.")
    return Journal(path)
