"""The literature is a plug-in: without its folder the product works, and says what it has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hardnet_sfm.scene import Scene

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def without_literature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package whose folder `literature` was deleted; its entry points are still there."""
    place = tmp_path_factory.mktemp("without")
    shutil.copytree(ROOT / "hardnet_sfm", place / "hardnet_sfm", ignore=shutil.ignore_patterns("literature"))
    shutil.copytree(ROOT / "weights", place / "weights")
    return place


def run(place: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """A command of the copy."""
    line = [sys.executable, "-m", "hardnet_sfm", *map(str, args)]
    return subprocess.run(
        line, cwd=place, env={**os.environ, "PYTHONPATH": str(place)}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_product_works_without_it(without_literature: Path, small_scene: tuple[Path, Scene]) -> None:
    photos, workspace = small_scene[0], without_literature / "out"
    few = ("--max-keypoints", 800, "--workers", 1)
    made = run(without_literature, "reconstruct", photos, "--workspace", workspace, *few)
    assert made.returncode == 0 and "8 of 8 photos registered" in made.stdout, made.stderr
    found = run(without_literature, "retrieve", "--query", photos / "view_000.jpg", "--workspace", workspace)
    assert found.returncode == 0 and found.stdout.splitlines()[1].endswith("view_000.jpg"), found.stderr
    patches, weights = without_literature / "patches.h5", without_literature / "mine.safetensors"
    mined = run(without_literature, "mine", workspace, "--images", photos, "-o", patches)
    assert mined.returncode == 0, mined.stderr
    trained = run(without_literature, "train", patches, "-o", weights, "--steps", 2, "--batch-size", 32)
    assert trained.returncode == 0 and "2 steps" in trained.stdout, trained.stderr


def test_its_networks_are_not_listed_without_it(without_literature: Path, tmp_path: Path) -> None:
    refused = run(without_literature, "train", "patches.h5", "-o", tmp_path / "a.safetensors", "--network", "tfeat")
    assert refused.returncode == 1
    assert "the network tfeat (hardnet_sfm.literature.catalogue:TFEAT) cannot be loaded" in refused.stderr
    unknown = run(without_literature, "train", "patches.h5", "-o", tmp_path / "a.safetensors", "--network", "hardnot")
    assert unknown.returncode == 2 and "There are: hardnet, hardnet-fast." in unknown.stderr
