"""Runs command lines in forked children of a process that has imported everything.

A child starts within milliseconds, so that thousands of runs are affordable. The parent imports the libraries with one
thread each and never computes, because a fork copies only the thread that forks.

A child can be watched: `Watch` counts its file operations and acts before one of them. It counts what Python opens for
writing, renames, removes and makes, each SQLite statement, and each HDF5 object that is made or closed. Libraries that
write files by themselves, as COLMAP does, are reached only by kills at random times.
"""

from __future__ import annotations

import os

# The libraries read this when they are loaded.
os.environ["OMP_NUM_THREADS"] = "1"

import resource
import select
import shlex
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py

from hardnet_sfm.cli import main

_LIBRARIES = (
    *("cv2", "faiss", "numba", "PIL.ImageFile", "pycolmap", "safetensors.torch", "scipy", "torch"),
    *("hardnet_sfm.colmap.mappers", "hardnet_sfm.features.descriptors", "hardnet_sfm.retrieval.search"),
)
_TRAINING = ("hardnet_sfm.training_run",)
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FAULT = "this is a fault of hardnet-sfm"
_PATIENCE = 10  # a child may take this many times as long by the clock as by the processor
_UNEXPECTED = 70  # exit status of a child whose command raised what `main` does not explain


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: exit status, or the negative number of the signal that ended the child.
        text: all that it printed.
        seconds: wall-clock time.
        peak: largest resident memory, bytes.
        operations: file operations that a `Watch` counted; 0 without one and after a kill.
        hung: whether the command was ended because it took too long.
    """

    status: int
    text: str
    seconds: float
    peak: int
    operations: int
    hung: bool

    @property
    def fault(self) -> str:
        """What is wrong with how the command ended, whatever its input; empty if nothing is."""
        if self.hung:
            return f"hung for {self.seconds:.0f} s"
        if self.status < 0:
            return f"crashed by {signal.Signals(-self.status).name}"
        if "Traceback (most recent call last)" in self.text:
            return f"traceback: {self.last_line}"
        if _FAULT in self.text:
            return f"a fault by its own account: {self.last_line}"
        if self.status not in (0, 1, 2):
            return f"exit status {self.status}: {self.last_line}"
        if self.status and "error" not in self.text.lower():
            return f"exit status {self.status} without a message"
        return ""

    @property
    def last_line(self) -> str:
        return next((line.strip() for line in reversed(self.text.splitlines()) if line.strip()), "nothing printed")


@dataclass
class Watch:
    """Counts the file operations of a child, and acts before one of them.

    Attributes:
        act: what to do in the child before operation number `at`. It gets the name of the operation: an event of
            Python's audit hooks, `sqlite` or `hdf5`. It may raise an error or end the process.
        at: number of the operation, from 1; 0 only counts.
        repeat: act before all later operations, too.
    """

    act: Callable[[str], None] | None = None
    at: int = 0
    repeat: bool = False
    count: int = 0

    def start(self) -> None:
        """Starts to count in this process, for ever."""
        sys.addaudithook(self._audit)
        self._wrap_sqlite()
        for owner, name in ((h5py.Group, "create_group"), (h5py.Group, "create_dataset"), (h5py.File, "close")):
            self._wrap(owner, name)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & _WRITES):
            # A file descriptor is opened again only to be wrapped, and devices are not part of a result.
            if event == "open" and (isinstance(args[0], int) or os.fspath(args[0]) in ("/dev/null", b"/dev/null")):
                return
            self._step(event)

    def _step(self, event: str) -> None:
        self.count += 1
        if self.act is not None and (self.count == self.at or (self.repeat and 0 < self.at < self.count)):
            self.act(event)

    def _wrap(self, owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            self._step("hdf5")
            return plain(*args, **options)

        setattr(owner, name, wrapped)

    def _wrap_sqlite(self) -> None:
        step, connect = self._step, sqlite3.connect

        class Counting(sqlite3.Connection):
            def execute(self, *args: Any) -> sqlite3.Cursor:
                step("sqlite")
                return super().execute(*args)

        sqlite3.connect = lambda *args, **options: connect(*args, **{"factory": Counting, **options})  # type: ignore


def warm_up(*, training: bool = False) -> None:
    """Imports what the commands import, so that children need not."""
    for name in _LIBRARIES + (_TRAINING if training else ()):
        import_module(name)
    import cv2

    cv2.setNumThreads(0)


def run(
    command: str,
    folder: Path,
    *,
    watch: Watch | None = None,
    before: Callable[[], None] | None = None,
    kill_after: float | None = None,
    limit: float = 120.0,
    memory: int = 0,
) -> Outcome:
    """Runs one command line in a child, in a folder.

    Args:
        command: verb and arguments.
        folder: current folder of the child.
        watch: counts file operations, and acts before one.
        before: what to do in the child before the command.
        kill_after: seconds after which the child is killed by `kill -9`.
        limit: seconds of the processor after which the child is killed because it hangs. On a busy machine it may take
            ten times as long by the clock.
        memory: bytes that the child may allocate in addition to the parent's; 0: no limit.
    """
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as counted:
        sys.stdout.flush()
        sys.stderr.flush()
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _become(command, folder, printed.fileno(), counted.fileno(), watch, before, memory)
        status, peak, hung = _wait(pid, limit, kill_after)
        seconds = time.monotonic() - started
        printed.seek(0)
        counted.seek(0)
        count = counted.read()
        text = printed.read().decode(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(status), text, seconds, peak, int(count) if count else 0, hung)


def start(command: str, folder: Path, printed: Path) -> int:
    """Starts a command in a child and returns its process id. Its output goes to a file."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        target = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        _become(command, folder, target, target, None, None, 0)
    return pid


def end(pid: int, printed: Path, limit: float) -> Outcome:
    """Waits for a child that `start` started."""
    started = time.monotonic()
    status, peak, hung = _wait(pid, limit)
    text = printed.read_text(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(status), text, time.monotonic() - started, peak, 0, hung)


def _wait(pid: int, limit: float, kill_after: float | None = None) -> tuple[int, int, bool]:
    """Waits for a child and kills it in the end; its wait status, peak memory and whether it hung."""
    handle, started = os.pidfd_open(pid), time.monotonic()
    try:
        ended = bool(select.select([handle], [], [], limit if kill_after is None else kill_after)[0])
        while not (ended or kill_after is not None or _processor_seconds(pid) > limit):
            if time.monotonic() - started > _PATIENCE * limit:
                break
            ended = bool(select.select([handle], [], [], limit / 10)[0])
    finally:
        os.close(handle)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_maxrss * 1024, not ended and kill_after is None


def _processor_seconds(pid: int) -> float:
    """Returns the processor's seconds that a process of this user has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime


def _become(
    command: str,
    folder: Path,
    printed: int,
    counted: int,
    watch: Watch | None,
    before: Callable[[], None] | None,
    memory: int,
) -> None:
    """Runs the command as this process and ends it. It never returns."""
    status = _UNEXPECTED
    try:
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False, errors="replace") for stream in (1, 2))
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        if before is not None:
            before()
        if watch is not None:
            watch.start()
        main(shlex.split(command))
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        if watch is not None:
            watch.at = 0
            os.write(counted, str(watch.count).encode())
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
