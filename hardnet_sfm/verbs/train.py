"""The stage `train`: patches.h5 files to a weights file."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, make_dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.files.patch_sets import PatchSet
from hardnet_sfm.files.workspace import digest, locked
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import output
from hardnet_sfm.training.patch_sources import read_any_patches
from hardnet_sfm.training.processes import joined, rank
from hardnet_sfm.training.provenance import about
from hardnet_sfm.training.sampling import Sampler
from hardnet_sfm.training.train_options import TrainOptions

if TYPE_CHECKING:  # torch and lightning take seconds to import
    from hardnet_sfm.files.journal import Journal
    from hardnet_sfm.files.weight_files import Weights
    from hardnet_sfm.networks.architectures import LearnerOptions
    from hardnet_sfm.training.module import NetworkTraining
    from hardnet_sfm.training.validation import HeldOutBatches

NORM_BATCH = {"cpu": 256, "cuda": None}
# What may change when a run is resumed, and does not change what the weights are.
_CHANGEABLE = ("minutes", "steps", "validate_every", "learning_rate", "resume", "init", "licence")


def check_installed() -> None:
    """Raises HardnetSfmError where the packages that training needs beyond the others are missing."""
    try:
        import pytorch_lightning  # noqa: F401
    except ImportError as error:
        raise HardnetSfmError(
            f"training needs more packages: {error}", "Install them: pip install hardnet-sfm[train]"
        ) from error


@dataclass(frozen=True)
class TrainResult:
    """What the stage did.

    Attributes:
        steps: batches trained, with those of runs that were resumed.
        minutes: of training.
        measures: of the last validation: false positive rate at 95 % recall and mean average precision of matching;
            empty without patches to validate with.
        computed: whether it trained now, or found what it would have made.
    """

    steps: int
    minutes: float
    measures: dict[str, float]
    computed: bool = True

    @property
    def metadata(self) -> dict[str, str]:
        """For the weights file."""
        return {"minutes": f"{self.minutes:.2f}", "steps": str(self.steps), "measures": json.dumps(self.measures)}


def train(
    patches: Sequence[Path],
    output: Path,
    options: TrainOptions | None = None,
    resources: Resources | None = None,
    *,
    validation: Sequence[Path] = (),
    shares: Sequence[float] | None = None,
    learner_options: LearnerOptions | None = None,
) -> TrainResult:
    """Learns a network from patches, and writes a weights file. One that was made of the same before is left as it is.

    The folder `NAME.training` beside the output has curves for TensorBoard and, until the run is finished, its last
    checkpoint. Ctrl-C, or SIGTERM, makes one of the batch that is under way; a crash loses five minutes at most.

    Args:
        patches: patches.h5 files, or folders in the layout of Brown's PhotoTour or of HPatches' patches.
        output: the .safetensors file to make.
        options: how.
        resources: how much of the machine.
        validation: the same, each of a scene that is not trained on; measures are means over scenes.
        shares: of each of `patches` in a batch; by default as many as the root of its number of points.
        learner_options: of a network that is not learned by gradient descent, see
            `hardnet_sfm.networks.architectures.Learner`.

    Raises:
        HardnetSfmError: lightning is not installed, patches or a checkpoint are damaged, patches have too few points or
            were cut in different sizes, or the loss or a weight is not a finite number.
        UsageError: an option makes no sense.
    """
    check_installed()

    from hardnet_sfm.files.weight_files import find_weights, read_weights, write_weights
    from hardnet_sfm.networks.architectures import ARCHITECTURES
    from hardnet_sfm.networks.loading import load_into
    from hardnet_sfm.training.fitting import LAST, check_checkpoint, fit, quiet
    from hardnet_sfm.training.validation import HeldOutBatches

    options, resources = options or TrainOptions(), resources or Resources()
    device = _check(patches, validation, output, options, resources)
    options = options.completed()
    learner = ARCHITECTURES[options.network].learner
    if learner is not None:
        learner_options = learner_options or learner.options()
        learner_options.check()
    elif learner_options is not None:
        raise UsageError(f"{options.network} is learned by gradient descent", "Leave out the options of a learner.")
    sets, held_out = _read_all(patches, validation)
    if shares is None:
        shares = [len(patch_set.xyz) ** 0.5 for patch_set in sets]
    if len(shares) != len(sets) or not all(0 < share < float("inf") for share in shares):
        raise UsageError(f"{len(shares)} shares for {len(sets)} files of patches: one above 0 is needed for each")
    start = read_weights(find_weights(options.init)) if options.init is not None else None
    recipe = _recipe(sets, shares, options, start, learner_options)
    minutes = 60.0 if options.minutes is None and options.steps is None else options.minutes
    changeable = (minutes, options.steps, options.validate_every, options.learning_rate, options.licence)
    watched_by = [_identity(of) for of in held_out]
    # Of none and of one set as before there could be several: what was made then is still up to date.
    fingerprint = digest(recipe, changeable, watched_by if len(watched_by) > 1 else next(iter(watched_by), None))
    if output.is_file():
        made = read_weights(output).metadata
        if made.get("fingerprint") == fingerprint:
            return TrainResult(int(made["steps"]), float(made["minutes"]), json.loads(made["measures"]), computed=False)
    sampler = Sampler(sets, shares, options.sampling, options.seed)
    watched = HeldOutBatches(held_out) if held_out else None
    facts = about(sets, options, fingerprint, start)
    if learner_options is not None:
        facts["learner"] = json.dumps(asdict(learner_options))
        learning = _Learning(options, learner_options, resources.threads, device, recipe)
        return learning.run(sampler, watched, output, facts)
    module = _module(sampler, watched, options, minutes, recipe, device)
    if start is not None:
        load_into(module.network, start, options.network)
    folder = output.with_name(f"{output.stem}.training")
    last = folder / LAST
    threads = max(1, resources.threads // options.devices)
    with locked(folder) if rank() == 0 else nullcontext(), quiet():
        if options.resume:
            check_checkpoint(last)
        elif last.exists() and rank() == 0:
            raise _unfinished(folder)
        with joined(options.devices, threads, _train_along, patches, output, options, resources, validation, shares):
            measures = fit(module, folder, options, device, threads)
        if rank() == 0:
            report = TrainResult(module.global_step, module.seconds / 60, measures)
            write_weights(output, module.network.state_dict(), facts | report.metadata)
            last.unlink(missing_ok=True)
    return TrainResult(module.global_step, module.seconds / 60, measures)


@dataclass(frozen=True)
class _Learning:
    """A network that is not learned by gradient descent.

    Attributes:
        options, learner_options: how.
        threads: to use.
        device: "cpu" or "cuda".
        recipe: fingerprint of all that a run must not change when it is resumed.
    """

    options: TrainOptions
    learner_options: LearnerOptions
    threads: int
    device: str
    recipe: str

    def run(
        self, sampler: Sampler, held_out: HeldOutBatches | None, output: Path, facts: dict[str, str]
    ) -> TrainResult:
        """Learns and writes the weights; the minutes are those of the last run."""
        import torch

        from hardnet_sfm.files.weight_files import write_weights
        from hardnet_sfm.networks.architectures import ARCHITECTURES
        from hardnet_sfm.training.validation import validated

        began = time.monotonic()
        folder, architecture = output.with_name(f"{output.stem}.training"), ARCHITECTURES[self.options.network]
        learner, size = architecture.learner, architecture.patch_size
        assert learner is not None
        torch.set_num_threads(self.threads)
        with locked(folder), closing(_journal(folder / "journal", self.options.resume)) as journal:
            tensors = learner.learn(
                sampler,
                self.learner_options,
                journal,
                patch_size=size,
                seed=self.options.seed,
                device=self.device,
                recipe=self.recipe,
            )
            measures = {}
            if held_out is not None:
                network = architecture.build(tensors=tensors).to(self.device)
                network.load_state_dict(tensors)
                measures = validated(network, held_out, size, self.device)
            result = TrainResult(self.learner_options.steps, (time.monotonic() - began) / 60, measures)
            write_weights(output, tensors, facts | result.metadata)
            journal.drop()
        return result


def _journal(path: Path, resume: bool) -> Journal:
    """Of a run that goes on, or a new one; raises HardnetSfmError where there is not what is asked for."""
    from hardnet_sfm.files.journal import Journal

    if path.exists() and not resume:
        raise _unfinished(path.parent)
    if resume and not path.is_file():
        raise HardnetSfmError(f"no journal at {path}", "Leave out --resume to begin anew.")
    return Journal(path)


def _unfinished(folder: Path) -> HardnetSfmError:
    return HardnetSfmError(
        f"{folder}: a run that did not finish", "Go on with --resume, or delete the folder to begin anew."
    )


def _train_along(
    patches: Sequence[Path],
    output: Path,
    options: TrainOptions,
    resources: Resources,
    validation: Sequence[Path],
    shares: Sequence[float],
) -> None:
    """What the process of another device runs."""
    train(patches, output, options, resources, validation=validation, shares=shares)


def _check(
    patches: Sequence[Path], validation: Sequence[Path], output: Path, options: TrainOptions, resources: Resources
) -> str:
    """The device to train on; raises UsageError where something that was asked for makes no sense."""
    import torch

    from hardnet_sfm.networks.device import resolve_device

    options.check()
    if output.suffix != ".safetensors":
        raise UsageError(f"{output}: weights are files that end in .safetensors", "Give --output a name that ends so.")
    if output.is_dir():
        raise UsageError(f"{output} is a folder", "Give --output the name of a file.")
    for paths, why in (
        (patches, "Its points would be negatives of themselves. Give it a larger share."),
        (validation, "It would count twice."),
    ):
        places = [path.resolve() for path in paths]
        if twice := [str(path) for number, path in enumerate(paths) if places[number] in places[:number]]:
            raise UsageError(f"{twice[0]} is there twice", why)
    if not patches:
        hint = "Make some with `hardnet-sfm mine` or `hardnet-sfm warp`."
        if validation:
            hint += " Those after --validation are to measure with: name those to train on first."
        raise UsageError("no patches to train on", hint)
    device = resolve_device(resources.device)
    if device == "cuda" and options.devices > torch.cuda.device_count():
        raise UsageError(
            f"--devices {options.devices}: torch finds {torch.cuda.device_count()} CUDA devices",
            "Ask for at most so many, or train on the CPU with --device cpu.",
        )
    return device


def _recipe(
    sets: Sequence[PatchSet],
    shares: Sequence[float],
    options: TrainOptions,
    start: Weights | None,
    learner_options: LearnerOptions | None,
) -> str:
    """Fingerprint of all that a run must not change when it is resumed."""
    data = [_identity(of) for of in sets]
    kept = {name: value for name, value in asdict(options).items() if name not in _CHANGEABLE}
    if options.network == "hardnet":
        del kept["network"]  # runs from before there was a choice are of it, and go on
    if learner_options is not None:
        kept["learner"] = asdict(learner_options)
    return digest("train", data, list(shares), kept, start.sha256 if start else "")


def _identity(of: PatchSet) -> tuple[object, ...]:
    """What tells patches from others: what made them, or where that is not known, as of others' layouts, themselves."""
    made_of = dict(of.options) or [
        sha256(np.ascontiguousarray(array).data).hexdigest() for array in (of.patches, of.point)
    ]
    return of.source, of.measurement_size, len(of), made_of


