"""Options of the stage `train`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hardnet_sfm.errors import UsageError, check_above, check_least
from hardnet_sfm.training.augment import AugmentOptions
from hardnet_sfm.training.convex import ConvexOptions
from hardnet_sfm.training.sampling import SamplingOptions

CONVEXOPT = "convexopt"
_SEEDS = 2**40  # torch takes 64 bits, and that of a step is made of the run's
# What is of gradient descent alone, and nothing to a network that is learned by convex optimisation.
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
    convex: ConvexOptions = field(default_factory=ConvexOptions)

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""
        self.sampling.check()
        self.augment.check()
        self.convex.check()
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
        from hardnet_sfm.networks.loading import find_architecture
        from hardnet_sfm.training.losses import LOSSES, PAIR_LOSSES

        network = find_architecture(self.network)
        default = TrainOptions()
        if self.network == CONVEXOPT:
            useless = [name for name in _OF_DESCENT if getattr(self, name) != getattr(default, name)]
            if useless:
                raise UsageError(
                    f"{useless[0].replace('_', ' ')} has no effect: convexopt is learned by convex optimisation",
                    "Its own options are those from --pairs to --projection-steps.",
                )
            return replace(self, loss=network.loss)
        if self.convex != default.convex:
            raise UsageError("options of convex optimisation have no effect", "They are of --network convexopt.")
        loss = self.loss or network.loss
        if loss not in LOSSES.keys() | PAIR_LOSSES.keys():
            raise UsageError(f"unknown loss: {loss}", f"There are: {', '.join([*LOSSES, *PAIR_LOSSES])}.")
        if network.metric != "l2" and loss in LOSSES:
            raise UsageError(
                f"--loss {loss} is of distances between the descriptors of a batch, and {network.name} has none: it "
                "scores pairs of patches",
                f"Use one of: {', '.join(PAIR_LOSSES)}.",
            )
        if network.metric == "l2" and loss in PAIR_LOSSES:
            raise UsageError(
                f"--loss {loss} is of scores of pairs of patches, and {network.name} gives none: it describes patches",
                f"Use one of: {', '.join(LOSSES)}.",
            )
        if loss == "l2net" and not network.supervised:
            raise UsageError(
                f"--loss l2net looks at normalised layers within the network, and {network.name} has none",
                "Use --loss softmax, its term of descriptors alone.",
            )
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
