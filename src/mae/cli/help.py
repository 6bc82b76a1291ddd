"""Help of a verb: its options with type, default and text, from docstrings."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from inspect import Parameter
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from mae.cli.options import Option

_TYPES = {str: "TEXT", Path: "PATH", int: "INT", float: "FLOAT", bool: "true|false",
          NoneType: "none", Ellipsis: "..."}  # fmt: skip
_COLUMN = 26
_MAX_WIDTH = 100


def help_text(run: Callable[..., object], options: Sequence[Option], *, verb: str) -> str:
    """Return the help of a verb, as wide as the terminal.

    The text of an option is its entry under "Args:" in the docstring of the verb, or else the
    docstring of the field of its name in `Option.owner`. On a terminal the names are bold, unless
    NO_COLOR is set.
    """
    about, _, arguments = f"{inspect.getdoc(run)}".partition("\n\nArgs:\n")
    texts = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE))
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    bold = "\033[1m{}\033[0m" if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else "{}"
    positional = [option.flag.upper() for option in options if option.positional]
    usage = " ".join(["usage: mae", verb, *positional, "[options]"])
    paragraphs = [textwrap.fill(part, width) for part in about.split("\n\n")]
    lines = ["\n\n".join([usage, *paragraphs]), ""]
    for option in options:
        name = option.flag.upper() if option.positional else f"--{option.flag}"
        is_switch = option.hint is bool and option.default is False
        kind = "" if is_switch else _type(option.hint) + " ..." * option.many
        start = f"  {name} {kind}  ".ljust(_COLUMN)
        text = texts.get(option.path) or _field_text(option.owner, option.path.rpartition(".")[2])
        if option.default is not Parameter.empty:
            text += f" (default: {_value(option.default)})"
        wrapped = textwrap.wrap(" ".join(text.split()), width - _COLUMN) or [""]
        if len(start) == _COLUMN:
            start += wrapped.pop(0)
        lines += [start.rstrip().replace(name, bold.format(name), 1)]
        lines += [" " * _COLUMN + line for line in wrapped]
    return "\n".join(lines)


def _type(hint: Any) -> str:
    """Describe a type as it is typed: INT, bf16|fp16, FLOAT,FLOAT or TEXT|none."""
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return "|".join(map(str, options))
    separator = "," if get_origin(hint) is tuple else "|"
    return separator.join(map(_type, options)) or _TYPES[hint]


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _field_text(cls: type, name: str) -> str:
    """Return the docstring of a field, which may be inherited."""
    ours = (base for base in cls.__mro__ if base.__module__.startswith("mae."))
    docs = (_docs_of_fields(base.__module__).get((base.__name__, name)) for base in ours)
    return next(filter(None, docs), "")


@cache
def _docs_of_fields(module: str) -> dict[tuple[str, str], str]:
    """Read field docstrings by (class, field) from the source of a module; Python drops them."""
    return {
        (node.name, ast.unparse(field.target)): ast.literal_eval(doc.value)
        for node in ast.parse(inspect.getsource(sys.modules[module])).body
        if isinstance(node, ast.ClassDef)
        for field, doc in pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }
