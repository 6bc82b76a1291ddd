"""What a verb shows, for people and for machines.

A verb is a function: its parameters are the options, its docstring is the help, and it imports
its job, and torch with it, only when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

Pool = Literal["mean", "cls", "grid"]
HeadPool = Literal["mean", "cls"]

ON_RANKS = frozenset(("probe", "evaluate"))
"""Verbs that may be started as several processes of one job."""


class Shown(NamedTuple):
    """What a verb has to show."""

    values: Mapping[str, object]
    """For machines."""
    rows: Iterable[Sequence[str]]
    """For people, a table."""
    exit_code: int = 0


class _Result(Protocol):
    def rows(self) -> Iterable[Sequence[str]]: ...
    def _asdict(self) -> dict[str, Any]: ...


def shown(result: _Result) -> Shown:
    """Show a result that has rows and fields."""
    return Shown(result._asdict(), result.rows())
