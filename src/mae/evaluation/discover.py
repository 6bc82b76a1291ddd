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
from mae.evaluation.split import Ids

MOST_NAMED = 10  # classes in the line on the data found

_NAMED_LISTS = (".csv", ".tsv")  # in a folder; a train.txt is often not an image list

Opener = Callable[[], Source]


class Split(NamedTuple):
    """A split, not yet opened."""

    name: str
    open: Opener


class DataLayout(NamedTuple):
    """Either an undivided data set (`whole`) or splits; `whole` may be a training split."""

    where: str
    whole: Opener | None
    splits: Mapping[Kind, Split] = {}
    unused: Sequence[str] = ()
    """Names of unused splits and folders beside them."""
    note: str = ""

    @property
    def test_kind(self) -> Kind:
        """The split to test on by default: the validation split if there is one."""
        return "val" if "val" in self.splits else "test"

    def without(self, *kinds: Kind) -> DataLayout:
        """Add the splits of other kinds than `kinds` to `unused`."""
        unused = [split.name for kind, split in self.splits.items() if kind not in kinds]
        return self._replace(unused=[*unused, *self.unused])

    def notes(self, line: str, source: Source, *more: str | None) -> tuple[str, ...]:
        """Return the line with classes and unused parts, followed by further notes."""
        names = source.class_names
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        classes = f"{len(names):,} {'class' if len(names) == 1 else 'classes'}"
        first = f"{self.where}: {line}; {classes}: {some(names, MOST_NAMED)}{unused}"
        return (first, *filter(None, (self.note, *notes_of(source), *more)))


