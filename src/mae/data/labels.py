"""Lists of images: lines of path,label, or of paths alone."""

from __future__ import annotations

from pathlib import Path

from mae.data.lists import read_rows
from mae.data.source import FolderSource
from mae.errors import DataError


def read_list(path: Path) -> FolderSource:
    """Open the pictures that a list names, in its order.

    Args:
        path: UTF-8 text of an image a line, by the rules of CSV, in all lines or none with its
            label; paths are relative to the folder of the list. See `read_rows` for the other
            separators, headings and columns that are understood.

    Raises:
        DataError: if it cannot be read, names nothing, a picture is missing, or a line has other
            cells than the others.
    """
    rows, notes = read_rows(path)
    named = [row for row in rows if row]
    if not named:
        raise DataError(f"data: {path} has no pictures; expected path,label or a path a line")
    cells = 1 if all(len(row) == 1 for row in named) else 2
    for number, row in enumerate(rows, start=1):
        if row and (len(row) != cells or not all(row)):
            raise DataError(f"data: {path}, line {number}: got {row}, expected path,label")
        if row and not (path.parent / row[0]).is_file():
            raise DataError(f"data: {path}, line {number}: there is no {path.parent / row[0]}")
    files = [row[0] for row in named]
    classes = [row[1] for row in named] if cells == 2 else None
    return FolderSource(path.parent, files=files, classes=classes, notes=notes)


def read_labels(path: Path) -> FolderSource:
    """Open a list whose pictures are of at least two classes.

    Raises:
        DataError: as `read_list`, and if there are not.
    """
    source = read_list(path)
    if len(source.class_names) < 2:
        one = f"one class alone, {source.class_names[0]}" if source.class_names else "no labels"
        raise DataError(f"data: {path} has {one}; expected at least two classes")
    return source
