"""workspace.json: marks a folder as a workspace of this package, and remembers what verbs need to know later.

It has the options of the last run of each stage, and the time that the stage took. It also has checksums of outputs
whose content does not say who made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from rich.markup import escape

from hardnet_sfm.errors import HardnetSfmError
from hardnet_sfm.files.workspace import read_json, write_json
from hardnet_sfm.progress import console

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Options = TypeVar("Options", bound=DataclassInstance)

NAME = "workspace.json"
EXPORT = "hardnet-sfm-export.json"
FORMAT = "hardnet-sfm workspace"
VERSION = 1

# Stages that depend on a stage, and what each makes.
_LATER = {"extract": ("match", "map", "index"), "match": ("map",), "vocabulary": ("index",)}
_RESULTS = {"match": "matches.h5", "map": "sparse", "index": "index"}

_HINT = "Move it elsewhere: the workspace is recognised without it, but its options are forgotten."

Checksums = Mapping[str, str]
"""The sha256 of each file of an output, by its path relative to the output. The path of a single file is empty."""


@dataclass(frozen=True)
class Ledger:
    """The facts in workspace.json of a folder. Write to it only while the folder is locked.

    A folder without the file has no facts, and all writing but `start` does nothing in it.

    Attributes:
        root: the folder.
        name: name of the file. Exports have their own.
    """

    root: Path
    name: str = NAME

    @property
    def exists(self) -> bool:
        return (self.root / self.name).is_file()

    def start(self, written: Mapping[str, Checksums | None]) -> None:
        """Makes the file. It lists the outputs that are in the folder already and belong to this package."""
        self._write({"options": {}, "seconds": {}, "written": dict(written)})

    def recall(self, stage: str, kind: type[Options]) -> Options | None:
        """Returns the options that a stage was last used with, or None if there are none.

        Raises:
            HardnetSfmError: the file is damaged.
        """
        noted = self._read()["options"].get(stage)
        try:
            return None if noted is None else _decode(kind, noted)
        except TypeError as error:
            raise HardnetSfmError(f"{self.root / self.name}: options of {stage}: {error}", _HINT) from error

    def remember(self, stage: str, options: DataclassInstance) -> None:
        """Notes the options of a stage, as far as they differ from the defaults."""
        self._note("options", stage, _encode(options))

    def seconds(self, stage: str, items: int | None = None) -> float:
        """Estimates how long a stage takes for a number of photos or pairs, by default for all. 0 if it is unknown."""
        noted = self._read()["seconds"].get(stage)
        if not noted:
            return 0.0
        seconds, done, everything = noted
        return float(seconds / done * (everything if items is None else items))

    def note_seconds(self, stage: str, seconds: float, items: int, everything: int) -> None:
        """Notes the time that a stage took for some of its photos or pairs."""
        if items:
            self._note("seconds", stage, [max(0.01, round(seconds, 2)), items, everything])

    def written(self) -> dict[str, Checksums | None]:
        """Returns the outputs that this package wrote, by name. None instead of checksums means any content."""
        return dict(self._read()["written"])

    def note_written(self, name: str, checksums: Checksums | None) -> None:
        """Notes that this package wrote an output, or is about to write it (checksums None)."""
        self._note("written", name, checksums)

    def _note(self, part: str, name: str, value: Any) -> None:
        if not self.exists:
            return
        content = self._read()
        if name not in content[part] or content[part][name] != value:
            content[part][name] = value
            self._write(content)

    def _read(self) -> dict[str, Any]:
        path = self.root / self.name
        if not self.exists:
            return {"options": {}, "seconds": {}, "written": {}}
        try:
            content = read_json(path)
        except HardnetSfmError as error:
            raise HardnetSfmError(error.message, _HINT) from error
        if content.get("format") != FORMAT or not _is_sound(content):
            raise HardnetSfmError(f"{path}: damaged, or not a file of hardnet-sfm", _HINT)
        return content

    def _write(self, content: Mapping[str, Any]) -> None:
        write_json(self.root / self.name, {"format": FORMAT, "version": VERSION, **content})


def say_again(ledger: Ledger, stage: str, what: str, why: str, *, items: int | None = None) -> None:
    """Prints what a stage is about to do again, why, which later stages follow, and roughly how long it takes.

    Args:
        ledger: facts of the workspace.
        stage: name of the stage.
        what: photos, pairs or descriptors, with their number.
        why: options or files that changed.
        items: number of photos or pairs; None means all.
    """
    said = f"[yellow]again:[/] {stage} of {what} ({escape(why)}){_about(ledger.seconds(stage, items))}"
    later = [after for after in _LATER.get(stage, ()) if (ledger.root / _RESULTS[after]).exists()]
    if later:
        said += f"; then {', '.join(later)}{_about(sum(map(ledger.seconds, later)))}"
    console.print(said)


def _about(seconds: float) -> str:
    """Formats an estimate of a time; empty for 0."""
    if not seconds:
        return ""
    if seconds < 90:
        return f", about {max(1, round(seconds))} s"
    return f", about {round(seconds / 60)} min" if seconds < 5400 else f", about {seconds / 3600:.1f} h"


def _is_sound(content: Mapping[str, Any]) -> bool:
    """Says whether the parts of the file have the right types."""
    parts = [content.get(part) for part in ("options", "seconds", "written")]
    if not all(isinstance(part, dict) for part in parts):
        return False
    options, seconds, written = (list(content[part].values()) for part in ("options", "seconds", "written"))
    return (
        all(isinstance(of, dict) for of in options)
        and all(isinstance(of, list) and len(of) == 3 and all(map(_is_positive, of)) for of in seconds)
        and all(of is None or isinstance(of, dict) for of in written)
    )


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _encode(options: DataclassInstance) -> dict[str, Any]:
    """Returns the options that differ from the defaults, for JSON. Paths become absolute."""
    default = type(options)()
    given = {of.name: getattr(options, of.name) for of in fields(options)}
    changed = {name: value for name, value in given.items() if value != getattr(default, name)}
    return {name: _plain(value) for name, value in changed.items()}


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value.resolve())
    return list(value) if isinstance(value, tuple) else value


def _decode(kind: type[Options], noted: Mapping[str, Any]) -> Options:
    """Makes options of what `_encode` returned. It ignores options that this version does not have."""
    hints, default = get_type_hints(kind), kind()
    known = {name: value for name, value in noted.items() if name in hints}
    for name, value in known.items():
        if isinstance(value, str) and "Path" in str(hints[name]):
            known[name] = Path(value)
        elif isinstance(value, list):
            known[name] = tuple(value)
        usual = getattr(default, name)
        if usual is not None and not isinstance(value, (int, float) if isinstance(usual, float) else type(usual)):
            raise TypeError(f"{name} is {value!r}")
    return kind(**known)
