"""List tar members with their byte ranges and resolved links."""

from __future__ import annotations

import os
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from mae.data.sources.source import EXTENSIONS

_LONGEST = 2**32  # bytes; an index stores lengths in 32 bits
_MOST_LINKS = 40  # followed for one name, as Linux does
_NAMED = 3  # maximum number of names in a note


class Stored(NamedTuple):
    """Byte range of a file in a tar file."""

    offset: int
    length: int
    fault: str = ""
    """Why it cannot be read; "" if it can."""


class Listing(NamedTuple):
    """All files of a tar file by path, and notes on it."""

    files: dict[str, Stored]
    notes: list[str]


_Folder: TypeAlias = "dict[str, Stored | str | _Folder]"  # a str is a symbolic link


def list_tar(path: Path) -> Listing:
    """List the files of a tar file; links are listed as the files that they resolve to.

    A link to a folder lists the files of that folder, as on a disk. Of several members with the
    same path the last one is used, as by `tar`. Links that lead to nothing in the tar file, sparse
    members and members of 4 GiB or more are left out; notes name the images among them.

    Raises:
        OSError, tarfile.TarError: if it cannot be read as an uncompressed tar file.
    """
    root: _Folder = {}
    repeated: dict[str, None] = {}
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep all members
            name = member.name.removeprefix("./")
            if _add(root, name, member) and is_image(name):
                repeated[name] = None
    files, faults = {}, {}
    for name, stored in _walk(root):
        if not stored.fault:
            files[name] = stored
        elif is_image(name) or "." not in os.path.basename(name):  # may have been a folder
            faults[name] = stored.fault
    notes = []
    if faults:
        named = listed([f"{name} ({fault})" for name, fault in faults.items()])
        notes.append(f"{path.name}: {len(faults):,} left out: {named}")
    if repeated:
        count = f"{path.name}: {len(repeated):,} in it more than once, the last of each counts"
        notes.append(f"{count}: {listed([*repeated])}")
    return Listing(files, notes)


def listed(names: Sequence[str]) -> str:
    """Join the first few names, and count the others."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def is_image(name: str) -> bool:
    """Whether the name of a file is that of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file is hidden and therefore skipped, as on a disk."""
    return os.path.basename(name).startswith(".")


def _add(root: _Folder, name: str, member: tarfile.TarInfo) -> bool:
    """Add a member to the tree; return whether it replaces a file or link."""
    *above, last = name.split("/")
    folder = root
    for part in above:
        inner = folder.get(part)
        if not isinstance(inner, dict):
            inner = folder[part] = {}
        folder = inner
    before = folder.get(last)
    if member.isdir():
        if not isinstance(before, dict):
            folder[last] = {}
        return False
    if member.islnk():
        folder[last] = _linked(root, member.linkname)
    elif member.issym():
        folder[last] = member.linkname
    elif not member.isreg():
        return False
    elif member.issparse():
        folder[last] = Stored(0, 0, "stored sparse; make the tar without --sparse")
    elif member.size >= _LONGEST:
        folder[last] = Stored(0, 0, f"too large, {member.size:,} bytes")
    else:
        folder[last] = Stored(member.offset_data, member.size)
    return before is not None


def _linked(root: _Folder, name: str) -> Stored | str:
    """Resolve a hard link to an earlier member, in its state at that point."""
    node: Stored | str | _Folder | None = root
    for part in name.removeprefix("./").split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    missing = Stored(0, 0, f"a hard link to {name}, which is not before it in the tar")
    return missing if node is None or isinstance(node, dict) else node


def _walk(root: _Folder) -> Iterator[tuple[str, Stored]]:
    """Yield every file with its path; do not follow links back to a containing folder."""
    rest: list[tuple[str, list[_Folder], tuple[_Folder, ...]]] = [("", [root], (root,))]
    while rest:
        prefix, trail, above = rest.pop()
        for name, node in trail[-1].items():
            found = _follow(trail, node) if isinstance(node, str) else node
            if isinstance(found, dict):
                found = [*trail, found]
            if found is None:
                fault = f"a link to {node}, which leads to nothing in the tar file"
                yield prefix + name, Stored(0, 0, fault)
            elif isinstance(found, Stored):
                yield prefix + name, found
            elif all(found[-1] is not folder for folder in above):
                rest.append((f"{prefix}{name}/", found, (*above, found[-1])))


def _follow(trail: list[_Folder], target: str) -> Stored | list[_Folder] | None:
    """Resolve a symbolic link.

    Args:
        trail: the folders from the root to the one that contains the link.
        target: a path relative to that folder.

    Returns:
        A file, or the folders from the root to the target folder; None if there is no target.
    """
    if target.startswith("/"):
        return None
    folders, parts, links = [*trail], deque(target.split("/")), 0
    while parts:
        part = parts.popleft()
        if part == "..":
            folders.pop()
            if not folders:
                return None
        if part in ("", ".", ".."):
            continue
        node = folders[-1].get(part)
        if isinstance(node, dict):
            folders.append(node)
        elif isinstance(node, str) and links < _MOST_LINKS and not node.startswith("/"):
            links += 1
            parts.extendleft(reversed(node.split("/")))
        else:
            return node if isinstance(node, Stored) and not parts else None
    return folders