def _module(
    sampler: Sampler,
    held_out: HeldOutBatches | None,
    options: TrainOptions,
    minutes: float | None,
    recipe: str,
    device: str,
) -> NetworkTraining:
    from hardnet_sfm.networks.architectures import ARCHITECTURES
    from hardnet_sfm.training.module import Budget, NetworkTraining, TrainingPlan

    assert options.loss is not None and options.learning_rate is not None
    plan = TrainingPlan(
        options.loss,
        options.augment,
        Budget(minutes, options.steps),
        options.learning_rate,
        options.weight_decay,
        options.dropout,
        options.norm_batch or NORM_BATCH[device],
        options.seed,
        recipe,
    )
    return NetworkTraining(ARCHITECTURES.find(options.network), sampler, held_out, plan)


def _read_all(patches: Sequence[Path], validation: Sequence[Path]) -> tuple[list[PatchSet], list[PatchSet]]:
    """Those to train on, and to validate with; raises HardnetSfmError where they were cut in different sizes."""
    sets, held_out = [read_any_patches(path) for path in patches], [read_any_patches(path) for path in validation]
    everything = [*sets, *held_out]
    if len({patch_set.measurement_size for patch_set in everything}) > 1:
        sizes = ", ".join(f"{patch_set.path}: {patch_set.measurement_size:g}" for patch_set in everything)
        raise HardnetSfmError(
            f"patches of different size, in sigmas: {sizes}",
            "Mine them anew, all in one size; Brown's have 12, HPatches' 10.",
        )
    return sets, held_out


