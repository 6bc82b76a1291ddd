"""The two lists a run writes as it goes: a row a logged step, and the broken pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a log, those of skipped steps left out; none where there is no log."""
    # What follows the last line end is a row that is being written, or was torn by a crash.
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [row for row in map(json.loads, lines) if "skipped" not in row]


class LogWriter:
    """Append one JSON object a line; each row is whole or absent, and readable at once.

    A row that cannot be written is dropped and said, once until rows fit again: a log is no
    reason to end a training.

    Args:
        path: the log file; made by the first row.
        say: takes one line for the user.
    """

    def __init__(self, path: Path, *, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say
        self._failing = False

    def append(self, row: Mapping[str, object]) -> None:
        """Write one row, whose `step` is at least that of the row before."""
        reason = _append(self.path, json.dumps(row).encode() + b"\n")
        if reason and not self._failing:
            self._say(f"{self.path.name}: {reason}; rows are dropped until they can be written")
        self._failing = bool(reason)

    def truncate_after(self, step: int) -> None:
        """Drop the rows after `step`, which will be made again, and a line that a crash tore."""
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
"""What the reason of an image begins with that was read all the same."""


class BadFiles:
    """The unreadable images of a run as `name<TAB>reason` lines, each name once.

    Images that were read though their files are damaged are listed as well, and not counted: their
    reason begins with `READ`. Names and reasons are printable: a source escapes breaks and tabs.

    Args:
        path: the list, made by the first picture; names an earlier start left are taken over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_text() if path.exists() else ""
        whole = content[: content.rfind("\n") + 1]
        if whole != content:
            path.write_text(whole)  # without the line that a crash tore
        self._names: set[str] = set()
        self._read: set[str] = set()
        for line in whole.splitlines():
            name, _, reason = line.partition("\t")
            (self._read if reason.startswith(READ) else self._names).add(name)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def read(self) -> int:
        """How many were read with a warning."""
        return len(self._read)

    def add(self, name: str, reason: str) -> bool:
        """Append a picture unless it is listed; return whether it was new.

        A line that cannot be written is tried again when the picture comes again.
        """
        return self._add(self._names, name, reason)

    def add_read(self, name: str, warning: str) -> bool:
        """Append an image that was read with a warning, as `add` does."""
        return self._add(self._read, name, f"{READ}{warning}")

    def _add(self, names: set[str], name: str, reason: str) -> bool:
        if name in names:
            return False
        if not _append(self.path, f"{name}\t{reason}\n".encode()):
            names.add(name)
        return True


def _append(path: Path, line: bytes) -> str:
    """Append the whole line or nothing; return why it could not be, nothing if it could."""
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
    """Read the step of a row; a torn line comes after every step."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, TypeError, KeyError):
        return float("inf")
