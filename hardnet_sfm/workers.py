"""Streams of work over threads: in order, bounded, one core a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[tuple[Item, Future[Result]], None, None]:
    """Yields each item with its finished future, in the items' order, with at most `ahead` begun and not yet taken.

    Closing the generator takes back what has not begun.
    """
    upcoming = iter(items)
    waiting = deque((item, pool.submit(function, item)) for item in islice(upcoming, ahead))
    try:
        while waiting:
            item, future = waiting.popleft()
            future.exception()  # waits; whoever takes the future looks at it
            for following in islice(upcoming, 1):
                waiting.append((following, pool.submit(function, following)))
            yield item, future
    finally:
        for _, future in waiting:
            future.cancel()


@contextmanager
def torch_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in each of which torch uses one core.

    Independent products side by side need no barriers. Torch's own threads meet at a barrier after every operation,
    which on a machine that is busy with other things, as a laptop is, costs a time slice each: matching 55 pairs beside
    two other processes took 40 s that way and 10 s this way; on an idle machine both take the same.
    """
    import torch

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, "torch", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        # The setting is in part the process's, not the thread's.
        torch.set_num_threads(before)
