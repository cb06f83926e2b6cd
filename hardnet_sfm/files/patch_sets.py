"""patches.h5: a data set of patches for training from any source, and the writer that mining fills it with.

The root's attributes are `format`; `source` (sfm, warps, brown, hpatches); `measurement_size`, sigmas across a patch;
`extent`, the size of the model; `images`, a JSON list of photo names; and `options`, a JSON object of what made the
file. Its data sets, of N patches of P points, are the arrays of `PatchSet`; `point_id` is present only if it is known.
Patches are sorted by point, and those of a point by photo. They lie in one uncompressed block, so that a reader can map
the file into memory and load only the patches it draws. The system's page cache keeps patches that are drawn often.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from hardnet_sfm.arrays import Grey
from hardnet_sfm.errors import HardnetSfmError, UsageError, file_error
from hardnet_sfm.files.hdf5_files import open_hdf5, read_array, read_attributes
from hardnet_sfm.files.journal import Arrays, Journal
from hardnet_sfm.files.workspace import replacing
from hardnet_sfm.patch_set import PATCH_SIZE, PatchSet

FORMAT = "hardnet-sfm patches 1"
_BLOCK = 4096
_REMEDY = (
    "Copy it again if you have a copy. Otherwise make it again under another name, for example with `hardnet-sfm mine`."
)
_COLUMNS: dict[str, type[np.generic]] = {
    "point": np.int64,
    "image": np.int32,
    "frame": np.float32,
    "angle": np.float32,
    "xyz": np.float32,
}
_POINT_ID = "point_id"  # only mined patches have it
_PUT: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "patches": (np.uint8, (PATCH_SIZE, PATCH_SIZE)),
    "point": (np.int64, ()),
    "frame": (np.float32, (2, 3)),
    "angle": (np.float32, ()),
    "xyz": (np.float32, (3,)),
}


def read_patches(path: Path) -> PatchSet:
    """Opens a patches.h5. The patches, 4 KB each, stay in the file and are read on access.

    Raises:
        HardnetSfmError: the file is missing, truncated, damaged or of another format, its patches have another size, or
            `PatchSet.check` fails.
    """
    if not path.is_file():
        raise HardnetSfmError(f"no patches at {path}", "Run `hardnet-sfm mine` first.")
    try:
        with open_hdf5(path, _REMEDY) as file:
            facts = read_attributes(path)
            if facts.get("format") != FORMAT:
                raise ValueError(f"its format is {facts.get('format', 'not given')!r}, not {FORMAT!r}")
            kinds = _COLUMNS | ({_POINT_ID: np.int64} if _POINT_ID in file else {})
            columns = {name: read_array(file[name]).astype(kind, casting="same_kind") for name, kind in kinds.items()}
            patches = _mapped(path, file["patches"])
        return PatchSet(
            str(path),
            str(facts["source"]),
            float(facts["measurement_size"]),
            tuple(json.loads(facts["images"])),
            patches,
            **columns,
            extent=float(facts["extent"]),
            options=json.loads(facts["options"]),
        ).check()
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise file_error(path, error, "a file of patches", _REMEDY) from error


def is_made(path: Path, options: Mapping[str, Any]) -> bool:
    """Says whether a file was made with exactly these options.

    Raises:
        HardnetSfmError: the file is damaged or has another format, and must not be overwritten.
        UsageError: the path is a folder.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "Give --output the name of a file.")
    if not path.exists():
        return False
    try:
        return read_patches(path).options == options
    except HardnetSfmError as error:
        raise HardnetSfmError(error.message, f"{error.hint} Or choose another file for the patches.") from error


def _mapped(path: Path, stored: h5py.Dataset) -> Grey:
    """Maps the data set as a read-only view of the file."""
    if stored.dtype != np.uint8:
        raise ValueError(f"patches are {stored.dtype}, not uint8")
    if not stored.size:
        return np.zeros(stored.shape, np.uint8)
    offset = stored.id.get_offset()
    if offset is None:
        raise ValueError("patches are chunked or compressed, not in one block")
    return np.asarray(np.memmap(path, np.uint8, "r", offset, stored.shape))


def write_patches(path: Path, patch_set: PatchSet) -> None:
    """Writes a data set as patches.h5, complete or not at all.

    Raises:
        HardnetSfmError: the disk is full or cannot be written, or `PatchSet.check` fails.
    """
    rows = np.arange(len(patch_set))
    blocks = (slice(start, start + _BLOCK) for start in range(0, len(patch_set), _BLOCK))
    _write(path, patch_set, ((rows[block], patch_set.patches[block]) for block in blocks))


def _write(path: Path, patch_set: PatchSet, blocks: Iterable[tuple[NDArray[np.intp], Grey]]) -> None:
    """Writes all columns but the patches from a set, and the patches from blocks of rows that rise within a block."""
    patch_set.check()
    facts = {
        "format": FORMAT,
        "source": patch_set.source,
        "measurement_size": patch_set.measurement_size,
        "extent": patch_set.extent,
        "images": json.dumps(patch_set.images),
        "options": json.dumps(patch_set.options),
    }
    # From HDF5 1.10 on, an attribute (here images) may be larger than 64 KiB.
    with replacing(path) as beside, h5py.File(beside, "w", libver=("v110", "latest")) as file:
        file.attrs.update(facts)
        for name in _COLUMNS:
            file.create_dataset(name, data=getattr(patch_set, name))
        if patch_set.point_id is not None:
            file.create_dataset(_POINT_ID, data=patch_set.point_id)
        stored = file.create_dataset("patches", patch_set.patches.shape, np.uint8).id
        place = stored.get_space()
        # `dataset[rows] = patches` would be slow: a photo's rows are mostly apart, and h5py takes 0.14 ms to parse
        # each.
        for rows, patches in blocks:
            for run in _runs(rows):
                block = np.ascontiguousarray(patches[run])
                place.select_hyperslab((int(rows[run.start]), 0, 0), block.shape)
                stored.write(h5py.h5s.create_simple(block.shape), place, block)


