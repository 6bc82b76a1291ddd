"""Reject compressed files, which lack random access, with an unpack command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from mae.errors import DataError

_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_TOOLS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\3\4": "unzip",
}
_ENDINGS = frozenset((".gz", ".bz2", ".xz", ".zst"))


def is_compressed_tar(name: str) -> bool:
    """Whether a file is a compressed tar file by its name."""
    return _TAR.search(name) is not None


def unpacked(path: Path) -> Path:
    """Return the path for the unpacked content of a compressed file."""
    if is_compressed_tar(path.name):
        return path.with_name(_TAR.sub(".tar", path.name))
    if path.suffix.lower() in _ENDINGS:
        return path.with_suffix("")
    return path.with_name(f"unpacked-{path.name}")


def refuse_compressed(paths: Sequence[Path]) -> None:
    """Reject compressed files, recognised by their first bytes, not their names.

    Raises:
        DataError: for the first compressed file, with the command that unpacks it.
    """
    found = [(path, tool) for path in paths if (tool := _tool(path)) is not None]
    if not found:
        return
    path, tool = found[0]
    source, target = shlex.quote(str(path)), shlex.quote(str(unpacked(path)))
    command = f"{tool} -dc {source} > {target}"
    if tool == "unzip":
        command = f"unzip -q {source} -d {shlex.quote(str(path.with_suffix('')))}"
    others = f", and {len(found) - 1:,} more are" if len(found) > 1 else ""
    raise DataError(f"data: {path} is compressed{others}; unpack it: {command}")


def _tool(path: Path) -> str | None:
    """Return the tool that unpacks a file; None if it is not compressed or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:  # reported when the file is read
        return None
    return next((tool for magic, tool in _TOOLS.items() if head.startswith(magic)), None)
