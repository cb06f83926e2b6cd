"""The stage `export`: a workspace in the forms that other programs take."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from rich.markup import escape
from tyro.conf import Positional, arg

from hardnet_sfm.errors import HardnetSfmError, check_choice
from hardnet_sfm.files.stores import MatchStore
from hardnet_sfm.files.workspace import Workspace, prepare_folder, replacing
from hardnet_sfm.progress import console as errors
from hardnet_sfm.terminal import output

Form = Literal["binary", "text", "ply", "pairs", "database"]


def export(workspace: Workspace | Path | str, to: Path | str, forms: tuple[Form, ...] | None = None) -> list[Path]:
    """Writes what is in a workspace for other programs; a file that is there already is replaced.

    - binary: every model as COLMAP writes it, `sparse/0` and so on.
    - text: the same in COLMAP's text form, `text/0` and so on.
    - ply: the points of every model with their colours, `points/0/points3D.ply` and so on.
    - pairs: `pairs.txt`, the matched pairs, two names a line as hloc reads them.
    - database: `database.db` without the table that we add.

    Args:
        workspace: that a model was made in.
        to: folder, made if missing.
        forms: which; by default all, but for pairs where a photo's name has a space in it, which hloc cannot read.

    Returns:
        What was written, folders for models.

    Raises:
        HardnetSfmError: the workspace does not hold what is asked for.
        UsageError: there is no such form.
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
            f"hloc takes no spaces in the names of photos, as in {spaced}", "Rename them, or leave out the form pairs."
        )
    chosen = forms or tuple(form for form in get_args(Form) if form != "pairs" or not spaced)
    prepare_folder(target)
    write: dict[Form, Callable[[], list[Path]]] = {
        "binary": lambda: _models(place, target / "sparse", "binary"),
        "text": lambda: _models(place, target / "text", "text"),
        "ply": lambda: _models(place, target / "points", "ply"),
        "pairs": lambda: [_pairs(pairs, target / "pairs.txt")],
        "database": lambda: [_database(place, target / "database.db")],
    }
    return [path for form in chosen for path in write[form]()]


def _models(place: Workspace, target: Path, form: Literal["binary", "text", "ply"]) -> list[Path]:
    from hardnet_sfm.colmap.model import Model

    folders = sorted((path for path in place.sparse.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    if not folders:
        raise HardnetSfmError(f"no model in {place.sparse}", "Run `hardnet-sfm map` first.")
    for folder in folders:
        Model.read(folder).write(target / folder.name, form)
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
    """Write models and more for COLMAP, hloc and viewers."""

    examples: ClassVar[tuple[str, ...]] = (
        "hardnet-sfm export hardnet-sfm-out/ --to elsewhere/",
        "hardnet-sfm export out/ --to elsewhere/ --forms text ply",
    )

    workspace: Annotated[Path, Positional, arg(metavar="WORKSPACE")]
    """Folder that `reconstruct` made a model in."""
    to: Path
    """Folder to write to, made if missing."""
    forms: tuple[Form, ...] | None = None
    """Which: COLMAP models as binary or text, points as ply, pairs for hloc, database without our own table. Default:
    all, but no pairs for hloc where names of photos have spaces, which it cannot read."""
    debug: bool = False
    """Show where in the program an error came from."""

    def run(self) -> None:
        written = export(self.workspace, self.to, self.forms)
        for path in written:
            output.print(escape(str(path)))
        if self.forms is None and not any(path.name == "pairs.txt" for path in written):
            errors.print("[yellow]left out:[/] pairs.txt: hloc cannot read names of photos that have spaces")
