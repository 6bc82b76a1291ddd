"""Load labelled data and divide it into training and test images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae.data.sources.source import FolderSource, Source, notes_of
from mae.data.sources.splits import Kind
from mae.data.sources.subset import subset
from mae.errors import ConfigError, DataError
from mae.evaluation.discover import Found, Split, find_labelled, some
from mae.evaluation.divided import Held, TunedOn
from mae.evaluation.features import Labels
from mae.evaluation.few_labels import Ids


class Part(NamedTuple):
    """A subset of a labelled source."""

    source: Source
    ids: Ids

    def as_source(self) -> Source:
        """Return the subset as a source."""
        return subset(self.source, self.ids)


class Labelled(NamedTuple):
    """Training and test images of the same classes."""

    train: Part
    test: Part
    held: Held | None
    """How the test images were held out; None where they are a split of their own."""
    notes: tuple[str, ...]
    """One line on the data found, then warnings for the user."""

    def values(self) -> dict[str, object]:
        """Return the counts and the notes for JSON."""
        counts = {"train": len(self.train.ids), "test": len(self.test.ids)}
        held = None if self.held is None else self.held._asdict()
        return {**counts, "held_out": held, "notes": list(self.notes)}


class Scored(NamedTuple):
    """Test images of a classifier; some of its classes may be missing."""

    source: Source
    part: str
    """Name of the part of the data."""
    notes: tuple[str, ...]
    """See `Labelled`."""


def labelled(data: str | Path, *, seed: int, tuned: TunedOn | None = None) -> Labelled:
    """Find labelled images and divide them into training and test images.

    Args:
        data: one of "fashion-mnist" (built in); a folder with a training and a test split by any
            usual name (`train/` and `val/`, `valid/`, `dev/` or `test/`, see `find_splits`; the
            validation split if there are several), each with one folder per class; a folder with
            one folder per class, of which a fifth of each class is held out; a .csv of
            path,label, or a folder with train.csv, with val.csv or test.csv beside it. A pack or
            tar files with labels can replace any of these folders.
        seed: seed of the held-out images.
        tuned: the fine-tuning of the weights; on the same data, its held-out images are used.

    Raises:
        DataError: for no classes, a single class, an empty class, or test classes that the
            training images do not have.
    """
    found = find_labelled(data)
    if found.whole is not None:
        source = _to_learn_from(found.whole(), found.where)
        return _divided(found, source, Held(seed), tuned)
    if "train" not in found.splits:
        names = " and ".join(split.name for split in found.splits.values())
        raise DataError(
            f"data: {found.where} has {names} but no split to learn from; name one train, or give "
            "one of them"
        )
    kind: Kind = "val" if "val" in found.splits else "test"
    train, test = (found.splits[each] for each in ("train", kind))
    learnt = _to_learn_from(train.open(), _named(found, train))
    tested = test.open()
    if unknown := sorted({*tested.class_names} - {*learnt.class_names}):
        raise DataError(
            f"data: {len(unknown):,} of the classes of {_named(found, test)} are not in "
            f"{_named(found, train)}: {some(unknown, 5)}; add images of them to {train.name}, or "
            f"take them out of {test.name}"
        )
    absent = [name for name in learnt.class_names if name not in tested.class_names]
    line = (
        f"{len(learnt):,} images in {train.name} to learn from, {len(tested):,} in {test.name} "
        "to test on"
    )
    notes = found.without("train", kind).notes(
        line,
        learnt,
        *notes_of(tested),
        f"{test.name}: no image of {some(absent, 5)}, not tested" if absent else None,
        _overlap(learnt, tested, names=(train.name, test.name)),
    )
    return Labelled(_whole(learnt), _whole(_numbered_as(tested, learnt)), None, notes)


def _divided(found: Found, source: Source, held: Held, tuned: TunedOn | None) -> Labelled:
    """Hold out a part of each class; on a classifier's own data, the part it was not tuned on."""
    why, warning = "", None
    own = None if tuned is None else tuned.division(source)
    if own is not None and tuned is not None:
        held, why = tuned.held, ", as in the fine-tuning of the weights"
    elif tuned is not None:
        warning = tuned.warning(found.where, source, whole=True)
    learnt, tested = held.divide(source) if own is None else own
    line = f"{len(learnt):,} images to learn from, {len(tested):,} to test on ({held.about()}{why})"
    notes = found.notes(line, source, warning)
    return Labelled(Part(source, learnt), Part(source, tested), held, notes)


