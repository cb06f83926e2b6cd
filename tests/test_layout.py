"""The order of the package: a module stands only on those below it, and a word of `--help` leads to its file."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from hardnet_sfm.cli import VERBS

PACKAGE = Path(__file__).parents[1] / "hardnet_sfm"
WINGS = ("features", "matching", "retrieval", "training", "pages", "viewer")
# Folders that take arrays and know no files, and the part of one that reads them.
FREE_OF_FILES = ("evaluation", "features", "matching", "pages", "retrieval", "training", "viewer")
READERS = ("evaluation.datasets",)
FLOORS = (
    ("__main__",),
    ("cli", "literature"),
    # These verbs run other verbs to measure or to check them.
    ("verbs.demo", "verbs.doctor", "verbs.evaluate"),
    ("checks",),
    ("verbs",),
    # It describes, matches and searches in order to measure, so it stands on the wings.
    ("evaluation",),
    ("competitors", "pair_matching", "photo_index", "training_run", "view_synthesis"),
    ("orientation", "reconstruction"),
    ("index_folder",),
    WINGS,
    ("frames",),
    ("colmap", "networks"),
    ("terminal",),
    ("patches", "scene"),
    ("files",),
    ("flags", "network_weights", "patch_set"),
    (
        *("keypoints", "measures", "photo_names", "photos", "progress", "registry", "resources", "sights", "stages"),
        *("textures", "versions", "workers"),
    ),
    ("arrays", "errors", "inverted_lists"),
)
LEVEL = {part: -number for number, floor in enumerate(FLOORS) for part in floor}
FILES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def part_of(module: str) -> str:
    """What a module belongs to: a folder, or a file of its own."""
    return module if module in LEVEL else module.split(".")[0]


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its head or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hardnet_sfm."):
            module = str(node.module).removeprefix("hardnet_sfm.")
            found |= {f"{module}.{name.name}" if f"{module}.{name.name}" in FILES else module for name in node.names}
    return found & FILES.keys()


@pytest.mark.parametrize("module", sorted(FILES))
def test_module_imports_only_from_below(module: str) -> None:
    part = part_of(module)
    used = {part_of(other) for other in imports_of(FILES[module])} - {part}
    assert all(LEVEL[other] < LEVEL[part] for other in used), used


@pytest.mark.parametrize("folder", FREE_OF_FILES)
def test_only_readers_of_data_sets_import_files(folder: str) -> None:
    others = [module for module in FILES if module.startswith(f"{folder}.") and not module.startswith(READERS)]
    found = {module: {used for used in imports_of(FILES[module]) if used.startswith("files.")} for module in others}
    assert {module: used for module, used in found.items() if used} == {}


def test_no_module_imports_itself_by_a_detour() -> None:
    TopologicalSorter({module: imports_of(path) - {module} for module, path in FILES.items()}).prepare()


def test_only_the_colmap_folder_imports_pycolmap() -> None:
    users = {part_of(module) for module, path in FILES.items() if "import pycolmap" in path.read_text()}
    assert users == {"colmap"}


def test_nothing_imports_the_literature() -> None:
    users = {part_of(module) for module, path in FILES.items() if "hardnet_sfm.literature" in path.read_text()}
    assert users <= {"literature"}


def test_each_verb_of_the_help_has_its_file_and_no_file_is_without_one() -> None:
    verbs = {verb for group in VERBS.values() for verb in group}
    assert {module.removeprefix("verbs.") for module in FILES if module.startswith("verbs.")} == verbs


def test_no_two_modules_share_a_name() -> None:
    names = Counter(path.stem for path in FILES.values())
    assert [name for name, count in names.items() if count > 1] == []
