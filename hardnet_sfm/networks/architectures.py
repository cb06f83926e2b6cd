"""The registry of networks. Its names serve `--descriptor`, `train --network`, `match --rescore` and weights files.

Another package adds a network by an entry point in the group `hardnet_sfm.networks`. Its object is an `Architecture`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hardnet_sfm.keypoints import LOWES_RATIO
from hardnet_sfm.networks.hardnet import HardNet, HardNetFast
from hardnet_sfm.registry import Registry

Metric = Literal["l2", "metric network", "pair network"]


class PairScorer(Protocol):
    """Scores pairs of patches. It prepares each patch once for all its pairs. Threads may share it.

    Attributes:
        sides: 2 if the first and the second patch of a pair are prepared differently, else 1.
        patch_size: S, pixels.
        measurement_size: sigmas across a patch.
        batch: number of patches or pairs that the network processes at once.
    """

    sides: int
    patch_size: int
    measurement_size: float
    batch: int

    def prepare(self, patches: NDArray[np.uint8], side: int = 0) -> Tensor:
        """Prepares (N, S, S) uint8 patches for the first (0) or the second (1) place of pairs."""

    def __call__(self, first: Tensor, second: Tensor, pairs: Tensor) -> NDArray[np.float32]:
        """Returns (M,) scores of (M, 2) pairs.

        A pair holds a row of `first` and a row of `second`, which `prepare` made for the two places.
        """


class LearnerOptions(Protocol):
    """Options of a `Learner`: a frozen dataclass whose fields are flags of `train`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def check(self) -> None:
        """Raises UsageError if a value makes no sense."""

    @property
    def steps(self) -> int:
        """Total number of steps of the learner."""


@dataclass(frozen=True)
class Learner:
    """Learns the weights of a network that is not trained by gradient descent.

    Attributes:
        options: type of its options, `LearnerOptions`. Without arguments it has the defaults.
        learn: makes the tensors of the network. Its arguments are a `hardnet_sfm.training.sampling.Sampler`, the
            options and a `hardnet_sfm.files.journal.Journal` to resume from. Keyword arguments are `patch_size`,
            `seed`, `device` and `recipe`, the fingerprint of everything that must not change when a run is resumed.
    """

    options: type[Any]
    learn: Callable[..., dict[str, Tensor]]


_RELU = nn.init.calculate_gain("relu")
# Learning rates of AdamW. Networks with batch normalisation allow steps ten times as long.
_NORMALISED, _PLAIN = 3e-3, 3e-4
_STANDARDISED = "mean 0 and standard deviation 1 of each patch"


@dataclass(frozen=True)
class Architecture:
    """A network and the facts that its users need.

    Attributes:
        name: name in options and weights files.
        title: name as its authors write it.
        make: makes the network with random weights. It takes the probability of dropout if `dropout` is not None.
        patch_size: size of its input, pixels.
        metric: how two patches are compared. "l2": by the L2 distance of their descriptors. "metric network": by a
            network on both descriptors. "pair network": by a network on both patches at once. The last two kinds need a
            `scorer`.
        dimension: length of a descriptor, or of the metric network's input from one patch. It is the largest length if
            the length is learned, and 0 for a pair network.
        loss: loss that it was published with, by its name in `hardnet_sfm.training.losses`. If it was published only as
            a part of another network, the loss that we chose for it.
        normalisation: normalisation of each patch, for messages. The network applies it to grey values from 0 to 1.
        gain: gain of the orthogonal matrices that training starts from.
        learning_rate: default learning rate of AdamW in training.
        dropout: default probability of dropout; None if the network has none.
        unit_length: whether the network itself gives descriptors of length 1. If not, they are scaled to length 1,
            which the stores, matching and retrieval need.
        reduced_precision: whether it keeps its accuracy if its layers are computed in half precision.
        normalised: whether it has batch normalisation, which `fused()` folds into its convolutions for inference.
        supervised: names of modules whose outputs L2-Net's loss also uses.
        shaped_as: makes the network with the sizes of given weights, if sizes are learned and differ between files.
        towers: modules of equal shapes, in order. Only their names tell their weights apart.
        part_of: name of another architecture that has all these layers, by the same names, and more. Weights of that
            architecture also serve this one.
        scorer: makes the scorer for pairs of patches, on a device, from the weights of a network that compares patches;
            None if distances of descriptors compare them.
        learner: learns the weights if gradient descent does not.
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
    scorer: Callable[[LoadedNetwork, str], PairScorer] | None = None
    learner: Learner | None = None

    def build(self, dropout: float | None = None, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
        """Makes the network with random weights, with the default dropout if it is None.

        Args:
            dropout: probability of dropout.
            tensors: weights whose sizes the network must have, if its sizes are learned.
        """
        if self.shaped_as is not None and tensors is not None:
            return self.shaped_as(tensors)
        return self.make() if self.dropout is None else self.make(self.dropout if dropout is None else dropout)

    def shapes(self, tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        """Returns the shapes that the tensors of a state dict must have, in its order.

        The counters of batches are left out.
        """
        with torch.device("meta"):
            expected = self.build(tensors=tensors).state_dict()
        return {name: tensor.shape for name, tensor in expected.items() if not _counts_batches(name)}

    def metadata(self) -> dict[str, str]:
        """Returns the metadata for files of its weights."""
        return {"architecture": self.name, "patch_size": str(self.patch_size), "normalisation": self.normalisation}


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights.

    Attributes:
        network: the network, ready for inference.
        architecture: its architecture.
        measurement_size: sigmas of the keypoint across the patches of its training.
        sha256: sha256 of the weights file.
        max_ratio: largest ratio of the distances to the nearest and the second nearest neighbour for matching its
            descriptors. It has no meaning for networks that compare patches.
    """

    network: nn.Module
    architecture: Architecture
    measurement_size: float
    sha256: str
    max_ratio: float = LOWES_RATIO


