"""What several test files share: the real photos where they are, and a small rendered scene."""

from __future__ import annotations

import os

# Computations as small as in tests gain nothing by threads, which wait for each other and for the tests beside them.
# To be said before any of the libraries is loaded; what tests start inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import launched
from filelock import FileLock

import hardnet_sfm
from hardnet_sfm.cli import main
from hardnet_sfm.files.workspace import Workspace
from hardnet_sfm.scene import Scene, render

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Once = Callable[[str, Callable[[Path], object]], Path]
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real photos, which are not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no real photos at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Fills a folder in the first of the processes that asks for it; the others wait and find it done."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def once(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                fill(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def small_scene(once: Once) -> tuple[Path, Scene]:
    """Eight rendered photos of 480x360 and their true cameras. Tests must not write into the folder."""

    def fill(folder: Path) -> None:
        render(folder / "photos", photos=8, size=(480, 360)).save(folder / "truth.json")

    folder = once("small-scene", fill)
    return folder / "photos", Scene.load(folder / "truth.json")


@pytest.fixture(scope="session")
def indexed(small_scene: tuple[Path, Scene], once: Once) -> Path:
    """A workspace with an index of the small scene. Tests must not write into it."""

    def fill(folder: Path) -> None:
        main(f"index {small_scene[0]} --workspace {folder} --max-keypoints 300 --words 200".split())

    return once("indexed", fill)


@pytest.fixture(scope="session")
def made(small_scene: tuple[Path, Scene], once: Once) -> Workspace:
    """The small scene reconstructed. Tests must not write into it. Its model is what one thread always makes."""

    def fill(folder: Path) -> None:
        hardnet_sfm.reconstruct(
            small_scene[0],
            folder,
            extract_options=hardnet_sfm.ExtractOptions(
                descriptor="rootsift", max_keypoints=1500, orientation="estimated"
            ),
            map_options=hardnet_sfm.MapOptions(camera_mode="single", max_error=1.5),
            resources=hardnet_sfm.Resources(workers=1),
        )

    return Workspace(once("made", fill))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one core: for products as small as in tests its threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; `browser.visit` opens pages in it. Tests skip where there is none.

    Of a module, not of the session: while it runs, its event loop keeps `asyncio.run` from working in this thread.
    """
    with launched() as started:
        yield started
