"""Measures keypoints a second by phase, peak memory, and describing relative to the matrix-product ceiling.

    python pipelines/bench/extract.py IMAGES

This script runs the phases one after another, each on all photos. The stage overlaps them. In the phases, the networks
have random weights, which cost the same as trained ones.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from hardnet_sfm.colmap.baseline import ColmapSift
from hardnet_sfm.features.descriptors import Descriptor, PatchDescriber, make_descriptor
from hardnet_sfm.features.detectors import DetectorOptions, make_detector
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.files.photo_files import read_photo
from hardnet_sfm.files.photo_folders import list_photos
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.networks.device import fast_type, resolve_device
from hardnet_sfm.networks.hardnet import HardNet, HardNetFast
from hardnet_sfm.patches import extract_patches
from hardnet_sfm.photos import resize_to_fit
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.workers import torch_threads

# The networks, with the operations of a patch.
NETWORKS = {"hardnet": (HardNet, 78e6), "hardnet-fast": (HardNetFast, 18e6)}
T = TypeVar("T")

STAGE = """
import json, sys, time
from pathlib import Path
from hardnet_sfm.verbs.extract import extract
from hardnet_sfm.features.extraction import ExtractOptions
from hardnet_sfm.verbs.reconstruct import peak_memory_mb
start = time.perf_counter()
report = extract(Path(sys.argv[1]), Path(sys.argv[2]), ExtractOptions(**json.loads(sys.argv[3])))
print(json.dumps([report.photos, report.keypoints, time.perf_counter() - start, peak_memory_mb()]))
"""


@dataclass(frozen=True)
class Options:
    """Keypoints a second by phase, peak memory, and describing beside the matrix-product ceiling."""

    images: Annotated[Path, tyro.conf.Positional]
    """Folder of photos."""
    photos: int = 8
    """How many of them the phases are timed on; the stage runs on all."""
    max_keypoints: int = 8192
    """At most so many keypoints a photo."""
    max_image_size: int = 1600
    """Longest side, pixels."""
    device: str = "auto"
    """Where patches are described."""


def timed(call: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def matrix_ceiling(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a 2048x2048 matrix product, the fastest of twenty."""
    size = 2048
    a = torch.randn(size, size, device=device).to(dtype)

    def multiply() -> None:
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / min(timed(multiply)[1] for _ in range(20))


def main() -> None:
    options = tyro.cli(Options, registry=flag_rules())
    device = resolve_device(options.device)
    names = list_photos(options.images).names
    used = names[: options.photos]
    asked = ExtractOptions(max_keypoints=options.max_keypoints)
    detector_options = DetectorOptions(options.max_keypoints, asked.peak_threshold, asked.edge_threshold, False, False)
    detect = make_detector(asked.detector, detector_options)

    def decode(name: str) -> np.ndarray:
        return resize_to_fit(read_photo(options.images / name).grey, options.max_image_size)

    photos, decoding = timed(lambda: [decode(name) for name in used])
    found, detecting = timed(lambda: [detect(photo) for photo in photos])
    keypoints = sum(map(len, found))
    descriptors = {"rootsift": make_descriptor("rootsift", None)}
    for name, (network, _) in NETWORKS.items():
        descriptors[name] = Descriptor(network().fused(), 32, 20.0, reduced_precision=True)
    cutting, describing = 0.0, {}
    for name, descriptor in descriptors.items():
        size = descriptor.measurement_size
        patches, cutting = timed(
            lambda d=size: [extract_patches(p, k.xy, k.frames(), 32, d) for p, k in zip(photos, found, strict=True)]
        )
        describe = PatchDescriber(descriptor, device)
        rows = np.concatenate(patches)[: 16 * describe.batch * 8]
        batches = [rows[start : start + describe.batch] for start in range(0, len(rows), describe.batch)]
        with torch_threads(Resources().threads if device == "cpu" else 1) as pool:
            list(pool.map(describe, batches[:8]))
            describing[name] = timed(lambda b=batches, d=describe: list(pool.map(d, b)))[1] / len(rows)

    sift = ColmapSift(options.max_keypoints)
    peer, peering = timed(lambda: [len(sift(photo).xy) for photo in photos])

    console = Console(width=100)
    table = Table(title=f"{len(used)} photos of at most {options.max_image_size} px, {keypoints} keypoints, {device}")
    for column in ("phase", "ms a photo", "keypoints/s", "rate / COLMAP's SIFT"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    phases = [("decode", decoding), ("detect (opencv-dog)", detecting), ("cut patches", cutting)]
    phases += [(f"describe ({name})", seconds * keypoints) for name, seconds in describing.items()]
    peer_rate = sum(peer) / peering
    for name, seconds in phases:
        table.add_row(
            name,
            f"{1000 * seconds / len(used):.0f}",
            f"{keypoints / seconds:.0f}",
            f"{keypoints / seconds / peer_rate:.1f}",
        )
    table.add_section()
    table.add_row("COLMAP's SIFT", f"{1000 * peering / len(used):.0f}", f"{peer_rate:.0f}", "1.0")
    console.print(table)

    dtype = fast_type(device)
    ceiling = matrix_ceiling(device, dtype)
    for name, (_, flop) in NETWORKS.items():
        reached = flop / describing[name]
        console.print(
            f"describe ({name}): {reached / 1e9:.0f} GFLOP/s, {reached / ceiling:.2f} of the {ceiling / 1e9:.0f} "
            f"GFLOP/s of a matrix product in {str(dtype).removeprefix('torch.')}; "
            f"{describing['hardnet'] / describing[name]:.1f} times the patches of hardnet"
        )
    with tempfile.TemporaryDirectory() as scratch:
        for subset in sorted({min(8, len(names)), len(names)}):
            folder = Path(scratch) / f"photos-{subset}"
            folder.mkdir()
            for number, name in enumerate(names[:subset]):
                (folder / f"{number}{Path(name).suffix}").symlink_to((options.images / name).resolve())
            for descriptor in NETWORKS:
                stage = {
                    "descriptor": descriptor,
                    "max_keypoints": options.max_keypoints,
                    "max_image_size": options.max_image_size,
                }
                store = Path(scratch) / f"{descriptor}-{subset}.h5"
                command = [sys.executable, "-c", STAGE, str(folder), str(store), json.dumps(stage)]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                done, count, seconds, memory = json.loads(printed)
                console.print(
                    f"the stage, {descriptor}, {done} photos: {seconds:.1f} s, {count / seconds:.0f} keypoints/s "
                    f"(COLMAP's SIFT {peer_rate:.0f}, ratio {count / seconds / peer_rate:.2f}), peak memory {memory} MB"
                )


if __name__ == "__main__":
    with report_errors():
        main()
