"""Options of the stage `train`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hardnet_sfm.errors import UsageError, check_above, check_least
from hardnet_sfm.training.augment import AugmentOptions
from hardnet_sfm.training.sampling import SamplingOptions

_SEEDS = 2**40  # torch takes 64 bits, and that of a step is made of the run's
# What is of gradient descent alone, and nothing to a network that is learned in another way.
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
    "augment",
)


@dataclass(frozen=True)
class TrainOptions:
    """How a network is learned."""

    network: str = "hardnet"
    """hardnet, l2net, l2net-cs, convexopt, tfeat, deepdesc, matchnet, deepcompare-2ch, deepcompare-2ch2stream,
    deepcompare-siam, deepcompare-pseudo-siam, deepcompare-siam2stream, deepcompare-siam-l2 or
    deepcompare-siam2stream-l2; see `hardnet_sfm.networks.architectures`."""
    minutes: float | None = None
    """Time to train, validation not counted; the learning rate falls to zero in it. Default: 60, unless --steps."""
    steps: int | None = None
    """Batches to train; together with --minutes, whichever ends first."""
    loss: str | None = None
    """For networks whose descriptors are compared by distance: hardnet (hardest in the batch), hardnet+gor,
    hardnet+sos, dynamic-margin, contrastive, softmax, hardest-softmax, l2net, random-triplet, triplet-swap or
    mined-contrastive; for those that score pairs, as matchnet: hinge or cross-entropy; see
    `hardnet_sfm.training.losses`. Default: what the network was published with; contrastive for deepcompare-siam-l2 and
    deepcompare-siam2stream-l2, which were published as parts of deepcompare-siam and deepcompare-siam2stream."""
    learning_rate: float | None = None
    """Of AdamW, at its highest. Default: 3e-3 for networks with batch normalisation, as hardnet, else 3e-4."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    dropout: float | None = None
    """Probability, before the last layer. Default: 0.1, where the network has any, as hardnet and l2net."""
    norm_batch: int | None = None
    """Patches that share the statistics of batch normalisation. Default: 256 on a CPU, to fit its cache, else all."""
    devices: int = 1
    """GPUs, or processes on a CPU, that each train on batches of their own, of --batch-size pairs; gradients are
    averaged."""
    validate_every: int = 100
    """Batches between two validations and checkpoints."""
    resume: bool = False
    """Go on from the checkpoint beside the output."""
    init: str | None = None
    """Weights to start from, a file or the name of shipped ones. Default: random orthogonal ones."""
    seed: int = 0
    """Of everything that is drawn by chance."""
    licence: str = "not stated"
    """Under which others may use the weights, for their metadata."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        self.sampling.check()
        self.augment.check()
        check_above(self, minutes=0, steps=0, learning_rate=0, validate_every=0, devices=0)
        check_least(self, weight_decay=0, norm_batch=2, seed=0)
        if self.seed >= _SEEDS:
            raise UsageError(f"--seed must be below {_SEEDS}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UsageError("--dropout must be from 0 to below 1")

    def completed(self) -> TrainOptions:
        """With the defaults of the network in the place of what is not given.

        Raises:
            UsageError: there is no such network or loss, or one does not go with the other.
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
            loss=loss,
            learning_rate=self.learning_rate or network.learning_rate,
            dropout=network.dropout if self.dropout is None else self.dropout,
        )
