"""The registry of networks: what `--descriptor`, `train --network`, `match --rescore` and weights files call them.

Another package adds a network by an entry point in the group `hardnet_sfm.networks`, whose object is an `Architecture`.
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
from hardnet_sfm.networks.hardnet import HardNet
from hardnet_sfm.registry import Registry

Metric = Literal["l2", "metric network", "pair network"]


class PairScorer(Protocol):
    """Scores pairs of patches, each of which is prepared once for all its pairs. Threads may share it.

    Attributes:
        sides: 2 where the first and the second patch of a pair are prepared differently, else 1.
        patch_size: S, pixels.
        measurement_size: sigmas across a patch.
        batch: number of patches or pairs that the network sees at once.
    """

    sides: int
    patch_size: int
    measurement_size: float
    batch: int

    def prepare(self, patches: NDArray[np.uint8], side: int = 0) -> Tensor:
        """(N, S, S) uint8 patches to what is kept of them, for the first (0) or the second (1) place of pairs."""

    def __call__(self, first: Tensor, second: Tensor, pairs: Tensor) -> NDArray[np.float32]:
        """(M,) scores of (M, 2) pairs of rows of what `prepare` made for the first and for the second place."""


class LearnerOptions(Protocol):
    """Options of a `Learner`: a frozen dataclass, whose fields are flags of `train`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def check(self) -> None:
        """Raises UsageError where a value makes no sense."""

    @property
    def steps(self) -> int:
        """Of the learner, all together."""


@dataclass(frozen=True)
class Learner:
    """How the weights of a network are learned that is not trained by gradient descent.

    Attributes:
        options: the type of its options, `LearnerOptions`; without arguments it has the defaults.
        learn: makes the tensors of the network. It is given a `hardnet_sfm.training.sampling.Sampler`, its options and
            a `hardnet_sfm.files.journal.Journal` to resume from; then by name `patch_size`, `seed`, `device` and
            `recipe`, the fingerprint of all that a run must not change when it is resumed.
    """

    options: type[Any]
    learn: Callable[..., dict[str, Tensor]]


_RELU = nn.init.calculate_gain("relu")
# Learning rates of AdamW: behind batch normalisation steps may be ten times as long.
_NORMALISED, _PLAIN = 3e-3, 3e-4
_STANDARDISED = "mean 0 and standard deviation 1 of each patch"


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
            Networks of the last two kinds need a `scorer`.
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
        scorer: makes what scores pairs of patches, on a device, from weights of a network that compares patches; None
            where distances of descriptors do.
        learner: learns the weights where that is not done by gradient descent.
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


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights.

    Attributes:
        network: ready for inference.
        architecture: what it is.
        measurement_size: sigmas of the keypoint across the patches that it was trained with.
        sha256: of the weights file.
        max_ratio: largest ratio of the distances to the nearest and the second nearest neighbour with which its
            descriptors are matched; meaningless for networks that compare patches.
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


ARCHITECTURES: Registry[Architecture] = Registry(
    "network", "networks", {"hardnet": layers_of_l2net("hardnet", "HardNet", HardNet, 32, 128, "hardnet")}
)
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
