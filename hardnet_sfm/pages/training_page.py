"""The page about a training run: its curves, the metadata of the weights, and the hardest patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.pages.page import embed_picture, make_page
from hardnet_sfm.versions import versions

if TYPE_CHECKING:  # torch takes a second to import; `--help` does without
    from hardnet_sfm.networks.architectures import LoadedNetwork

_SHOWN = 12  # hardest pairs to show of either kind


@dataclass(frozen=True, eq=False)
class TrainingFacts:
    """What is known about a training run.

    Attributes:
        name: name of the weights file.
        metadata: metadata of the weights, decoded.
        curves: steps and values of each curve, by name.
        hardest: the hardest patch pairs of the network; None to leave them out.
        notes: remarks for the reader.
    """

    name: str
    metadata: Mapping[str, Any]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    hardest: Hardest | None
    notes: Sequence[str]


def make_training_page(facts: TrainingFacts) -> str:
    """Makes the HTML about a training run, finished or not."""
    data = {
        "name": facts.name,
        "metadata": facts.metadata,
        "curves": facts.curves,
        "versions": versions(),
        "notes": facts.notes,
        "hardest": facts.hardest and _embed_hardest(facts.hardest),
    }
    return make_page(f"{PurePath(facts.name).stem}: training", "training", data)


@dataclass(frozen=True, eq=False)
class PatchPairs:
    """Pairs of patches of the same point, in two photos.

    Attributes:
        patches: (P, 2, S, S) uint8.
        near: (P, P) bool: whether two points are too close to be negatives of each other.
    """

    patches: NDArray[np.uint8]
    near: NDArray[np.bool_]


@dataclass(frozen=True)
class Hardest:
    """The hardest patch pairs for a network.

    Attributes:
        points: number of points that were compared, with a patch pair each.
        positives: (K, 2, 64, 64) uint8 pairs of the same point, the largest distance first.
        positive_distances: (K,) distances of the descriptors of these pairs.
        negatives: (L, 2, 64, 64) uint8 pairs of different points, the smallest distance first.
        negative_distances: (L,) distances of the descriptors of these pairs.
    """

    points: int
    positives: NDArray[np.uint8]
    positive_distances: Float32
    negatives: NDArray[np.uint8]
    negative_distances: Float32


def find_hardest(network: LoadedNetwork, pairs: PatchPairs) -> Hardest:
    """Finds the hardest pairs for a network. A patch is in at most one negative pair."""
    described = _describe_pairs(network, pairs.patches)
    count = len(described)
    apart = np.linalg.norm(described[:, 0] - described[:, 1], axis=1)
    order = np.argsort(-apart, kind="stable")[:_SHOWN]
    # Distances of each anchor to the positives of all other points.
    between = np.sqrt((2 - 2 * described[:, 0] @ described[:, 1].T).clip(min=0))
    between[pairs.near | np.eye(count, dtype=bool)] = np.inf
    chosen: list[tuple[int, int]] = []
    used: set[tuple[str, int]] = set()
    for flat in np.argsort(between, axis=None, kind="stable"):
        anchor, other = divmod(int(flat), count)
        if len(chosen) == _SHOWN or not np.isfinite(between[anchor, other]):
            break
        if ("anchor", anchor) not in used and ("positive", other) not in used:
            used |= {("anchor", anchor), ("positive", other)}
            chosen.append((anchor, other))
    size = pairs.patches.shape[2:]
    return Hardest(
        count,
        pairs.patches[order],
        apart[order],
        np.array([(pairs.patches[a, 0], pairs.patches[b, 1]) for a, b in chosen], np.uint8).reshape(-1, 2, *size),
        np.array([between[a, b] for a, b in chosen], np.float32),
    )


def _describe_pairs(loaded: LoadedNetwork, pairs: NDArray[np.uint8]) -> Float32:
    """Computes (P, 2, D) descriptors of unit length."""
    import torch

    inputs = torch.from_numpy(pairs).reshape(-1, 1, *pairs.shape[2:]).float() / 255
    inputs = torch.nn.functional.avg_pool2d(inputs, pairs.shape[-1] // loaded.architecture.patch_size)
    with torch.inference_mode():
        rows = torch.cat([loaded.network(block) for block in torch.split(inputs, 256)])
    described = torch.nn.functional.normalize(rows, dim=1).numpy()
    return np.asarray(described.reshape(len(pairs), 2, -1), np.float32)


def _embed_hardest(found: Hardest) -> dict[str, Any]:
    def embed(pairs: NDArray[np.uint8], distances: Float32) -> list[dict[str, Any]]:
        return [
            {"picture": _embed_pair(pair), "distance": round(float(distance), 3)}
            for pair, distance in zip(pairs, distances, strict=True)
        ]

    return {
        "points": found.points,
        "positives": embed(found.positives, found.positive_distances),
        "negatives": embed(found.negatives, found.negative_distances),
    }


def _embed_pair(pair: NDArray[np.uint8]) -> str:
    _, encoded = cv2.imencode(".png", np.concatenate(list(pair), 1))
    return embed_picture(encoded.tobytes(), "png")
