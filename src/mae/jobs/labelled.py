"""What a user names as labelled data: pictures to learn from and pictures to test on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae.data.builtin import fashion_mnist
from mae.data.labels import read_labels
from mae.data.source import FolderSource, Source
from mae.data.subset import subset
from mae.errors import DataError
from mae.evaluate.features import Labels
from mae.evaluate.few import Ids
from mae.evaluate.split import held_out
from mae.jobs.inputs import BUILT_IN, open_source

TEST_SHARE = 0.2
TEST_FOLDERS = ("val", "validation", "test")


class Part(NamedTuple):
    """Some pictures of a labelled source."""

    source: Source
    ids: Ids

    def as_source(self) -> Source:
        """Give them as a source of their own."""
        return subset(self.source, self.ids)


class Labelled(NamedTuple):
    """Pictures to learn from and pictures to test on, of the same classes."""

    train: Part
    test: Part
    said: str
    """How they were divided."""


def labelled(data: str | Path, *, seed: int) -> Labelled:
    """Find labelled pictures and divide them.

    Args:
        data: "fashion-mnist" (built in); or a folder with train/ and val/, validation/ or test/,
            each of one folder per class; or a folder of one folder per class, of which a fifth
            of each class is held out; or a .csv of path,label, or a folder with train.csv, with
            val.csv, validation.csv or test.csv beside it. A pack, or tar files with labels, may
            stand for each folder of one folder per class.
        seed: key of what is held out.

    Raises:
        DataError: if there are no classes, one alone, an empty one, or others in either part.
    """
    root = Path(data)
    if data == BUILT_IN and not root.exists():
        train, test = _whole(fashion_mnist("train")), _whole(fashion_mnist("test"))
        return Labelled(train, test, "built-in pictures")
    if root.suffix.lower() == ".csv" or (root / "train.csv").is_file():
        return _listed(root if root.suffix.lower() == ".csv" else root / "train.csv")
    train_root = root / "train" if (root / "train").is_dir() else root
    source = class_folders(train_root)
    for test_root in (root / name for name in TEST_FOLDERS if train_root != root):
        if test_root.is_dir():
            return _both(source, class_folders(test_root), names=(train_root, test_root))
    assert source.labels is not None
    held = held_out(source.labels, TEST_SHARE, seed=seed)
    train, test = (Part(source, np.flatnonzero(part)) for part in (~held, held))
    said = f"{train_root}: {TEST_SHARE:.0%} of each class held out for testing, seed {seed}"
    return Labelled(train, test, said)


def _listed(train: Path) -> Labelled:
    """Read the list of what is learnt from, and the one for testing beside it."""
    tests = [train.with_name(f"{name}.csv") for name in TEST_FOLDERS]
    test = next((path for path in tests if path.is_file() and path != train), None)
    if test is None:
        raise DataError(
            f"data: {train} has no list for testing beside it; expected one of "
            f"{', '.join(path.name for path in tests)}"
        )
    return _both(read_labels(train), read_labels(test), names=(train, test))


def _both(train: Source, test: Source, *, names: tuple[Path, Path]) -> Labelled:
    if different := sorted(set(train.class_names) ^ set(test.class_names)):
        raise DataError(
            f"data: {names[0]} and {names[1]} hold different classes: "
            f"{', '.join(different[:5])} in one alone; give both the same"
        )
    said = f"learning from {names[0]}, testing on {names[1]}"
    return Labelled(_whole(train), _whole(test), said)


def _whole(source: Source) -> Part:
    return Part(source, np.arange(len(source)))


def class_folders(root: Path) -> Source:
    """Open a folder of one folder per class, or a pack or tar files that have classes.

    Raises:
        DataError: if there are no classes, one alone or an empty one.
    """
    source = open_source(root)
    folders: list[str] = []
    if isinstance(source, FolderSource):
        folders = sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")
    if source.labels is None or len(source.class_names) < 2:
        one = f"one class alone, {folders[0]}" if len(folders) == 1 else "no classes"
        raise DataError(
            f"data: {root} has {one}; expected every picture in one of at least two folders, "
            "which are the classes"
        )
    for empty in sorted({*folders} - {*source.class_names}):
        raise DataError(f"data: no pictures of class {empty} in {root}; fill or remove it")
    return source


def require_classes(names: Sequence[str], labels: Labels) -> None:
    """Refuse to learn from pictures that leave a class out.

    Raises:
        DataError: for the first class without a picture.
    """
    for number in sorted({*range(len(names))} - {*labels.tolist()}):
        raise DataError(f"data: no picture of class {names[number]} can be read")
