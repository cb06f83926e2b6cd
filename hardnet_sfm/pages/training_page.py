"""The page about a training run: its curves, the metadata of the weights, and the hardest patches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Float32
from hardnet_sfm.errors import HardnetSfmError, file_error
from hardnet_sfm.files.hdf5_files import open_hdf5
from hardnet_sfm.pages.page import picture, write_page
from hardnet_sfm.versions import versions

_MOST_STEPS = 600  # most steps in a curve
_POINTS = 1024
_SHOWN = 12  # hardest pairs to show of either kind
# Two points closer than this may look the same, so they are no negatives. The first distance is a share of the model's
# extent, the second is in pixels of one photo. Both are defaults of `train`.
_NEAR, _NEAR_PIXELS = 0.002, 4.0
_CURVES = ("loss", "fpr95", "map", "learning rate")


def training_page(weights: Path, target: Path, patches: Path | None = None) -> None:
    """Writes the page about a training run, finished or not.

    Args:
        weights: the .safetensors file that `train` has written or is writing. Its curves are in NAME.training next to
            it.
        target: the .html file to write.
        patches: a patches.h5 in which to find the hardest positives and negatives, preferably of held-out scenes.

    Raises:
        HardnetSfmError: there are neither weights nor curves, the patches are damaged, or the page cannot be written.
    """
    curves = weights.with_name(f"{weights.stem}.training") / "curves"
    if not weights.is_file() and not curves.is_dir():
        raise HardnetSfmError(
            f"neither {weights} nor {curves} exists", "Give the .safetensors file that `train` makes."
        )
    metadata, notes = _metadata(weights)
    data: dict[str, Any] = {
        "name": weights.name,
        "metadata": metadata,
        "curves": read_curves(curves) if curves.is_dir() else {},
        "versions": versions(),
        "notes": notes,
        "hardest": None,
    }
    if not curves.is_dir():
        notes.append(f"No learning curves: there is no {curves}.")
    if weights.is_file() and patches is not None:
        data["hardest"] = _drawn(hardest(weights, patches))
    elif weights.is_file():
        notes.append("Hardest positives and negatives are shown where patches are given: --patches held-out.h5.")
    write_page(target, f"{weights.stem}: training", "training", data)


def _metadata(weights: Path) -> tuple[dict[str, Any], list[str]]:
    """Reads the metadata of the weights and decodes the JSON in it. Returns the metadata and notes for the reader."""
    if not weights.is_file():
        return {}, ["The training has not ended: there are no weights yet."]
    from hardnet_sfm.files.weight_files import read_weights

    loaded = read_weights(weights)
    decoded: dict[str, Any] = {**loaded.metadata, "sha256": loaded.sha256}
    for name in ("options", "measures", "data"):
        try:
            decoded[name] = json.loads(loaded.metadata.get(name, "null"))
        except ValueError:
            continue  # another program wrote the entry with another meaning
    return decoded, []


def read_curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Reads steps and values of the curves logged for TensorBoard, by name. Long curves are thinned evenly.

    Raises:
        HardnetSfmError: tensorboard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise HardnetSfmError(
            f"learning curves need another package: {error}", "Install it: pip install hardnet-sfm[train]"
        ) from error
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[str, dict[str, list[float]]] = {}
    for name in _CURVES:
        if name in events.Tags()["scalars"]:
            logged = [one for one in events.Scalars(name) if np.isfinite(one.value)]
            rows = np.unique(np.linspace(0, len(logged) - 1, min(_MOST_STEPS, len(logged))).round().astype(int))
            found[name] = {
                "step": [int(logged[row].step) + 1 for row in rows],
                "value": [float(f"{logged[row].value:.6g}") for row in rows],
            }
    return found


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


def hardest(weights: Path, patches: Path) -> Hardest:
    """Finds the hardest pairs among 1024 points that are evenly spread over a file.

    Each point gives the patches of its first and its last photo. A patch is in at most one negative pair.

    Raises:
        HardnetSfmError: a file is missing or damaged, the network gives no descriptors, or no point has two photos.
    """
    pairs, near = _read_pairs(patches)
    described = _described(weights, pairs)
    count = len(pairs)
    apart = np.linalg.norm(described[:, 0] - described[:, 1], axis=1)
    order = np.argsort(-apart, kind="stable")[:_SHOWN]
    # Distances of each anchor to the positives of all other points.
    between = np.sqrt((2 - 2 * described[:, 0] @ described[:, 1].T).clip(min=0))
    between[near | np.eye(count, dtype=bool)] = np.inf
    chosen: list[tuple[int, int]] = []
    used: set[tuple[str, int]] = set()
    for flat in np.argsort(between, axis=None, kind="stable"):
        anchor, other = divmod(int(flat), count)
        if len(chosen) == _SHOWN or not np.isfinite(between[anchor, other]):
            break
        if ("anchor", anchor) not in used and ("positive", other) not in used:
            used |= {("anchor", anchor), ("positive", other)}
            chosen.append((anchor, other))
    return Hardest(
        count,
        pairs[order],
        apart[order],
        np.array([(pairs[a, 0], pairs[b, 1]) for a, b in chosen], np.uint8).reshape(-1, 2, *pairs.shape[2:]),
        np.array([between[a, b] for a, b in chosen], np.float32),
    )


def _read_pairs(patches: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Reads (P, 2, 64, 64) patches of points in two photos, and (P, P) bool: whether two points are too close."""
    again = "Make it again with `hardnet-sfm mine` or `warp`."
    if not patches.is_file():
        raise HardnetSfmError(f"no patches at {patches}", "Run `hardnet-sfm mine` first.")
    try:
        with open_hdf5(patches, again) as file:
            point, image = file["point"][()], file["image"][()]
            first = np.searchsorted(point, np.unique(point))
            last = np.append(first[1:], len(point)) - 1
            usable = np.flatnonzero(image[first] != image[last])
            chosen = usable[np.linspace(0, len(usable) - 1, min(_POINTS, len(usable))).round().astype(int)]
            rows = np.stack([first[chosen], last[chosen]], 1)
            pairs = np.stack([[file["patches"][row] for row in pair] for pair in rows.tolist()])
            xyz, xy = file["xyz"][()][point[rows[:, 0]]], file["frame"][()][rows][:, :, :, 2]
            extent = float(file.attrs["extent"])
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise file_error(patches, error, "a file of patches of points in two photos", again) from error
    # Unknown positions (NaN) count as not close.
    near = np.linalg.norm(xyz[:, None] - xyz[None], axis=2) < _NEAR * extent
    one_photo = image[rows[:, 0]][:, None] == image[rows[:, 1]][None]
    near |= one_photo & (np.linalg.norm(xy[:, None, 0] - xy[None, :, 1], axis=2) < _NEAR_PIXELS)
    return pairs, np.asarray(near, np.bool_)


def _described(weights: Path, pairs: NDArray[np.uint8]) -> Float32:
    """Computes (P, 2, D) descriptors of unit length."""
    import torch

    from hardnet_sfm.networks.loading import load_network

    loaded = load_network(weights)
    if loaded.architecture.metric != "l2":
        raise HardnetSfmError(
            f"{weights}: {loaded.architecture.title} has no descriptors, so there are no distances to show",
            "Leave out --patches.",
        )
    inputs = torch.from_numpy(pairs).reshape(-1, 1, *pairs.shape[2:]).float() / 255
    inputs = torch.nn.functional.avg_pool2d(inputs, pairs.shape[-1] // loaded.architecture.patch_size)
    with torch.inference_mode():
        rows = torch.cat([loaded.network(block) for block in torch.split(inputs, 256)])
    described = torch.nn.functional.normalize(rows, dim=1).numpy()
    return np.asarray(described.reshape(len(pairs), 2, -1), np.float32)


def _drawn(found: Hardest) -> dict[str, Any]:
    def pictures(pairs: NDArray[np.uint8], distances: Float32) -> list[dict[str, Any]]:
        return [
            {"picture": _side_by_side(pair), "distance": round(float(distance), 3)}
            for pair, distance in zip(pairs, distances, strict=True)
        ]

    return {
        "points": found.points,
        "positives": pictures(found.positives, found.positive_distances),
        "negatives": pictures(found.negatives, found.negative_distances),
    }


def _side_by_side(pair: NDArray[np.uint8]) -> str:
    _, encoded = cv2.imencode(".png", np.concatenate(list(pair), 1))
    return picture(encoded.tobytes(), "png")
