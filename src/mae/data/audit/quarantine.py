"""Move broken image files to a quarantine folder without overwriting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mae.data.decoding.header import printable
from mae.errors import ConfigError


class Moved(NamedTuple):
    """Result of moving files to quarantine."""

    moved: list[str]
    left: dict[str, str]
    """Reason why a file was not moved, by name."""


def require_place(root: Path, place: Path) -> None:
    """Check, before any file moves, that files of `root` can be moved to `place`.

    Raises:
        ConfigError: if one folder contains the other, `place` is on another disk, or it is a
            file.
    """
    there, here = place.resolve(), root.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise ConfigError(f"quarantine: {place} and {root} contain one another; choose another")
    existing = next(path for path in (there, *there.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"quarantine: {existing} is a file, expected a folder; choose another")
    if existing.stat().st_dev != here.stat().st_dev:
        raise ConfigError(f"quarantine: {place} is on another disk; choose a folder beside {root}")


def set_aside(root: Path, names: Sequence[str], place: Path) -> Moved:
    """Move files out of a folder by rename, keeping their relative paths.

    Files behind a link that leads out of the folder, folders that are not empty, and files whose
    target already exists are not moved.

    Args:
        root: the folder.
        names: paths relative to it.
        place: target folder that passed `require_place`; created if missing.
    """
    result, here = Moved([], {}), root.resolve()
    for name in names:
        reason = _move(root / name, place / name, here)
        if reason:
            result.left[printable(name)] = reason
        else:
            result.moved.append(printable(name))
    return result


def _move(source: Path, target: Path, here: Path) -> str:
    """Move a file below `here`; return why it was not moved, or ""."""
    if not source.parent.resolve().is_relative_to(here):
        return "lies outside the folder, behind a link"
    if os.path.lexists(target):
        return f"{target} is there already"
    try:
        if source.is_dir() and not source.is_symlink() and os.listdir(source):
            return "a folder that is not empty"
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()
    return ""
