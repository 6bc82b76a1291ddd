"""Random access to existing tar files, such as WebDataset shards, by an index."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from mae.data.decoding.header import printable
from mae.data.sources.compressed import is_compressed_tar, refuse_compressed, unpacked
from mae.data.sources.pack import PackSource
from mae.data.sources.pack_index import Index, IndexInfo, whole, write_index
from mae.data.sources.source import ENDINGS, EXTENSIONS, folder_classes, numbered
from mae.errors import ConfigError, DataError

_BESIDE = ".mae-index.safetensors"
_LABELS = (".cls", ".json")  # extensions of label files of a WebDataset sample
_LARGEST_LABEL = 2**20  # bytes; the file may also hold a caption
_LONGEST = 2**32  # bytes; an index stores lengths in 32 bits
_MOST_LINKS = 40  # followed for one name, as Linux does
_NAMED = 3  # maximum number of names in a note
_RULES = 2  # version of the listing rules; an index of another version is rebuilt


class _Image(NamedTuple):
    name: str
    """Prefixed with the tar file if a folder of tar files was opened."""
    path: str
    """Path in its tar file."""
    shard: int
    offset: int
    length: int
    label: str | None


def is_tars(root: Path) -> bool:
    """Whether a path is a tar file, or a folder of tar files without images or folders.

    Tar files in a folder may be compressed; `open_tars` rejects those.
    """
    if root.suffix.lower() == ".tar":
        return root.is_file()
    if not root.is_dir():
        return False
    with suppress(OSError):  # reported when the folder is listed
        entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
        ends = [os.path.splitext(entry.name)[1].lower() for entry in entries]
        alone = not any(entry.is_dir() for entry in entries) and not EXTENSIONS & {*ends}
        return alone and (".tar" in ends or any(is_compressed_tar(entry.name) for entry in entries))
    return False


def _tar_files(root: Path) -> list[Path]:
    """Return a tar file, or those of a folder sorted by name; reject compressed ones."""
    files = sorted(root.iterdir()) if root.is_dir() else [root]
    tars = [path for path in files if path.suffix.lower() == ".tar"]
    packed = [path for path in files if is_compressed_tar(path.name)]
    refuse_compressed([path for path in packed if unpacked(path) not in tars])
    return tars


def open_tars(root: Path) -> PackSource:
    """Open the images of a tar file, or of all tar files in a folder.

    The index for random access is written next to them or, if that fails, in
    `$XDG_CACHE_HOME/mae` (`~/.cache/mae`), and rebuilt when a tar file changes. The class of an
    image is the content of `KEY.cls`, or "label" or "cls" in `KEY.json`, if all images have one;
    else its folder, by the rules of `folder_classes`.

    Raises:
        DataError: if one cannot be read or is compressed, or none holds an image.
    """
    folder = root if root.is_dir() else root.parent
    paths = _tar_files(root)
    try:
        stats = [(path.name, path.stat()) for path in paths]
    except OSError as error:
        raise DataError(f"data: {error.filename}: {error.strerror}; check the link") from error
    stamp = json.dumps([_RULES, [[name, s.st_size, s.st_mtime_ns] for name, s in stats]])
    places = _places(root)
    for place in places:
        with suppress(DataError):
            if Index(place).info.stamp == stamp:
                return PackSource(folder, place)
    refuse_compressed(paths)
    images, notes = _images(paths, prefixed=root.is_dir())
    if not images:
        more = "".join(f" ({note})" for note in notes)
        raise DataError(f"data: no images in {root}: expected members ending in {ENDINGS}{more}")
    shards = tuple((name, status.st_size) for name, status in stats)
    info = IndexInfo(shards, stamp=stamp, notes=tuple(notes))
    place, elsewhere = places
    try:
        _write(place, images, info)
    except ConfigError:
        place = elsewhere
        _write(place, images, info)
    return PackSource(folder, place)


def _places(root: Path) -> tuple[Path, Path]:
    """Return the possible locations of an index, the preferred one first."""
    beside = root / _BESIDE if root.is_dir() else root.with_name(f".{root.name}{_BESIDE}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mae")
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return beside, cache / f"{digest}.safetensors"


def _images(paths: list[Path], *, prefixed: bool) -> tuple[list[_Image], list[str]]:
    """List the images of tar files, sorted by name, and notes on them."""
    found: list[_Image] = []
    notes: list[str] = []
    for shard, path in enumerate(paths):
        prefix = f"{path.name}/" if prefixed else ""
        try:
            files, said = _list_tar(path)
            labels, broken = _read_labels(path, files)
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"data: {path} cannot be read as tar: {error}; restore it") from error
        images = [name for name in files if _is_image(name)]
        for name in images:
            shown, label = printable(name), labels.get(_stem(name), labels.get(_key(name)))
            found.append(_Image(prefix + shown, shown, shard, *files[name][:2], label))
        notes += said
        if broken:
            notes.append(f"{path.name}: {len(broken):,} not JSON: {_listed(broken)}")
        if shared := _sharing(images, labels):
            notes.append(
                f"{path.name}: {len(shared):,} images have no label file of their own name and "
                f"share that of their key, which ends at the first dot: {_listed(shared)}"
            )
    without = [image.name for image in found if image.label is None]
    if 0 < len(without) < len(found):
        count = f"{len(without):,} of {len(found):,} images have no label"
        notes.append(f"labels: {count}, so those of the others are not used: {_listed(without)}")
    return sorted(found, key=lambda image: image.name.encode()), notes


def _read_labels(path: Path, files: dict[str, _Stored]) -> tuple[dict[str, str], list[str]]:
    """Read labels, keyed by file name without extension, and list files that are not valid JSON."""
    labels: dict[str, str] = {}
    broken: list[str] = []
    with path.open("rb") as file:
        for name, stored in files.items():
            end = os.path.splitext(name)[1].lower()
            if end not in _LABELS or stored.length > _LARGEST_LABEL or _is_hidden(name):
                continue
            file.seek(stored.offset)
            try:
                label = _label(file.read(stored.length), end)
            except (ValueError, RecursionError) as error:
                broken.append(printable(f"{name} ({error})"))
            else:
                labels |= {} if label is None else {_stem(name): label}
    return labels, broken


def _sharing(images: list[str], labels: dict[str, str]) -> list[str]:
    """Return the images that share the label of their key with other images."""
    counts = Counter(map(_key, images))
    by_key = [name for name in images if _stem(name) not in labels and _key(name) in labels]
    return [printable(name) for name in by_key if counts[_key(name)] > 1]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _key(name: str) -> str:
    """Return the key of a WebDataset sample: the path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(content: bytes, end: str) -> str | None:
    """Read a label; None if the content has none.

    Raises:
        ValueError, RecursionError: if it is not JSON.
    """
    if end == ".cls":
        return content.decode(errors="replace").strip() or None
    values = json.loads(content)
    label = values.get("label", values.get("cls")) if isinstance(values, dict) else None
    return (str(label).strip() or None) if isinstance(label, int | str) else None