@dataclass(frozen=True)
class TrainCommand:
    """Learn a network from patches (needs hardnet-sfm[train])."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm train patches.h5 warps.h5 -o my.safetensors --minutes 60",
        "hardnet-sfm train patches.h5 -o my.safetensors --validation held-out.h5 --resume",
        "hardnet-sfm train patches.h5 -o tfeat.safetensors --network tfeat --steps 5000",
    )
    interrupted: ClassVar[str] = (
        "Interrupted. Go on with the same command, and --resume where the folder beside the output has a last.ckpt or "
        "journal."
    )

    patches: Annotated[tuple[Path, ...], Positional, arg(metavar="PATCHES")]
    """patches.h5 files, as `mine` and `warp` make them."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """.safetensors file to make."""
    validation: tuple[Path, ...] = ()
    """patches.h5 files of scenes that are not trained on, to measure with."""
    shares: tuple[float, ...] | None = None
    """Share of each of PATCHES in a batch. Default: as the root of its number of points."""
    debug: bool = False
    """Show where in the program an error came from."""
    train: TrainOptions = field(default_factory=TrainOptions)
    resources: Resources = field(default_factory=Resources)

    @classmethod
    def for_network(cls, name: str) -> type[TrainCommand]:
        """This command, with the options of the network's learner if it has one."""
        if name == TrainOptions().network:
            return cls
        from hardnet_sfm.networks.architectures import ARCHITECTURES

        learner = ARCHITECTURES[name].learner if name in ARCHITECTURES else None
        if learner is None:
            return cls
        extra = ("learner", learner.options, field(default_factory=learner.options))
        made = make_dataclass(cls.__name__, [extra], bases=(cls,), frozen=True)
        made.__doc__ = cls.__doc__
        return made

    def run(self) -> None:
        report = train(
            self.patches,
            self.output,
            self.train,
            self.resources,
            validation=self.validation,
            shares=self.shares,
            learner_options=getattr(self, "learner", None),
        )
        measures = "".join(f", {name} {value:.4f}" for name, value in report.measures.items())
        made = "" if report.computed else "; up to date"
        output.print(
            f"{escape(str(self.output))}: {report.steps} steps in {report.minutes:.1f} minutes{measures}{made}"
        )
