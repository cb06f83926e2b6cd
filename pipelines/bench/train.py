"""Pairs trained a second, by what they cost, beside the machine's matrix-product ceiling.

    python pipelines/bench/train.py PATCHES [PATCHES ...]

Lower bound: HardNet takes 78 MFLOP a patch forward and twice that backward, so a pair of patches takes 470 MFLOP.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from hardnet_sfm.networks.device import fast_type, resolve_device
from hardnet_sfm.networks.hardnet import PATCH_SIZE, HardNet
from hardnet_sfm.resources import Resources
from hardnet_sfm.training.augment import AugmentOptions, augmented
from hardnet_sfm.training.losses import LOSSES
from hardnet_sfm.training.patches import read_patches
from hardnet_sfm.training.sampling import Sampler, SamplingOptions

FLOP_A_PAIR = 2 * 3 * 78e6
_SIDE = 4096


@dataclass(frozen=True)
class Options:
    """Pairs trained a second, beside the machine's matrix-product ceiling."""

    patches: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATCHES")]
    """patches.h5 files."""
    batch_size: int = 1024
    """Pairs."""
    loss: str = "hardnet"
    """As in `train`."""
    resources: Resources = field(default_factory=Resources)


def least_seconds(call: Callable[[], object], device: str, times: int = 3) -> float:
    """Of several calls, after one that warms up: the noise of a shared machine only adds."""

    def timed() -> float:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return min([timed() for _ in range(times + 1)][1:])


def main() -> None:
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,))
    device = resolve_device(options.resources.device)
    torch.set_num_threads(options.resources.threads)
    dtype = fast_type(device)
    if dtype == torch.float16:
        dtype = torch.bfloat16  # as `train` does on CUDA
    sets = [read_patches(path) for path in options.patches]
    sampler = Sampler(sets, [1.0] * len(sets), SamplingOptions(options.batch_size), seed=0)
    batch = sampler(0)
    anchors, positives, allowed = (
        torch.from_numpy(rows).to(device) for rows in (batch.anchors, batch.positives, batch.allowed)
    )
    network, loss = HardNet().to(device).train(), LOSSES[options.loss]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    patches = torch.cat(augmented(anchors, positives, PATCH_SIZE, AugmentOptions()))

    def describe() -> torch.Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return network(patches)

    def step() -> None:
        optimizer.zero_grad()
        first, second = describe().float().chunk(2)
        loss(first, second, allowed).backward()
        optimizer.step()

    numbers = iter(range(1, 1000))
    square = torch.randn(_SIDE, _SIDE, device=device, dtype=dtype)
    ceiling = 2 * _SIDE**3 / least_seconds(lambda: square @ square, device)
    count = options.batch_size
    parts = {
        "draw a batch": least_seconds(lambda: sampler(next(numbers)), device),
        "augment": least_seconds(lambda: augmented(anchors, positives, PATCH_SIZE, AugmentOptions()), device),
        "forward, loss, backward, update": least_seconds(step, device),
    }
    table = Table(title=f"batches of {count} pairs, {device} {str(dtype).removeprefix('torch.')}")
    for column in ("", "ms a batch", "pairs/s"):
        table.add_column(column, justify="right" if column else "left")
    # On a GPU workers draw batches while it trains; on a CPU the cores do one after the other.
    together = max(parts.values()) if device == "cuda" else sum(parts.values())
    for name, seconds in {**parts, "together": together}.items():
        table.add_row(name, f"{1000 * seconds:.0f}", f"{count / seconds:.0f}")
    console = Console()
    console.print(table)
    rate = FLOP_A_PAIR * count / parts["forward, loss, backward, update"]
    console.print(
        f"{rate / 1e9:.0f} GFLOP/s, {rate / ceiling:.2f} of the {ceiling / 1e9:.0f} GFLOP/s of a matrix product"
    )


if __name__ == "__main__":
    main()
