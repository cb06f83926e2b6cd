"""The command line: the table of verbs and how a line becomes one of them. The verbs themselves are in commands/."""

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
from hardnet_sfm.commands.common import GOES_ON, Verb, errors_said, output
from hardnet_sfm.commands.doctor import Doctor
from hardnet_sfm.commands.evaluate import Evaluate
from hardnet_sfm.commands.flags import flag_rules
from hardnet_sfm.commands.info import Info
from hardnet_sfm.commands.reconstruction import Demo, Export, Extract, Map, Match, Pair, Reconstruct
from hardnet_sfm.commands.report import Report
from hardnet_sfm.commands.retrieval import Index, Retrieve, Vocabulary
from hardnet_sfm.commands.training import Mine, Train, Warp, Weights
from hardnet_sfm.commands.view import View
from hardnet_sfm.errors import UsageError

# What people come for, and the verbs for it in the order in which they need them.
VERBS: dict[str, tuple[type[Verb], ...]] = {
    "reconstruct": (
        Reconstruct,
        Extract,
        Pair,
        Match,
        Map,
        Export,
    ),
    "retrieve": (
        Vocabulary,
        Index,
        Retrieve,
        Evaluate,
    ),
    "learn": (
        Mine,
        Warp,
        Train,
        Weights,
    ),
    "look": (
        Demo,
        View,
        Info,
        Report,
        Doctor,
    ),
}
_KINDS: dict[str, type[Verb]] = {kind.__name__.lower(): kind for group in VERBS.values() for kind in group}


def parse(args: Sequence[str] | None = None) -> Verb:
    """Parses a command line; exits with status 2 where it is wrong, and with 0 after help.

    Raises:
        UsageError: there is no such verb.
    """
    verb, *rest = list(sys.argv[1:] if args is None else args) or [""]
    if verb in ("", "-h", "--help"):
        _print_help()
        sys.exit(0 if verb else 2)
    how: Any = {"config": (OmitArgPrefixes,), "registry": flag_rules()}
    if verb.startswith("--tyro-"):  # completion for a shell, which wants all verbs at once
        tyro.extras.subcommand_cli_from_dict({**_KINDS}, prog="hardnet-sfm", args=[verb, *rest], **how)
    if verb.startswith("-"):
        raise UsageError(f"{verb} stands before the verb", "Options come after it: `hardnet-sfm VERB OPTIONS`.")
    if verb not in _KINDS:
        near = get_close_matches(verb, _KINDS, n=1)
        hint = f"Did you mean `hardnet-sfm {near[0]}`? " if near else ""
        raise UsageError(f"there is no verb {verb}", f"{hint}`hardnet-sfm --help` lists all.")
    kind = _KINDS[verb]
    # Each example is a paragraph of its own: tyro would join them.
    description = "\n\n".join([kind.__doc__ or "", "Examples:", *kind.examples])
    if kind is Reconstruct:
        how["default"] = Reconstruct.with_preset(_preset_in(rest))
    command: Verb = tyro.cli(kind, prog=f"hardnet-sfm {verb}", args=rest, description=description, **how)
    return command


def _preset_in(args: Sequence[str]) -> Any:
    """The preset that is asked for: it decides the defaults of all other options, so it has to be known first."""
    given = "default"
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        name, equals, value = arg.partition("=")
        if name == "--preset":
            given = value if equals else following
    return given


def _print_help() -> None:
    """The verbs in their groups, a line each."""
    output.print(f"hardnet-sfm {__version__}: local features for structure from motion and retrieval.")
    output.print("Start with `hardnet-sfm demo`; `hardnet-sfm VERB --help` has options, examples.")
    for group, kinds in VERBS.items():
        output.print(f"\n[bold]{group}[/]")
        for kind in kinds:
            output.print(f"  {kind.__name__.lower():<11}  {escape(kind.__doc__ or '')}")


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command line and exits: 0 done, 1 not done, 2 wrong usage, 130 interrupted."""
    if list(sys.argv[1:] if args is None else args) == ["--version"]:
        output.print(f"hardnet-sfm {__version__}")
        return
    with errors_said():
        command = parse(args)
    options: Any = getattr(command, "common", command)
    verb = type(command).__name__.lower()
    usage = f"`hardnet-sfm {verb} --help` says what it takes."
    with errors_said(options.debug, usage, getattr(command, "interrupted", GOES_ON)):
        command.run()
