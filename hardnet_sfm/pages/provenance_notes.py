"""Describes the weights that were used, for a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def weights_facts(extract: Mapping[str, Any]) -> dict[str, str]:
    """Names the descriptor that made the features, and its weights.

    Args:
        extract: options of the extraction, from a store of features.
    """
    found = {"descriptor": str(extract.get("descriptor", ""))}
    if sha256 := extract.get("weights_sha256"):
        from hardnet_sfm.files.photo_files import sha256_of
        from hardnet_sfm.files.weight_files import find_weights, shipped_names

        name = next((name for name in shipped_names() if sha256_of(find_weights(name)) == sha256), None)
        found["weights"] = f"{name}, as shipped" if name else "your own"
        found["sha256"] = str(sha256)
    return found
