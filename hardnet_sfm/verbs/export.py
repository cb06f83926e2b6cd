"""The command `export` writes a workspace in formats that other programs read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, check_choice
from hardnet_sfm.files.ledger import EXPORT, Ledger
from hardnet_sfm.files.ownership import check_outputs, replacing_output
from hardnet_sfm.files.stores import MatchStore
from hardnet_sfm.files.workspace import Workspace, prepare_folder, replace_folder, replacing, restore_folder
from hardnet_sfm.progress import console as errors
from hardnet_sfm.terminal import output

Form = Literal["binary", "text", "ply", "pairs", "database"]
_NAMES: dict[Form, str] = {
    "binary": "sparse",
    "text": "text",
    "ply": "points",
    "pairs": "pairs.txt",
    "database": "database.db",
}


def export(workspace: Workspace | Path | str, to: Path | str, forms: tuple[Form, ...] | None = None) -> list[Path]:
    """Writes the contents of a workspace for other programs. An earlier export is replaced, other files are not.

    - binary: every model in COLMAP's binary format, in `sparse/0`, `sparse/1` and so on.
    - text: every model in COLMAP's text format, in `text/0`, `text/1` and so on.
    - ply: the points of every model with their colours, in `points/0/points3D.ply` and so on.
    - pairs: `pairs.txt` with the matched pairs, two names a line, in hloc's format.
    - database: `database.db` without the table that this package adds.

    Args:
        workspace: workspace that holds a model.
        to: folder to write to; it is created if missing.
        forms: formats to write. The default is all, but without pairs if the name of a photo contains a space: hloc
            cannot read such names.

    Returns:
        Paths of the written files; for models, paths of their folders.

    Raises:
        HardnetSfmError: the folder has files of the same names that `export` did not write, or that were changed since;
            the workspace does not hold what the formats need, or a photo's name in the pairs has a space.
        UsageError: there is no such format.
    """
    place = workspace if isinstance(workspace, Workspace) else Workspace(Path(workspace))
    target = Path(to)
    for form in forms or ():
        check_choice("forms", form, Form)
    if not place.root.is_dir():
        raise HardnetSfmError(f"no workspace at {place.root}", "Run `hardnet-sfm reconstruct IMAGES` first.")
    if target.resolve() == place.root.resolve():
        raise HardnetSfmError("the workspace cannot be exported onto itself", "Choose another folder for --to.")
    pairs: list[tuple[str, str]] = []
    if forms is None or "pairs" in forms:
        with MatchStore(place.matches) as matches:
            pairs = matches.pairs()
    spaced = next((name for pair in pairs for name in pair if " " in name), None)
    if spaced and "pairs" in (forms or ()):
        raise HardnetSfmError(
            f"hloc cannot read photo names with spaces, such as {spaced}", "Rename them, or leave out the form pairs."
        )
    chosen = forms or tuple(form for form in get_args(Form) if form != "pairs" or not spaced)
    ledger = Ledger(target, EXPORT)
    check_outputs(ledger, *(_NAMES[form] for form in chosen))
    prepare_folder(target)
    if not ledger.exists:
        ledger.start({})
    write: dict[Form, Callable[[Path], list[Path]]] = {
        "binary": lambda path: _models(place, path, "binary"),
        "text": lambda path: _models(place, path, "text"),
        "ply": lambda path: _models(place, path, "ply"),
        "pairs": lambda path: [_pairs(pairs, path)],
        "database": lambda path: [_database(place, path)],
    }
    written = []
    for form in chosen:
        with replacing_output(ledger, _NAMES[form]) as path:
            written += write[form](path)
    return written


def _models(place: Workspace, target: Path, form: Literal["binary", "text", "ply"]) -> list[Path]:
    """Writes all models into a folder next to the target, then replaces the target by it."""
    from hardnet_sfm.colmap.model import Model

    folders = sorted((path for path in place.sparse.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    if not folders:
        raise HardnetSfmError(f"no model in {place.sparse}", "Run `hardnet-sfm map` first.")
    beside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    for folder in folders:
        Model.read(folder).write(beside / folder.name, form)
    restore_folder(target)
    replace_folder(beside, target)
    return [target / folder.name for folder in folders]


def _pairs(pairs: list[tuple[str, str]], target: Path) -> Path:
    with replacing(target) as beside:
        beside.write_text("".join(f"{first} {second}\n" for first, second in pairs), encoding="utf-8")
    return target


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
    """Write the results in forms that COLMAP, hloc and viewers read."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm export hardnet-sfm-out/ --to elsewhere/",
        "hardnet-sfm export out/ --to elsewhere/ --forms text ply",
    )

    workspace: Annotated[Path, Positional, arg(metavar="WORKSPACE")]
    """Workspace in which `reconstruct` made a model."""
    to: Path
    """Folder to write to. It is made if it does not exist. An earlier export in it is replaced."""
    forms: tuple[Form, ...] | None = None
    """Forms to write. binary and text: COLMAP models. ply: points. pairs: the list of pairs for hloc. database:
    COLMAP's database without our own table. Default: all, but no pairs if the name of a photo has a space, which hloc
    cannot read."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        written = export(self.workspace, self.to, self.forms)
        for path in written:
            output.print(escape(str(path)))
        if self.forms is None and not any(path.name == "pairs.txt" for path in written):
            errors.print("[yellow]left out:[/] pairs.txt: hloc cannot read photo names with spaces")
