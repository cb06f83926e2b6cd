"""Weights of a network together with what their file says about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.keypoints import LOWES_RATIO


@dataclass(frozen=True)
class Weights:
    """The tensors of one network and the metadata of their file.

    Attributes:
        path: path of the file.
        sha256: sha256 of the file.
        tensors: tensors by the module's parameter names.
        metadata: architecture, patch_size, measurement_size (sigmas across the patch) and other noted facts.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of the tensors with a value that is infinite or not a number."""
    return [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]


def recommended_ratio(weights: Weights) -> float:
    """Returns the largest ratio of the ratio test that a file recommends for its descriptors, or 0.8 by default.

    Raises:
        HardnetSfmError: the ratio is not a number above 0 and at most 1.
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
