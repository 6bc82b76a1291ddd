"""Detect the type of a weight file and validate its structure before loading."""

from __future__ import annotations

import json
import pickletools
import stat
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

from mae.errors import WeightsError

Kind = Literal["index", "safetensors", "zip", "pickle"]
"""JSON, which may be an index of other files; safetensors; or a PyTorch file: a zip archive, or
plain pickles before PyTorch 1.6."""

_EXPECTED = "expected safetensors or a PyTorch file"
# First bytes of files often saved in place of weights, ignoring whitespace and case.
_OTHERS = {
    (b"version https://git-lfs",): "it is a Git LFS pointer; fetch the file itself (git lfs pull)",
    (b"<!doctype", b"<html", b"<head", b"<?xml"): "it looks like a web page; download it again",
    (b"[",): "it looks like JSON; name the file with the tensors, or the folder of both",
    (b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf"): "it is compressed; unpack it first",
}


def kind_of(path: Path) -> Kind:
    """Detect the type of a file from its content, ignoring its name.

    Raises:
        WeightsError: for anything other than a regular file, or a file of another type; says what
            it looks like.
        OSError: if it cannot be read.
    """
    # Checked before opening: opening a pipe would block until another process writes to it.
    if not stat.S_ISREG(path.stat().st_mode):
        what = "a folder" if path.is_dir() else "a pipe or device"
        raise WeightsError(f"{path}: is {what}, {_EXPECTED}")
    with path.open("rb") as file:
        head = file.read(512)
    # A safetensors file may also begin with the byte of a brace, but its first 8 bytes, the length
    # of its header, contain zeros.
    if head[:1] == b"{" and 0 not in head[:8]:
        return "index"
    # Before the others, since that length may look like the start of a pickle.
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    if not head:
        raise WeightsError(f"{path}: is empty, {_EXPECTED}; get it again")
    raise WeightsError(f"{path}: is not weights, {_looks_like(head)}; {_EXPECTED}")


def _looks_like(head: bytes) -> str:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for marks, what in _OTHERS.items():
        if start.startswith(marks):
            return what
    if head[257:262] == b"ustar":
        return "it is a tar archive; unpack it, or save it again with PyTorch 1.6 or newer"
    if all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        return f"it looks like text ({printable(head[:40].decode('utf-8', 'replace'))})"
    return f"it begins with {head[:8].hex(' ')}"


def check_archive(path: Path) -> None:
    """Reject a zip archive that PyTorch did not write, or that unpacks to more than its size.

    PyTorch stores entries uncompressed, so a zip bomb is detected without unpacking.

    Raises:
        WeightsError: for such an archive.
        zipfile.BadZipFile: for a truncated or damaged archive.
    """
    size = path.stat().st_size
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        file.seek(-22, 2)
        # With trailing bytes, different readers may find different central directories.
        if file.read(4) != b"PK\x05\x06":
            raise WeightsError(f"{path}: has bytes behind the end of its archive; get it again")
        if packed := [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]:
            raise WeightsError(
                f"{path}: holds {len(packed)} compressed entries ({printable(packed[0])}), which "
                "PyTorch never writes; not opened, since they may unpack to any size"
            )
        if (claimed := sum(entry.file_size for entry in entries)) > size:
            raise WeightsError(
                f"{path}: claims to unpack to {claimed:,} bytes, but has {size:,}; not opened"
            )
        records = {entry.filename.partition("/")[2]: entry for entry in entries}
        if "constants.pkl" in records:
            raise WeightsError(f"{path}: is TorchScript, {_EXPECTED}; save its state_dict")
        if "data.pkl" not in records:
            raise WeightsError(f"{path}: is a zip archive without data.pkl, {_EXPECTED}")
        # Verifies the checksum, which PyTorch ignores: corrupted shapes and strides may still load.
        archive.read(records["data.pkl"])


def check_header(path: Path) -> None:
    """Reject a safetensors header that is longer than the file or names a tensor twice.

    Offsets and shapes are validated by the safetensors library.

    Raises:
        WeightsError: for such a header.
        ValueError: for a header that is not JSON.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise WeightsError(
                f"{path}: is cut short or damaged (a header of {length:,} bytes in a file of "
                f"{size:,}); get it again"
            )
        header = file.read(length)

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise WeightsError(f"{path}: names a tensor twice in its header; get it again")
        return values

    json.loads(header, object_pairs_hook=unique)


def names_in(path: Path, kind: Kind) -> set[str]:
    """List the Python names that the pickles of a file refer to, without importing them.

    Args:
        path: PyTorch file; if damaged, the names before the damage are listed.
        kind: a zip archive accepted by `check_archive`, or pickles.
    """
    names = set[str]()
    with suppress(ValueError, EOFError, LookupError):
        if kind == "zip":
            with zipfile.ZipFile(path) as archive:
                record = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
                with archive.open(record) as file:
                    names.update(_names(file))
        else:
            with path.open("rb") as file:
                # Magic number, version, system info and content; raw data follows.
                for _ in range(4):
                    names.update(_names(file))
    return names


def _names(file: IO[bytes]) -> Iterable[str]:
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            yield printable(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            yield printable(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)


def printable(text: str) -> str:
    """Return text that is safe to print: at most 120 printable characters."""
    return "".join(char if char.isprintable() else "?" for char in text)[:120]


def read_json(path: Path) -> Any:
    """Read a JSON file; an empty dictionary if it does not exist.

    Raises:
        WeightsError: if it cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}; get it again") from error
