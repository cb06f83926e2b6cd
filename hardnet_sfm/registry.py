"""How detectors and descriptors are found by name, those of other packages included."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from hardnet_sfm.errors import HardnetSfmError, UsageError

T = TypeVar("T")


def registered(what: str, built_in: Mapping[str, T], name: str) -> T:
    """The built-in entry of that name, or what a package offers under the entry point `hardnet_sfm.{what}s`.

    Raises:
        UsageError: nothing is registered under the name.
        HardnetSfmError: the package that offers it fails to import.
    """
    if name in built_in:
        return built_in[name]
    offered = entry_points(group=f"hardnet_sfm.{what}s")
    for entry_point in offered:
        if entry_point.name == name:
            try:
                found: T = entry_point.load()
            except (ImportError, AttributeError) as error:
                raise HardnetSfmError(
                    f"the {what} {name} ({entry_point.value}) cannot be loaded: {error}",
                    "Install the package that brings it again, with what it needs.",
                ) from error
            return found
    known = sorted({*built_in, *offered.names})
    close = difflib.get_close_matches(name, known, 1)
    guess = f"Did you mean {close[0]}? " if close else ""
    raise UsageError(f"unknown {what}: {name}", f"{guess}There are: {', '.join(known)}.")
