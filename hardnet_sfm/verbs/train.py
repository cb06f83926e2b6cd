"""The command `train` trains a network on patches and writes a weights file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.evaluation.datasets.patch_sources import read_any_patches
from hardnet_sfm.files.workspace import digest
from hardnet_sfm.patch_set import PatchSet
from hardnet_sfm.progress import console as errors
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import output
from hardnet_sfm.training.processes import rank
from hardnet_sfm.training.provenance import record_origin
from hardnet_sfm.training.sampling import Sampler
from hardnet_sfm.training.shared_photos import describe_shared_photos
from hardnet_sfm.training.train_options import TrainOptions

if TYPE_CHECKING:  # torch takes seconds to import
    from hardnet_sfm.network_weights import Weights
    from hardnet_sfm.networks.architectures import LearnerOptions
    from hardnet_sfm.training_run import TrainResult

# Options that may change when a run is resumed. They are not part of the recipe of a run.
_CHANGEABLE = ("minutes", "steps", "validate_every", "learning_rate", "resume", "init", "teacher", "licence")
_LATER = ("network", "average", "distil")  # options that the first version did not have


def train(
    patches: Sequence[Path],
    output: Path,
    options: TrainOptions | None = None,
    resources: Resources | None = None,
    *,
    validation: Sequence[Path] = (),
    shares: Sequence[float] | None = None,
    learner_options: LearnerOptions | None = None,
    overwrite: bool = False,
) -> TrainResult:
    """Trains a network on patches and writes a weights file. An up-to-date weights file is left unchanged.

    The folder `NAME.training` next to the output has the learning curves. It also has the last checkpoint until the run
    is finished. Ctrl-C or SIGTERM writes a checkpoint after the current batch. A crash loses at most five minutes.

    Args:
        patches: patches.h5 files, or folders in the layout of Brown's PhotoTour or of HPatches.
        output: the .safetensors file to create.
        options: options of training.
        resources: threads and device to use.
        validation: patches in the same formats, each file or folder from a scene that is not trained on. Measures are
            means over these scenes.
        shares: share of each of `patches` in a batch. By default it is proportional to the square root of the number
            of points.
        learner_options: options of a network that is not trained by gradient descent, see
            `hardnet_sfm.networks.architectures.Learner`.
        overwrite: replace weights of another run.

    Raises:
        HardnetSfmError: the output has weights of another run and `overwrite` is not set, patches or a checkpoint are
            damaged, patches have too few points, patches were cut in different sizes, or the loss or a weight is not a
            finite number.
        UsageError: an option is invalid.
    """
    from hardnet_sfm.files.weight_files import find_weights, read_weights
    from hardnet_sfm.training.validation import HeldOutBatches
    from hardnet_sfm.training_run import TrainingRun, descend, learn

    options, resources = options or TrainOptions(), resources or Resources()
    device = _check(patches, validation, output, options, resources)
    options = options.completed()
    learner_options = _learner_options(options.network, learner_options)
    sets, held_out = _read_all(patches, validation)
    for line in describe_shared_photos(sets, held_out) if rank() == 0 else ():
        errors.print(f"[yellow]validation:[/] {escape(line)}")
    shares = _check_shares(shares, sets)
    start = read_weights(find_weights(options.init)) if options.init is not None else None
    teacher = _read_teacher(options, sets[0].measurement_size)
    recipe = _recipe(sets, shares, options, start, teacher, learner_options)
    fingerprint = _fingerprint(recipe, options, held_out)
    if (made := _made_before(output, fingerprint, overwrite)) is not None:
        return made
    facts = record_origin(sets, options, fingerprint, start, teacher)
    sampler = Sampler(sets, shares, options.sampling, options.seed)
    watched = HeldOutBatches(held_out) if held_out else None
    run = TrainingRun(output, options, sampler, watched, start, teacher, recipe, facts, device, resources.threads)
    if learner_options is not None:
        return learn(run, learner_options)
    follow = partial(train, patches, output, options, resources, validation=validation, shares=shares, overwrite=True)
    return descend(run, follow)


def _learner_options(network: str, given: LearnerOptions | None) -> LearnerOptions | None:
    """Returns the options of the network's learner, or None if it is trained by gradient descent."""
    from hardnet_sfm.networks.architectures import ARCHITECTURES

    learner = ARCHITECTURES[network].learner
    if learner is None:
        if given is not None:
            raise UsageError(f"{network} is learned by gradient descent", "Leave out the options of a learner.")
        return None
    options: LearnerOptions = given or learner.options()
    options.check()
    return options


