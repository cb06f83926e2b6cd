"""Weights files: safetensors with metadata. No pickle is ever loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.images import sha256_of
from hardnet_sfm.workspace import replacing

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


def shipped(name: str) -> Path | None:
    """The path of weights that come with the package, or None where there are none of that name."""
    candidates = (folder / f"{name}.safetensors" for folder in _FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


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
        HardnetSfmError: the disk is full or cannot be written.
    """
    try:
        with replacing(path) as beside:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, beside, dict(metadata))
    except (safetensors.SafetensorError, OSError) as error:
        raise HardnetSfmError(f"cannot write {path}: {error}", "Make room on the disk.") from error


def load_into(network: nn.Module, weights: Weights, architecture: str) -> None:
    """Puts weights into a network, every tensor or none.

    Raises:
        HardnetSfmError: they are for another architecture, or tensors are missing, unknown or of another shape.
    """
    named = weights.metadata.get("architecture", architecture)
    expected = network.state_dict()
    # Counters of batches seen matter to nobody after training, and some files leave them out.
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(weights.tensors) - counters)
    unknown = sorted(set(weights.tensors) - set(expected))
    both = expected.keys() & weights.tensors.keys()
    reshaped = [name for name in both if expected[name].shape != weights.tensors[name].shape]
    if named != architecture or missing or unknown or reshaped:
        problems = (("missing", missing), ("unknown", unknown), ("of another shape", sorted(reshaped)))
        details = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in problems if names)
        raise HardnetSfmError(
            f"{weights.path}: weights of {named if named != architecture else 'another network'}, not of {architecture}"
            + (f" ({details})" if details else ""),
            "Choose the --descriptor that these weights belong to.",
        )
    network.load_state_dict(weights.tensors, strict=False)
