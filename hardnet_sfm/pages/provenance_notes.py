"""What a page says about the weights that were used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def weights_facts(extract: Mapping[str, Any]) -> dict[str, str]:
    """The descriptor that features were made with, and which weights it had.

    Args:
        extract: options that a store of features keeps.
    """
    found = {"descriptor": str(extract.get("descriptor", ""))}
    if sha256 := extract.get("weights_sha256"):
        from hardnet_sfm.files.photo_files import sha256_of
        from hardnet_sfm.files.weight_files import find_weights, shipped_names

        name = next((name for name in shipped_names() if sha256_of(find_weights(name)) == sha256), None)
        found["weights"] = f"{name}, as shipped" if name else "your own"
        found["sha256"] = str(sha256)
    return found
