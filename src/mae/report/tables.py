"""Wrap text tables and shell commands to the width of a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

WIDTH = 100
"""Width of the output, in characters."""


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
