"""List published results with the commands that would reproduce them (mae recipes paper)."""

from __future__ import annotations

from collections.abc import Iterator

from mae.recipes.published import Published, read_published
from mae.report.tables import WIDTH, Report, command_lines, wrapped

_WIDTHS = (14, 30, 9, 21, 14)


def published_results() -> Report:
    """Return the published results of others."""
    published = read_published()
    return Report(published._asdict(), _rows(published))


def _rows(published: Published) -> Iterator[tuple[str, ...]]:
    yield from wrapped((published.about,), (WIDTH,))
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
