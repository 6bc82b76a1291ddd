"""The printer of results: tables of text, values for JSON, and wrapping to a terminal's width."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

WIDTH = 100
"""Width of the output, in characters."""

# Format and factor of numbers with a unit, by the last word of their name.
_UNITS = {
    "bytes": ("{:,.1f} MB", 1e-6),
    "psnr": ("{:.1f} dB", 1),
    "seconds": ("{:.3g} s", 1),
    **dict.fromkeys(("miou", "macc", "aacc"), ("{:.2f} %", 100)),
    "top1": ("{:.2f} %", 100),
    "top5": ("{:.2f} %", 100),
}


class Report(NamedTuple):
    """What a verb prints."""

    values: Mapping[str, Any]
    """Printed with --json."""
    rows: Iterable[Sequence[str]]
    """Printed as a table."""
    exit_code: int = 0


def report_of(result: Any) -> Report:
    """Return what to print for the result of a job.

    Args:
        result: a `Report`, a mapping, or a named tuple. The class of a named tuple may define
            `values()`, to print with --json instead of its fields; `rows()`, to print instead of
            one row per value; and `exit_code`.
    """
    if isinstance(result, Report):
        return result._replace(values=plain(result.values))
    own = None if isinstance(result, Mapping) else type(result)
    values = plain(result.values() if callable(getattr(own, "values", None)) else result)
    rows = result.rows() if callable(getattr(own, "rows", None)) else value_rows(values)
    return Report(values, rows, getattr(result, "exit_code", 0))


def plain(value: Any) -> Any:
    """Convert named tuples to dicts at every depth, and NaN to None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def value_rows(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Derive a table from values: one row per value, or per item of a list of texts.

    Missing and empty values are left out. `x_spread` is printed in the row of `x`.
    """
    for name, value in values.items():
        if value is None or value in ("", [], {}) or name.endswith("_spread"):
            continue
        label = name.replace("_", " ")
        if isinstance(value, Mapping):
            yield from ((f"{label} {key}", _text(inner, name)) for key, inner in value.items())
        elif isinstance(value, list) and not isinstance(value[0], int | float):
            yield from zip_longest([label], (_text(item, name) for item in value), fillvalue="")
        else:
            spread = values.get(f"{name}_spread")
            yield label, _text(value, name) + (f" ± {_text(spread, name)}" if spread else "")


def _text(value: Any, name: str) -> str:
    """Format a value with the unit of its name."""
    if isinstance(value, list):
        return " ".join(_text(item, name) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        form, factor = _UNITS.get(
            name.rpartition("_")[2], ("{:,}" if isinstance(value, int) else "{:.4g}", 1)
        )
        return form.format(value * factor)
    return str(value)


def align(rows: Iterable[Sequence[str]]) -> str:
    """Align columns with spaces; a row of one cell is a plain line of text."""
    table = list(rows)
    columns = zip_longest(*(row for row in table if len(row) > 1), fillvalue="")
    widths = [max(map(len, column)) for column in columns] or [0]
    padded = [[cell.ljust(width) for cell, width in zip(r, widths, strict=False)] for r in table]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def wrapped(cells: Sequence[str], widths: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Wrap the cells of a row over several rows; line breaks within a cell are kept."""
    columns = [
        [part for line in cell.split("\n") for part in textwrap.wrap(line, width) or [""]]
        for cell, width in zip(cells, widths, strict=True)
    ]
    yield from zip_longest(*columns, fillvalue="")


def command_lines(command: str, *, indent: str) -> Iterator[str]:
    """Wrap a command into lines a shell accepts; an option stays with its value."""
    together = re.sub(r"(--\S+) (?!--)", "\\1\0", command)
    parts = textwrap.wrap(
        together,
        WIDTH - len(indent) - 2,
        break_on_hyphens=False,
        break_long_words=False,
        subsequent_indent="  ",
    )
    yield from (indent + line.replace("\0", " ") for line in " \\\n".join(parts).split("\n"))
