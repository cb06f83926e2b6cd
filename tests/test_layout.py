"""The order of the package: a module stands only on those below it, and the wings know nothing of each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hardnet_sfm"
ROWS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("demonstration",),
    ("benchmark", "doctor"),
    ("pipeline",),
    ("presets",),
    ("retry",),
    ("retrieve", "view_synthesis", "viewer"),
    ("extraction",),
    ("orientation",),
    ("training",),
    ("reconstruction", "features", "matching", "retrieval", "evaluation", "report"),
    ("frames", "fingerprints"),
    ("stores", "weights"),
    ("networks",),
    ("colmap",),
    ("scene", "patches"),
    ("keypoints", "sights", "images", "progress", "resources", "workers"),
    ("workspace", "journal", "versions"),
    ("errors",),
)
LEVEL = {name: -number for number, row in enumerate(ROWS) for name in row}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_imports_only_from_below(path: Path) -> None:
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    used = {part_of(node.module) for node in imports if node.module and node.module.startswith("hardnet_sfm.")} - {part}
    assert all(LEVEL[name] < LEVEL[part] for name in used), used


def test_only_the_colmap_folder_imports_pycolmap() -> None:
    users = {path.relative_to(PACKAGE).parts[0] for path in MODULES if "import pycolmap" in path.read_text()}
    assert users == {"colmap"}
