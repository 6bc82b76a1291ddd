"""List published results with the commands that would reproduce them (mae recipes paper)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mae.recipes.published import Published
from mae.report.tables import WIDTH, command_lines, wrapped

_WIDTHS = (14, 30, 9, 21, 14)


def paper_values(published: Published) -> dict[str, Any]:
    """Return the published results as JSON-ready values."""
    return published._asdict() | {"scores": [score._asdict() for score in published.scores]}


def paper_rows(published: Published) -> Iterator[tuple[str, ...]]:
    """Return the published results as rows of text."""
    yield from wrapped((published.about,), (WIDTH,))
    yield (f"Not built in this version: mae {', mae '.join(published.not_built)}.",)
    yield ("",)
    yield from wrapped(("where", "what", "model", "published", "measured here"), _WIDTHS)
    for score in published.scores:
        numbers = "\n".join(f"{value} {unit}" for unit, value in score.values.items())
        yield ("",)
        yield from wrapped((score.where, score.what, score.model, numbers, score.measured), _WIDTHS)
        for command in score.commands:
            yield from ((line,) for line in command_lines(command, indent="    "))
        took = f"took others: {score.took}" if score.took else ""
        for note in filter(None, (took, score.note)):
            yield from ((f"    {line}",) for (line,) in wrapped((note,), (WIDTH - 4,)))
