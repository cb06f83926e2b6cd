"""Turns the fields of a verb into its flags and back: tyro's rule for dataclasses with two changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo


def flag_rules() -> ConstructorRegistry:
    """Returns tyro's rule for dataclasses with two changes.

    - Each paragraph of a docstring becomes one line, which the terminal wraps. tyro itself keeps the line breaks of
      the source if a line is indented, as below a field, or does not begin with a letter.
    - A flag that is off by default has no negative form: `--debug`, but `--report, --no-report`. Help has one text
      for both forms, and that text describes the positive one.
    """
    rules = ConstructorRegistry()
    by_default = False

    @rules.struct_rule
    def changed(kind: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal by_default
        if by_default or not is_dataclass(kind.type):
            return None
        by_default = True  # get_struct_spec asks all rules again, this one first
        try:
            made = ConstructorRegistry.get_struct_spec(kind)
        finally:
            by_default = False
        if not isinstance(made, StructConstructorSpec):
            return None
        return replace(made, fields=tuple(map(_changed_field, made.fields)))

    return rules


def flag_of(name: str, value: object) -> str:
    """Writes a field and its value as the user would type them: `--camera-mode single`, `--no-retry`."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def is_given(name: str, args: Sequence[str]) -> bool:
    """Says whether a command line that is not parsed yet has an option."""
    flag = name.replace("_", "-")
    typed = {arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("--")}
    return bool({f"--{flag}", f"--no-{flag}"} & typed)


def value_of(option: str, args: Sequence[str], default: Any) -> Any:
    """Finds the value of an option in a command line that is not parsed yet."""
    given = default
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        name, equals, value = arg.partition("=")
        if name == option:
            given = value if equals else following
    return given


def _changed_field(field: StructFieldSpec) -> StructFieldSpec:
    kind: Any = field.type
    if kind is bool and field.default is False:
        kind = Annotated[kind, FlagCreatePairsOff]
    return replace(field, type=kind, helptext=partial(_filled, field.helptext))


def _filled(text: str | Callable[[], str | None] | None) -> str | None:
    """Joins the lines of each paragraph of a help text; calls the text first if tyro makes it on demand."""
    said = text() if callable(text) else text
    if said is None:
        return None
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", said))
