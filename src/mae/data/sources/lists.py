"""Read image lists: lines of path,label or path, with any separator, heading and columns."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from mae.data.sources.source import EXTENSIONS, FolderSource, path_of
from mae.errors import DataError

LISTS = (".csv", ".tsv", ".txt", ".lst")
"""File name extensions of lists, in lower case."""

_BLANK = " "
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", _BLANK: "blanks"}
_USUAL = {".csv": ",", ".tsv": "\t"}
_HEADINGS = (["path", "label"], ["path"])
_LABELS = frozenset(("label", "labels", "class", "class_name", "target", "category"))


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
    cells = min(2, max(map(len, rows), default=0))
    if not cells:
        raise DataError(f"data: {path} has no images; expected path,label or a path a line")
    lines = list[tuple[int, str, str]]()
    for number, row in enumerate(rows, start=1):
        if row and (len(row) != cells or not all(map(str.strip, row))):
            raise DataError(f"data: {path}, line {number}: got {row}, expected path,label")
        if row:
            name = row[0] if (path.parent / row[0]).is_file() else row[0].strip()
            if not (path.parent / name).is_file():
                raise DataError(f"data: {path}, line {number}: there is no {path.parent / name}")
            lines.append((number, name, "".join(row[1:]).strip()))
    _, files, labels = zip(*lines, strict=True)
    notes = [*notes, *_repeated(path, lines)]
    classes = labels if cells > 1 else None
    return FolderSource(path.parent, files=files, classes=classes, notes=notes)


def _repeated(path: Path, lines: Sequence[tuple[int, str, str]]) -> list[str]:
    """Report how many lines repeat an earlier image; reject differing labels."""
    first, again = dict[str, tuple[int, str]](), list[str]()
    for number, name, label in lines:
        line, before = first.setdefault(os.path.normpath(path.parent / name), (number, label))
        if before != label:
            where = f"data: {path}, lines {line} and {number}"
            raise DataError(f"{where}: {name} has two labels, {before} and {label}; keep one")
        if line != number:
            again.append(f"{name} in lines {line} and {number}")
    count = f"{path}: {len(again):,} of {len(lines):,}"
    return again and [f"{count} lines name an image again, the first is {again[0]}; all count"]


def read_rows(path: Path) -> tuple[list[list[str]], list[str]]:
    """Read the lines of a list as [path, label] or [path].

    Existing files decide: the separator is the first of comma, semicolon, tab and blank (the last
    one in a line) for which a cell of line 1 or 2 is a file, and the column of that cell holds the
    paths. Line 1 is a heading if none of its cells is a file or is named like one.

    Returns:
        A row for each line, empty for a blank line and for a heading; and notes on guesses.
    Raises:
        DataError: if the list cannot be read, its first lines name no file, or there are more than
            two columns and no heading identifies the label.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = {sep: list(islice(filter(None, _split(text, sep)), 2)) for sep in _SEPARATORS}
        fitting = [
            sep for sep in first if any(_file_cell(path.parent, r) is not None for r in first[sep])
        ]
        separator = fitting[0] if fitting else ","
        rows = list(_split(text, separator))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"data: {path}: cannot be read: {error}; expected text in UTF-8") from error
    if not any(rows):
        return [], []
    if not fitting:
        raise DataError(
            f"data: {path}, line 1: neither it nor the next one names a file: got "
            f"{' and '.join(map(str, first[separator]))}; expected path or path,label a "
            f"line, paths relative to {path.parent.resolve()}"
        )
    return _in_order(path, rows, separator)


def _split(text: str, separator: str) -> Iterator[list[str]]:
    if separator == _BLANK:
        return (line.rsplit(maxsplit=1) for line in text.split("\n"))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    return ([] if len(row) == 1 and not row[0].strip() else row for row in rows)


def _file_cell(folder: Path, row: Sequence[str]) -> int | None:
    """Return the first cell that is a file, relative to the folder of the list."""
    for place, cell in enumerate(row):
        name = path_of(cell)
        if any(os.path.isfile(folder / each) for each in (name, name.strip()) if each):
            return place
    return None


def _in_order(
    path: Path, rows: list[list[str]], separator: str
) -> tuple[list[list[str]], list[str]]:
    """Select the columns of path and label, in this order."""
    line, row = next((line, row) for line, row in enumerate(rows) if row)
    heading, notes = [cell.strip() for cell in row], []
    if _file_cell(path.parent, row) is not None or any(map(_like_a_file, row)):
        heading = []
    else:
        rows[line] = []
        row = next((row for row in rows if row), [])
    if heading and heading not in _HEADINGS:
        notes.append(f"line {line + 1} is taken for a heading ({', '.join(heading)})")
    if len(row) > 1 and separator != _USUAL.get(path.suffix.lower()):
        notes.append(f"cells are separated by {_SEPARATORS[separator]}")
    columns = _columns(path, line + 1, row, heading)
    if columns != list(range(len(columns))) or len(row) > len(columns):
        notes.append(f"paths and labels are from columns {columns[0] + 1} and {columns[1] + 1}")
    for number, cells in enumerate(rows):
        if len(cells) == len(row):
            rows[number] = [path_of(cells[columns[0]]), *(cells[column] for column in columns[1:])]
        elif cells and len(row) > 2:
            raise DataError(
                f"data: {path}, line {number + 1}: got {cells}, expected {len(row)} cells"
            )
    return rows, [f"{path.name}: {'; '.join(notes)}"] if notes else []


def _columns(path: Path, line: int, row: Sequence[str], heading: Sequence[str]) -> list[int]:
    """Return the column of the paths and, if there is one, that of the labels."""
    paths = _file_cell(path.parent, row) or 0
    others = [column for column in range(len(row)) if column != paths]
    if len(others) > 1:
        named = [place for place, name in enumerate(heading) if name.lower() in _LABELS]
        others = [column for column in others if column in named]
        if len(others) != 1:
            got = ", ".join(heading or row)
            raise DataError(
                f"data: {path}, line {line}: got {got}; name the columns path and label in line 1"
            )
    return [paths, *others]


def _like_a_file(cell: str) -> bool:
    return "/" in cell or os.path.splitext(cell.strip())[1].lower() in EXTENSIONS
