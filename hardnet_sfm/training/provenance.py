"""Records the origin of weights in the metadata of their file."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from hardnet_sfm.keypoints import LOWES_RATIO
from hardnet_sfm.patch_set import PatchSet
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.versions import find_commit, name_program

if TYPE_CHECKING:  # torch takes seconds to import
    from hardnet_sfm.network_weights import Weights


def record_origin(
    sets: Sequence[PatchSet],
    options: TrainOptions,
    fingerprint: str,
    start: Weights | None = None,
    teacher: Weights | None = None,
) -> dict[str, str]:
    """Collects the metadata of a weights file about its origin, and the origin of its initial weights and its teacher.

    Args:
        sets: patch sets that are trained on.
        options: complete options.
        fingerprint: fingerprint of the run.
        start: initial weights, or None.
        teacher: weights of the network to imitate, or None.
    """
    from hardnet_sfm.network_weights import recommended_ratio
    from hardnet_sfm.networks.architectures import ARCHITECTURES

    architecture = ARCHITECTURES.find(options.network)
    facts = {
        **architecture.metadata(),
        "measurement_size": str(sets[0].measurement_size),
        "licence": options.licence,
        "data": json.dumps([f"{patch_set.source} {PurePath(patch_set.origin).name}" for patch_set in sets]),
        "command": shlex.join([name_program(), *sys.argv[1:]]).encode("utf-8", "backslashreplace").decode(),
        "commit": find_commit(),
        "seed": str(options.seed),
        "fingerprint": fingerprint,
        "options": json.dumps(asdict(options), default=str),
    }
    if architecture.metric == "l2":
        ratios = [recommended_ratio(weights) for weights in (teacher, start) if weights is not None]
        facts["max_ratio"] = str(next(iter(ratios), LOWES_RATIO))
    for name, weights in (("init", start), ("teacher", teacher)):
        if weights is not None:
            facts[name] = json.dumps({"file": weights.path.name, "sha256": weights.sha256, **_history(weights)})
    return {name: value for name, value in facts.items() if value}


def _history(weights: Weights) -> dict[str, Any]:
    """Reads the origin of weights from their metadata.

    JSON values are unpacked. Otherwise each generation of weights would escape the quotes of the previous one again.
    """
    found: dict[str, Any] = {}
    for name in ("data", "source", "init", "teacher"):
        if name in weights.metadata:
            try:
                found[name] = json.loads(weights.metadata[name])
            except ValueError:
                found[name] = weights.metadata[name]
    return found