def some(names: Sequence[str], most: int) -> str:
    """Join the first `most` names and count the rest."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def find_labelled(data: str | Path) -> DataLayout:
    """Discover whether data are one set of classes or splits of it.

    Raises:
        DataError: for a split folder beside the class folders it contains.
    """
    root = Path(data).expanduser()
    if data == BUILT_IN and not root.exists():
        train, test = (Split(name, partial(fashion_mnist, name)) for name in ("train", "test"))
        return DataLayout(BUILT_IN, None, {"train": train, "test": test})
    if root.suffix.lower() in LISTS and not root.is_dir():
        return _from_list(root)
    if is_pack(root) or is_tars(root):
        return _from_archive(str(root), open_source(root))
    lists = _find_lists(root, _NAMED_LISTS)
    listed = _from_lists(root, lists) if "train" in lists else None
    if listed is not None and listed.whole is None:
        return listed
    folders = _from_folders(root)
    return folders if listed is None or folders.whole is None else listed


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


def _from_splits(
    where: str, splits: Mapping[Kind, Split], unused: Sequence[str], note: str = ""
) -> DataLayout:
    """Return the splits; a training split alone is the whole data set."""
    if [*splits] != ["train"]:
        return DataLayout(where, None, splits, unused, note)
    train = splits["train"]
    return DataLayout(os.path.join(where, train.name), train.open, splits, unused, note)


def _from_list(path: Path) -> DataLayout:
    """Return a list with the test lists beside it, or alone if it is a test list itself."""
    whole = DataLayout(str(path), partial(class_folders, path))
    if split_kind(path.stem) in ("val", "test"):
        return whole
    beside = _find_lists(path.parent, (path.suffix.lower(),))
    beside["train"] = [path]
    return whole if [*beside] == ["train"] else _from_lists(path.parent, beside)


def _find_lists(folder: Path, endings: Sequence[str]) -> dict[Kind, list[Path]]:
    """Find the lists in a folder that are named like splits, best match of each kind first."""
    found: dict[Kind, list[Path]] = {}
    with suppress(OSError):
        for path in sorted(folder.iterdir(), key=lambda path: (len(path.stem), path.name)):
            named = path.suffix.lower() in endings and path.stem.isalpha() and path.is_file()
            if named and (kind := split_kind(path.stem)) is not None:
                found.setdefault(kind, []).append(path)
    return found


def _from_lists(folder: Path, lists: Mapping[Kind, Sequence[Path]]) -> DataLayout:
    splits, unused = dict[Kind, Split](), list[str]()
    for kind, paths in lists.items():
        for path in paths:
            if kind in splits or not (kind == "train" or _has_labels(path)):
                unused.append(path.name)
            else:
                splits[kind] = Split(path.name, partial(class_folders, path))
    return _from_splits(str(folder), splits, unused)


def _has_labels(path: Path) -> bool:
    """Return whether lines of a list have labels; read errors are reported later."""
    with suppress(DataError):
        return any(len(row) > 1 for row in read_rows(path)[0])
    return True


def _from_folders(root: Path) -> DataLayout:
    whole = DataLayout(str(root), partial(class_folders, root))
    with suppress(OSError):  # reported when the folder is searched for images
        with os.scandir(root) as entries:
            names = sorted(e.name for e in entries if e.name[0] != "." and e.is_dir())
        inside = {name: _inside(root / name) for name in names}
        splits = find_splits(inside, lambda name: len(FolderSource(root / name)))
        return _resolve(whole, splits, inside, lambda name: partial(class_folders, root / name))
    return whole


def _inside(folder: Path) -> Inside:
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


def _resolve(
    whole: DataLayout,
    splits: Splits | None,
    inside: Mapping[str, Inside],
    opener: Callable[[str], Opener],
) -> DataLayout:
    """Return the splits, or the whole with a note on any ambiguity."""
    if splits is not None:
        found = {kind: Split(name, opener(name)) for kind, name in splits.parts.items()}
        return _from_splits(whole.where, found, splits.left, splits.guess)
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


def _from_archive(where: str, source: Source) -> DataLayout:
    """Find splits in the names inside a pack or tar files, or in the names of the tar files."""
    names = _names(source)
    shards = {top: _shard_kind(top) for top in {name.partition("/")[0] for name in names}}
    if all(shard.lower().endswith(".tar") for shard in shards):
        kinds = {kind for kind in shards.values() if kind is not None}
        if None not in shards.values() and "train" in kinds and len(kinds) > 1:
            of_image = np.array([shards[name.partition("/")[0]] for name in names])
            parts = {kind: np.flatnonzero(of_image == kind) for kind in kinds}
            split = {k: Split(k, partial(_compact, source, ids)) for k, ids in parts.items()}
            return DataLayout(where, None, split)
        names = [name.partition("/")[2] for name in names]
    # Strip a common top folder, as `tar` of a single folder creates it.
    while len({n.partition("/")[0] for n in names}) == 1 and all(n.count("/") > 1 for n in names):
        names = [name.partition("/")[2] for name in names]
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
    whole: Opener = partial(_by_folder, source, every, names, where=where)
    if own or (len(source.class_names) and source.class_names == folder_classes(names)[0]):
        whole = partial(_compact, source, every)
    return _resolve(DataLayout(where, whole), splits_of(names), inside_of(names), open_part)


def _shard_kind(shard: str) -> Kind | None:
    words = re.split(r"[^A-Za-z]+", Path(shard).stem)
    return next((kind for word in words if (kind := split_kind(word)) is not None), None)


def _names(source: Source) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def _by_folder(source: Source, ids: Ids, paths: Sequence[str], *, where: str) -> Source:
    """Return images with the first folder of their paths as classes, at least one class."""
    if not all("/" in path for path in paths):
        raise DataError(
            f"data: {where} has no classes; expected every image in one of at least two folders, "
            "which are the classes" + "".join(f" ({note})" for note in notes_of(source))
        )
    return subset(source, ids, classes=numbered([path.partition("/")[0] for path in paths]))


def _compact(source: Source, ids: Ids) -> Source:
    """Return images with only the classes that occur among them."""
    if source.labels is None:
        raise DataError("data: some images have no label; expected one for each")
    present, labels = np.unique(source.labels[ids], return_inverse=True)
    if len(present) == len(source.class_names):
        return subset(source, ids)
    names = tuple(source.class_names[number] for number in present.tolist())
    return subset(source, ids, classes=(names, labels.astype(np.int64)))
