"""Weights files: safetensors with metadata. Pickled objects are never loaded."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from hardnet_sfm.errors import HardnetSfmError, file_error
from hardnet_sfm.files.photo_files import sha256_of
from hardnet_sfm.files.workspace import replacing
from hardnet_sfm.network_weights import Weights, not_finite

# PyTorch's reader raises these for truncated files and for other formats.
_DAMAGED = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(pickle.UnpicklingError, struct.error),
)
# An installed package contains the repository's folder `weights`. A checkout has the folder next to the package.
_FOLDERS = tuple(folder / "weights" for folder in Path(__file__).parents[1:3])


def shipped(name: str) -> Path | None:
    """Returns the path of weights in the package, or None if no weights have this name."""
    candidates = (folder / f"{name}.safetensors" for folder in _FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


def shipped_names() -> list[str]:
    """Lists the names of the weights in the package."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.safetensors")})


def find_weights(name: str) -> Path:
    """Returns the path of weights, given a name of weights in the package or a file.

    Raises:
        HardnetSfmError: no weights have this name, and no such file exists.
    """
    path = shipped(name) or Path(name)
    if not path.is_file():
        raise HardnetSfmError(
            f"there are no shipped weights and no file named {name}",
            f"Shipped are: {', '.join(shipped_names()) or 'none'}.",
        )
    return path


def describe_weights(extract: Mapping[str, Any]) -> dict[str, str]:
    """Names the descriptor that made the features of a store, and its weights.

    Args:
        extract: options of the extraction, from the header of the store.
    """
    found = {"descriptor": str(extract.get("descriptor", ""))}
    if sha256 := extract.get("weights_sha256"):
        name = next((name for name in shipped_names() if sha256_of(find_weights(name)) == sha256), None)
        found["weights"] = f"{name}, as shipped" if name else "your own"
        found["sha256"] = str(sha256)
    return found


def verify(path: Path) -> str:
    """Checks a weights file against the sha256 in the card next to it, NAME.md, and returns the sha256.

    Raises:
        HardnetSfmError: the card is missing, or gives no sha256 or a different one; or the file is not safetensors.
    """
    found, card = read_weights(path).sha256, path.with_suffix(".md")
    if not card.is_file():
        raise HardnetSfmError(f"{path}: no card next to it", f"The card is {card.name} and gives the file's sha256.")
    stated = re.findall(r"\b[0-9a-f]{64}\b", card.read_text(encoding="utf-8"))
    if found not in stated:
        raise HardnetSfmError(
            f"{path}: its sha256 is {found}, but its card says {', '.join(stated) or 'none'}",
            "The file was changed or damaged, or belongs to another card. Get both again.",
        )
    return found


def load_tensors(path: Path, hint: str) -> Any:
    """Reads a PyTorch checkpoint with PyTorch's reader for tensors only.

    Raises:
        HardnetSfmError: the file is damaged or contains anything but tensors; the error has the given hint.
    """
    try:
        return torch.load(path, "cpu", weights_only=True)
    except _DAMAGED as error:
        if isinstance(error, OSError):
            raise file_error(path, error, remedy=hint) from error
        # PyTorch's own text advises to load the file with the code that may be in it.
        raise HardnetSfmError(f"{path}: damaged, or a file with more than tensors", hint) from error


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
        remedy = (
            "Copy it again. Only .safetensors weights are loaded: other formats can run code that is hidden in them."
        )
        raise file_error(path, error, "a safetensors file", remedy) from error
    return Weights(path, sha256_of(path), tensors, metadata)


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, complete or not at all.

    Raises:
        HardnetSfmError: a weight is not a finite number, or the disk is full or cannot be written.
    """
    wrong = not_finite(tensors)
    if wrong:
        raise HardnetSfmError(
            f"{path}: not written, because not all numbers of {wrong[0]} are finite",
            "Try a lower --learning-rate.",
        )
    with replacing(path) as beside:
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        # save_file would make files that no other user can read.
        beside.write_bytes(save(copies, dict(metadata)))
