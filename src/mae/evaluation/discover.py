"""Discover the splits and classes of labelled data from file and folder names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae.data.sources.fashion_mnist import fashion_mnist
from mae.data.sources.lists import LISTS, read_rows
from mae.data.sources.open import BUILT_IN, open_source
from mae.data.sources.pack import is_pack
from mae.data.sources.source import (
    EXTENSIONS,
    FolderSource,
    Source,
    folder_classes,
    notes_of,
    numbered,
)
from mae.data.sources.splits import (
    Inside,
    Kind,
    Splits,
    find_splits,
    inside_of,
    same_folders,
    split_beside_classes,
    split_kind,
    splits_of,
)
from mae.data.sources.subset import subset
from mae.data.sources.tars import is_tars
from mae.errors import DataError
from mae.evaluation.few_labels import Ids

MOST_NAMED = 10  # classes in the line on the data found

_NAMED_LISTS = (".csv", ".tsv")  # in a folder; a train.txt is often not an image list

Opener = Callable[[], Source]


class Split(NamedTuple):
    """A split, not yet opened."""

    name: str
    open: Opener


class Found(NamedTuple):
    """Either an undivided data set (`whole`) or splits; `whole` may be a training split."""

    where: str
    whole: Opener | None
    splits: Mapping[Kind, Split] = {}
    left: Sequence[str] = ()
    """Names of unused splits and folders beside them."""
    note: str = ""

    def without(self, *kinds: Kind) -> Found:
        """Add the splits of other kinds than `kinds` to `left`."""
        unused = [split.name for kind, split in self.splits.items() if kind not in kinds]
        return self._replace(left=[*unused, *self.left])

    def notes(self, line: str, source: Source, *more: str | None) -> tuple[str, ...]:
        """Return the line with classes and unused parts, followed by further notes."""
        names = source.class_names
        left = f"; not used: {', '.join(self.left)}" if self.left else ""
        classes = f"{len(names):,} {'class' if len(names) == 1 else 'classes'}"
        first = f"{self.where}: {line}; {classes}: {some(names, MOST_NAMED)}{left}"
        return (first, *filter(None, (self.note, *notes_of(source), *more)))


def some(names: Sequence[str], most: int) -> str:
    """Join the first `most` names and count the rest."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def find_labelled(data: str | Path) -> Found:
    """Discover whether data are one set of classes or splits of it.

    Raises:
        DataError: for a split folder beside the class folders it contains.
    """
    root = Path(data).expanduser()
    if data == BUILT_IN and not root.exists():
        return Found(BUILT_IN, None, {
            "train": Split("train", partial(fashion_mnist, "train")),
            "test": Split("test", partial(fashion_mnist, "test")),
        })  # fmt: skip
    if root.suffix.lower() in LISTS and not root.is_dir():
        return _of_list(root)
    if is_pack(root) or is_tars(root):
        return _in_archive(str(root), open_source(root))
    lists = _of_lists(root)
    if lists is not None and lists.whole is None:
        return lists
    folders = _of_folders(root)
    return folders if lists is None or folders.whole is None else lists


def class_folders(root: Path) -> Source:
    """Open a folder with one folder per class, a list, or a pack or tar files with labels.

    A single class is allowed; classes without images are left out.

    Raises:
        DataError: if there are no classes.
    """
    plain = root.is_dir() and not is_pack(root) and not is_tars(root)
    source = FolderSource(root, splits=False) if plain else open_source(root)
    if source.labels is not None:
        return source
    if root.suffix.lower() in LISTS:
        raise DataError(f"data: {root} has no labels; expected path,label in each line")
    return _by_folder(source, np.arange(len(source)), _names(source), where=str(root))


def _of_list(path: Path) -> Found:
    """Return a list with the test lists beside it, or alone if it is a test list itself."""
    whole = Found(str(path), partial(class_folders, path))
    if split_kind(path.stem) in ("val", "test"):
        return whole
    beside = _lists(path.parent, (path.suffix.lower(),))
    beside["train"] = [path]
    return whole if [*beside] == ["train"] else _listed(path.parent, beside)


def _of_lists(folder: Path) -> Found | None:
    """Return the lists of a folder, if one is a training list."""
    lists = _lists(folder, _NAMED_LISTS)
    return _listed(folder, lists) if "train" in lists else None


def _lists(folder: Path, endings: Sequence[str]) -> dict[Kind, list[Path]]:
    """Find the lists in a folder that are named like splits, best match of each kind first."""
    found: dict[Kind, list[Path]] = {}
    with suppress(OSError):
        for path in sorted(folder.iterdir(), key=lambda path: (len(path.stem), path.name)):
            named = path.suffix.lower() in endings and path.stem.isalpha() and path.is_file()
            if named and (kind := split_kind(path.stem)) is not None:
                found.setdefault(kind, []).append(path)
    return found


def _listed(folder: Path, lists: Mapping[Kind, Sequence[Path]]) -> Found:
    splits, left = dict[Kind, Split](), list[str]()
    for kind, paths in lists.items():
        for path in paths:
            if kind in splits or not (kind == "train" or _has_labels(path)):
                left.append(path.name)
            else:
                splits[kind] = Split(path.name, partial(class_folders, path))
    if [*splits] == ["train"]:
        return Found(str(folder / splits["train"].name), splits["train"].open, splits, left)
    return Found(str(folder), None, splits, left)