def _runs(rows: NDArray[np.intp]) -> Iterator[slice]:
    """Returns slices of consecutive row numbers within rising ones."""
    ends = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return (slice(start, stop) for start, stop in pairwise(ends) if start < stop)


class PatchWriter:
    """Collects the patches of photo after photo, then writes them into one patches.h5. Use it as a context manager.

    `put` writes to a journal next to the file, so a killed run loses only the photo that it was writing. `commit` then
    streams the journal into a new file. Memory: four times the patches (4 KB each) of the photo with most patches, and
    200 bytes for each patch of all photos. Disk: the patches twice.

    Args:
        path: path of the file to make; it need not exist.

    Attributes:
        done: fingerprints by name of the photos that a killed run had finished.

    Raises:
        HardnetSfmError: the journal of a killed run is damaged or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal = Journal(path.with_name(f".{path.name}.journal"))
        self.done = {name: str(facts["fingerprint"]) for name, facts in self._journal.facts().items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()

    def put(self, name: str, fingerprint: str, arrays: Arrays) -> None:
        """Adds or replaces the patches of one photo. They are safe on disk when this returns.

        Args:
            name: name of the photo.
            fingerprint: fingerprint of everything that its patches depend on.
            arrays: arrays of its n patches, empty if it has none: `patches` (n, 64, 64) uint8; `point` (n,) int64, a
                number that identifies the point in all photos; `frame` (n, 2, 3), `angle` (n,) and `xyz` (n, 3), the
                position of the patch's point, float32 as in `PatchSet`.

        Raises:
            HardnetSfmError: the disk is full or cannot be written. Earlier entries are kept.
        """
        columns = {key: arrays[key].astype(kind, casting="same_kind", copy=False) for key, (kind, _) in _PUT.items()}
        for key, (_, shape) in _PUT.items():
            expected = (len(columns["point"]), *shape)
            if columns[key].shape != expected:
                raise ValueError(f"{key} of {name} has shape {columns[key].shape}, expected {expected}")
        self._journal.put(name, {"fingerprint": fingerprint}, columns, packed=False)
        self.done[name] = fingerprint

    def commit(
        self,
        names: Sequence[str],
        source: str,
        measurement_size: float,
        extent: float = math.nan,
        options: Mapping[str, Any] | None = None,
        *,
        keep_ids: bool = False,
    ) -> None:
        """Writes the patches of the given photos into the file, and drops the journal.

        Points with one patch are left out. The others are numbered anew in rising order of their given numbers, which
        become `PatchSet.point_id` with `keep_ids`. The patches of a point follow the order of `names`, and those of one
        photo the order in which they were put.

        Raises:
            HardnetSfmError: the disk is full or cannot be written, or no point has two patches. An existing file and
                the journal are kept.
        """
        columns, count = self._columns(names)
        ids, first, of_patch, sizes = np.unique(
            columns["point"], return_index=True, return_inverse=True, return_counts=True
        )
        kept = sizes >= 2
        order = np.argsort(of_patch, kind="stable")
        order = order[kept[of_patch[order]]]
        renumbered = np.cumsum(kept) - 1
        patch_set = PatchSet(
            str(self.path),
            source,
            measurement_size,
            tuple(names),
            np.broadcast_to(np.uint8(0), (len(order), PATCH_SIZE, PATCH_SIZE)),
            point=renumbered[of_patch[order]],
            image=np.repeat(np.arange(len(names), dtype=np.int32), count)[order],
            frame=columns["frame"][order],
            angle=columns["angle"][order],
            xyz=columns["xyz"][first[kept]],
            extent=extent,
            options=options or {},
            point_id=ids[kept] if keep_ids else None,
        )
        row = np.full(len(of_patch), -1)
        row[order] = np.arange(len(order))
        _write(self.path, patch_set, self._blocks(names, np.split(row, np.cumsum(count)[:-1])))
        self._journal.drop()

    def discard(self) -> None:
        """Drops what a killed run had finished. The file is complete: the run was killed after it had written it."""
        self._journal.drop()

    def _columns(self, names: Sequence[str]) -> tuple[dict[str, NDArray[Any]], list[int]]:
        """Returns all columns but the patches of the given photos, photo after photo.

        It also returns the number of patches of each photo.
        """
        parts: dict[str, list[NDArray[Any]]] = {
            key: [np.zeros((0, *shape), kind)] for key, (kind, shape) in _PUT.items() if key != "patches"
        }
        for name in names:
            arrays = self._journal.arrays(name)
            for key, part in parts.items():
                part.append(arrays[key])
        count = [len(part) for part in parts["point"][1:]]
        return {key: np.concatenate(part) for key, part in parts.items()}, count

    def _blocks(
        self, names: Sequence[str], rows: Sequence[NDArray[np.intp]]
    ) -> Iterator[tuple[NDArray[np.intp], Grey]]:
        """Yields the patches of each photo with their rows in the file. Patches with row -1 are left out."""
        for name, row in zip(names, rows, strict=True):
            order = np.argsort(row)[np.count_nonzero(row < 0) :]
            yield row[order], self._journal.arrays(name)["patches"][order]
