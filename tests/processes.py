"""Processes that tests start, listen to and kill."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

# Processes to kill are forked off a server that has imported everything but has not computed anything, so that one
# starts within milliseconds and inherits no thread.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "pytest",
        "hypothesis",
        "hardnet_sfm.features.descriptors",
        "hardnet_sfm.features.detectors",
        "hardnet_sfm.matching.nearest",
        "hardnet_sfm.scene",
        "hardnet_sfm.evaluation.datasets.brown",
        "hardnet_sfm.evaluation.datasets.hpatches",
    ]
)


@contextmanager
def running(function: Callable[..., None], *args: object) -> Iterator[tuple[Any, Connection]]:
    """A process that runs a function of a test module and tells through a pipe how far it is."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=function, args=(*args, theirs))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def last_words(pipe: Connection, most: int | None = None) -> list[Any]:
    """What a process says until it ends, or its next words."""
    said: list[Any] = []
    try:
        while len(said) != most:
            said.append(pipe.recv())
    except (EOFError, OSError):
        pass
    return said
