"""The command `export` writes a workspace in formats that other programs read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, check_choice
from hardnet_sfm.files.ledger import EXPORT, Ledger
from hardnet_sfm.files.ownership import check_outputs, replacing_output
from hardnet_sfm.files.pair_list import write_pairs
from hardnet_sfm.files.photo_checks import check_photos
from hardnet_sfm.files.stores import FeatureStore, MatchStore
from hardnet_sfm.files.workspace import Workspace, prepare_folder, replace_folder, replacing, restore_folder
from hardnet_sfm.progress import console as errors
from hardnet_sfm.terminal import output

if TYPE_CHECKING:  # pycolmap takes a second to import; `--help` does not need it
    from hardnet_sfm.colmap.model import Model

Form = Literal["binary", "text", "ply", "pairs", "database"]
_NAMES: dict[Form, str] = {
    "binary": "sparse",
    "text": "text",
    "ply": "points",
    "pairs": "pairs.txt",
    "database": "database.db",
}
# Formats that separate names by white space: who reads them, and what holds the same data.
_READERS: dict[Form, str] = {"text": "readers of COLMAP's text format", "pairs": "hloc and other readers of pairs"}
_INSTEAD: dict[Form, str] = {
    "text": "use the form binary, which holds all names",
    "pairs": "read the pairs from matches.h5, which holds all names",
}


def export(
    workspace: Workspace | Path | str,
    to: Path | str,
    forms: tuple[Form, ...] | None = None,
    *,
    on_left_out: Callable[[Form, str], None] | None = None,
) -> list[Path]:
    """Writes the contents of a workspace for other programs. An earlier export is replaced, other files are not.

    - binary: every model in COLMAP's binary format, in `sparse/0`, `sparse/1` and so on.
    - text: every model in COLMAP's text format, in `text/0`, `text/1` and so on.
    - ply: the points of every model with their colours, in `points/0/points3D.ply` and so on.
    - pairs: `pairs.txt` with the matched pairs, two names a line, in hloc's format.
    - database: `database.db` without the table that this package adds.

    Args:
        workspace: workspace that holds a model.
        to: folder to write to; it is created if missing.
        forms: formats to write. The default is all, but without text and pairs if the name of a photo has white space:
            readers of these two formats cut names there.
        on_left_out: called with each of the default formats that is left out, and the reason.

    Returns:
        Paths of the written files; for models, paths of their folders.

    Raises:
        HardnetSfmError: the folder has files of the same names that `export` did not write, or that were changed since;
            the workspace does not hold what the formats need; photos have another size than when they were mapped; or a
            format that was asked for cannot hold the name of a photo.
        UsageError: there is no such format.
    """
    from hardnet_sfm.colmap.model import Model

    place = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    target = Path(to)
    _check(place, target, forms)
    asked: tuple[Form, ...] = forms or get_args(Form)
    pairs: list[tuple[str, str]] = []
    if "pairs" in asked:
        with MatchStore(place.matches) as matches:
            pairs = matches.pairs()
    of_models = {"binary", "text", "ply"} & set(asked)
    models = {folder.name: Model.read(folder) for folder in _folders(place)} if of_models else {}
    names: dict[Form, Iterable[str]] = {
        "text": (name for model in models.values() for name in model.names),
        "pairs": (name for pair in pairs for name in pair),
    }
    left_out = {form: why for form in asked if (why := _cut_names(form, names.get(form, ())))}
    for form, why in left_out.items():
        if forms is not None:
            raise HardnetSfmError(
                f"--forms {form}: {why}", f"Rename the photos and reconstruct again, or {_INSTEAD[form]}."
            )
        if on_left_out:
            on_left_out(form, why)
    chosen = [form for form in asked if form not in left_out]
    ledger = Ledger(target, EXPORT)
    check_outputs(ledger, *(_NAMES[form] for form in chosen))
    prepare_folder(target)
    if not ledger.exists:
        ledger.start({})
    write: dict[Form, Callable[[Path], list[Path]]] = {
        "binary": lambda path: _write_models(models, path, "binary"),
        "text": lambda path: _write_models(models, path, "text"),
        "ply": lambda path: _write_models(models, path, "ply"),
        "pairs": lambda path: [write_pairs(path, pairs)],
        "database": lambda path: [_database(place, path)],
    }
    written = []
    for form in chosen:
        with replacing_output(ledger, _NAMES[form]) as path:
            written += write[form](path)
    return written


def _check(place: Workspace, target: Path, forms: tuple[Form, ...] | None) -> None:
    """Raises an error if a form is unknown, if there is no workspace, or if its photos have another size now."""
    for form in forms or ():
        check_choice("forms", form, Form)
    if not place.root.is_dir():
        raise HardnetSfmError(f"no workspace at {place.root}", "Run `hardnet-sfm reconstruct IMAGES` first.")
    if target.resolve() == place.root.resolve():
        raise HardnetSfmError("the workspace cannot be exported onto itself", "Choose another folder for --to.")
    if place.features.is_file():
        with FeatureStore(place.features) as features:
            check_photos(Path(features.header["images"]), features)


def _cut_names(form: Form, names: Iterable[str]) -> str:
    """Says which names the readers of a format would cut at white space; empty if none."""
    spaced = sorted({name for name in names if name.split() != [name]})
    if not spaced:
        return ""
    count = f"{len(spaced)} photos have" if len(spaced) > 1 else "1 photo has"
    return f"{count} white space in the name, where {_READERS[form]} cut names ({spaced[0]})"


def _folders(place: Workspace) -> list[Path]:
    folders = sorted((path for path in place.sparse.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    if not folders:
        raise HardnetSfmError(f"no model in {place.sparse}", "Run `hardnet-sfm map` first.")
    return folders


def _write_models(models: Mapping[str, Model], target: Path, form: Literal["binary", "text", "ply"]) -> list[Path]:
    """Writes models by their name into a folder next to the target, then replaces the target by it."""
    beside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    for name, model in models.items():
        model.write(beside / name, form)
    restore_folder(target)
    replace_folder(beside, target)
    return [target / name for name in models]


def _database(place: Workspace, target: Path) -> Path:
    from hardnet_sfm.colmap.database import drop_facts

    if not place.database.is_file():
        raise HardnetSfmError(f"no database at {place.database}", "Run `hardnet-sfm map` first.")
    with replacing(target) as beside:
        shutil.copyfile(place.database, beside)
        drop_facts(beside)
    return target


@dataclass(frozen=True)
class ExportCommand:
    """Options of `hardnet-sfm export`.

    Examples:
        hardnet-sfm export hardnet-sfm-out/ --to elsewhere/
        hardnet-sfm export out/ --to elsewhere/ --forms text ply
    """

    workspace: Annotated[Path, Positional, arg(metavar="WORKSPACE")]
    """Workspace in which `reconstruct` made a model."""
    to: Path
    """Folder to write to. It is made if it does not exist. An earlier export in it is replaced."""
    forms: tuple[Form, ...] | None = None
    """Forms to write. binary and text: COLMAP models. ply: points. pairs: the list of pairs for hloc. database:
    COLMAP's database without our own table. Default: all, but no text and no pairs if the name of a photo has a space,
    where their readers cut it."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        for path in export(self.workspace, self.to, self.forms, on_left_out=_print_left_out):
            output.print(escape(str(path)))


def _print_left_out(form: Form, why: str) -> None:
    errors.print(f"[yellow]left out:[/] {form}: {escape(why)}. Instead, {_INSTEAD[form]}.")
