"""How much of the machine a run may use.

These options do not change what a result means, so no fingerprint includes them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from hardnet_sfm.errors import UsageError


@dataclass(frozen=True)
class Resources:
    """How much of the machine a run may use."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device for networks, matching and, if faiss was built for GPUs, k-means. auto: CUDA if torch finds a device."""
    workers: int = 0
    """Threads for work on the CPU. 0: one for each CPU core that this process may use. Features and matches do not
    depend on it. Models are the same to the last bit only with 1."""

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