def _has_labels(path: Path) -> bool:
    """Return whether lines of a list have labels; read errors are reported later."""
    with suppress(DataError):
        return any(len(row) > 1 for row in read_rows(path)[0])
    return True


def _of_folders(root: Path) -> Found:
    whole = Found(str(root), partial(class_folders, root))
    with suppress(OSError):  # reported when the folder is searched for images
        with os.scandir(root) as entries:
            names = sorted(e.name for e in entries if e.name[0] != "." and e.is_dir())
        inside = {name: _look(root / name) for name in names}
        splits = find_splits(inside, lambda name: len(FolderSource(root / name)))
        return _sorted_out(whole, splits, inside, lambda name: partial(class_folders, root / name))
    return whole


def _look(folder: Path) -> Inside:
    """List a first-level folder, only as far as its name requires."""
    if is_pack(folder):
        return Inside(closed=True)
    folders, loose = set[str](), False
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] == ".":
                continue
            if entry.is_dir():
                folders.add(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                loose = True
                if not folders and split_kind(folder.name) is None:  # a class, maybe of a million
                    break
    closed = not folders and not loose and is_tars(folder)
    return Inside(frozenset(folders), loose, closed)


def _sorted_out(
    whole: Found,
    splits: Splits | None,
    inside: Mapping[str, Inside],
    opener: Callable[[str], Opener],
) -> Found:
    """Return the splits, or the whole with a note on any ambiguity."""
    if splits is None:
        if (name := split_beside_classes(inside)) is not None:
            raise DataError(
                f"data: {whole.where} has classes and {name}, a split of them, side by side; move "
                f"the classes into a folder named train beside {name}"
            )
        if not same_folders(inside):
            return whole
        return whole._replace(
            note=f"guess: {some(sorted(inside), 3)} are taken for classes though all hold the same "
            "folders; if they are splits, name one train and one val"
        )
    found = {kind: Split(name, opener(name)) for kind, name in splits.parts.items()}
    if [*found] == ["train"]:
        where = os.path.join(whole.where, found["train"].name)
        return Found(where, found["train"].open, found, splits.left, splits.guess)
    return Found(whole.where, None, found, splits.left, splits.guess)


def _in_archive(where: str, source: Source) -> Found:
    """Find splits in the names inside a pack or tar files, or in the names of the tar files."""
    names = _names(source)
    shards = {top: _shard_kind(top) for top in {name.partition("/")[0] for name in names}}
    if all(shard.lower().endswith(".tar") for shard in shards):
        kinds = {*shards.values()}
        if None not in kinds and "train" in kinds and len(kinds) > 1:
            return Found(where, None, _by_shard(source, names, shards))
        names = [name.partition("/")[2] for name in names]
    names = _without_common_folder(names)
    # Labels stored in the archive, as in WebDataset, differ from all folder names.
    folders = {name.rpartition("/")[0] for name in names}
    own = not {*source.class_names} <= {part for folder in folders for part in folder.split("/")}
    tops = np.array([name.partition("/")[0] for name in names])

    def open_part(name: str) -> Opener:
        ids = np.flatnonzero(tops == name)
        if own:
            return partial(_compact, source, ids)
        inner = [names[i].partition("/")[2] for i in ids.tolist()]
        return partial(_by_folder, source, ids, inner, where=os.path.join(where, name))

    every = np.arange(len(source))
    if own or (len(source.class_names) and source.class_names == folder_classes(names)[0]):
        whole = Found(where, partial(_compact, source, every))
    else:
        whole = Found(where, partial(_by_folder, source, every, names, where=where))
    return _sorted_out(whole, splits_of(names), inside_of(names), open_part)


def _by_shard(
    source: Source, names: Sequence[str], shards: Mapping[str, Kind | None]
) -> dict[Kind, Split]:
    kinds = np.array([shards[name.partition("/")[0]] for name in names])
    return {
        kind: Split(kind, partial(_compact, source, np.flatnonzero(kinds == kind)))
        for kind in {*shards.values()} - {None}
        if kind is not None
    }


def _shard_kind(shard: str) -> Kind | None:
    words = re.split(r"[^A-Za-z]+", Path(shard).stem)
    return next((kind for word in words if (kind := split_kind(word)) is not None), None)


def _names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def _without_common_folder(names: list[str]) -> list[str]:
    """Strip a common top folder, as `tar` of a single folder creates it."""
    while len({n.partition("/")[0] for n in names}) == 1 and all(n.count("/") > 1 for n in names):
        names = [name.partition("/")[2] for name in names]
    return names


def _by_folder(source: Source, ids: Ids, paths: Sequence[str], *, where: str) -> Source:
    """Return images with the first folder of their paths as classes, at least one class."""
    if not all("/" in path for path in paths):
        raise DataError(
            f"data: {where} has no classes; expected every picture in one of at least two folders, "
            "which are the classes" + "".join(f" ({note})" for note in notes_of(source))
        )
    return subset(source, ids, classes=numbered([path.partition("/")[0] for path in paths]))


def _compact(source: Source, ids: Ids) -> Source:
    """Return images with only the classes that occur among them."""
    if source.labels is None:
        raise DataError("data: some pictures have no label; expected one for each")
    there, labels = np.unique(source.labels[ids], return_inverse=True)
    if len(there) == len(source.class_names):
        return subset(source, ids)
    names = tuple(source.class_names[number] for number in there.tolist())
    return subset(source, ids, classes=(names, labels.astype(np.int64)))
