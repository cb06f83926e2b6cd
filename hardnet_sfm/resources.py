"""What a run may use of the machine. None of it changes what is meant, so none of it is part of a fingerprint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from hardnet_sfm.errors import UsageError


@dataclass(frozen=True)
class Resources:
    """The share of the machine that a run may use."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks, matching and, with a faiss for GPUs, k-means run. auto: CUDA where there is one."""
    workers: int = 0
    """Threads for everything on the CPU. 0: one for each CPU core this process may use. Features and matches do not
    depend on it; models are the same to the last bit with 1 only."""

    @property
    def threads(self) -> int:
        """Number of threads to start, at least 1.

        Raises:
            UsageError: `workers` is negative.
        """
        if self.workers < 0:
            raise UsageError("--workers must be at least 0")
        if self.workers > 0:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
