"""Reads pickles of plain data from untrusted sources without running code in them.

A pickle is a program. It may name any function of any module and call it. This reader admits only the names that plain
arrays need. It replaces even NumPy's functions by stand-ins that check their arguments.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.errors import HardnetSfmError

_LIMIT = 1 << 28  # bytes; ground truth of a million photos takes a tenth of this


def read_plain_pickle(path: Path) -> Any:
    """Reads a pickle of lists, tuples, dicts, strings, numbers, truth values, None and arrays of numbers or strings.

    It reads protocols 0 to 5, from Python 2 and 3 and from NumPy 1 and 2.

    Raises:
        HardnetSfmError: the file is missing, is damaged or contains anything else. Nothing in it was run.
    """
    try:
        if path.stat().st_size > _LIMIT:
            raise HardnetSfmError(
                f"{path}: {path.stat().st_size} bytes, too large for ground truth",
                "Give the gnd_*.pkl file of the data set.",
            )
        with path.open("rb") as file:
            return _plain(_Reader(file, encoding="latin1").load(), {})
    except OSError as error:
        raise HardnetSfmError(
            f"{path}: {error.strerror or error}", "Give the gnd_*.pkl file of the data set."
        ) from error
    except _NotPlain as error:
        raise HardnetSfmError(
            f"{path}: refused, because it contains more than plain data: {error}",
            "A pickle can run code that is hidden in it. Get the file from its authors again.",
        ) from error
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise HardnetSfmError(f"{path}: damaged, or not a pickle: {error}", "Get the file again.") from error
    except (MemoryError, OverflowError) as error:
        raise HardnetSfmError(
            f"{path}: damaged, or not a pickle: it claims to be huge", "Get the file again."
        ) from error


class _NotPlain(Exception):
    """The pickle names or creates something that plain data does not need."""


class _Fixed:
    """Refuses any state, because a pickle may try to set the state of every object that it holds."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _NotPlain(f"a state for {type(self).__name__.strip('_').lower()}")


class _Call(_Fixed):
    """A function that a pickle may call."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Type(_Fixed):
    """Placeholder for numpy.ndarray. A pickle passes it as an argument and must not call it."""

    __slots__ = ()


class _Dtype:
    """Stand-in for numpy.dtype that admits only numbers, truth values and strings, but no object references."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not re.fullmatch(r"[biufUS][0-9]{1,4}", text):
            raise _NotPlain(f"an array of {text!r}")
        self.code, self.order = text, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|") or state[3] is not None or state[4] is not None:
            raise _NotPlain("an array of records")
        self.order = order

    def array(self, data: object, shape: object, column_major: object) -> NDArray[Any]:
        """Makes an array from its bytes."""
        if isinstance(data, str):  # Python 2 wrote bytes as a string
            data = data.encode("latin1")
        sizes = (shape,) if isinstance(shape, int) else shape
        if not isinstance(data, bytes | bytearray) or not isinstance(sizes, tuple):
            raise _NotPlain("an array that is not made of bytes")
        if not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise ValueError(f"an array of shape {sizes}")
        dtype = np.dtype(self.order + self.code)
        if len(data) != math.prod(sizes) * dtype.itemsize:
            raise ValueError(f"an array of shape {sizes} of {len(data)} bytes")
        if not dtype.itemsize:
            raise ValueError("an array of elements without a size")
        flat = np.frombuffer(bytes(data), dtype).astype(dtype.newbyteorder("="))
        return flat.reshape(sizes, order="F" if column_major else "C")


class _Array:
    """Stand-in for an array that the pickle creates first and fills later."""

    __slots__ = ("array",)

    def __init__(self, *_: object) -> None:
        self.array: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _Dtype):
            raise _NotPlain("an array of no dtype")
        self.array = dtype.array(data, shape, column_major)


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype):
        raise _NotPlain("an array of no dtype")
    return dtype.array(data, shape, order in ("F", b"F"))


def _scalar(dtype: object, data: object) -> Any:
    if not isinstance(dtype, _Dtype):
        raise _NotPlain("a number of no dtype")
    return dtype.array(data, (), False).item()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Stand-in for codecs.encode, by which Python 3 writes bytes in protocols 0 to 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _NotPlain("a call of codecs.encode")
    return text.encode("latin1")


def _no_bytes(*content: object) -> bytes:
    """Stand-in for bytes(), by which Python 3 writes empty bytes in protocols 0 to 2."""
    if content:
        raise _NotPlain("a call of bytes")
    return b""


# Modules that have the functions for making arrays, in NumPy 1 and in NumPy 2.
_CORES = ("numpy.core", "numpy._core")
_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    **{(f"{core}.multiarray", "_reconstruct"): _Array for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in _CORES},
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return _Type()
        if (module, name) not in _ADMITTED:
            raise _NotPlain(f"it names {module}.{name}")
        return _Call(_ADMITTED[module, name])


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Replaces the stand-ins in a value by arrays, and refuses other objects. A shared object is handled only once."""
    if id(value) not in done:
        made: Any
        match value:
            case _Array():
                made = value.array
            case list():
                made = [_plain(one, done) for one in value]
            case tuple():
                made = tuple(_plain(one, done) for one in value)
            case dict():
                made = {_plain(key, done): _plain(one, done) for key, one in value.items()}
            case str() | bool() | int() | float() | np.ndarray() | None:
                made = value
            case _:
                raise _NotPlain(f"an object of the kind {type(value).__name__.strip('_').lower()}")
        done[id(value)] = made
    return done[id(value)]