def scored(data: str | Path, *, split: Kind | None, tuned: TunedOn | None) -> Scored:
    """Find the test images of a classifier.

    Args:
        data: see `labelled`; of splits, the validation split, else the test split.
        split: another split; on the data of the classifier's fine-tuning, "train" selects its
            training images.
        tuned: the classifier's fine-tuning; on the same data, only its held-out images are used.

    Raises:
        DataError: if there are no classes.
        ConfigError: for a split that the data do not have.
    """
    found = find_labelled(data)
    if found.whole is None:
        kind: Kind = split or ("val" if "val" in found.splits else "test")
        _require_split(kind, found)
        source, part = found.splits[kind].open(), found.splits[kind].name
        found, line = found.without(kind), f"tested on {len(source):,} images in {part}"
    else:
        source, part = found.whole(), "all images"
        line = f"tested on all {len(source):,} images"
    own = None if tuned is None or found.whole is None else tuned.division(source)
    if own is not None and tuned is not None:
        return _part_of_own(found, source, own, tuned.held, trained=split == "train")
    if found.whole is not None and split is not None:
        _require_split(split, found)
    whole = found.whole is not None
    warning = None if tuned is None else tuned.warning(found.where, source, whole=whole)
    return Scored(source, part, found.notes(line, source, warning))


def _part_of_own(
    found: Found, source: Source, own: tuple[Ids, Ids], held: Held, *, trained: bool
) -> Scored:
    """Return the held-out images of the classifier's own data, or its training images."""
    source = subset(source, own[0 if trained else 1])
    name, share = ("train", 1 - held.share) if trained else ("test", held.share)
    part = f"{name} part ({share:.0%} of each class, seed {held.seed})"
    meant = "which the classifier was fine-tuned on" if trained else "as fine-tuning held it out"
    line = f"tested on {len(source):,} images, the {part}, {meant}"
    return Scored(source, part, found.notes(line, source))


def _require_split(split: Kind, found: Found) -> None:
    """Raise for a missing split.

    Raises:
        ConfigError: if the split is missing, with the available ones.
    """
    if split not in found.splits:
        there = ", ".join(found.splits) or "none, and fine-tuning did not divide these images"
        raise ConfigError(
            f"split: {found.where} has no {split} split, it has {there}; drop --split or give "
            "other data"
        )


def _whole(source: Source) -> Part:
    return Part(source, np.arange(len(source)))


def _named(found: Found, split: Split) -> str:
    return f"{found.where}/{split.name}"


def _numbered_as(source: Source, other: Source) -> Source:
    """Renumber the labels by the class numbers of another source."""
    if source.class_names == other.class_names:
        return source
    places = np.array([other.class_names.index(name) for name in source.class_names])
    assert source.labels is not None
    classes = other.class_names, places[source.labels].astype(np.int64)
    return subset(source, np.arange(len(source)), classes=classes)


def _overlap(train: Source, test: Source, *, names: tuple[str, str]) -> str | None:
    """Return a note on the files that both lists name, if any."""
    if not isinstance(train, FolderSource) or not isinstance(test, FolderSource):
        return None
    paths = {os.path.abspath(train.path(i)) for i in range(len(train))}
    both = [i for i in range(len(test)) if os.path.abspath(test.path(i)) in paths]
    if not both:
        return None
    return (
        f"{names[1]}: {len(both):,} of {len(test):,} images are in {names[0]} too, "
        f"{test.name(both[0])} first: they are tested on and learnt from"
    )


def _to_learn_from(source: Source, where: str) -> Source:
    """Refuse data of a single class, and empty class folders."""
    if len(source.class_names) < 2:
        raise DataError(
            f"data: {where} has one class alone, {source.class_names[0]}; expected every picture "
            "in one of at least two folders, which are the classes"
        )
    if isinstance(source, FolderSource) and os.path.isdir(where):
        folders = {e.name for e in os.scandir(where) if e.is_dir() and e.name[0] != "."}
        for empty in sorted(folders - {*source.class_names}):
            raise DataError(f"data: no pictures of class {empty} in {where}; fill or remove it")
    return source


def require_classes(names: Sequence[str], labels: Labels) -> None:
    """Raise if a class has no images.

    Raises:
        DataError: for the first class without images.
    """
    for number in sorted({*range(len(names))} - {*labels.tolist()}):
        raise DataError(f"data: no picture of class {names[number]} can be read")
