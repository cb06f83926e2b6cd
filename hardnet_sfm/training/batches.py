"""Feeds training with batches: processes draw them, and a GPU may hold the patches."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hardnet_sfm.patch_set import PatchSet
from hardnet_sfm.training.sampling import Batch, Draw, Sampler

WORKERS = 4  # processes that draw batches while a GPU trains
_BLOCK = 8192  # number of patches that are copied to a GPU at once


class Batches(IterableDataset[dict[str, Tensor]]):
    """Endless stream of every `step`-th batch. Each batch is a dict of tensors by attribute name. Workers take turns.

    Args:
        batch: returns the batch of a number: the patches of a sampler or, for `Resident`, the rows that it draws.
        first: number of the first batch.
        step: difference between the numbers of consecutive batches.
    """

    def __init__(self, batch: Callable[[int], Batch | Draw], first: int, step: int) -> None:
        super().__init__()
        self._batch, self._first, self._step = batch, first, step

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        number = self._first + (worker.id if worker else 0) * self._step
        while True:
            yield {name: torch.from_numpy(array) for name, array in vars(self._batch(number)).items()}
            number += (worker.num_workers if worker else 1) * self._step


class Resident:
    """Holds all patches of the data sets in the memory of a GPU, and assembles batches there.

    A patch takes 4 KB, so a million take 4 GB. For each pair, only 16 bytes and its row of `allowed` then cross the bus
    instead of 8 KB, and the CPU copies nothing.

    Args:
        sets: patch sets in the order of the sampler.
        device: device that trains.
    """

    # Share of the free memory that patches may take. The network's activations need the rest.
    _SHARE = 0.5

    def __init__(self, sets: Sequence[PatchSet], device: torch.device) -> None:
        count = sum(map(len, sets))
        self._patches = torch.empty((count, *sets[0].patches.shape[1:]), dtype=torch.uint8, device=device)
        first = 0
        for of in sets:
            for start in range(0, len(of), _BLOCK):
                block = torch.from_numpy(np.array(of.patches[start : start + _BLOCK]))
                self._patches[first + start : first + start + len(block)] = block
            first += len(of)

    @classmethod
    def where_it_fits(cls, sets: Sequence[PatchSet], device: torch.device) -> Resident | None:
        """Copies the patches to a GPU. Returns None if its memory is too small, or on a CPU, which maps the files."""
        if device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(device)
        return cls(sets, device) if sum(of.patches.nbytes for of in sets) <= cls._SHARE * free else None

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        """Returns the patches of (2, B) rows on the device: anchors and positives, each (B, 64, 64) uint8."""
        return dict(zip(("anchors", "positives"), self._patches[rows], strict=True))


def feed(sampler: Sampler, first: int, step: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Yields every `step`-th batch from number `first` on, as tensors on the device: anchors, positives, allowed."""
    resident = Resident.where_it_fits(sampler.sets, device)
    batches = Batches(sampler if resident is None else sampler.draw, first, step)
    for batch in draw_batches(batches, WORKERS if device.type == "cuda" else 0):
        there = {name: tensor.to(device) for name, tensor in batch.items()}
        yield there if resident is None else {**resident(there["rows"]), "allowed": there["allowed"]}


def draw_batches(batches: Batches, workers: int) -> Iterator[dict[str, Tensor]]:
    """Starts to draw batches in `workers` processes; with 0, this process draws them.

    Ctrl-C reaches all processes of a terminal, but the workers must live until the current batch has ended. They ignore
    the signal as soon as they run code of this package. The signal is blocked while they start, because a new process
    inherits the blocked signals. This process receives a blocked signal afterwards. Windows cannot block signals.
    """
    if not workers:
        return iter(batches)
    loader = DataLoader(batches, batch_size=None, num_workers=workers, worker_init_fn=_ignore_interrupts)
    if sys.platform == "win32":
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_interrupts(worker: int) -> None:  # noqa: ARG001
    signal.signal(signal.SIGINT, signal.SIG_IGN)
