"""Registries of objects by name, including objects from other packages."""

from __future__ import annotations

import difflib
from collections.abc import ItemsView, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Generic, TypeVar

from hardnet_sfm.errors import HardnetSfmError, UsageError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Maps names to built-in objects and to objects that other packages offer by entry points.

    A package adds an object by an entry point. The name of the entry point is the name on the command line. The object
    is loaded when it is first requested. Names of a removed package are not listed. Loading one says what is missing.

    Args:
        what: kind of the objects, in the singular, for messages.
        group: group of the entry points, in the plural: "detectors" for `hardnet_sfm.detectors`.
        built_in: built-in objects by name; these come first.
    """

    def __init__(self, what: str, group: str, built_in: dict[str, T]) -> None:
        self.what, self.group, self.built_in = what, f"hardnet_sfm.{group}", built_in

    def offered(self) -> dict[str, EntryPoint]:
        """Looks through the installed packages for what they offer under a name that is not built in."""
        found = {entry_point.name: entry_point for entry_point in entry_points(group=self.group)}
        return {name: found[name] for name in sorted(found) if name not in self.built_in}

    def __iter__(self) -> Iterator[str]:
        """Yields the names of what can be loaded."""
        return iter([*self.built_in, *(name for name, offered in self.offered().items() if _is_there(offered))])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        """Says whether there is an entry of that name. One of a removed package cannot be loaded."""
        return name in self.built_in or name in self.offered()

    def __getitem__(self, name: str) -> T:
        """Returns the entry with the given name.

        Raises:
            KeyError: no entry has this name.
            HardnetSfmError: the package that offers it fails to import.
        """
        return self.built_in[name] if name in self.built_in else self.load(self.offered()[name])

    def items(self) -> ItemsView[str, T]:
        """Returns the names and entries of all that can be loaded. It looks through the installed packages once."""
        return _Items(self)

    def load(self, entry_point: EntryPoint) -> T:
        """Loads what a package offers; raises HardnetSfmError if that fails."""
        try:
            found: T = entry_point.load()
        except (ImportError, AttributeError) as error:
            raise HardnetSfmError(
                f"the {self.what} {entry_point.name} ({entry_point.value}) cannot be loaded: {error}",
                "Install the package that provides it again, with its dependencies.",
            ) from error
        return found

    def find(self, name: str) -> T:
        """Returns the entry with the given name.

        Raises:
            UsageError: no entry has this name.
            HardnetSfmError: the package that offers it fails to import.
        """
        if name not in self:
            known = list(self)
            close = difflib.get_close_matches(name, known, 1)
            guess = f"Did you mean {close[0]}? " if close else ""
            raise UsageError(f"unknown {self.what}: {name}", f"{guess}There are: {', '.join(known)}.")
        return self[name]


class _Items(ItemsView[str, T]):
    """Names and entries of a registry. Each entry is loaded when it is reached."""

    def __init__(self, registry: Registry[T]) -> None:
        super().__init__(registry)
        self._registry = registry

    def __iter__(self) -> Iterator[tuple[str, T]]:
        yield from self._registry.built_in.items()
        for name, offered in self._registry.offered().items():
            if _is_there(offered):
                yield name, self._registry.load(offered)


def _is_there(entry_point: EntryPoint) -> bool:
    """Says whether the module of an entry point exists. A user may have removed its package by hand."""
    try:
        return find_spec(entry_point.module) is not None
    except ModuleNotFoundError:
        return False
