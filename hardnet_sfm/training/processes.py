"""Training on several devices with one process for each. The process that the user started is rank 0.

This module starts the other processes with the same arguments. They find each other as lightning's processes do, by
LOCAL_RANK and MASTER_PORT in the environment. If a launcher such as torchrun has set these variables, this module
starts no process.
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

_PATIENCE = 30.0  # seconds that the other processes have to end after rank 0 has ended
# Signal that interrupts rank 0. A program that a shell started in the background ignores SIGINT, so that signal serves
# only on Windows, which has no SIGUSR2.
_STOP = getattr(signal, "SIGUSR2", signal.SIGINT)


def rank() -> int:
    """Number of this process among the processes that train together, counted from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def run_on_devices(devices: int, threads: int, target: Callable[..., object], *args: object) -> Iterator[None]:
    """Runs `target(*args)` in `devices - 1` other processes while the block trains as rank 0.

    The other processes end with the block. They finish their work if the block ends normally, and are killed if it
    raises. The block must run in the main thread. A script that calls it needs `if __name__ == "__main__":`, because
    Python spawns the processes.

    Args:
        devices: number of processes, including rank 0.
        threads: number of torch threads in each process.
        target: function to run, at the top level of a module.
        args: arguments of the function; pickle must be able to serialize them.

    Raises:
        HardnetSfmError: another process failed, and rank 0 was stopped for that reason.
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
            # A failing process also breaks the connection of rank 0, which may raise before the report arrives.
            if not failed.wait(0 if isinstance(error, KeyboardInterrupt) else 2):
                raise
            raise HardnetSfmError(
                failures[0], "Resume from the last checkpoint with --resume. Use one device if the other is at fault."
            ) from error
        finally:
            over.set()
            for process, _ in others:
                process.kill()
                process.join()
            signal.signal(_STOP, before)
            _forget()


def _forget() -> None:
    """Closes the connection, because lightning would keep it for the next run, which has other processes."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _join(
    environment: Mapping[str, str], says: Connection, target: Callable[..., object], args: tuple[object, ...]
) -> None:
    """Runs in another process: it calls the target, and ends at the latest together with rank 0."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 handles Ctrl-C and ends the others
    os.environ.update(environment)
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        with suppress(KeyboardInterrupt):  # all stopped after the same batch; rank 0 reports it
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
    """Interrupts rank 0 when another process fails. Otherwise rank 0 would wait for ever."""
    ranks = dict(zip(pipes, range(1, len(pipes) + 1), strict=True))
    while ranks and not over.is_set():
        for pipe in wait(list(ranks)):
            assert isinstance(pipe, Connection)
            number = ranks.pop(pipe)
            try:
                said = pipe.recv()
            except EOFError:
                said = "its process ended; its output is above"
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