def _made_before(output: Path, fingerprint: str, overwrite: bool) -> TrainResult | None:
    """Returns the result of an earlier run that made these very weights.

    Raises:
        HardnetSfmError: another run made the weights, and `overwrite` is not set.
    """
    from hardnet_sfm.files.weight_files import read_weights
    from hardnet_sfm.training_run import TrainResult

    if not output.is_file():
        return None
    made = read_weights(output).metadata
    if made.get("fingerprint") != fingerprint:
        if overwrite:
            return None
        raise HardnetSfmError(
            f"{output} has weights that were made with other patches or options",
            "Give --output another name, or add --overwrite to replace them when the training ends.",
        )
    return TrainResult(int(made["steps"]), float(made["minutes"]), json.loads(made["measures"]), computed=False)


def _check(
    patches: Sequence[Path], validation: Sequence[Path], output: Path, options: TrainOptions, resources: Resources
) -> str:
    """Checks the inputs and returns the device to train on; raises UsageError if an input is invalid."""
    import torch

    from hardnet_sfm.networks.device import resolve_device

    options.check()
    if output.suffix != ".safetensors":
        raise UsageError(f"{output}: not a .safetensors file", "Give --output a name that ends in .safetensors.")
    if output.is_dir():
        raise UsageError(f"{output} is a folder", "Give --output the name of a file.")
    for paths, why in (
        (patches, "Its points would be negatives of themselves. Give it a larger share."),
        (validation, "It would count twice."),
    ):
        places = [path.resolve() for path in paths]
        if twice := [str(path) for number, path in enumerate(paths) if places[number] in places[:number]]:
            raise UsageError(f"{twice[0]} is given twice", why)
    if not patches:
        hint = "Make some with `hardnet-sfm mine` or `hardnet-sfm warp`."
        if validation:
            hint += " Files after --validation are only measured on: name the files to train on first."
        raise UsageError("no patches to train on", hint)
    device = resolve_device(resources.device)
    if device == "cuda" and options.devices > torch.cuda.device_count():
        raise UsageError(
            f"--devices {options.devices}: torch finds {torch.cuda.device_count()} CUDA devices",
            "Use no more than that, or train on the CPU with --device cpu.",
        )
    return device


def _check_shares(shares: Sequence[float] | None, sets: Sequence[PatchSet]) -> Sequence[float]:
    """Returns the share of each patch set in a batch; raises UsageError if the given shares do not fit the sets."""
    if shares is None:
        return [len(patch_set.xyz) ** 0.5 for patch_set in sets]
    if len(shares) != len(sets) or not all(0 < share < float("inf") for share in shares):
        raise UsageError(f"{len(shares)} shares for {len(sets)} files of patches: give one above 0 for each file")
    return shares


def _fingerprint(recipe: str, options: TrainOptions, held_out: Sequence[PatchSet]) -> str:
    """Returns the fingerprint of everything that makes the weights what they are."""
    changeable = (options.minutes, options.steps, options.validate_every, options.learning_rate, options.licence)
    watched_by = [of.identity() for of in held_out]
    # Earlier versions allowed at most one validation set. None or one set keeps the old fingerprint, so that weights
    # from those versions stay up to date.
    return digest(recipe, changeable, watched_by if len(watched_by) > 1 else next(iter(watched_by), None))


