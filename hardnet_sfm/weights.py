"""Weights files: safetensors with metadata. No pickle is ever loaded."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.images import sha256_of
from hardnet_sfm.keypoints import LOWES_RATIO
from hardnet_sfm.networks.architectures import (
    ARCHITECTURES,
    Architecture,
    part_of_whole,
    recognised,
    under_names_of,
)
from hardnet_sfm.workspace import replacing

_CUSTOMARY_SIZE = 12.0  # sigmas across a patch, since Brown's data set
# What PyTorch's reader raises of files that are cut off or something else.
_DAMAGED = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(pickle.UnpicklingError, struct.error),
)
# An installed package carries the folder `weights` of the repository inside it; a checkout has it beside the package.
_FOLDERS = (Path(__file__).parent / "weights", Path(__file__).parent.parent / "weights")


@dataclass(frozen=True)
class Weights:
    """Tensors of one network and what their file says about them.

    Attributes:
        path: of the file.
        sha256: of the file.
        tensors: by the module's parameter names.
        metadata: architecture, patch_size, measurement_size (sigmas across the patch) and whatever else was noted.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


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


def shipped(name: str) -> Path | None:
    """The path of weights that come with the package, or None where there are none of that name."""
    candidates = (folder / f"{name}.safetensors" for folder in _FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


def shipped_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.safetensors")})


def find_weights(name: str) -> Path:
    """The path of weights given by a shipped name or as a file.

    Raises:
        HardnetSfmError: there are none.
    """
    path = shipped(name) or Path(name)
    if not path.is_file():
        raise HardnetSfmError(
            f"no weights of the name {name}, and no such file", f"Shipped are: {', '.join(shipped_names()) or 'none'}."
        )
    return path


def verify(path: Path) -> str:
    """The sha256 of a weights file, which is that in the card beside it, NAME.md.

    Raises:
        HardnetSfmError: there is no card, it gives no sha256, or another; or the file is not safetensors.
    """
    found, card = read_weights(path).sha256, path.with_suffix(".md")
    if not card.is_file():
        raise HardnetSfmError(f"{path}: no card beside it", f"It would be {card.name} and give the file's sha256.")
    stated = re.findall(r"\b[0-9a-f]{64}\b", card.read_text(encoding="utf-8"))
    if found not in stated:
        raise HardnetSfmError(
            f"{path}: its sha256 is {found}, its card says {', '.join(stated) or 'none'}",
            "The file was changed or damaged, or belongs to another card. Get both again.",
        )
    return found


def load_tensors(path: Path, hint: str) -> Any:
    """What a PyTorch checkpoint holds, read by PyTorch's reader for tensors only.

    Raises:
        HardnetSfmError: with the given hint, where the file is damaged or has anything else in it.
    """
    try:
        return torch.load(path, "cpu", weights_only=True)
    except _DAMAGED as error:
        raise HardnetSfmError(f"{path}: damaged, or not a file of tensors alone", hint) from error


def convert(
    source: Path, target: Path | None = None, architecture: str | None = None, measurement_size: float | None = None
) -> Path:
    """Writes the state dict of a PyTorch checkpoint as a safetensors file.

    The checkpoint is read by PyTorch's reader for tensors only, which runs no code that is in the file. Tensors get the
    names that the network has for them here, see `hardnet_sfm.networks.architectures.under_names_of`.

    Args:
        source: .pth file with a state dict, bare or under "state_dict" as the authors of HardNet have it.
        target: .safetensors file to make; by default beside the source, where nothing of that name is there yet.
        architecture: what the weights are of, or what is to be taken of them, as the towers of "deepcompare-siam" for
            "deepcompare-siam-l2". Where None, they are recognised by their names and shapes.
        measurement_size: sigmas of the keypoint across the patches they were trained with; 12 by default.

    Returns:
        The file that was made.

    Raises:
        HardnetSfmError: the file is missing, damaged, holds something else, or the disk is full.
        UsageError: there is no such architecture or size, the source is a safetensors file or the target, or no target
            is given and there is a file of its name.
    """
    if not source.is_file():
        raise HardnetSfmError(f"no such file: {source}", "Give the path of a PyTorch checkpoint.")
    if source.suffix == ".safetensors":
        raise UsageError(f"{source}: safetensors already, not a PyTorch checkpoint", "Give a .pth file.")
    size = _CUSTOMARY_SIZE if measurement_size is None else measurement_size
    if not 0 < size < float("inf"):
        raise UsageError(f"--measurement-size must be above 0 and finite: {size}")
    if target is None:
        target = source.with_suffix(".safetensors")
        if target.exists():
            raise UsageError(f"{target} is there already", "Give --output to say which file to write.")
    if target.resolve() == source.resolve():
        raise UsageError(f"{source} would be written over by what is made of it", "Give another name for --output.")
    loaded = load_tensors(source, "Other content could run code, so it is not read.")
    tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    named_tensors = isinstance(tensors, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    )
    if not named_tensors or not tensors:
        raise HardnetSfmError(f"{source}: no state dict in it", "A state dict maps names of parameters to tensors.")
    name = architecture or recognised(tensors)
    if name is None:
        raise HardnetSfmError(
            f"{source}: weights of no network that is known here",
            f"Known are: {_known()}. Where a network has two towers, tensors have to be named after them.",
        )
    of = find_architecture(name)
    named = under_names_of(of, tensors)
    if named is None:
        hint = f"Name them after their towers, {' and '.join(of.towers)}." if of.towers else ""
        raise HardnetSfmError(
            f"{source}: not weights of {of.title}", f"Leave out --architecture to have it found. {hint}".strip()
        )
    write_weights(target, named, {**of.metadata(), "measurement_size": str(size), "source": source.name})
    return target


def find_architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"unknown network: {name}", f"There are: {_known()}.")
    return ARCHITECTURES[name]


