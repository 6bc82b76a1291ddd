"""The result type of verbs: a table for people and values for --json.

A verb is a function: its parameters are the options, its docstring is the help. It imports its
job, and with it torch, only when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

Pool = Literal["mean", "cls", "grid"]
HeadPool = Literal["mean", "cls"]

MULTI_PROCESS_VERBS = frozenset(("probe", "evaluate"))
"""Verbs that may run as several processes of one job."""


class Shown(NamedTuple):
    """Result of a verb."""

    values: Mapping[str, object]
    """Printed with --json."""
    rows: Iterable[Sequence[str]]
    """Printed as a table."""
    exit_code: int = 0


class _Result(Protocol):
    def rows(self) -> Iterable[Sequence[str]]: ...
    def _asdict(self) -> dict[str, Any]: ...


def shown(result: _Result) -> Shown:
    """Convert a result with rows and fields."""
    return Shown(result._asdict(), result.rows())