def _recipe(
    sets: Sequence[PatchSet],
    shares: Sequence[float],
    options: TrainOptions,
    start: Weights | None,
    teacher: Weights | None,
    learner_options: LearnerOptions | None,
) -> str:
    """Returns the fingerprint of everything that must stay the same when a run is resumed."""
    data = [of.identity() for of in sets]
    kept = {name: value for name, value in asdict(options).items() if name not in _CHANGEABLE}
    # Weights that were made before an option existed stay up to date.
    kept = {name: value for name, value in kept.items() if name not in _LATER or value != getattr(TrainOptions(), name)}
    if teacher is not None:
        kept["teacher"] = teacher.sha256
    if learner_options is not None:
        kept["learner"] = asdict(learner_options)
    return digest("train", data, list(shares), kept, start.sha256 if start else "")


def _read_teacher(options: TrainOptions, measurement_size: float) -> Weights | None:
    """Reads the weights of the teacher; raises UsageError or HardnetSfmError if the network cannot imitate it."""
    if options.teacher is None:
        return None
    from hardnet_sfm.files.weight_files import find_weights, read_weights
    from hardnet_sfm.networks.architectures import ARCHITECTURES
    from hardnet_sfm.networks.loading import load_network
    from hardnet_sfm.training.distillation import check_teacher

    path = find_weights(options.teacher)
    check_teacher(load_network(path), options.teacher, ARCHITECTURES[options.network], measurement_size)
    return read_weights(path)


def _read_all(patches: Sequence[Path], validation: Sequence[Path]) -> tuple[list[PatchSet], list[PatchSet]]:
    """Reads the training and the validation patches; raises HardnetSfmError if they were cut in different sizes."""
    sets, held_out = [read_any_patches(path) for path in patches], [read_any_patches(path) for path in validation]
    everything = [*sets, *held_out]
    if len({patch_set.measurement_size for patch_set in everything}) > 1:
        sizes = ", ".join(f"{patch_set.origin}: {patch_set.measurement_size:g}" for patch_set in everything)
        raise HardnetSfmError(
            f"patches of different size, in sigmas: {sizes}",
            "Mine them again with one --measurement-size. Brown's patches have 12, those of HPatches 10.",
        )
    return sets, held_out


@dataclass(frozen=True)
class TrainCommand:
    """Options of `hardnet-sfm train`.

    Examples:
        hardnet-sfm train patches.h5 warps.h5 -o my.safetensors --minutes 60
        hardnet-sfm train patches.h5 -o my.safetensors --validation held-out.h5 --resume
        hardnet-sfm train patches.h5 -o tfeat.safetensors --network tfeat --steps 5000
    """

    interrupted: ClassVar[str] = (
        "Interrupted. Run the same command again. Add --resume if the folder NAME.training next to the output has a "
        "last.ckpt or a journal."
    )

    patches: Annotated[tuple[Path, ...], Positional, arg(metavar="PATCHES")]
    """Files of patches that `mine` and `warp` wrote, or folders in the layout of Brown's PhotoTour or of HPatches."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """.safetensors file to write the weights to."""
    validation: tuple[Path, ...] = ()
    """Patches to measure with, in the same forms. Take scenes that are not trained on."""
    shares: tuple[float, ...] | None = None
    """Share of each of PATCHES in a batch. Default: in proportion to the square root of its number of points."""
    overwrite: bool = False
    """Replace weights of another run at the end of the training. Without it, they are kept and nothing is trained."""
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
        result = train(
            self.patches,
            self.output,
            self.train,
            self.resources,
            validation=self.validation,
            shares=self.shares,
            learner_options=getattr(self, "learner", None),
            overwrite=self.overwrite,
        )
        measures = "".join(f", {name} {value:.4f}" for name, value in result.measures.items())
        made = "" if result.computed else "; up to date"
        output.print(
            f"{escape(str(self.output))}: {result.steps} steps in {result.minutes:.1f} minutes{measures}{made}"
        )
