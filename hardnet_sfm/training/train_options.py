"""Options of the command `train`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hardnet_sfm.errors import UsageError, check_above, check_least
from hardnet_sfm.training.augment import AugmentOptions
from hardnet_sfm.training.sampling import SamplingOptions

_SEEDS = 2**40  # limit on the run's seed; the seed of a step derives from it and must fit torch's 64 bits
_MINUTES = 60.0  # length of a run without --minutes and --steps
# Options of gradient descent. A network that is trained in another way does not use them.
_OF_DESCENT = (
    "minutes",
    "steps",
    "loss",
    "learning_rate",
    "weight_decay",
    "dropout",
    "norm_batch",
    "devices",
    "validate_every",
    "init",
    "average",
    "teacher",
    "distil",
    "augment",
)


@dataclass(frozen=True)
class TrainOptions:
    """How a network is learned."""

    network: str = "hardnet"
    """Network to learn: hardnet, hardnet-fast, l2net, l2net-cs, convexopt, tfeat, deepdesc, matchnet, deepcompare-2ch,
    deepcompare-2ch2stream, deepcompare-siam, deepcompare-pseudo-siam, deepcompare-siam2stream, deepcompare-siam-l2 or
    deepcompare-siam2stream-l2; see `hardnet_sfm.networks.architectures`."""
    minutes: float | None = None
    """Train for this many minutes, without counting validation. The learning rate falls to zero over this time.
    Default: 60, or no limit with --steps."""
    steps: int | None = None
    """Stop after this many batches, or after --minutes if that comes first."""
    loss: str | None = None
    """Loss to minimise. For networks whose descriptors are compared by distance: hardnet (hardest in the batch),
    hardnet+gor, hardnet+sos, dynamic-margin, contrastive, softmax, hardest-softmax, l2net, random-triplet, triplet-swap
    or mined-contrastive. For networks that score pairs, such as matchnet: hinge or cross-entropy. See
    `hardnet_sfm.training.losses`. Default: the loss that the network was published with. deepcompare-siam-l2 and
    deepcompare-siam2stream-l2 were published as parts of deepcompare-siam and deepcompare-siam2stream; their default is
    contrastive."""
    learning_rate: float | None = None
    """Highest learning rate of AdamW. Default: 3e-3 for networks with batch normalisation, such as hardnet, and 3e-4
    for others."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    dropout: float | None = None
    """Probability of dropout before the last layer. Default: 0.1, in networks that have dropout, such as hardnet and
    l2net."""
    norm_batch: int | None = None
    """Number of patches that share the statistics of batch normalisation. Default: 256 on a CPU, which fits its cache,
    and all patches on a GPU."""
    devices: int = 1
    """Number of GPUs, or of processes on a CPU. Each trains on its own batches of --batch-size pairs, and the gradients
    are averaged."""
    validate_every: int = 100
    """Number of batches between two validations and checkpoints."""
    resume: bool = False
    """Resume an unfinished run from its checkpoint next to the output."""
    init: str | None = None
    """Weights to start from: a file, or the name of shipped weights. Default: random orthogonal weights."""
    average: float = 0.0
    """Average the weights over this last share of the training, such as 0.3. These weights are validated and written. 0
    switches this off."""
    teacher: str | None = None
    """Weights of a network whose descriptors the trained network imitates: a file, or the name of shipped weights."""
    distil: float = 1.0
    """Weight of the squared distance to the descriptors of --teacher. It is added to the loss."""
    seed: int = 0
    """Random seed for everything in training."""
    licence: str = "not stated"
    """Licence under which others may use the weights, for their metadata."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)

    def check(self) -> None:
        """Raises UsageError if a value is invalid."""
        self.sampling.check()
        self.augment.check()
        check_above(self, minutes=0, steps=0, learning_rate=0, validate_every=0, devices=0, distil=0)
        check_least(self, weight_decay=0, norm_batch=2, seed=0)
        if self.seed >= _SEEDS:
            raise UsageError(f"--seed must be below {_SEEDS}")
        if not 0 <= self.average <= 1:
            raise UsageError("--average must be from 0 to 1")
        if self.teacher is None and self.distil != TrainOptions().distil:
            raise UsageError("--distil has no effect without --teacher")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UsageError("--dropout must be from 0 to below 1")

    def spent(self, seconds: float, steps: int) -> float:
        """Returns the share of the budget that a run has spent, from 0 to 1. It ends at the limit that comes first."""
        of_time = seconds / (60 * self.minutes) if self.minutes is not None else 0.0
        of_steps = steps / self.steps if self.steps is not None else 0.0
        return min(1.0, max(of_time, of_steps))

    def completed(self) -> TrainOptions:
        """Fills in the defaults of the network for all options that are not set.

        Raises:
            UsageError: there is no such network or loss, the loss does not fit the network, or an option has no effect
                on the network.
        """
        from hardnet_sfm.networks.architectures import ARCHITECTURES
        from hardnet_sfm.training.losses import LOSSES

        network = ARCHITECTURES.find(self.network)
        if network.learner is not None:
            default = TrainOptions()
            useless = [name for name in _OF_DESCENT if getattr(self, name) != getattr(default, name)]
            if useless:
                raise UsageError(
                    f"{useless[0].replace('_', ' ')} has no effect: {self.network} is not learned by gradient descent",
                    f"`hardnet-sfm train --network {self.network} --help` shows its own options.",
                )
            return replace(self, loss=network.loss)
        loss = self.loss or network.loss
        reason = LOSSES.find(loss).mismatch(network)
        if reason:
            fitting = [name for name, objective in LOSSES.items() if not objective.mismatch(network)]
            raise UsageError(f"--loss {loss} {reason}", f"Use one of: {', '.join(fitting)}.")
        if self.dropout is not None and network.dropout is None:
            raise UsageError(f"--dropout has no effect: {network.name} has none")
        if self.norm_batch is not None and not network.normalised:
            raise UsageError(f"--norm-batch has no effect: {network.name} has no batch normalisation")
        return replace(
            self,
            minutes=_MINUTES if self.minutes is None and self.steps is None else self.minutes,
            loss=loss,
            learning_rate=self.learning_rate or network.learning_rate,
            dropout=network.dropout if self.dropout is None else self.dropout,
        )
