"""Training on several devices: a process for each, of which the one that the user started is the first, rank 0.

The others are started here, with the same arguments, and find each other as lightning's processes do: by LOCAL_RANK
and MASTER_PORT in the environment. Where a launcher such as torchrun has set these, nothing is started.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Event, Thread, main_thread

from hardnet_sfm.errors import HardnetSfmError

_PATIENCE = 30.0  # seconds for the others to end after rank 0 has
# Interrupts rank 0. Not SIGINT, which programs ignore that a shell started in the background; Windows has no other.
_STOP = getattr(signal, "SIGUSR2", signal.SIGINT)


def rank() -> int:
    """Number of this process among those that train together, from 0 on."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(devices: int, threads: int, target: Callable[..., object], *args: object) -> Iterator[None]:
    """While the block trains as rank 0, `devices - 1` other processes run `target(*args)`.

    They end when the block does: well, if it ends well, else at once. It must be in the main thread and, as with all
    processes that Python starts afresh, under `if __name__ == "__main__":` where a script leads to it.

    Args:
        devices: number of processes together.
        threads: of torch, for each.
        target: a function of a module.
        args: that can be pickled.

    Raises:
        HardnetSfmError: one of the others failed, so that rank 0 was stopped.
    """
    if devices == 1 or "LOCAL_RANK" in os.environ:
        yield
        return
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": str(threads)}
    context = multiprocessing.get_context("spawn")
    others: list[tuple[SpawnProcess, Connection]] = []
    failures: list[str] = []
    failed, over = Event(), Event()
    before = signal.signal(_STOP, signal.default_int_handler)
    with _environment({**meeting, "LOCAL_RANK": "0"}):
        try:
            for number in range(1, devices):
                said, says = context.Pipe(duplex=False)
                process = context.Process(
                    target=_join, args=({**meeting, "LOCAL_RANK": str(number)}, says, target, args)
                )
                process.start()
                says.close()
                others.append((process, said))
            Thread(target=_watch, args=([said for _, said in others], failures, failed, over), daemon=True).start()
            yield
            over.set()
            for process, _ in others:
                process.join(_PATIENCE)
        except HardnetSfmError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            # Who fails takes the connection of rank 0 along, which may notice before we are told.
            if not failed.wait(0 if isinstance(error, KeyboardInterrupt) else 2):
                raise
            raise HardnetSfmError(
                failures[0], "Go on from the last checkpoint with --resume, or with one device, where that is wrong."
            ) from error
        finally:
            over.set()
            for process, _ in others:
                process.kill()
                process.join()
            signal.signal(_STOP, before)
            _forget()


def _forget() -> None:
    """Lightning would keep the connection for the next run, which has other processes."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _join(
    environment: Mapping[str, str], says: Connection, target: Callable[..., object], args: tuple[object, ...]
) -> None:
    """What another process does: it trains along, and ends with rank 0 if not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0 to answer, which ends the others
    os.environ.update(environment)
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        with suppress(KeyboardInterrupt):  # all stopped after the same batch, which rank 0 tells
            target(*args)
        says.send("")
    except HardnetSfmError as error:
        says.send(error.message)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _watch(pipes: list[Connection], failures: list[str], failed: Event, over: Event) -> None:
    """Interrupts rank 0, which would wait for ever, when one of the others fails."""
    ranks = dict(zip(pipes, range(1, len(pipes) + 1), strict=True))
    while ranks and not over.is_set():
        for pipe in wait(list(ranks)):
            assert isinstance(pipe, Connection)
            number = ranks.pop(pipe)
            try:
                said = pipe.recv()
            except EOFError:
                said = "its process ended; what it said stands above"
            if said and not over.is_set():
                failures.append(f"device {number}: {said}")
                failed.set()
                signal.pthread_kill(main_thread().ident or 0, _STOP)
                return


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*values, "WORLD_SIZE", "NODE_RANK")}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
