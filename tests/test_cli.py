"""The command line as a person meets it."""

from __future__ import annotations

import ast
import json
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import tyro

from hardnet_sfm import __version__
from hardnet_sfm.cli import VERBS, find_command, main, parse
from hardnet_sfm.errors import HardnetSfmError, UsageError
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.terminal import Command, report_errors
from hardnet_sfm.verbs.reconstruct import PRESETS, Preset, PresetName, ReconstructCommand

NAMES = [verb for verbs in VERBS.values() for verb in verbs]


def said_by(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        main(args)
    captured = capsys.readouterr()
    return int(exit.value.code or 0), captured.out + captured.err


def test_help_names_every_verb_and_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said_by(["--help"], capsys)
    assert status == 0
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == NAMES
    assert [line for line in text.splitlines() if line in VERBS] == list(VERBS)
    assert len(text.splitlines()) <= 30
    assert max(map(len, text.splitlines())) <= 80


def test_no_verb_at_all_gets_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by([], capsys) == (2, said_by(["--help"], capsys)[1])


@pytest.mark.parametrize(("typed", "meant"), [("reconstuct", "reconstruct"), ("retreive", "retrieve"), ("maps", "map")])
def test_typo_in_a_verb_gets_a_suggestion(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said_by([typed, "images"], capsys)
    assert status == 2 and f"there is no verb {typed}" in text and f"Did you mean `hardnet-sfm {meant}`?" in text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("search", "retrieve"), ("localize", "retrieve"), ("add", "reconstruct"), ("vocab", "vocabulary")],
)
def test_a_word_of_the_same_meaning_gets_the_verb(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said_by([typed], capsys)
    assert status == 2 and f"`hardnet-sfm {meant}`" in text and "train" not in text


def test_what_resembles_no_verb_gets_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said_by(["qqq"], capsys)
    assert status == 2 and "Did you mean" not in text and "`hardnet-sfm --help` lists all" in text


def examples_of(kind: type[Command]) -> list[str]:
    lines = [line.strip() for line in (kind.__doc__ or "").splitlines()]
    return [line for line in lines[lines.index("Examples:") + 1 :] if line]


@pytest.mark.parametrize("verb", NAMES)
def test_help_of_a_verb_shows_two_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said_by([verb, "--help"], capsys)
    assert status == 0
    examples = examples_of(find_command(verb))
    assert len(examples) >= 2
    for example in examples:
        assert example.startswith(f"hardnet-sfm {verb}") and example in text and len(example) <= 80


def unfilled(text: str) -> list[str]:
    """Lines of the texts of options after which the first word of the next line had room in 80 columns."""
    room = 78 if "│" in text else 80  # tyro draws frames where the output takes them
    found = []
    for line, after in pairwise(line.replace("│", " ").rstrip() for line in text.splitlines()):
        column = len(after) - len(after.lstrip())
        goes_on = column > 4 and line[:column].endswith("  ") and line[column:]
        if goes_on and len(line) + 1 + len(after.split()[0]) <= room:
            found.append(line)
    return found


@pytest.mark.parametrize("verb", NAMES)
def test_help_of_options_is_filled_to_the_width(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = said_by([verb, "--help"], capsys)[1]
    assert unfilled(text) == []


@dataclass(frozen=True)
class OfTwoParagraphs:
    """A verb with one option."""

    option: int = 7
    """The second line of this begins
    --with what is no letter, the third as well:
    3 is a number.

    This is a paragraph of its own."""


def test_paragraphs_of_an_options_help_stay_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        tyro.cli(OfTwoParagraphs, args=["--help"], registry=flag_rules())
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("--option"))
    assert lines[start : start + 4] == [
        "--option INT  The second line of this begins --with what is no letter, the",
        "third as well: 3 is a number.",
        "",
        "This is a paragraph of its own. (default: 7)",
    ]


def test_only_a_flag_that_is_on_by_default_has_a_negative_form(capsys: pytest.CaptureFixture[str]) -> None:
    text = said_by(["reconstruct", "--help"], capsys)[1]
    assert "--report, --no-report" in text and "--no-debug" not in text
    asked = [parse(["reconstruct", "images", *flags]) for flags in ([], ["--report"], ["--no-report"])]
    assert [command.report for command in asked if isinstance(command, ReconstructCommand)] == [True, True, False]
    assert said_by(["reconstruct", "images", "--no-debug"], capsys)[0] == 2


def test_reconstruct_takes_the_options_of_every_stage() -> None:
    line = (
        "reconstruct images --workspace w --detector dog --descriptor hardnet --weights w.safetensors "
        "--max-keypoints 7 --max-image-size 99 --orientation upright --device cpu --seed 3 --workers 2 "
        "--pairing sequential --window 4 --max-ratio 0.9 --mapper global --camera-mode single"
    )
    command = parse(line.split())
    assert isinstance(command, ReconstructCommand)
    assert command.common.workspace.name == "w"
    assert (command.extract.detector, command.extract.descriptor) == ("dog", "hardnet")
    assert command.extract.orientation == "upright"
    assert (command.extract.max_keypoints, command.extract.max_image_size) == (7, 99)
    assert (command.resources.device, command.resources.workers, command.map.seed) == ("cpu", 2, 3)
    assert (command.pair.pairing, command.pair.window, command.match.max_ratio) == ("sequential", 4, 0.9)
    assert (command.map.mapper, command.map.camera_mode) == ("global", "single")


def test_a_preset_sets_the_options_that_are_not_typed() -> None:
    command = parse(["reconstruct", "photos", "--preset", "video", "--window", "3", "--max-keypoints", "99"])
    assert isinstance(command, ReconstructCommand)
    assert command.preset == "video"
    assert command.pair == replace(PRESETS["video"].pair, window=3)
    assert command.extract == replace(PRESETS["video"].extract, max_keypoints=99)
    assert command.map == PRESETS["video"].map
    plain = parse(["reconstruct", "photos"])
    assert isinstance(plain, ReconstructCommand)
    assert Preset(plain.extract, plain.pair, plain.match, plain.views, plain.map) == PRESETS["default"] == Preset()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sound_and_help_shows_their_values(name: PresetName, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = PRESETS[name]
    for options in (chosen.extract, chosen.pair, chosen.match, chosen.views, chosen.map):
        options.check()
    text = " ".join(said_by(["reconstruct", f"--preset={name}", "--help"], capsys)[1].replace("│", " ").split())
    assert f"(default: {chosen.extract.max_keypoints})" in text and f"(default: {chosen.pair.pairing})" in text


def test_an_unknown_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said_by(["reconstruct", "photos", "--preset", "best"], capsys)
    assert status == 2 and "--preset: best is not one of fast, default, thorough, internet, video" in text


def test_options_come_after_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said_by(["--workspace", "out", "info"], capsys)
    assert status == 2 and "--workspace stands before the verb" in text and "`hardnet-sfm VERB OPTIONS`" in text


@pytest.mark.parametrize(
    "args", [[], ["reconstruc"], ["extract", "images", "--max-keypoint", "5"], ["map", "--seed", "x"]]
)
def test_wrong_usage_exits_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert said_by(args, capsys)[0] == 2


def test_typo_in_an_option_gets_a_suggestion_of_the_same_verb(capsys: pytest.CaptureFixture[str]) -> None:
    text = said_by(["extract", "images", "--max-keypoint", "5"], capsys)[1]
    assert "--max-keypoints" in text and "hardnet-sfm extract --help" in text
    assert "hardnet-sfm index" not in text


def test_every_example_is_a_command_line_that_parses() -> None:
    for verb in NAMES:
        kind = find_command(verb)
        for example in examples_of(kind):
            assert isinstance(parse(shlex.split(example)[1:]), kind)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.strip() == f"hardnet-sfm {__version__}"


def test_help_imports_no_verb() -> None:
    code = (
        "import sys\nfrom hardnet_sfm.cli import parse\n"
        "try: parse(['--help'])\nexcept SystemExit: pass\n"
        "assert 'numpy' not in sys.modules and not any(name.startswith('hardnet_sfm.verbs') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_help_does_not_wait_for_torch_and_pycolmap() -> None:
    code = (
        "import sys\nfrom hardnet_sfm.cli import parse\n"
        "try: parse(['reconstruct', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'pycolmap'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_runs_as_a_module() -> None:
    run = subprocess.run([sys.executable, "-m", "hardnet_sfm", "--version"], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == f"hardnet-sfm {__version__}"


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    """Python prints the traceback of what comes out of `main`."""
    status, text = said_by(["info", "/nowhere"], capsys)
    assert status == 1 and "Traceback" not in text
    with pytest.raises(HardnetSfmError):
        main(["info", "/nowhere", "--debug"])


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion_can_be_written(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, script = said_by(["--tyro-print-completion", shell], capsys)
    assert status == 0 and "--max-keypoints" in script


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    code = "from hardnet_sfm.cli import main; main(['reconstruct', '--help'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()


def test_terminate_ends_a_run_as_ctrl_c_does(tmp_path: Path) -> None:
    """COLMAP's logging would print a stack of C++ calls."""
    code = (
        "import os, signal, hardnet_sfm.cli as cli, hardnet_sfm.verbs.info as home\n"
        "def info(_):\n"
        "    import hardnet_sfm.colmap\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    while True: pass\n"
        "home.info = info\n"
        f"cli.main(['info', {str(tmp_path)!r}])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 130
    assert run.stderr.count("\n") == 1 and "the same command resumes" in run.stderr


def test_negative_seeds_and_workers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--workspace", str(tmp_path)]
    assert said_by(["demo", *place, "--seed", "-1"], capsys)[0] == 2
    (tmp_path / "photo.png").touch()
    assert said_by(["extract", str(tmp_path), *place, "--workers", "-3"], capsys)[0] == 2


def test_a_folder_that_may_not_be_read_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(_: Path) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "features.h5"))

    monkeypatch.setattr("hardnet_sfm.verbs.info.info", forbidden)
    status, text = said_by(["info", str(tmp_path)], capsys)
    assert status == 1
    assert "features.h5: Permission denied" in text


def test_every_error_has_a_hint() -> None:
    """Wrong usage may do without: what is wrong says what is right, and the help of the verb is named."""
    root = Path(__file__).parents[1]
    without = []
    for path in [*root.glob("hardnet_sfm/**/*.py"), *root.glob("pipelines/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "HardnetSfmError":
                given = [*node.args[1:], *(word for word in node.keywords if word.arg == "hint")]
                if not given:
                    without.append(f"{path.relative_to(root)}:{node.lineno}")
    assert not without


def test_wrong_usage_without_a_hint_of_its_own_names_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said_by(["demo", "--seed", "-1"], capsys)
    assert status == 2
    assert text.splitlines() == ["error: --seed must be at least 0", "`hardnet-sfm demo --help` says what it takes."]


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (HardnetSfmError("no photo", "Take one."), 1, ["error: no photo", "Take one."]),
        (UsageError("--a with --b", "Leave one out."), 2, ["error: --a with --b", "Leave one out."]),
        (UsageError("--a must be above 0"), 2, ["error: --a must be above 0", "See the help."]),
        (
            OSError(28, "No space left on device", "f.h5"),
            1,
            [
                "error: f.h5: No space left on device",
                "Make room on the disk, then run the same command again: it resumes.",
            ],
        ),
        (
            OSError(5, "Input/output error"),
            1,
            [
                "error: Input/output error",
                "Make room on the disk, or check the connection of the network drive. "
                "Then run the same command again: it resumes.",
            ],
        ),
        (KeyboardInterrupt(), 130, ["Interrupted. Finished work is kept: the same command resumes."]),
    ],
    ids=["error", "usage", "usage without hint", "disk full", "other of the system", "ctrl-c"],
)
def test_what_is_said_of_an_error(
    error: BaseException, status: int, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit, report_errors(usage="See the help."):
        raise error
    assert exit.value.code == status
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize("error", [HardnetSfmError("no photo", "Take one."), OSError(5, "Input/output error")])
def test_debug_lets_an_error_through(error: Exception) -> None:
    with pytest.raises(type(error)), report_errors(debug=True):
        raise error


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--max-features 0", "--max-features must be at least 1"),
        ("--weights weights/hardnet-sfm.safetensors", "rootsift"),
        ("--descriptors hardnot", "hardnot"),
    ],
)
def test_strecha_says_what_is_wrong_before_colmap_runs(
    more: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And before it looks for the scene."""
    path = Path(__file__).parents[1] / "pipelines/strecha.py"
    monkeypatch.chdir(path.parents[1])
    monkeypatch.setattr(sys, "argv", ["strecha.py", "nowhere", *more.split()])
    with pytest.raises(SystemExit):
        runpy.run_path(str(path), run_name="__main__")
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("script", ["closed_loop", "homography", "oxford5k", "paris6k", "strecha"])
def test_pipelines_say_what_is_wrong_without_a_traceback(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[1] / "pipelines" / f"{script}.py"
    folders = [str(tmp_path / "nowhere")] * (2 if script in ("oxford5k", "paris6k") else 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(path.parent)  # type: ignore[no-untyped-call]
    monkeypatch.setattr(sys, "argv", [str(path), *folders])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(path), run_name="__main__")
    assert exit.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "nowhere" in said and len(said.splitlines()) == 2


@pytest.mark.parametrize("made_with", [None, {"photos": 5, "features": 10, "words": 64, "queries": 1}])
def test_the_benchmark_of_retrieval_refuses_an_index_of_other_photos(
    made_with: dict[str, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = Path(__file__).parents[1] / "pipelines" / "bench" / "retrieval.py"
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text("{}")
    if made_with is not None:
        (tmp_path / "made-with.json").write_text(json.dumps(made_with))
    options = "--photos 7 --features 10 --words 64 --queries 1"
    monkeypatch.setattr(sys, "argv", [str(script), "--folder", str(tmp_path), *options.split()])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(script), run_name="__main__")
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert "--photos 5" in said and "--words" not in said if made_with else "--photos unknown" in said


SCRIPTS = sorted(
    path for path in (Path(__file__).parents[1] / "pipelines").rglob("*.py") if "__main__" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_pipelines_say_what_they_take(script: Path) -> None:
    run = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout
