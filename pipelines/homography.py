"""Descriptors beside each other on photos that are related by homographies.

    python pipelines/homography.py FOLDER [--weights a.safetensors b.safetensors]

FOLDER is one sequence, or a folder of sequences, as Mikolajczyk et al. (IJCV 2005) or HPatches (CVPR 2017) laid theirs
out. All descriptors get the same keypoints, COLMAP's difference of Gaussians on photos of full size, and the same
matcher, mutual nearest neighbours. COLMAP's RootSIFT, ours and the weights that come with the program always take part.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hardnet_sfm.colmap.baseline import ColmapSift, SiftFeatures
from hardnet_sfm.commands.common import errors_said
from hardnet_sfm.errors import UsageError
from hardnet_sfm.evaluation.homographies import (
    PHOTOS,
    TOLERANCE,
    HomographySequence,
    MatchingScores,
    PairTruth,
    RankedMatches,
    homography_scores,
    pair_truth,
    read_sequences,
)
from hardnet_sfm.features.descriptors import Descriptor, PatchDescriber, make_descriptor
from hardnet_sfm.images import read_photo
from hardnet_sfm.matching.nearest import (
    Acceptance,
    PreparedDescriptors,
    mutual_nearest_neighbours,
    prepare,
    rounding_for,
)
from hardnet_sfm.networks.device import resolve_device
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.progress import progress
from hardnet_sfm.resources import Resources
from hardnet_sfm.weights import architecture_of, read_weights
from hardnet_sfm.workers import torch_threads

COLMAP = "colmap rootsift"
SHIPPED = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Options:
    """Descriptors beside each other on photos that are related by homographies."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A sequence or a folder of sequences: six photos and five homographies each."""
    weights: tuple[Path, ...] = ()
    """More weights to compare, of any network that describes patches, .safetensors."""
    max_features: int = 4000
    """COLMAP's limit on keypoints a photo, each of which may give a row for each of two orientations."""
    csv: Path | None = None
    """Write the figures here, too."""
    resources: Resources = field(default_factory=Resources)


class Photo(NamedTuple):
    """A photo and what COLMAP's SIFT finds in it."""

    grey: NDArray[np.uint8]
    features: SiftFeatures


def learned(path: Path) -> Descriptor:
    """The descriptor that a weights file belongs to."""
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: not a .safetensors file", f"Convert it first: hardnet-sfm weights convert {path}")
    return make_descriptor(architecture_of(read_weights(path)), path)


def competitors(given: tuple[Path, ...]) -> dict[str, Descriptor]:
    """RootSIFT, the shipped weights and the given ones, by the names of the files."""
    found = {"rootsift": make_descriptor("rootsift", None)}
    for path in (*sorted(SHIPPED.glob("*.safetensors")), *given):
        found[str(path) if path.stem in found else path.stem] = learned(path)
    return found


def describe(
    photos: list[Photo], descriptor: Descriptor, device: str, pool: ThreadPoolExecutor
) -> list[NDArray[np.float16]]:
    """(N, D) descriptors of each photo."""
    describer = PatchDescriber(descriptor, device)
    size, measurement_size, step = descriptor.patch_size, descriptor.measurement_size, describer.batch
    described = []
    for photo in photos:
        patches = extract_patches(photo.grey, photo.features.xy, photo.features.frames, size, measurement_size)
        batches = [patches[start : start + step] for start in range(0, max(1, len(patches)), step)]
        described.append(np.concatenate(list(pool.map(describer, batches))))
    return described


