"""The command line: the table of verbs, and the parser that turns arguments into a command. `verbs/` has the verbs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import zip_longest
from typing import Any

import tyro
from rich.markup import escape
from tyro.conf import OmitArgPrefixes

from hardnet_sfm import __version__
from hardnet_sfm.errors import UsageError
from hardnet_sfm.flags import flag_rules
from hardnet_sfm.terminal import GOES_ON, Command, keep_all_letters, output, report_errors
from hardnet_sfm.training.train_options import TrainOptions
from hardnet_sfm.verbs.demo import DemoCommand
from hardnet_sfm.verbs.doctor import DoctorCommand
from hardnet_sfm.verbs.evaluate import EvaluateCommand
from hardnet_sfm.verbs.export import ExportCommand
from hardnet_sfm.verbs.extract import ExtractCommand
from hardnet_sfm.verbs.index import IndexCommand
from hardnet_sfm.verbs.info import InfoCommand
from hardnet_sfm.verbs.map import MapCommand
from hardnet_sfm.verbs.match import MatchCommand
from hardnet_sfm.verbs.mine import MineCommand
from hardnet_sfm.verbs.pair import PairCommand
from hardnet_sfm.verbs.reconstruct import ReconstructCommand
from hardnet_sfm.verbs.report import ReportCommand
from hardnet_sfm.verbs.retrieve import RetrieveCommand
from hardnet_sfm.verbs.train import TrainCommand
from hardnet_sfm.verbs.view import ViewCommand
from hardnet_sfm.verbs.vocabulary import VocabularyCommand
from hardnet_sfm.verbs.warp import WarpCommand
from hardnet_sfm.verbs.weights import WeightsCommand

# Verbs by purpose, in the order in which users need them.
VERBS: dict[str, dict[str, type[Command]]] = {
    "reconstruct": {
        "reconstruct": ReconstructCommand,
        "extract": ExtractCommand,
        "pair": PairCommand,
        "match": MatchCommand,
        "map": MapCommand,
        "export": ExportCommand,
    },
    "retrieve": {
        "vocabulary": VocabularyCommand,
        "index": IndexCommand,
        "retrieve": RetrieveCommand,
        "evaluate": EvaluateCommand,
    },
    "learn": {
        "mine": MineCommand,
        "warp": WarpCommand,
        "train": TrainCommand,
        "weights": WeightsCommand,
    },
    "look": {
        "demo": DemoCommand,
        "view": ViewCommand,
        "info": InfoCommand,
        "report": ReportCommand,
        "doctor": DoctorCommand,
    },
}
_COMMANDS = {verb: kind for group in VERBS.values() for verb, kind in group.items()}
# Words for the verbs in other programs and in users' first attempts, with the verbs to suggest.
_SYNONYMS = {
    **dict.fromkeys(("search", "query", "find", "lookup", "similar", "recognise", "recognize"), "retrieve"),
    **dict.fromkeys(("localise", "localize", "locate", "register"), "localize retrieve"),
    **dict.fromkeys(("add", "grow", "update", "append", "continue", "resume"), "grow reconstruct index"),
    **dict.fromkeys(("run", "start", "sfm", "build", "automatic_reconstructor"), "reconstruct"),
    **dict.fromkeys(("mapper", "triangulate", "verify", "sparse"), "map"),
    **dict.fromkeys(("detect", "describe", "features", "feature_extractor", "extract_features"), "extract"),
    **dict.fromkeys(("matches", "exhaustive_matcher", "match_features"), "match"),
    **dict.fromkeys(("pairs", "pairing"), "pair"),
    **dict.fromkeys(("convert", "save", "undistort", "model_converter"), "export"),
    **dict.fromkeys(("show", "gui", "open", "visualize", "visualise"), "view"),
    **dict.fromkeys(("status", "list", "stats", "inspect"), "info"),
    **dict.fromkeys(("check", "test", "version", "diagnose"), "doctor"),
    **dict.fromkeys(("words", "vocab", "kmeans", "k-means", "vocab_tree"), "vocabulary"),
    **dict.fromkeys(("learn", "finetune", "fine-tune"), "train"),
    **dict.fromkeys(("patches", "dataset"), "mine"),
    **dict.fromkeys(("benchmark", "eval", "evaluation", "measure"), "evaluate"),
}
_SPELLED_ALIKE = 0.66


def parse(args: Sequence[str] | None = None) -> Command:
    """Parses a command line. It exits with status 2 if the line is wrong, and with 0 after printing help.

    Raises:
        UsageError: there is no such verb.
    """
    verb, *rest = list(sys.argv[1:] if args is None else args) or [""]
    if verb in ("", "-h", "--help"):
        _print_help()
        sys.exit(0 if verb else 2)
    how: Any = {"config": (OmitArgPrefixes,), "registry": flag_rules()}
    if verb.startswith("--tyro-"):  # shell completion needs all verbs at once
        tyro.extras.subcommand_cli_from_dict({**_COMMANDS}, prog="hardnet-sfm", args=[verb, *rest], **how)
    if verb.startswith("-"):
        raise UsageError(f"{verb} stands before the verb", "Options come after it: `hardnet-sfm VERB OPTIONS`.")
    if verb not in _COMMANDS:
        near = " or ".join(f"`hardnet-sfm {name}`" for name in _similar(verb))
        hint = f"Did you mean {near}? " if near else ""
        raise UsageError(f"there is no verb {verb}", f"{hint}`hardnet-sfm --help` lists all.")
    kind = _COMMANDS[verb]
    # Each example is a separate paragraph, because tyro joins lines.
    description = "\n\n".join([kind.__doc__ or "", "Examples:", *kind.examples])
    # These options decide the other options or their defaults, so they must be known before parsing.
    if kind is ReconstructCommand:
        how["default"] = ReconstructCommand.with_preset(_value_of("--preset", rest, "default"))
    if kind is TrainCommand:
        kind = TrainCommand.for_network(_value_of("--network", rest, TrainOptions().network))
    command: Command = tyro.cli(kind, prog=f"hardnet-sfm {verb}", args=rest, description=description, **how)
    return command


def _similar(verb: str) -> list[str]:
    """Returns verbs that mean the same as an unknown one, or that are spelled nearly like it."""
    wanted = verb.lower()
    if wanted in _SYNONYMS:
        return [name for name in _SYNONYMS[wanted].split() if name in _COMMANDS]
    begun = [name for name in _COMMANDS if len(wanted) > 2 and name.startswith(wanted)]
    return begun[:2] or get_close_matches(wanted, _COMMANDS, n=1, cutoff=_SPELLED_ALIKE)


def _value_of(option: str, args: Sequence[str], default: str) -> Any:
    """Finds the value of an option in a command line that is not parsed yet."""
    given = default
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        name, equals, value = arg.partition("=")
        if name == option:
            given = value if equals else following
    return given


def _print_help() -> None:
    """Prints the verbs in their groups, one a line."""
    output.print(f"hardnet-sfm {__version__}: local features for structure from motion and retrieval.")
    output.print("Start with `hardnet-sfm demo`; `hardnet-sfm VERB --help` has options, examples.")
    for group, kinds in VERBS.items():
        output.print(f"\n[bold]{group}[/]")
        for verb, kind in kinds.items():
            output.print(f"  {verb:<11}  {escape(kind.__doc__ or '')}")


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command line. Exit statuses are 0 for success, 1 for an error, 2 for wrong usage, 130 for an interrupt."""
    if list(sys.argv[1:] if args is None else args) == ["--version"]:
        output.print(f"hardnet-sfm {__version__}")
        return
    keep_all_letters()
    with report_errors("--debug" in (sys.argv if args is None else args)):
        command = parse(args)
    options: Any = getattr(command, "common", command)
    verb = next(verb for verb, kind in _COMMANDS.items() if isinstance(command, kind))
    usage = f"`hardnet-sfm {verb} --help` says what it takes."
    with report_errors(options.debug, usage, getattr(command, "interrupted", GOES_ON)):
        command.run()
