"""The stage `train`: patches.h5 files to a weights file."""

from __future__ import annotations

import json
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.resources import Resources
from hardnet_sfm.training.augment import AugmentOptions
from hardnet_sfm.training.patches import PatchSet
from hardnet_sfm.training.sampling import SamplingOptions
from hardnet_sfm.workspace import digest, locked

_VALIDATION_BATCHES = 4
_NORM_BATCH = {"cpu": 256, "cuda": None}


@dataclass(frozen=True)
class TrainOptions:
    """How descriptors are learned."""

    minutes: float | None = None
    """Time to train, validation not counted; the learning rate falls to zero in it. Default: 60, unless --steps."""
    steps: int | None = None
    """Batches to train; together with --minutes, whichever ends first."""
    loss: str = "hardnet"
    """A name of `hardnet_sfm.training.losses.LOSSES`, such as hardnet, hardnet+sos, dynamic-margin, l2net."""
    learning_rate: float = 3e-3
    """Of AdamW, at its highest."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    dropout: float = 0.1
    """Probability, before the last layer."""
    norm_batch: int | None = None
    """Patches that share the statistics of batch normalisation. Default: 256 on a CPU, whose cache they fit, else all."""
    validate_every: int = 100
    """Batches between two validations and checkpoints."""
    resume: bool = False
    """Go on from the checkpoint beside the output."""
    init: str | None = None
    """Weights to start from, a file or the name of shipped ones. Default: random orthogonal ones."""
    seed: int = 0
    """Of everything that is drawn by chance."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        self.sampling.check()
        for name in ("minutes", "steps", "learning_rate", "validate_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be above 0")
        if self.norm_batch is not None and self.norm_batch < 2:
            raise UsageError("--norm-batch must be at least 2")
        if self.seed < 0:
            raise UsageError("--seed must be at least 0")
        if not 0 <= self.dropout < 1:
            raise UsageError("--dropout must be from 0 to below 1")


@dataclass(frozen=True)
class TrainReport:
    """What the stage did.

    Attributes:
        steps: batches trained, with those of runs that were resumed.
        minutes: of training.
        measures: of the last validation: false positive rate at 95 % recall and mean average precision of matching;
            empty without patches to validate with.
    """

    steps: int
    minutes: float
    measures: dict[str, float]