def match(first: PreparedDescriptors, second: PreparedDescriptors) -> RankedMatches:
    """All mutual nearest neighbours, with the ratio of the distances of a query to its nearest two."""
    pairs = mutual_nearest_neighbours(first, second, Acceptance(max_ratio=1)).pairs
    if not len(pairs):
        return RankedMatches(pairs, np.zeros(0, np.float32))
    query, nearest = torch.from_numpy(pairs).long().to(first.exact.device).T
    similarity = first.exact[query] @ second.exact.T
    best = similarity.gather(1, nearest[:, None]).squeeze(1)
    rival = similarity.scatter(1, nearest[:, None], -1).amax(1)
    # The squared distance of unit vectors is twice this. Three that are all alike are as ambiguous as can be: 1.
    nearer, farther = ((1 - cosine).clamp(min=1e-9) for cosine in (best, rival))
    ratios = (nearer / farther).sqrt()
    return RankedMatches(pairs, ratios.cpu().numpy())


def score(
    truths: list[PairTruth], described: list[NDArray[np.float16]], device: str, pool: ThreadPoolExecutor
) -> MatchingScores:
    """The mean over the pairs of the first photo with each other one."""
    first, *others = pool.map(prepare, described, repeat(rounding_for(described[0], device)))
    return homography_scores(truths, list(pool.map(match, repeat(first), others)))


def truths_of(sequence: HomographySequence, photos: list[Photo]) -> list[PairTruth]:
    first, *others = (photo.features.xy for photo in photos)
    return [pair_truth(homography, first, xy) for homography, xy in zip(sequence.homographies, others, strict=True)]


def compare(options: Options) -> dict[str, dict[str, MatchingScores]]:
    """Scores by sequence and descriptor, with the mean of all sequences as the last."""
    if options.csv and not options.csv.parent.is_dir():
        raise UsageError(f"--csv {options.csv}: no such folder", "Make the folder first.")
    device = resolve_device(options.resources.device)
    threads = options.resources.threads if device == "cpu" else 1
    sequences, descriptors = read_sequences(options.folder), competitors(options.weights)
    extract = ColmapSift(options.max_features)
    scores: dict[str, dict[str, MatchingScores]] = {}
    total = len(sequences) * (PHOTOS + 1 + len(descriptors))
    with torch_threads(threads) as pool, progress("compare", total) as advance:
        for sequence in sequences:
            photos = []
            for path in sequence.photos:
                grey = read_photo(path).grey
                photos.append(Photo(grey, extract(grey)))
                advance(note=f"{sequence.name} {path.name}")
            truths = truths_of(sequence, photos)
            row = {COLMAP: score(truths, [photo.features.rootsift for photo in photos], device, pool)}
            advance(note=f"{sequence.name} {COLMAP}")
            for name, descriptor in descriptors.items():
                row[name] = score(truths, describe(photos, descriptor, device, pool), device, pool)
                advance(note=f"{sequence.name} {name}")
            scores[sequence.name] = row
    rows = list(scores.values())
    scores["mean"] = {name: MatchingScores.mean([row[name] for row in rows]) for name in rows[0]}
    return scores


def print_tables(console: Console, scores: dict[str, dict[str, MatchingScores]]) -> None:
    figures: tuple[tuple[str, str, Callable[[MatchingScores], float]], ...] = (
        (f"MMA @ {TOLERANCE:g} px", ".3f", lambda one: one.accuracy),
        ("right matches a pair", ".0f", lambda one: one.right),
        ("mAP", ".3f", lambda one: one.average_precision),
    )
    for title, form, figure in figures:
        table = Table()
        table.add_column(title)
        for name in scores["mean"]:
            table.add_column(escape(name), justify="right")
        for sequence, row in scores.items():
            if sequence == "mean":
                table.add_section()
            table.add_row(escape(sequence), *(format(figure(one), form) for one in row.values()))
        console.print(table)


def write_csv(path: Path, scores: dict[str, dict[str, MatchingScores]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sequence", "descriptor", "mma", "right", "map"))
        for sequence, row in scores.items():
            for name, one in row.items():
                writer.writerow((sequence, name, one.accuracy, one.right, one.average_precision))


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,))
    with errors_said():
        scores = compare(options)
        print_tables(Console(), scores)
        if options.csv:
            write_csv(options.csv, scores)


if __name__ == "__main__":
    main()
