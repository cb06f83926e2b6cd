"""The documentation: what it tells people to type is accepted, what it links to is there, and it is complete."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import pytest

import hardnet_sfm
from hardnet_sfm.cli import parse

ROOT = Path(__file__).parents[1]
OF_ROOT = (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
PAGES = sorted([*OF_ROOT, *(ROOT / "docs").rglob("*.md"), *(ROOT / "weights").glob("*.md")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_to_type(text: str) -> Iterator[str]:
    """Lines of the fenced blocks of a shell, those that go on in the next one put together."""
    for language, block in re.findall(r"^```(bash|console)\n(.*?)^```", text, re.M | re.S):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if language == "bash" or line.startswith("$ "):
                yield line.removeprefix("$ ").strip()


def commands(page: Path) -> list[list[str]]:
    """Arguments of every `hardnet-sfm ...` in them."""
    lines = (line.split(" > ")[0] for line in lines_to_type(page.read_text(encoding="utf-8")))
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("hardnet-sfm ")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_accepted(page: Path) -> None:
    for args in commands(page):
        try:
            parse(args)
        except SystemExit as ended:
            assert not ended.code, args


def test_wrong_commands_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nhardnet-sfm map \\\n  --no-such-option 3  # why\n```\n```text\nhardnet-sfm 0.1\n```\n")
    assert commands(page) == [["map", "--no-such-option", "3"]]
    with pytest.raises(SystemExit) as ended:
        parse(commands(page)[0])
    assert ended.value.code


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_and_targets_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for line in lines_to_type(text):
        if line.startswith("make "):
            assert line.split()[1] in targets, line
    for script in re.findall(r"(?:pipelines|tests|notebooks)/[\w/]+\.(?:py|ipynb)", text):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", [page for page in PAGES if not name_of(page).startswith("docs/")], ids=name_of)
def test_links_from_outside_the_site_lead_somewhere(page: Path) -> None:
    """Those within it are checked where it is built."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_reference_has_every_public_name_and_no_other() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: (\S+)", page, re.M))
    exported = re.findall(r"^from (\S+) import (\w+)", Path(hardnet_sfm.__file__).with_suffix(".pyi").read_text(), re.M)
    assert {name for _, name in exported} == set(hardnet_sfm.__all__)
    assert {f"hardnet_sfm{home}.{name}" for home, name in exported} - documented == set()
    for name in documented:
        resolve_name(name)


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_drawings_are_what_their_script_draws() -> None:
    folder = ROOT / "docs" / "drawings"
    drawn = {name: draw() for name, draw in loaded(folder / "draw.py").DRAWINGS.items()}
    assert {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")} == drawn


def test_options_are_read_from_help() -> None:
    page = loaded(ROOT / "docs" / "hooks.py").command_line()
    rows = {line for line in page.splitlines() if line.startswith("|")}
    said = "Largest error of an inlier of a verified pair, in pixels of the photo after --max-image-size. "
    said += "Raise it for photos with strong distortion."
    assert f"| `--max-error FLOAT` | {said} | `4.0` |" in rows
    assert "| `IMAGES` | Folder of photos, searched recursively, never written to. |  |" in rows
    assert any(row.startswith("| `--vocabulary ") for row in rows)
    assert "## reconstruct\n\nTurn photos into a COLMAP model" in page and "### evaluate oxford5k\n" in page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    return folder


@pytest.mark.slow
def test_site_is_built_without_warnings_and_fetches_nothing(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        # Whatever a browser loads by itself, as against links that people follow.
        for tag in re.findall(r"<(?:link|script|img|iframe|source|video)\b[^>]*>", text):
            assert not re.search(r"\b(?:href|src|srcset)=[\"']?(?:https?:)?//", tag), (page, tag)
        assert 'class="mermaid"' not in text and "MathJax" not in text
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