def _write(place: Path, images: list[_Image], info: IndexInfo) -> None:
    given = [image.label for image in images if image.label is not None]
    if len(given) < len(images):
        class_names, labels = folder_classes([image.path for image in images])
    else:
        class_names, labels = numbered(given, by_value=True)
    names = [image.name.encode() for image in images]
    columns = {
        "name_ends": whole(np.cumsum([len(name) for name in names], dtype="<u8")),
        "offsets": whole(np.array([image.offset for image in images], "<u8")),
        "shards": whole(np.array([image.shard for image in images], "<u4")),
        "lengths": whole(np.array([image.length for image in images], "<u4")),
        "names": whole(np.frombuffer(b"".join(names), np.uint8)),
    }
    if labels is not None:
        columns["labels"] = whole(labels)
    write_index(place, columns, info._replace(class_names=class_names))


class _Stored(NamedTuple):
    """Byte range of a file in a tar file."""

    offset: int
    length: int
    fault: str = ""
    """Why it cannot be read; "" if it can."""


_Folder: TypeAlias = "dict[str, _Stored | str | _Folder]"  # a str is a symbolic link


def _list_tar(path: Path) -> tuple[dict[str, _Stored], list[str]]:
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
            if _add(root, name, member) and _is_image(name):
                repeated[name] = None
    files, faults = {}, {}
    for name, stored in _walk(root):
        if not stored.fault:
            files[name] = stored
        elif _is_image(name) or "." not in os.path.basename(name):  # may have been a folder
            faults[name] = stored.fault
    notes = []
    if faults:
        named = _listed([f"{name} ({fault})" for name, fault in faults.items()])
        notes.append(f"{path.name}: {len(faults):,} left out: {named}")
    if repeated:
        count = f"{path.name}: {len(repeated):,} repeated names, the last of each is used"
        notes.append(f"{count}: {_listed([*repeated])}")
    return files, notes


def _listed(names: Sequence[str]) -> str:
    """Join the first few names, and count the others."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _is_image(name: str) -> bool:
    """Whether the name of a file is that of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    """Whether a file is hidden and therefore skipped, as on a disk."""
    return os.path.basename(name).startswith(".")


def _add(root: _Folder, name: str, member: tarfile.TarInfo) -> bool:
    """Add a member to the tree; return whether it replaces a file or link."""
    *above, last = [part for part in name.split("/") if part not in ("", ".")] or [""]
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
        folder[last] = _Stored(0, 0, "stored sparse; make the tar without --sparse")
    elif member.size >= _LONGEST:
        folder[last] = _Stored(0, 0, f"too large, {member.size:,} bytes")
    else:
        folder[last] = _Stored(member.offset_data, member.size)
    return before is not None


def _linked(root: _Folder, name: str) -> _Stored | str:
    """Resolve a hard link to an earlier member, in its state at that point."""
    node: _Stored | str | _Folder | None = root
    for part in name.removeprefix("./").split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    missing = _Stored(0, 0, f"a hard link to {name}, which is not before it in the tar")
    return missing if node is None or isinstance(node, dict) else node


def _walk(root: _Folder) -> Iterator[tuple[str, _Stored]]:
    """Yield every file with its path; do not follow links back to a containing folder."""
    rest: list[tuple[str, list[_Folder], tuple[_Folder, ...]]] = [("", [root], (root,))]
    while rest:
        prefix, trail, above = rest.pop()
        for name, node in trail[-1].items():
            found = _follow(trail, name)
            if found is None:
                fault = f"a link to {node}, which leads to nothing in the tar file"
                yield prefix + name, _Stored(0, 0, fault)
            elif isinstance(found, _Stored):
                yield prefix + name, found
            elif all(found[-1] is not folder for folder in above):
                rest.append((f"{prefix}{name}/", found, (*above, found[-1])))


def _follow(trail: list[_Folder], path: str) -> _Stored | list[_Folder] | None:
    """Look up a path and follow symbolic links.

    Args:
        trail: the folders from the root to the one that the path is relative to.
        path: name of an entry, or the target of a link.

    Returns:
        A file, or the folders from the root to the folder found; None if there is neither.
    """
    folders, parts, links = [*trail], deque(path.split("/")), 0
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
            return node if isinstance(node, _Stored) and not parts else None
    return folders
