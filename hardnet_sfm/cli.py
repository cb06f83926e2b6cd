"""The command line: the table of verbs, and the parser that turns arguments into a command. `verbs/` has the verbs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro
from rich.markup import escape
from tyro import MISSING
from tyro.conf import OmitArgPrefixes

from hardnet_sfm import __version__
from hardnet_sfm.errors import UsageError
from hardnet_sfm.files.workspace import DEFAULT
from hardnet_sfm.flags import flag_rules, value_of
from hardnet_sfm.terminal import (
    GOES_ON,
    Command,
    keep_all_letters,
    output,
    print_recalled,
    recall_options,
    report_errors,
)

# Verbs by purpose, in the order in which users need them, and what each does.
VERBS: dict[str, dict[str, str]] = {
    "reconstruct": {
        "reconstruct": "Turn photos into a COLMAP model; run it again to continue.",
        "extract": "Detect and describe keypoints, into features.h5.",
        "pair": "Choose which photos to match, into pairs.txt.",
        "match": "Match descriptors of each pair, into matches.h5.",
        "map": "Verify matches and reconstruct, into sparse/.",
        "export": "Write the results in forms that COLMAP, hloc and viewers read.",
    },
    "retrieve": {
        "vocabulary": "Learn a vocabulary of visual words, for any collection.",
        "index": "Make the photos of one folder searchable.",
        "retrieve": "Find photos that show the same thing as a query photo.",
        "evaluate": "Measure descriptors on the data sets of the literature.",
    },
    "learn": {
        "mine": "Cut training patches from a model and its photos.",
        "warp": "Make training patches from photos alone, by warping them.",
        "train": "Learn a network from patches.",
        "weights": "List, show, verify or convert weights.",
    },
    "look": {
        "demo": "Render a scene, reconstruct it, compare with the truth.",
        "view": "Look at a model in the browser (needs hardnet-sfm[view]).",
        "info": "Show what is in a workspace, and what is out of date.",
        "report": "Draw a page about a reconstruction, training or evaluation.",
        "doctor": "Check the installation, or a store of features.",
    },
}
_HELP = {verb: line for group in VERBS.values() for verb, line in group.items()}

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
        tyro.extras.subcommand_cli_from_dict(
            {verb: find_command(verb) for verb in _HELP}, prog="hardnet-sfm", args=[verb, *rest], **how
        )
    if verb.startswith("-"):
        raise UsageError(f"{verb} stands before the verb", "Options come after it: `hardnet-sfm VERB OPTIONS`.")
    if verb not in _HELP:
        near = " or ".join(f"`hardnet-sfm {name}`" for name in _similar(verb))
        hint = f"Did you mean {near}? " if near else ""
        raise UsageError(f"there is no verb {verb}", f"{hint}`hardnet-sfm --help` lists all.")
    kind: Any = find_command(verb)
    # Each line of the docstring is a paragraph, because tyro joins lines.
    description = "\n\n".join([_HELP[verb], *_examples(kind)])
    # These options decide the other options or their defaults, so they must be known before parsing.
    place, preset = Path(value_of("--workspace", rest, DEFAULT)), value_of("--preset", rest, None)
    recalled = {} if preset else recall_options(kind, place, rest)
    if verb == "reconstruct":
        how["default"] = kind.with_preset(preset, place, recalled)
    elif recalled:
        how["default"] = kind(**_without_defaults(kind), **recalled)
    if verb == "train" and (network := value_of("--network", rest, "")):
        kind = kind.for_network(network)
    command: Command = tyro.cli(kind, prog=f"hardnet-sfm {verb}", args=rest, description=description, **how)
    return command


def _similar(verb: str) -> list[str]:
    """Returns verbs that mean the same as an unknown one, or that are spelled nearly like it."""
    wanted = verb.lower()
    if wanted in _SYNONYMS:
        return [name for name in _SYNONYMS[wanted].split() if name in _HELP]
    begun = [name for name in _HELP if len(wanted) > 2 and name.startswith(wanted)]
    return begun[:2] or get_close_matches(wanted, _HELP, n=1, cutoff=_SPELLED_ALIKE)


def _without_defaults(kind: Any) -> dict[str, Any]:
    """Returns the fields that the user must give, with tyro's mark for a missing value."""
    return {of.name: MISSING for of in fields(kind) if of.default is of.default_factory is dataclasses.MISSING}


def find_command(verb: str) -> type[Command]:
    """Imports the command of a verb. The other verbs are not imported, as that takes most of a second."""
    command: type[Command] = getattr(import_module(f"hardnet_sfm.verbs.{verb}"), f"{verb.title()}Command")
    return command


def _examples(kind: type[Command]) -> list[str]:
    """Returns the lines of a command's docstring from "Examples:" on."""
    lines = [line.strip() for line in (kind.__doc__ or "").splitlines()]
    return [line for line in lines[lines.index("Examples:") :] if line]


def _print_help() -> None:
    """Prints the verbs in their groups, one a line."""
    output.print(f"hardnet-sfm {__version__}: local features for structure from motion and retrieval.")
    output.print("Start with `hardnet-sfm demo`; `hardnet-sfm VERB --help` has options, examples.")
    for group, verbs in VERBS.items():
        output.print(f"\n[bold]{group}[/]")
        for verb, line in verbs.items():
            output.print(f"  {verb:<11}  {escape(line)}")


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command line. Exit statuses are 0 for success, 1 for an error, 2 for wrong usage, 130 for an interrupt."""
    rest = list(sys.argv[1:] if args is None else args)
    if rest == ["--version"]:
        output.print(f"hardnet-sfm {__version__}")
        return
    keep_all_letters()
    with report_errors("--debug" in rest):
        command = parse(rest)
        print_recalled(command, rest)
    options: Any = getattr(command, "common", command)
    usage = f"`hardnet-sfm {rest[0]} --help` says what it takes."
    with report_errors(options.debug, usage, getattr(command, "interrupted", GOES_ON)):
        command.run()