def layers_of_l2net(
    name: str,
    title: str,
    make: Callable[..., nn.Module],
    size: int,
    dimension: int,
    loss: str,
    towers: tuple[str, ...] = (),
    last: int = 20,
) -> Architecture:
    """Makes the architecture of a network with the kinds of layers of L2-Net, or with several towers of them.

    Its last batch normalisation is the module number `last` of `features`.
    """
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
        supervised=tuple(f"{tower}features.{number}" for tower in prefixes for number in (1, last)),
        towers=towers,
    )


ARCHITECTURES: Registry[Architecture] = Registry(
    "network",
    "networks",
    {
        "hardnet": layers_of_l2net("hardnet", "HardNet", HardNet, 32, 128, "hardnet"),
        "hardnet-fast": layers_of_l2net("hardnet-fast", "HardNet-fast", HardNetFast, 32, 128, "hardnet+sos", last=17),
    },
)
# The names of DeepCompare's two towers in its authors' files: their fovea sees the whole patch at half the resolution,
# their retina its inner half.
_AUTHORS_NAMES = {"fovea": "surround", "retina": "centre"}


def recognised(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first architecture that the weights fit; None if they fit none.

    The names of the tensors need not be those of the architecture.
    """
    exact = (name for name, of in ARCHITECTURES.items() if _shapes(tensors) == of.shapes(tensors))
    in_order = (name for name, of in ARCHITECTURES.items() if under_names_of(of, tensors) is not None)
    return next(exact, None) or next(in_order, None)


def under_names_of(architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Returns weights with the names and shapes of an architecture, or None if they do not fit.

    Tensors with other names are assigned in their order, as in files converted from Torch7 or saved from DataParallel.
    Torch7 stores convolutions as matrices, (outputs, inputs * K * K), which get the right shape. If towers have the
    same shapes, each tensor's name must state its tower: `surround.0.weight`, or `fovea.conv0.weight` as in the files
    of DeepCompare's authors. Weights of a larger network are reduced to the part that this architecture is.
    """
    expected = architecture.shapes(tensors)
    given = {name: tensor for name, tensor in tensors.items() if not _counts_batches(name)}
    if _shapes(given) == expected:
        return dict(tensors)
    if len(given) != len(expected):
        whole = under_names_of(ARCHITECTURES[architecture.part_of], tensors) if architecture.part_of else None
        return None if whole is None else part_of_whole(architecture, whole)
    towers = [*architecture.towers, None]  # tensors of no tower come last, as in all modules here
    in_order = sorted(given.items(), key=lambda item: towers.index(_tower(architecture, item[0])))
    pairs = list(zip(expected.items(), in_order, strict=True))
    for (name, shape), (theirs, tensor) in pairs:
        if tensor.numel() != shape.numel() or tensor.shape[:1] != shape[:1]:
            return None
        if _tower(architecture, name) != _tower(architecture, theirs):
            return None
    return {name: tensor.reshape(shape) for (name, shape), (_, tensor) in pairs}


def part_of_whole(architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Selects the weights of an architecture from those of the larger one that contains it; None if they do not fit."""
    if architecture.part_of is None or _shapes(tensors) != ARCHITECTURES[architecture.part_of].shapes(tensors):
        return None
    return {name: tensors[name] for name in architecture.shapes(tensors)}


def _tower(architecture: Architecture, name: str) -> str | None:
    """Returns the tower in a tensor's name; None if it belongs to none, or if the name does not tell."""
    first = name.removeprefix("module.").partition(".")[0]  # DataParallel wraps the network in a module
    first = _AUTHORS_NAMES.get(first, first)
    return first if first in architecture.towers else None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items() if not _counts_batches(name)}


def _counts_batches(name: str) -> bool:
    # The counters have no use after training, and some files leave them out.
    return name.endswith("num_batches_tracked")
