"""Random damage to files: to their bytes, and to what these mean in their format."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Random = np.random.Generator
_NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e999", "-1e30", "1e30", "99999999999999999999", "2147483648", "1.5", "")
_VALUES: tuple[Any, ...] = (None, True, -1, 0, 2**63, 1e400, float("nan"), "", "x", "../../x", [], {}, [[]], [1] * 300)
_EXTREMES = (
    *(struct.pack("<i", value) for value in (-1, 0, 2**31 - 1, -(2**31), 1 << 20)),
    *(struct.pack("<q", value) for value in (-1, 0, 2**63 - 1, -(2**63), 1 << 40)),
    *(struct.pack("<f", value) for value in (float("nan"), float("inf"), 1e30, -1.0)),
    *(struct.pack("<d", value) for value in (float("nan"), float("inf"), 1e300, -1.0)),
)
_CANARY = "code-was-run"
TEXT = {".txt", ".csv", ".json", ".md", ""}


class Mutator:
    """A way to damage a file.

    Args:
        name: what it does.
        change: changes the file and says where.
    """

    def __init__(self, name: str, change: Callable[[Path, Random], str]) -> None:
        self.name, self.change = name, change

    def __call__(self, path: Path, rng: Random) -> str:
        """Damages the file and describes the damage."""
        return f"{self.name} {self.change(path, rng)}".strip()


def mutators_for(path: Path) -> list[Mutator]:
    """All ways to damage a file of its format."""
    chosen = list(_BYTES)
    if path.suffix in TEXT:
        chosen += _TEXT
    chosen += _BY_SUFFIX.get(path.suffix, [])
    return chosen


def was_run(folder: Path) -> bool:
    """Whether code that was hidden in a file of this folder was run there."""
    return (folder / _CANARY).exists()


class _Canary:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (_CANARY, "w"))


def _bytes(change: Callable[[bytearray, Random], str]) -> Callable[[Path, Random], str]:
    def changed(path: Path, rng: Random) -> str:
        data = bytearray(path.read_bytes())
        where = change(data, rng)
        path.write_bytes(data)
        return where

    return changed


def _range(data: bytearray, rng: Random) -> tuple[int, int]:
    """A random range; short ones are as likely as long ones. Headers are hit as often as the rest."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 2048)
    start = int(rng.integers(0, max(end, 1)))
    length = int(2 ** rng.uniform(0, np.log2(max(len(data) - start, 2))))
    return start, start + length


def _flip(data: bytearray, rng: Random) -> str:
    places = []
    for _ in range(int(2 ** rng.integers(0, 5))):
        start, _ = _range(data, rng)
        if start < len(data):
            data[start] ^= 1 << int(rng.integers(8))
            places.append(start)
    return f"at {places}"


def _zero(data: bytearray, rng: Random) -> str:
    start, end = _range(data, rng)
    data[start:end] = bytes(end - start)
    return f"{start}:{end}"


def _noise(data: bytearray, rng: Random) -> str:
    start, end = _range(data, rng)
    data[start:end] = rng.bytes(end - start)
    return f"{start}:{end}"


def _truncate(data: bytearray, rng: Random) -> str:
    start = 0 if rng.random() < 0.1 else _range(data, rng)[0]
    del data[start:]
    return f"to {start} bytes"


def _remove(data: bytearray, rng: Random) -> str:
    start, end = _range(data, rng)
    del data[start:end]
    return f"{start}:{end}"


def _duplicate(data: bytearray, rng: Random) -> str:
    start, end = _range(data, rng)
    data[start:start] = data[start:end]
    return f"{start}:{end}"


def _swap(data: bytearray, rng: Random) -> str:
    (a, b), (c, _) = _range(data, rng), _range(data, rng)
    first, second = bytes(data[a:b]), bytes(data[c : c + b - a])
    data[a : a + len(second)], data[c : c + len(first)] = second, first
    return f"{a}:{b} and {c}"


def _extreme(data: bytearray, rng: Random) -> str:
    value = _EXTREMES[int(rng.integers(len(_EXTREMES)))]
    start, _ = _range(data, rng)
    start -= start % len(value)
    if rng.random() < 0.3:
        value = value[::-1]
    data[start : start + len(value)] = value
    return f"{value.hex()} at {start}"


def _number(path: Path, rng: Random) -> str:
    text = path.read_bytes()
    found = list(re.finditer(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?", text))
    if not found:
        return "nowhere"
    at = found[int(rng.integers(len(found)))]
    value = _NUMBERS[int(rng.integers(len(_NUMBERS)))].encode()
    path.write_bytes(text[: at.start()] + value + text[at.end() :])
    return f"{at.group().decode()} -> {value.decode()} at {at.start()}"


def _word(path: Path, rng: Random) -> str:
    words = (b"\0", b"\xff\xfe", b" ", b"\n", b"\r", b"../x", "\N{SNOWMAN}".encode(), b"-", b"\t", b"[/red]")
    text, word = path.read_bytes(), words[int(rng.integers(len(words)))]
    at = int(rng.integers(len(text) + 1))
    path.write_bytes(text[:at] + word + text[at:])
    return f"{word!r} at {at}"


def _line(path: Path, rng: Random) -> str:
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return "nowhere"
    number = int(rng.integers(len(lines)))
    line = lines.pop(number)
    if rng.random() < 0.5:
        other = int(rng.integers(len(lines) + 1))
        lines[other:other] = [line, line]
    path.write_bytes(b"".join(lines))
    return f"{number}"


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in items for place in _places(part, (*path, key)))]


