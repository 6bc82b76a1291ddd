"""Lists of labelled pictures: a .csv of path,label."""

from __future__ import annotations

import csv
from pathlib import Path

from mae.data.source import FolderSource
from mae.errors import DataError


def read_labels(path: Path) -> FolderSource:
    """Open the pictures that a list names, in its order.

    Args:
        path: UTF-8 text of a picture and its label a line, by the rules of CSV; paths are relative
            to the folder of the list. A first line "path,label" is a heading.

    Raises:
        DataError: if it cannot be read, a line has not two cells, a picture is missing, or there
            are not two classes at least.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"data: {path}: cannot be read: {error}; check the file") from error
    if rows and rows[0] == ["path", "label"]:
        rows[0] = []
    for number, row in enumerate(rows, start=1):
        if row and (len(row) != 2 or not all(row)):
            raise DataError(f"data: {path}, line {number}: got {row}, expected path,label")
        if row and not (path.parent / row[0]).is_file():
            raise DataError(f"data: {path}, line {number}: there is no {path.parent / row[0]}")
    named = [row for row in rows if row]
    classes = sorted({label for _, label in named})
    if len(classes) < 2:
        one = f"one class alone, {classes[0]}" if classes else "no pictures"
        raise DataError(f"data: {path} has {one}; expected at least two classes")
    files, labels = zip(*named, strict=True)
    return FolderSource(path.parent, files=files, classes=labels)
