"""Ordered and bounded streams of work over threads, with one core for each thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[tuple[Item, Future[Result]], None, None]:
    """Yields each item with its finished future, in the order of the items.

    At most `ahead` items are submitted and not yet yielded. Closing the generator cancels the items that have not
    begun.
    """
    upcoming = iter(items)
    waiting = deque((item, pool.submit(function, item)) for item in islice(upcoming, ahead))
    try:
        while waiting:
            item, future = waiting.popleft()
            future.exception()  # waits; the caller handles the exception
            for following in islice(upcoming, 1):
                waiting.append((following, pool.submit(function, following)))
            yield item, future
    finally:
        for _, future in waiting:
            future.cancel()


@contextmanager
def threaded(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    pool: Callable[[int], AbstractContextManager[ThreadPoolExecutor]] = ThreadPoolExecutor,
) -> Iterator[Iterator[tuple[Item, Future[Result]]]]:
    """Yields a stream of `in_order` over a pool of threads of its own. At most two results wait."""
    with pool(threads) as opened, closing(in_order(opened, function, items, threads + 2)) as stream:
        yield stream


@contextmanager
def torch_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yields a pool of threads in each of which torch uses one core.

    Independent products in separate threads need no barriers. Torch's own threads meet at a barrier after every
    operation. On a machine that is busy with other work, as a laptop is, each barrier costs a time slice. Matching 55
    pairs while two other processes ran took 40 s with torch's threads and 10 s this way. On an idle machine both take
    the same time.
    """
    import torch

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, "torch", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        # Part of this setting belongs to the process, not to the thread.
        torch.set_num_threads(before)