def _change_tree(tree: Any, rng: Random) -> tuple[Any, str]:
    """Replaces or removes one value of a JSON tree."""
    places = _places(tree)
    place = places[int(rng.integers(len(places)))]
    value = _VALUES[int(rng.integers(len(_VALUES)))]
    if not place:
        return value, f"all -> {value!r:.30}"
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    if rng.random() < 0.2:
        del parent[place[-1]]
        return tree, f"{place} removed"
    parent[place[-1]] = value
    return tree, f"{place} -> {value!r:.30}"


def _json(path: Path, rng: Random) -> str:
    tree, told = _change_tree(json.loads(path.read_bytes()), rng)
    path.write_text(json.dumps(tree))
    return told


def _safetensors_header(path: Path, rng: Random) -> str:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tree, told = _change_tree(json.loads(data[8 : 8 + length]), rng)
    header = json.dumps(tree).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    return told


def _safetensors_value(path: Path, rng: Random) -> str:
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    body = data[8 + length :]
    told = _extreme(body, rng)
    path.write_bytes(data[: 8 + length] + body)
    return told


def _hdf5(path: Path, rng: Random) -> str:
    """Changes an attribute or a data set to one of another value, type or shape, as a faulty program would write it."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        if file.attrs and (not names or rng.random() < 0.5):
            key = sorted(file.attrs)[int(rng.integers(len(file.attrs)))]
            return f"attribute {key} {_change_attribute(file, key, rng)}"
        name = names[int(rng.integers(len(names)))]
        old = file[name][()]
        kind = int(rng.integers(7))
        del file[name]
        if kind == 1:
            file.create_dataset(name, data=old.reshape(-1)[: old.size // 2])
        elif kind == 2:
            file.create_dataset(name, shape=(1 << 38,), chunks=(1 << 16,), dtype=old.dtype)
        elif kind == 3:
            file.create_dataset(name, data=np.array(["x"] * 3, object), dtype=h5py.string_dtype())
        elif kind == 4:
            file.create_group(name)
        elif kind == 5:
            file.create_dataset(name, data=np.full(old.shape, -1).astype(old.dtype))
        elif kind == 6:
            wrong = np.asarray(old, np.float64).copy()
            wrong.reshape(-1)[: wrong.size // 2] = float(rng.choice([np.nan, np.inf, -1e30, 1e30]))
            with np.errstate(invalid="ignore", over="ignore"):
                file.create_dataset(name, data=wrong.astype(old.dtype))
        return f"data set {name}, change {kind}"


def _change_attribute(file: h5py.File, key: str, rng: Random) -> str:
    old = file.attrs[key]
    if isinstance(old, str) and old[:1] in "[{" and rng.random() < 0.8:
        tree, told = _change_tree(json.loads(old), rng)
        file.attrs[key] = json.dumps(tree)
        return told
    value = [-1, 2**40, float("nan"), "x", np.zeros(3), ""][int(rng.integers(6))]
    file.attrs[key] = value
    return f"-> {value!r:.30}"


def _npy_header(path: Path, rng: Random) -> str:
    data = path.read_bytes()
    shape = re.search(rb"\(\d+,\)", data[:128])
    if shape is None:
        return "nowhere"
    values = (b"(-1,)", b"(999999999999,)", b"(0,)", b"()", b"(2, 2)", b"(1,)")
    value = values[int(rng.integers(len(values)))]
    padded = data[: shape.start()] + value + data[shape.end() : 128]
    padded = padded[:127].rstrip(b" \n").ljust(127) + b"\n"
    path.write_bytes(padded + data[128:])
    return value.decode()


def _sqlite(path: Path, rng: Random) -> str:
    """Changes a page of a SQLite file, where tables and rows are described."""
    data = bytearray(path.read_bytes())
    page = int(rng.integers(max(len(data) // 4096, 1))) * 4096
    start = page + int(rng.integers(16))
    data[start : start + 2] = rng.bytes(2)
    path.write_bytes(data)
    return f"at {start}"


def _pickle_canary(path: Path, _: Random) -> str:
    path.write_bytes(pickle.dumps({"gnd": [_Canary()], "imlist": [], "qimlist": []}, 2))
    return ""


def _torch_canary(path: Path, _: Random) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": _Canary()}, 2))
        archive.writestr("archive/version", "3\n")
    path.write_bytes(buffer.getvalue())
    return ""


def _npy_canary(path: Path, _: Random) -> str:
    np.save(path, np.array([_Canary()], object), allow_pickle=True)
    return ""


_BYTES = [
    Mutator(name, _bytes(change))
    for name, change in {
        "bits flipped": _flip,
        "zeroed": _zero,
        "noise": _noise,
        "truncated": _truncate,
        "removed": _remove,
        "doubled": _duplicate,
        "swapped": _swap,
        "extreme value": _extreme,
    }.items()
]
_TEXT = [Mutator("number", _number)] * 4 + [Mutator("word inserted", _word), Mutator("line moved", _line)]
_BY_SUFFIX = {
    ".json": [Mutator("JSON", _json)] * 8,
    ".safetensors": [Mutator("header", _safetensors_header)] * 3 + [Mutator("tensor", _safetensors_value)],
    ".h5": [Mutator("HDF5", _hdf5)] * 8,
    ".npy": [Mutator("array header", _npy_header)] * 2 + [Mutator("hidden code", _npy_canary)],
    ".db": [Mutator("SQLite page", _sqlite)] * 3,
    ".journal": [Mutator("SQLite page", _sqlite)] * 3,
    ".pkl": [Mutator("hidden code", _pickle_canary)],
    ".pth": [Mutator("hidden code", _torch_canary), Mutator("hidden code", _pickle_canary)],
    ".ckpt": [Mutator("hidden code", _torch_canary), Mutator("hidden code", _pickle_canary)],
}
