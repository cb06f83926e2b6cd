"""Records the origin of weights in the metadata of their file."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardnet_sfm.keypoints import LOWES_RATIO
from hardnet_sfm.patch_set import PatchSet
from hardnet_sfm.training.train_options import TrainOptions

if TYPE_CHECKING:  # torch takes seconds to import
    from hardnet_sfm.network_weights import Weights


def about(
    sets: Sequence[PatchSet], options: TrainOptions, fingerprint: str, start: Weights | None = None
) -> dict[str, str]:
    """Collects the metadata of a weights file about its origin, including the origin of its initial weights."""
    from hardnet_sfm.network_weights import recommended_ratio
    from hardnet_sfm.networks.architectures import ARCHITECTURES

    architecture = ARCHITECTURES.find(options.network)
    facts = {
        **architecture.metadata(),
        "measurement_size": str(sets[0].measurement_size),
        "licence": options.licence,
        "data": json.dumps([f"{patch_set.source} {patch_set.path.name}" for patch_set in sets]),
        "command": shlex.join([_program(), *sys.argv[1:]]).encode("utf-8", "backslashreplace").decode(),
        "commit": _commit(),
        "seed": str(options.seed),
        "fingerprint": fingerprint,
        "options": json.dumps(asdict(options), default=str),
    }
    if architecture.metric == "l2":
        facts["max_ratio"] = str(LOWES_RATIO if start is None else recommended_ratio(start))
    if start is not None:
        facts["init"] = json.dumps({"file": start.path.name, "sha256": start.sha256, **_history(start)})
    return {name: value for name, value in facts.items() if value}


def _history(weights: Weights) -> dict[str, Any]:
    """Reads the origin of weights from their metadata.

    JSON values are unpacked. Otherwise each generation of weights would escape the quotes of the previous one again.
    """
    found: dict[str, Any] = {}
    for name in ("data", "source", "init"):
        if name in weights.metadata:
            try:
                found[name] = json.loads(weights.metadata[name])
            except ValueError:
                found[name] = weights.metadata[name]
    return found


def _program() -> str:
    """Returns the name of the running program without its folder."""
    name = Path(sys.argv[0]).name
    return "hardnet-sfm" if name == "__main__.py" else name


def _commit() -> str:
    """Returns the commit of the package and whether it has local changes; empty if it does not run from a clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""  # without git the commit cannot be determined
    return described.stdout.strip()
