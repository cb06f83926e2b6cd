"""The registry of networks: what `--descriptor`, `train --network`, `match --rescore` and weights files call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hardnet_sfm.networks.convexopt import ConvexOpt
from hardnet_sfm.networks.deepcompare import (
    PseudoSiamese,
    Siamese,
    SiameseL2,
    SiameseTwoStream,
    SiameseTwoStreamL2,
    TwoChannel,
    TwoChannelTwoStream,
)
from hardnet_sfm.networks.deepdesc import DeepDesc
from hardnet_sfm.networks.hardnet import HardNet
from hardnet_sfm.networks.l2net import CentreSurroundL2Net
from hardnet_sfm.networks.matchnet import MatchNet
from hardnet_sfm.networks.tfeat import tfeat

Metric = Literal["l2", "metric network", "pair network"]

_RELU, _TANH = nn.init.calculate_gain("relu"), nn.init.calculate_gain("tanh")
# Learning rates of AdamW: behind batch normalisation steps may be ten times as long.
_NORMALISED, _PLAIN = 3e-3, 3e-4
_STANDARDISED = "mean 0 and standard deviation 1 of each patch"
_MEAN = "mean 0 of each patch"


@dataclass(frozen=True)
class Architecture:
    """A network and what its users have to know of it.

    Attributes:
        name: as options and weights files have it.
        title: as its authors write it.
        make: the network with weights drawn by chance; takes the probability of dropout where `dropout` is given.
        patch_size: of its input, pixels.
        metric: how two patches are compared: by the L2 distance of their descriptors ("l2"), by a network that looks at
            the descriptors of both ("metric network"), or by one that looks at both patches at once ("pair network").
            Networks of the last two kinds are `hardnet_sfm.networks.pair_scoring.PairNetwork`s, others plain modules.
        dimension: of a descriptor, the most where it is learned, or of what the metric network gets of a patch; 0 for a
            pair network.
        loss: that it was published with, by its name in `hardnet_sfm.training.losses`; of a network that was published
            as a part of another, and not trained by itself, the loss that is taken here.
        normalisation: of each patch, for people. The network does it itself, from grey values in [0, 1].
        gain: of the orthogonal matrices that training starts from.
        learning_rate: that training takes if not told otherwise, of AdamW.
        dropout: default probability; None where the network has none.
        unit_length: whether its descriptors have length 1 as they come; if not they are scaled to it for use, as the
            stores, matching and retrieval want them.
        reduced_precision: whether it keeps its accuracy where its layers are computed in half precision.
        normalised: whether it has batch normalisation, which `fused()` folds into its convolutions for inference.
        supervised: modules whose outputs L2-Net's loss looks at, too.
        shaped_as: the network with room for given weights, where sizes are learned, too, and each file has its own.
        towers: modules of the same shapes, in their order, whose weights only their names tell apart.
        part_of: another architecture that has all its layers, by the same names, and more: weights of that are weights
            of this, too.
    """

    name: str
    title: str
    make: Callable[..., nn.Module]
    patch_size: int
    metric: Metric
    dimension: int
    loss: str
    normalisation: str = _STANDARDISED
    gain: float = _RELU
    learning_rate: float = _PLAIN
    dropout: float | None = None
    unit_length: bool = True
    reduced_precision: bool = True
    normalised: bool = False
    supervised: tuple[str, ...] = ()
    shaped_as: Callable[[Mapping[str, Tensor]], nn.Module] | None = None
    towers: tuple[str, ...] = ()
    part_of: str | None = None

    def build(self, dropout: float | None = None, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The network with weights drawn by chance; the default dropout where None.

        Args:
            dropout: probability.
            tensors: weights that there must be room for, where the sizes of the network are learned, too.
        """
        if self.shaped_as is not None and tensors is not None:
            return self.shaped_as(tensors)
        return self.make() if self.dropout is None else self.make(self.dropout if dropout is None else dropout)

    def shapes(self, tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Shapes that the tensors of a state dict must have, in its order, without the counters of batches."""
        with torch.device("meta"):
            expected = self.build(tensors=tensors).state_dict()
        return {name: tensor.shape for name, tensor in expected.items() if not _counts_batches(name)}

    def metadata(self) -> dict[str, str]:
        """What files of its weights say."""
        return {"architecture": self.name, "patch_size": str(self.patch_size), "normalisation": self.normalisation}


def _l2net(
    name: str,
    title: str,
    make: Callable[..., nn.Module],
    size: int,
    dimension: int,
    loss: str,
    towers: tuple[str, ...] = (),
) -> Architecture:
    """A network with the layers of L2-Net, or with several towers of them."""
    prefixes = [f"{tower}." for tower in towers] or [""]
    return Architecture(
        name,
        title,
        make,
        size,
        "l2",
        dimension,
        loss,
        gain=0.6,
        learning_rate=_NORMALISED,
        dropout=0.1,
        normalised=True,
        # The first and the last batch normalisation.
        supervised=tuple(f"{tower}features.{number}" for tower in prefixes for number in (1, 20)),
        towers=towers,
    )


# Where weights fit several, as those of hardnet and l2net do, they are taken to be of the first.
_ALL = (
    _l2net("hardnet", "HardNet", HardNet, 32, 128, "hardnet"),
    _l2net("l2net", "L2-Net", HardNet, 32, 128, "l2net"),
    _l2net("l2net-cs", "CS L2-Net", CentreSurroundL2Net, 64, 256, "l2net", ("surround", "centre")),
    Architecture("tfeat", "TFeat", tfeat, 32, "l2", 128, "triplet-swap", gain=_TANH, unit_length=False),
    Architecture(
        "convexopt",
        "ConvexOpt",
        lambda: ConvexOpt(80, 128),
        64,
        "l2",
        128,
        "global-margin",
        "gradients by the 0.8 quantile of their magnitudes",
        reduced_precision=False,
        shaped_as=ConvexOpt.shaped_as,
    ),
    Architecture("deepdesc", "DeepDesc", DeepDesc, 64, "l2", 128, "mined-contrastive", gain=_TANH, unit_length=False),
    Architecture("matchnet", "MatchNet", MatchNet, 64, "metric network", 512, "cross-entropy", "(grey - 128) / 160"),
    Architecture("deepcompare-2ch", "DeepCompare 2ch", TwoChannel, 64, "pair network", 0, "hinge", _MEAN),
    Architecture(
        "deepcompare-2ch2stream",
        "DeepCompare 2ch-2stream",
        TwoChannelTwoStream,
        64,
        "pair network",
        0,
        "hinge",
        _MEAN,
        towers=("surround", "centre"),
    ),
    Architecture("deepcompare-siam", "DeepCompare siam", Siamese, 64, "metric network", 256, "hinge", _MEAN),
    Architecture(
        "deepcompare-pseudo-siam",
        "DeepCompare pseudo-siam",
        PseudoSiamese,
        64,
        "metric network",
        256,
        "hinge",
        _MEAN,
        towers=("first", "second"),
    ),
    Architecture(
        "deepcompare-siam2stream",
        "DeepCompare siam-2stream",
        SiameseTwoStream,
        64,
        "metric network",
        512,
        "hinge",
        _MEAN,
        towers=("centre", "surround"),
    ),
    Architecture(
        "deepcompare-siam-l2",
        "DeepCompare siam-l2",
        SiameseL2,
        64,
        "l2",
        256,
        "contrastive",
        _MEAN,
        part_of="deepcompare-siam",
    ),
    Architecture(
        "deepcompare-siam2stream-l2",
        "DeepCompare siam-2stream-l2",
        SiameseTwoStreamL2,
        64,
        "l2",
        512,
        "contrastive",
        _MEAN,
        towers=("centre", "surround"),
        part_of="deepcompare-siam2stream",
    ),
)
ARCHITECTURES: dict[str, Architecture] = {architecture.name: architecture for architecture in _ALL}
# What the authors of DeepCompare call the towers of their two streams: their fovea sees the whole patch at half the
# resolution, their retina its inner half.
_AUTHORS_NAMES = {"fovea": "surround", "retina": "centre"}


def recognised(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first architecture whose weights these are, whatever their names; None where they fit none."""
    exact = (name for name, of in ARCHITECTURES.items() if _shapes(tensors) == of.shapes(tensors))
    in_order = (name for name, of in ARCHITECTURES.items() if under_names_of(of, tensors) is not None)
    return next(exact, None) or next(in_order, None)


def under_names_of(architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights under the names and in the shapes that the architecture has for them; None where they do not fit.

    Tensors of other names are taken in their order, as files converted from Torch7 or saved from DataParallel have
    them; matrices as Torch7 stores convolutions, (outputs, inputs * K * K), are given their shape. Of towers that have
    the same shapes each tensor's name has to say of which it is, as in `surround.0.weight`, or `fovea.conv0.weight` as
    the authors of DeepCompare have it. Weights of a network that this one is part of are cut down to the part.
    """
    expected = architecture.shapes(tensors)
    given = {name: tensor for name, tensor in tensors.items() if not _counts_batches(name)}
    if _shapes(given) == expected:
        return dict(tensors)
    if len(given) != len(expected):
        whole = under_names_of(ARCHITECTURES[architecture.part_of], tensors) if architecture.part_of else None
        return None if whole is None else part_of_whole(architecture, whole)
    towers = [*architecture.towers, None]  # what is of no tower comes last, as in all modules here
    in_order = sorted(given.items(), key=lambda item: towers.index(_tower(architecture, item[0])))
    pairs = list(zip(expected.items(), in_order, strict=True))
    for (name, shape), (theirs, tensor) in pairs:
        if tensor.numel() != shape.numel() or tensor.shape[:1] != shape[:1]:
            return None
        if _tower(architecture, name) != _tower(architecture, theirs):
            return None
    return {name: tensor.reshape(shape) for (name, shape), (_, tensor) in pairs}


def part_of_whole(architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """What an architecture that is part of another takes of the other's weights; None where they are not of that."""
    if architecture.part_of is None or _shapes(tensors) != ARCHITECTURES[architecture.part_of].shapes(tensors):
        return None
    return {name: tensors[name] for name in architecture.shapes(tensors)}


def _tower(architecture: Architecture, name: str) -> str | None:
    """The tower that a tensor is of by its name; None where it is of none, or the name does not say."""
    first = name.removeprefix("module.").partition(".")[0]  # DataParallel puts all in a module
    first = _AUTHORS_NAMES.get(first, first)
    return first if first in architecture.towers else None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items() if not _counts_batches(name)}


def _counts_batches(name: str) -> bool:
    # They matter to nobody after training, and some files leave them out.
    return name.endswith("num_batches_tracked")
