"""How the fields of a verb become its flags: what tyro makes of dataclasses, with two things changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import partial
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo


def flag_rules() -> ConstructorRegistry:
    """tyro's rule for dataclasses, after which

    - each paragraph of a docstring is one line, to be wrapped where the terminal ends. tyro keeps the line breaks of
      the source where a line is indented, as those below a field are, or begins with no letter;
    - a flag that is off by default has no negative form: `--debug`, but `--report, --no-report`. Help has one text
      for both, which is about the positive one.
    """
    rules = ConstructorRegistry()
    by_default = False

    @rules.struct_rule
    def changed(kind: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal by_default
        if by_default or not is_dataclass(kind.type):
            return None
        by_default = True  # tyro asks all rules, this one first
        try:
            made = ConstructorRegistry.get_struct_spec(kind)
        finally:
            by_default = False
        if not isinstance(made, StructConstructorSpec):
            return None
        return replace(made, fields=tuple(map(_changed_field, made.fields)))

    return rules


def _changed_field(field: StructFieldSpec) -> StructFieldSpec:
    kind: Any = field.type
    if kind is bool and field.default is False:
        kind = Annotated[kind, FlagCreatePairsOff]
    return replace(field, type=kind, helptext=partial(_filled, field.helptext))


def _filled(text: str | Callable[[], str | None] | None) -> str | None:
    """A text, or that which is only made when help is asked for, with a line for each paragraph."""
    said = text() if callable(text) else text
    if said is None:
        return None
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", said))
