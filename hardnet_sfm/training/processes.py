"""Training on several devices with one process for each. The process that the user started is device 0.

It starts the other processes with the same arguments. They exchange gradients by torch.distributed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread, main_thread
from typing import TYPE_CHECKING

from hardnet_sfm.errors import HardnetSfmError

if TYPE_CHECKING:  # torch takes seconds to import
    import torch
    from torch import Tensor

_ENDED = "its process ended; its output is above"
_PATIENCE = 30.0  # seconds that the other processes have to end after device 0 has ended
# Signal that interrupts device 0. A program that a shell started in the background ignores SIGINT, so that signal
# serves only on Windows, which has no SIGUSR2.
_STOP = getattr(signal, "SIGUSR2", signal.SIGINT)


def rank() -> int:
    """Number of this process among the processes that train together, counted from 0."""
    from torch import distributed

    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """Number of processes that train together."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


def average_over_devices(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors by their means over the devices. They cross in one message."""
    import torch

    if count() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    means = torch.split(flat / count(), [tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.copy_(mean.view_as(tensor))


def largest_of(values: Sequence[float], device: torch.device) -> list[float]:
    """Returns the largest value of all devices for each of the values."""
    import torch

    if count() == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return list(largest.tolist())


def share_from_first(tensors: Iterable[Tensor]) -> None:
    """Gives all devices the values that device 0 has."""
    from torch import distributed

    for tensor in tensors if count() > 1 else ():
        distributed.broadcast(tensor, 0)


@contextmanager
def run_on_devices(devices: int, device: str, target: Callable[..., object], *args: object) -> Iterator[None]:
    """Runs `target(*args)` in `devices - 1` other processes while the block trains as device 0.

    The other processes end with the block. They finish their work if the block ends normally, and are killed if it
    raises. The block must run in the main thread. A script that calls it needs `if __name__ == "__main__":`, because
    Python spawns the processes.

    Args:
        devices: number of processes, including device 0.
        device: "cpu" or "cuda".
        target: function to run, at the top level of a module.
        args: arguments of the function; pickle must be able to serialize them.

    Raises:
        HardnetSfmError: another process failed, and device 0 was stopped for that reason.
    """
    if devices == 1 or count() > 1:
        yield
        return
    context = multiprocessing.get_context("spawn")
    others: list[tuple[SpawnProcess, Connection]] = []
    failures: list[str] = []
    failed, over = Event(), Event()
    before = signal.signal(_STOP, signal.default_int_handler)
    with TemporaryDirectory() as folder:
        meeting = Path(folder, "meeting").as_uri()
        try:
            for number in range(1, devices):
                said, says = context.Pipe(duplex=False)
                process = context.Process(target=_join, args=(meeting, number, devices, device, says, target, args))
                process.start()
                says.close()
                others.append((process, said))
            for number, (_, said) in enumerate(others, 1):
                _await_start(number, said)
            Thread(target=_watch, args=([said for _, said in others], failures, failed, over), daemon=True).start()
            _meet(meeting, 0, devices, device)
            yield
            over.set()
            for process, _ in others:
                process.join(_PATIENCE)
        except HardnetSfmError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            signal.signal(_STOP, signal.SIG_IGN)  # the report of a failure interrupts, and one interruption is enough
            # A failing process also breaks the connection of device 0, which may raise before the report arrives.
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
            _part()


def _await_start(number: int, said: Connection) -> None:
    """Waits until another process is about to meet this one. Python can interrupt this, but not the meeting itself."""
    try:
        said.recv()
    except EOFError as error:
        raise HardnetSfmError(f"device {number}: {_ENDED}", "Use one device if the other is at fault.") from error


def _meet(meeting: str, number: int, devices: int, device: str) -> None:
    """Connects this process, device `number`, with the others. They meet at the address of a file."""
    import torch

    if device == "cuda":
        torch.cuda.set_device(number)
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=meeting, rank=number, world_size=devices)
    torch.distributed.barrier()  # a process that failed before all are connected would make the others wait for ever


def _part() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _join(
    meeting: str,
    number: int,
    devices: int,
    device: str,
    says: Connection,
    target: Callable[..., object],
    args: tuple[object, ...],
) -> None:
    """Runs in another process: it calls the target, and ends at the latest together with device 0."""
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, signal.SIG_IGN)  # device 0 handles them and ends the others
    Thread(target=_end_with_parent, daemon=True).start()
    says.send("started")
    try:
        _meet(meeting, number, devices, device)
        with suppress(KeyboardInterrupt):  # all stopped after the same batch; device 0 reports it
            target(*args)
        says.send("")
        _part()
    except HardnetSfmError as error:
        says.send(error.message)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _watch(pipes: list[Connection], failures: list[str], failed: Event, over: Event) -> None:
    """Interrupts device 0 when another process fails. Otherwise device 0 would wait for ever."""
    numbers = dict(zip(pipes, range(1, len(pipes) + 1), strict=True))
    while numbers and not over.is_set():
        for pipe in wait(list(numbers)):
            assert isinstance(pipe, Connection)
            number = numbers.pop(pipe)
            try:
                said = pipe.recv()
            except EOFError:
                said = _ENDED
            if said and not over.is_set():
                failures.append(f"device {number}: {said}")
                failed.set()
                signal.pthread_kill(main_thread().ident or 0, _STOP)
                return
