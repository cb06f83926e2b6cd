"""Pages that are written from what they describe: options from `--help`, notebooks, and the cards of weights."""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from hardnet_sfm import cli

ROOT = Path(__file__).parents[1]
# Wide enough for no option to be broken within a word.
_COLUMNS = "120"
# Of a group of options, and the line below it.
_TITLE = r"^ ([a-z0-9. ]+?) *\n -+ *\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages to those that are in the folder."""
    pages = {"reference/cli.md": command_line()}
    pages |= {f"notebooks/{path.stem}.md": notebook(path) for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
    # Cards link to the documentation from beside the weights, where they are installed.
    cards = sorted(ROOT.glob("weights/*.md"))
    pages |= {f"weights/{path.name}": path.read_text(encoding="utf-8").replace("](../docs/", "](../") for path in cards}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def command_line() -> str:
    """The page of all verbs and their options."""
    parts = [
        "# Command line\n\n"
        "Written from what `hardnet-sfm VERB --help` prints. Values in the last column are defaults. Shells complete "
        "verbs and options: [how](../tutorial.md#the-stages-one-by-one). `hardnet-sfm --version` says which version it "
        "is.\n"
    ]
    for verb in _listed(_help()):
        parts += _verb(verb, level=2)
    return "\n".join(parts)


def _verb(*words: str, level: int) -> Iterator[str]:
    text = _help(*words)
    usage, _, rest = text.partition("\n\n")
    described, boxes = re.split(r"\n\n(?= [a-z0-9. ]+ *\n -+)", rest, maxsplit=1)
    said, _, examples = described.partition("Examples:")
    yield f"{'#' * level} {' '.join(words)}\n\n{' '.join(said.split())}\n"
    if examples:
        yield "```bash\n" + "\n".join(line for line in examples.splitlines() if line.strip()) + "\n```\n"
    else:
        yield f"```text\n{usage.removeprefix('usage: ')}\n```\n"
    found: set[str] = set()
    for title, box, _ in re.findall(rf"{_TITLE}(.*?)(?={_TITLE}|\Z)", boxes, re.M | re.S):
        rows = list(_rows(box))
        found |= {word for row in rows for word in re.findall(r"--[a-z][a-z0-9-]*", row[0])}
        if title != "subcommands" and rows:
            yield f"| {title.rpartition('.')[2]} | | default |\n|---|---|---|"
            yield "".join(f"| {_code(row[0])} | {_plain(row[1])} | {_code(row[2])} |\n" for row in rows)
    missing = set(re.findall(r"^  (?:-\w, )?(--[a-z][a-z0-9-]*)", boxes, re.M)) - found - {"--help"}
    if missing:
        raise PluginError(f"options of {' '.join(words)} that were not understood: {', '.join(sorted(missing))}")
    for sub in _listed(text, marked=True):
        yield from _verb(*words, sub, level=level + 1)


def _help(*words: str) -> str:
    """What `--help` prints, in ASCII."""
    printed = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": _COLUMNS}), contextlib.redirect_stdout(printed):
        try:
            cli.parse([*words, "--help"])
        except SystemExit as ended:
            if ended.code:
                raise PluginError(f"hardnet-sfm {' '.join(words)} --help exits with {ended.code}") from ended
    return printed.getvalue()


def _listed(text: str, *, marked: bool = False) -> list[str]:
    """Words that a help text lists with what they are; with `marked` those behind a bullet only."""
    return re.findall(rf"^ +{'•' if marked else '•?'} ?([a-z][a-z0-9-]*)  +\S", text, re.M)


def _rows(box: str) -> Iterator[tuple[str, str, str]]:
    """Option or argument, text and default of each entry; the text stands beside it or below, further to the right."""
    # What the group as a whole is stands above a line of its own.
    entries = re.split(r"^ +-+ *\n", box, flags=re.M)[-1]
    for entry in re.split(r"^  (?=\S)", entries, flags=re.M)[1:]:
        head, text = re.split(r" *\n| {2,}", entry, maxsplit=1)
        words = " ".join(text.split())
        default = re.search(r" ?\(default: ([^()]*)\)$", words)
        if "--help" not in head:
            words = re.sub(r" ?\((?:default: [^()]*|required)\)$", "", words)
            head = re.sub(r",(?=\S)", ", ", head.replace("{None}|", ""))
            yield head, words, _rounded(default.group(1)) if default else ""


def _rounded(value: str) -> str:
    """A default, empty where there is none; 0.0066666666666666667 as people write it."""
    if value in ("None", "False"):
        return ""
    return f"{float(value):.3g}" if re.fullmatch(r"\d+\.\d{6,}", value) else value


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def _plain(text: str) -> str:
    """Text in which nothing but `code` is marked up."""
    return re.sub(r"`[^`]*`|[|*_\[\]]", lambda found: found[0] if len(found[0]) > 1 else f"\\{found[0]}", _safe(text))


def _safe(text: str) -> str:
    return html.escape(text, quote=False)


def notebook(path: Path) -> str:
    """Text and code of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"
