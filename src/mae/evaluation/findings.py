"""Name what is wrong with a pre-training run, from the rows of its health checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Finding(NamedTuple):
    """Something wrong with a run."""

    name: str
    """A few words, the same for every run."""
    text: str
    """One line: the name, what was measured, what to do."""


def findings(rows: Sequence[Row], *, num_steps: int) -> list[Finding]:
    """Return what is wrong at the last row of a run.

    Args:
        rows: of the health checks so far, at least one.
        num_steps: of the whole run.
    """
    return []