def train(
    patches: Sequence[Path],
    output: Path,
    options: TrainOptions | None = None,
    resources: Resources | None = None,
    *,
    validation: Path | None = None,
    shares: Sequence[float] | None = None,
) -> TrainReport:
    """Learns HardNet from patches, and writes a weights file. One that was made of the same before is left as it is.

    The folder `NAME.training` beside the output has curves for TensorBoard and, until the run is finished, its last
    checkpoint, five minutes old at most: Ctrl-C or a crash loses what came after it.

    Args:
        patches: patches.h5 files, or folders in the layout of Brown's PhotoTour or of HPatches' patches.
        output: the .safetensors file to make.
        options: how.
        resources: how much of the machine.
        validation: a patches.h5 of scenes that are not trained on.
        shares: of each of `patches` in a batch; by default as many as the root of its number of points.

    Raises:
        HardnetSfmError: lightning is not installed, patches or a checkpoint are damaged, patches have too few points or
            were cut in different sizes, or the loss is not a number.
        UsageError: an option makes no sense.
    """
    import torch

    try:
        import pytorch_lightning as lightning
        from pytorch_lightning.callbacks import ModelCheckpoint
        from pytorch_lightning.loggers import TensorBoardLogger
    except ImportError as error:
        raise HardnetSfmError(
            f"training needs more packages: {error}", "Install them: pip install hardnet-sfm[train]"
        ) from error

    from hardnet_sfm.networks.device import fast_type, resolve_device
    from hardnet_sfm.training.losses import LOSSES
    from hardnet_sfm.training.module import Budget, HardNetTraining, Progress
    from hardnet_sfm.training.sampling import Sampler
    from hardnet_sfm.weights import find_weights, load_into, read_weights, write_weights

    options, resources = options or TrainOptions(), resources or Resources()
    options.check()
    if options.loss not in LOSSES:
        raise UsageError(f"unknown loss: {options.loss}", f"There are: {', '.join(LOSSES)}.")
    if output.suffix != ".safetensors":
        raise UsageError(f"{output}: weights are files that end in .safetensors")
    if not patches:
        raise UsageError("no patches to train on", "Make some with `hardnet-sfm mine` or `hardnet-sfm warp`.")
    device = resolve_device(resources.device)
    sets = [_read(path) for path in patches]
    if len({patch_set.measurement_size for patch_set in sets}) > 1:
        sizes = ", ".join(f"{patch_set.path}: {patch_set.measurement_size:g}" for patch_set in sets)
        raise HardnetSfmError(f"patches of different size, in sigmas: {sizes}", "Mine them anew, all in one size.")
    if shares is None:
        shares = [len(patch_set.xyz) ** 0.5 for patch_set in sets]
    if len(shares) != len(sets) or min(shares, default=0) <= 0:
        raise UsageError(f"{len(shares)} shares for {len(sets)} files of patches: one above 0 is needed for each")
    sampler = Sampler(sets, shares, options.sampling, options.seed)
    held_out = None
    if validation is not None:
        apart = SamplingOptions(min(512, options.sampling.batch_size), same_photos=1.0, a_pair_of_photos=512)
        held_out = Sampler([_read(validation)], [1.0], apart, seed=0)
    minutes = 60.0 if options.minutes is None and options.steps is None else options.minutes
    start = read_weights(find_weights(options.init)) if options.init is not None else None
    data = [(of.source, of.measurement_size, len(of), dict(of.options)) for of in sets]
    changeable = ("minutes", "steps", "validate_every", "learning_rate", "resume", "init")
    kept = {name: value for name, value in asdict(options).items() if name not in changeable}
    recipe = digest("train", data, list(shares), kept, start.sha256 if start else "")
    fingerprint = digest(recipe, minutes, options.steps, options.validate_every, options.learning_rate)
    if output.is_file():
        made = read_weights(output).metadata
        if made.get("fingerprint") == fingerprint:
            return TrainReport(int(made["steps"]), float(made["minutes"]), json.loads(made["measures"]))
    module = HardNetTraining(
        sampler,
        held_out,
        LOSSES[options.loss],
        options.augment,
        Budget(minutes, options.steps),
        options.learning_rate,
        options.weight_decay,
        options.dropout,
        options.norm_batch or _NORM_BATCH[device],
        options.seed,
        recipe,
    )
    if start is not None:
        load_into(module.network, start, "hardnet")
    folder = output.with_name(f"{output.stem}.training")
    last = folder / "last.ckpt"
    if options.resume:
        _check_checkpoint(last)
    elif last.exists():
        raise HardnetSfmError(
            f"{folder}: a run that did not finish", "Go on with --resume, or delete the folder to begin anew."
        )
    with locked(folder), _quiet():
        trainer = lightning.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision="32-true" if fast_type(device) == torch.float32 else "bf16-mixed",
            max_epochs=-1,
            max_steps=-1 if options.steps is None else options.steps,
            val_check_interval=options.validate_every,
            check_val_every_n_epoch=None,
            limit_val_batches=_VALIDATION_BATCHES if held_out else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            logger=TensorBoardLogger(folder, name="curves", version=""),
            callbacks=[
                ModelCheckpoint(
                    folder, last.stem, every_n_train_steps=options.validate_every, enable_version_counter=False
                ),
                ModelCheckpoint(
                    folder, last.stem, train_time_interval=timedelta(minutes=5), enable_version_counter=False
                ),
                Progress(),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        torch.set_num_threads(resources.threads)
        before = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, ckpt_path=last if options.resume else None, weights_only=True)
        except SystemExit as error:  # which is what lightning makes of Ctrl-C, and switches that off
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt from error
        measures = {name: float(value) for name, value in trainer.callback_metrics.items() if name in module.MEASURES}
        metadata = {
            "architecture": "hardnet",
            "patch_size": "32",
            "measurement_size": str(sets[0].measurement_size),
            "normalisation": "mean 0 and standard deviation 1 of each patch",
            "data": json.dumps([f"{patch_set.source} {patch_set.path.name}" for patch_set in sets]),
            "seed": str(options.seed),
            "minutes": f"{module.seconds / 60:.2f}",
            "fingerprint": fingerprint,
            "options": json.dumps(asdict(options), default=str),
            "steps": str(module.global_step),
            "measures": json.dumps(measures),
        }
        write_weights(output, module.network.state_dict(), metadata)
        last.unlink(missing_ok=True)
    return TrainReport(module.global_step, module.seconds / 60, measures)


def _read(path: Path) -> PatchSet:
    """Patches in any of the layouts there are."""
    from hardnet_sfm.training.brown import read_brown
    from hardnet_sfm.training.hpatches import read_hpatches
    from hardnet_sfm.training.patches import read_patches

    if not path.is_dir():
        return read_patches(path)
    return read_brown(path) if (path / "info.txt").is_file() else read_hpatches(path)


def _check_checkpoint(path: Path) -> None:
    """Raises HardnetSfmError where it is missing or damaged."""
    from hardnet_sfm.weights import load_tensors

    if not path.is_file():
        raise HardnetSfmError(f"no checkpoint at {path}", "Leave out --resume to begin anew.")
    load_tensors(path, "Delete the folder and begin anew.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps lightning's hints and its dependencies' deprecations off the terminal; errors still raise."""
    logger = logging.getLogger("pytorch_lightning")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            yield
    finally:
        logger.setLevel(before)
