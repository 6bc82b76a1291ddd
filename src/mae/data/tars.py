"""Tar files as they are, WebDataset shards among them: indexed once, then read at random."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae.data.header import printable
from mae.data.index import Facts, Index, whole, write_index
from mae.data.packed import PackSource
from mae.data.source import EXTENSIONS, folder_classes, numbered
from mae.errors import ConfigError, DataError

_BESIDE = ".mae-index.safetensors"
_LABELS = (".cls", ".json")  # of a WebDataset sample
_LARGEST_LABEL = 2**20  # bytes; a caption may stand beside it


class _Member(NamedTuple):
    name: str
    """With the tar file before it, where a folder of them was named."""
    path: str
    """In its tar file."""
    shard: int
    offset: int
    length: int
    label: str | None


def is_tars(root: Path) -> bool:
    """Whether a path is a tar file, or a folder of such without pictures or folders beside."""
    if root.suffix.lower() == ".tar":
        return root.is_file()
    if not root.is_dir():
        return False
    with suppress(OSError):  # is said where the folder is listed
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
        ends = [os.path.splitext(entry.name)[1].lower() for entry in entries]
        alone = not any(entry.is_dir() for entry in entries) and not EXTENSIONS & {*ends}
        return alone and ".tar" in ends
    return False


def open_tars(root: Path) -> PackSource:
    """Open the pictures of a tar file, or of all in a folder.

    The index that random access needs is written beside them, or, where that cannot be, in
    `$XDG_CACHE_HOME/mae` (`~/.cache/mae`), and made anew when a tar file has changed. A picture's
    class is what `KEY.cls` or the "label" or "cls" of `KEY.json` says, where all have one; else
    its folder, by the rule for folders of pictures.

    Raises:
        DataError: if one cannot be read, is compressed, or none holds a picture.
    """
    folder = root if root.is_dir() else root.parent
    paths = (
        sorted(p for p in root.iterdir() if p.suffix.lower() == ".tar") if root.is_dir() else [root]
    )
    stamp = json.dumps([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in paths])
    places = _places(root)
    for place in places:
        with suppress(DataError):
            if Index(place).facts.stamp == stamp:
                return PackSource(folder, place)
    members = _members(paths, prefixed=root.is_dir())
    if not members:
        raise DataError(
            f"data: no pictures in {root}: expected members ending in "
            f"{' '.join(sorted(EXTENSIONS))}; give the tar files that hold them"
        )
    facts = Facts(tuple((p.name, p.stat().st_size) for p in paths), stamp=stamp)
    for place in places:
        try:
            _write(place, members, facts)
            return PackSource(folder, place)
        except ConfigError:
            if place == places[-1]:
                raise
    raise AssertionError("there are two places")


def _places(root: Path) -> tuple[Path, Path]:
    """Where an index may lie, the best first."""
    beside = root / _BESIDE if root.is_dir() else root.with_name(f".{root.name}{_BESIDE}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mae")
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return beside, cache / f"{digest}.safetensors"


def _members(paths: list[Path], *, prefixed: bool) -> list[_Member]:
    """List the pictures, sorted by name; of two of one name the later counts, as it does to tar."""
    found: dict[str, _Member] = {}
    for shard, path in enumerate(paths):
        prefix = f"{path.name}/" if prefixed else ""
        try:
            for member in _read_tar(path, shard, prefix):
                found[member.name] = member
        except (OSError, tarfile.TarError) as error:
            raise DataError(
                f"data: {path} cannot be read as tar: {error}; unpack it if it is compressed, "
                "else put back a whole copy"
            ) from error
    return sorted(found.values(), key=lambda member: member.name.encode())


def _read_tar(path: Path, shard: int, prefix: str) -> Iterator[_Member]:
    labels: dict[str, str] = {}
    pictures: list[tuple[str, int, int]] = []
    with tarfile.open(path, "r:", errors="surrogateescape") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            name = member.name.removeprefix("./")
            key, end = _key(name), os.path.splitext(name)[1].lower()
            if not member.isreg() or os.path.basename(name).startswith("."):
                continue
            if end in EXTENSIONS:
                pictures.append((name, member.offset_data, member.size))
            elif end in _LABELS and member.size <= _LARGEST_LABEL:
                content = tar.extractfile(member)
                label = _label(content.read() if content else b"", end)
                labels |= {key: label} if label is not None else {}
    for name, offset, length in pictures:
        shown = printable(name)
        yield _Member(prefix + shown, shown, shard, offset, length, labels.get(_key(name)))


def _key(name: str) -> str:
    """Give what the members of a WebDataset sample share: all before the first dot."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(content: bytes, end: str) -> str | None:
    """Read a label; whatever else such a file holds is none."""
    if end == ".cls":
        return content.decode(errors="replace").strip() or None
    try:
        values = json.loads(content)
    except ValueError:
        return None
    label = values.get("label", values.get("cls")) if isinstance(values, dict) else None
    return str(label) if isinstance(label, int | str) else None


def _write(place: Path, members: list[_Member], facts: Facts) -> None:
    class_names, labels = _classes(members)
    names = [member.name.encode() for member in members]
    arrays: dict[str, NDArray[np.generic]] = {
        "name_ends": np.cumsum([len(name) for name in names], dtype="<u8"),
        "offsets": np.array([member.offset for member in members], "<u8"),
        "shards": np.array([member.shard for member in members], "<u4"),
        "lengths": np.array([member.length for member in members], "<u4"),
        "names": np.frombuffer(b"".join(names), np.uint8),
    }
    if labels is not None:
        arrays["labels"] = labels
    columns = {name: whole(array) for name, array in arrays.items()}
    write_index(place, columns, facts._replace(class_names=class_names))


def _classes(members: list[_Member]) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    given = [member.label for member in members if member.label is not None]
    if len(given) < len(members):
        return folder_classes([member.path for member in members])
    names, labels = numbered(given)
    if not all(name.lstrip("-").isdecimal() for name in names):
        return names, labels
    # Numbers keep their order: 2 before 10.
    order = sorted(range(len(names)), key=lambda number: int(names[number]))
    return tuple(names[number] for number in order), np.argsort(order)[labels]
