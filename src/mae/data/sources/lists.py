"""Read image lists with lines of path,label or path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mae.data.sources.list_rows import read_rows
from mae.data.sources.source import FolderSource
from mae.errors import DataError


def read_list(path: Path) -> FolderSource:
    """Open the images that a list names, in the order of its lines.

    Args:
        path: UTF-8 CSV with one image per line, with labels in all lines or none; paths are
            relative to the folder of the list. See `read_rows` for other supported separators,
            headings and columns. Blanks around labels are stripped, those around a path only if
            no file has the unstripped name.

    Returns:
        The images, one for each line; `notes` reports lines that repeat an image.

    Raises:
        DataError: if the list cannot be read or is empty, an image is missing, the number of
            cells differs between lines, or two lines give an image different labels.
    """
    rows, notes = read_rows(path)
    named = [row for row in rows if row]
    if not named:
        raise DataError(f"data: {path} has no images; expected path,label or a path a line")
    cells = 1 if all(len(row) == 1 for row in named) else 2
    lines = list[tuple[int, str, str]]()
    for number, row in enumerate(rows, start=1):
        if row and (len(row) != cells or not all(map(str.strip, row))):
            raise DataError(f"data: {path}, line {number}: got {row}, expected path,label")
        if row:
            name = row[0] if (path.parent / row[0]).is_file() else row[0].strip()
            if not (path.parent / name).is_file():
                raise DataError(f"data: {path}, line {number}: there is no {path.parent / name}")
            lines.append((number, name, row[-1].strip()))
    files = [name for _, name, _ in lines]
    classes = [label for _, _, label in lines] if cells == 2 else None
    again = _named_again(path, lines, labelled=cells == 2)
    return FolderSource(path.parent, files=files, classes=classes, notes=[*notes, *again])


def _named_again(path: Path, lines: Sequence[tuple[int, str, str]], *, labelled: bool) -> list[str]:
    """Report how many lines repeat an earlier image; reject differing labels."""
    first: dict[str, tuple[int, str]] = {}
    again: list[tuple[int, int, str]] = []
    for number, name, label in lines:
        where = os.path.normpath(path.parent / name)
        line, before = first.setdefault(where, (number, label))
        if labelled and before != label:
            raise DataError(
                f"data: {path}, lines {line} and {number}: {name} has two labels, {before} and "
                f"{label}; keep one of the lines"
            )
        if line != number:
            again.append((line, number, name))
    if not again:
        return []
    line, number, name = again[0]
    return [
        f"{path}: {len(again):,} of {len(lines):,} lines name an image again, the first is "
        f"{name} in lines {line} and {number}; each line counts"
    ]
