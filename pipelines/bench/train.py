"""Measures pairs trained a second and their cost, relative to the machine's matrix-product ceiling.

    python pipelines/bench/train.py PATCHES [PATCHES ...]

The steps are those of `train` and run its code. The peer in the same run is the plain way: weights in torch's default
memory format, and the whole batch through the network at once.

Lower bound: HardNet takes 78 MFLOP a patch forward and twice that backward, so a patch pair takes 470 MFLOP.
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

from hardnet_sfm.files.patch_sets import read_patches
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.networks.architectures import ARCHITECTURES
from hardnet_sfm.networks.device import fast_type, resolve_device
from hardnet_sfm.networks.hardnet import PATCH_SIZE
from hardnet_sfm.resources import Resources
from hardnet_sfm.terminal import report_errors
from hardnet_sfm.training.augment import AugmentOptions, augment_pairs
from hardnet_sfm.training.batch_loss import BatchLoss
from hardnet_sfm.training.batches import WORKERS, Resident
from hardnet_sfm.training.descent import NORM_BATCH
from hardnet_sfm.training.sampling import Sampler, SamplingOptions
from hardnet_sfm.training.train_options import TrainOptions

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
    norm_batch: int | None = None
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
    options = tyro.cli(Options, config=(tyro.conf.OmitArgPrefixes,), registry=flag_rules())
    device = resolve_device(options.resources.device)
    torch.set_num_threads(options.resources.threads)
    dtype = fast_type(device)
    if dtype == torch.float16:
        dtype = torch.bfloat16  # as `train` does on CUDA
    sets = [read_patches(path) for path in options.patches]
    sampler = Sampler(sets, [1.0] * len(sets), SamplingOptions(options.batch_size), seed=0)
    batch = {
        name: torch.from_numpy(getattr(sampler(0), name)).to(device) for name in ("anchors", "positives", "allowed")
    }

    def step_of(norm_batch: int | None, layout: torch.memory_format) -> Callable[[], None]:
        made = TrainOptions(loss=options.loss, norm_batch=norm_batch).completed()
        assert made.learning_rate is not None
        loss_of = BatchLoss(ARCHITECTURES[made.network], made).to(device)
        loss_of.network.to(memory_format=layout)
        optimizer = torch.optim.AdamW(loss_of.parameters(), made.learning_rate, weight_decay=made.weight_decay)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = loss_of(batch)
            loss.backward()
            optimizer.step()

        return step

    numbers = iter(range(1, 1000))
    square = torch.randn(_SIDE, _SIDE, device=device, dtype=dtype)
    ceiling = 2 * _SIDE**3 / least_seconds(lambda: square @ square, device)
    count = options.batch_size
    anchors, positives = batch["anchors"], batch["positives"]
    # On a GPU, workers draw batches while it trains. On a CPU, the cores draw and train in turn.
    resident = Resident.where_it_fits(sets, torch.device(device))
    draw, workers = sampler if resident is None else sampler.draw, WORKERS if device == "cuda" else 1
    drawing = least_seconds(lambda: draw(next(numbers)), device) / workers
    augmenting = least_seconds(lambda: augment_pairs(anchors, positives, PATCH_SIZE, AugmentOptions()), device)
    stepping = least_seconds(step_of(options.norm_batch or NORM_BATCH[device], torch.channels_last), device)
    plain = least_seconds(step_of(None, torch.contiguous_format), device)
    together = max(drawing, stepping) if device == "cuda" else drawing + stepping
    rows = {
        "draw a batch" + (f", {workers} workers" if workers > 1 else ""): drawing,
        "step: augment, forward, loss, backward, update": stepping,
        "  of which augment": augmenting,
        "together": together,
        "peer: step, plain weights, one group": plain,
    }
    table = Table(title=f"batches of {count} pairs, {device} {str(dtype).removeprefix('torch.')}")
    for column in ("", "ms a batch", "pairs/s"):
        table.add_column(column, justify="right" if column else "left")
    for name, seconds in rows.items():
        table.add_row(name, f"{1000 * seconds:.1f}", f"{count / seconds:.0f}")
    console = Console()
    console.print(table)
    rate = FLOP_A_PAIR * count / stepping
    console.print(
        f"{rate / 1e9:.0f} GFLOP/s, {rate / ceiling:.2f} of the {ceiling / 1e9:.0f} GFLOP/s of a matrix product; "
        f"{plain / stepping:.2f} times the peer's speed",
        soft_wrap=True,
    )


if __name__ == "__main__":
    with report_errors():
        main()
