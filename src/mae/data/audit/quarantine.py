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
        raise ConfigError(
            f"quarantine: {place} and {root} lie in each other, expected two folders side by side"
        )
    existing = next(path for path in (there, *there.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"quarantine: {existing} is a file, expected a folder; choose another")
    if existing.stat().st_dev != here.stat().st_dev:
        raise ConfigError(
            f"quarantine: {place} is on another disk than {root}, and nothing is copied; choose a "
            "folder beside it"
        )


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
        source, target = root / name, place / name
        shown = printable(name)
        if os.path.isabs(name) or not source.parent.resolve().is_relative_to(here):
            result.left[shown] = "lies outside the folder, behind a link"
        elif os.path.lexists(target):
            result.left[shown] = f"{target} is there already"
        else:
            try:
                if source.is_dir() and not source.is_symlink() and os.listdir(source):
                    result.left[shown] = "a folder that is not empty"
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
                result.moved.append(shown)
            except OSError as error:
                result.left[shown] = (error.strerror or type(error).__name__).lower()
    return result
