"""Training log (JSON lines) and list of unreadable images of a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a log that hold metrics, not skipped steps; empty if there is no log."""
    # Text after the last line end is a row still being written, or truncated by a crash.
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [row for row in map(json.loads, lines) if not row.keys() & {"skipped", "window"}]


def read_columns(*paths: Path) -> dict[str, NDArray[Any]]:
    """Read the rows of logs as columns, aligned by step.

    Args:
        paths: logs of one run, of which the first with a value counts; a missing one has no rows.

    Returns:
        For each field an array with a value for each logged step, NaN where it has none; `step`
        first. Fields that are not numbers are left out.
    """
    values: dict[int, dict[str, float]] = {}
    for path in paths:
        for row in read_rows(path):
            found = values.setdefault(row["step"], {})
            for name, value in row.items():
                if isinstance(value, int | float):
                    found.setdefault(name, value)
    steps = sorted(values)
    names = dict.fromkeys(name for step in steps for name in values[step] if name != "step")
    columns: dict[str, NDArray[Any]] = {"step": np.array(steps, dtype=np.int64)}
    for name in names:
        columns[name] = np.array([values[step].get(name, math.nan) for step in steps])
    return columns


def final_values(columns: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return the last finite value of each column; of times, their sum."""
    finite = {name: column[np.isfinite(column)] for name, column in columns.items()}
    return {
        name: float(column.sum() if name.endswith("seconds") else column[-1])
        for name, column in finite.items()
        if len(column)
    }


class LogWriter:
    """Append one JSON object per line; each row is complete or absent, and readable at once.

    A row that cannot be written is dropped instead of ending the training. The user is notified
    once, and again only after rows could be written in between.

    Args:
        path: the log file; created by the first row.
        log: called with one line for the user.
    """

    def __init__(self, path: Path, *, log: Callable[[str], None]) -> None:
        self.path = path
        self._log = log
        self._failing = False

    def append(self, row: Mapping[str, object]) -> None:
        """Write one row, whose `step` is at least that of the previous row."""
        reason = _append(self.path, json.dumps(row).encode() + b"\n")
        if reason and not self._failing:
            self._log(f"{self.path.name}: {reason}; rows are dropped until they can be written")
        self._failing = bool(reason)

    def truncate_after(self, step: int) -> None:
        """Drop the rows after `step`, which will be written again, and any truncated line."""
        if not self.path.exists():
            return
        with self.path.open("rb+") as file:
            end = 0
            for line in file:
                if _step_of(line) > step:
                    break
                end += len(line)
            file.truncate(end)


READ = "read with a warning: "
"""Prefix of the reason of an image that was read despite damage."""


class BadFiles:
    """List of the unreadable images of a run, as `name<TAB>reason` lines with each name once.

    Images that were read although their files are damaged are listed but not counted; their
    reason begins with `READ`. Names and reasons are printable: sources escape line breaks and
    tabs.

    Args:
        path: the list file, created by the first image; existing entries are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_text() if path.exists() else ""
        whole = content[: content.rfind("\n") + 1]
        if whole != content:
            path.write_text(whole)  # without a line truncated by a crash
        self._names: set[str] = set()
        self._read: set[str] = set()
        for line in whole.splitlines():
            name, _, reason = line.partition("\t")
            (self._read if reason.startswith(READ) else self._names).add(name)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def read(self) -> int:
        """Number of images read with a warning."""
        return len(self._read)

    def add(self, name: str, reason: str, *, read: bool = False) -> bool:
        """Append an image unless it is listed; return whether it was new.

        A line that cannot be written is retried when the image is added again.

        Args:
            name: name of the image.
            reason: why it is unreadable.
            read: whether it was read nevertheless, and the reason is a warning.
        """
        names = self._read if read else self._names
        if name in names:
            return False
        if not _append(self.path, f"{name}\t{READ if read else ''}{reason}\n".encode()):
            names.add(name)
        return True


def _append(path: Path, line: bytes) -> str:
    """Append the whole line or nothing; return the reason for a failure, empty on success."""
    try:
        with path.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            if file.write(line) == len(line):
                return ""
            file.truncate(start)
    except OSError as error:
        return error.strerror or str(error)
    return "no space left"


def _step_of(line: bytes) -> float:
    """Return the step of a row; infinity for a truncated line."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, TypeError, KeyError):
        return float("inf")