def _known() -> str:
    return ", ".join(ARCHITECTURES)


def read_weights(path: Path) -> Weights:
    """Reads a safetensors file.

    Raises:
        HardnetSfmError: the file is missing, damaged or of another format.
    """
    if not path.is_file():
        raise HardnetSfmError(f"no weights file at {path}", "Weights are files that end in .safetensors.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise HardnetSfmError(
            f"{path}: damaged, or not a safetensors file ({error})",
            "Only .safetensors weights are loaded: other formats can run code that is hidden in them.",
        ) from error
    return Weights(path, sha256_of(path), tensors, metadata)


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, complete or not at all.

    Raises:
        HardnetSfmError: a weight is not a finite number, or the disk is full or cannot be written.
    """
    wrong = not_finite(tensors)
    if wrong:
        raise HardnetSfmError(
            f"{path}: not written, as not all of {wrong[0]} are finite numbers",
            "Where they were trained here, try a lower --learning-rate; else their file is damaged.",
        )
    try:
        with replacing(path) as beside:
            copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
            # Not save_file, whose files nobody else may read.
            beside.write_bytes(save(copies, dict(metadata)))
    except (safetensors.SafetensorError, OSError) as error:
        raise HardnetSfmError(f"cannot write {path}: {error}", "Make room on the disk.") from error


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of those that hold an infinity or something that is not a number."""
    return [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]


def architecture_of(weights: Weights) -> str:
    """What a file says it is of, else what its tensors are recognised as.

    Raises:
        HardnetSfmError: neither gives the name of an architecture here.
    """
    name = weights.metadata.get("architecture") or recognised(weights.tensors)
    if name not in ARCHITECTURES:
        what = f"weights of {name}, no network" if name else "weights of no network"
        raise HardnetSfmError(f"{weights.path}: {what} that is known here", f"Known are: {_known()}.")
    return name


def load_network(path: Path, name: str | None = None) -> LoadedNetwork:
    """Reads a network from a weights file.

    Args:
        path: .safetensors file.
        name: of the architecture that it has to be of, or that is part of what it is of, as "deepcompare-siam-l2" is
            of "deepcompare-siam"; any where None.

    Raises:
        HardnetSfmError: the file is missing or damaged, its weights are of another or of no known architecture, or its
            metadata make no sense.
    """
    weights = read_weights(path)
    architecture = find_architecture(name or architecture_of(weights))
    network = architecture.build(tensors=weights.tensors)
    load_into(network, weights, architecture.name)
    try:
        measurement_size = float(weights.metadata.get("measurement_size", _CUSTOMARY_SIZE))
        if not 0 < measurement_size < float("inf"):
            raise ValueError(f"not a positive number: {measurement_size}")
    except ValueError as error:
        raise HardnetSfmError(
            f"{path}: metadata measurement_size: {error}",
            "Say when saving the weights how many sigmas their patches are across.",
        ) from error
    return LoadedNetwork(network.eval(), architecture, measurement_size, weights.sha256, recommended_ratio(weights))


def recommended_ratio(weights: Weights) -> float:
    """The largest ratio of the ratio test that a file recommends for its descriptors; 0.8 if it recommends none.

    Raises:
        HardnetSfmError: it is not a number above 0 and at most 1.
    """
    try:
        ratio = float(weights.metadata.get("max_ratio", LOWES_RATIO))
        if not 0 < ratio <= 1:
            raise ValueError(f"not above 0 and at most 1: {ratio}")
    except ValueError as error:
        raise HardnetSfmError(
            f"{weights.path}: metadata max_ratio: {error}",
            "Save the weights again with a ratio such as 0.9, or without this entry.",
        ) from error
    return ratio


def load_into(network: nn.Module, weights: Weights, architecture: str) -> None:
    """Puts weights into a network, every tensor or none; of a network that it is part of, the part.

    Raises:
        HardnetSfmError: they are for another architecture, tensors are missing, unknown or of another shape, or not all
            numbers in them are finite.
    """
    wrong = not_finite(weights.tensors)
    if wrong:
        raise HardnetSfmError(
            f"{weights.path}: not all of {wrong[0]} are finite numbers", "Its training failed, or the file is damaged."
        )
    of, tensors = ARCHITECTURES[architecture], weights.tensors
    named = weights.metadata.get("architecture", architecture)
    if weights.metadata.get("architecture", of.part_of) == of.part_of:
        part = part_of_whole(of, tensors)
        named, tensors = (named, tensors) if part is None else (architecture, part)
    expected = network.state_dict()
    # Counters of batches seen matter to nobody after training, and some files leave them out.
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(tensors) - counters)
    unknown = sorted(set(tensors) - set(expected))
    both = expected.keys() & tensors.keys()
    reshaped = [name for name in both if expected[name].shape != tensors[name].shape]
    if named != architecture or missing or unknown or reshaped:
        problems = (("missing", missing), ("unknown", unknown), ("of another shape", sorted(reshaped)))
        details = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in problems if names)
        raise HardnetSfmError(
            f"{weights.path}: weights of {named if named != architecture else 'another network'}, not of {architecture}"
            + (f" ({details})" if details else ""),
            "Choose the --descriptor or --network that these weights belong to.",
        )
    network.load_state_dict(tensors, strict=False)
