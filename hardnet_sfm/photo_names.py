"""Names of photos: composed and decomposed spellings in Unicode are the same name.

A Mac may write the letter é of a file name as e and an accent (decomposed, NFD), other systems as one letter (composed,
NFC). Lists, ground truth and models often come from another system than the photos.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path


def composed(name: str) -> str:
    """Returns the composed spelling (NFC) of a name."""
    return unicodedata.normalize("NFC", name)


class KnownNames:
    """Finds names in any spelling.

    Args:
        names: names as they are spelled here. Two of them may differ only in spelling: these are found exactly only.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = set(names)

    @cached_property
    def _alike(self) -> dict[str, str | None]:
        """Names by their composed spelling. Most lists are spelled as here and never need it."""
        found: dict[str, str | None] = {}
        for name in self._exact:
            spelling = composed(name)
            found[spelling] = None if spelling in found else name
        return found

    def __contains__(self, name: str) -> bool:
        """Says whether a name is spelled like this here."""
        return name in self._exact

    def find(self, name: str) -> str | None:
        """Returns a name as it is spelled here, or None if it is unknown."""
        return name if name in self._exact else self._alike.get(composed(name))


def as_on_disk(path: Path) -> Path:
    """Returns the path in the other spelling, if a file exists only in that one."""
    if path.exists():
        return path
    others = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((other for other in others if other.exists()), path)
