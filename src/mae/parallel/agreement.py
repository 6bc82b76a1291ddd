"""Whether the ranks of a job were started alike: the same code, arguments, data and folders."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from mae import __version__
from mae.atomic import write_atomic
from mae.errors import ConfigError

_APPEARS_WITHIN_S = 5.0
"""Time for a file of one machine to be seen by another, on a network file system."""
_LONGEST = 60  # characters of a value in a message


def values_of(facts: Mapping[str, object | Callable[[], object]]) -> dict[str, str]:
    """Return the facts of a rank as text, with the versions of mae and torch."""
    versions = {"version of mae": __version__, "version of torch": torch.__version__}
    return versions | {n: f"{fact() if callable(fact) else fact}" for n, fact in facts.items()}


def require_equal(everyone: Sequence[Mapping[str, str]]) -> None:
    """Raise a ConfigError that names the first fact in which a rank differs from rank 0."""
    for name, expected in everyone[0].items():
        for rank, theirs in enumerate(everyone):
            if (got := theirs.get(name)) != expected:
                raise ConfigError(
                    f"ranks: rank {rank} has another {name} than rank 0: {_short(got)}, not "
                    f"{_short(expected)}; start all ranks with the same command, code and data"
                )


def write_marker(folder: Path) -> str:
    """Write an empty file into a folder, which is created if needed; return its name."""
    name = f".ranks-{secrets.token_hex(8)}"
    write_atomic(folder / name, b"")
    return name


def appears(path: Path) -> bool:
    """Return whether a file that another rank has written can be seen; wait a few seconds."""
    stop = time.monotonic() + _APPEARS_WITHIN_S
    while not (is_there := path.exists()) and time.monotonic() < stop:
        time.sleep(0.1)
    return is_there


def require_seen(folder: Path, seen: Sequence[bool]) -> None:
    """Raise a ConfigError that names the first rank that does not see the file of rank 0."""
    if not all(seen):
        raise ConfigError(
            f"ranks: rank {seen.index(False)} does not see {folder} as rank 0 does; choose an "
            "--out on a file system that all ranks share"
        )


def _short(value: str | None) -> str:
    text = f"{value}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
