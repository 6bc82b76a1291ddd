"""Atomic, fsynced file writes."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mae.errors import ConfigError


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for an atomic write: readers see the complete file or none, even after a crash.

    The file appears when the block ends; if the block raises, nothing is left. The parent folder
    is created, and the file mode follows the umask.

    Raises:
        ConfigError: if the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}; free some space, or choose another path"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically, see `open_atomic`."""
    with open_atomic(path) as file:
        file.write(content)


def write_json_atomic(path: Path, value: object) -> None:
    """Write a JSON file atomically, see `open_atomic`."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and fsync its content; its directory entry is not fsynced."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Fsync a folder, without which a rename in it may not survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_temporaries(folder: Path) -> None:
    """Delete leftovers of interrupted writes and deletions; the caller holds the folder's lock.

    `.tmp-*` and `.del-*` are names used by mae; `.tmp??????` is one used by safetensors.
    """
    for path in [*folder.glob(".tmp*"), *folder.glob(".del-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
