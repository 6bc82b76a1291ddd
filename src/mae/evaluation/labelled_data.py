"""What a user names as labelled data: its splits, its classes, and what is held out."""

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
    held: Held | None
    """How the latter were held out; None where they are a split of their own."""
    notes: tuple[str, ...]
    """First what was found, in one line; then what a user should know of it."""

    def values(self) -> dict[str, object]:
        """Give the counts and the notes, for machines."""
        counts = {"train": len(self.train.ids), "test": len(self.test.ids)}
        held = None if self.held is None else self.held._asdict()
        return {**counts, "held_out": held, "notes": list(self.notes)}


class Scored(NamedTuple):
    """Pictures to test a classifier on; they may lack some of its classes."""

    source: Source
    part: str
    """Which of the data they are."""
    notes: tuple[str, ...]
    """As of `Labelled`."""


def labelled(data: str | Path, *, seed: int, tuned: TunedOn | None = None) -> Labelled:
    """Find labelled pictures and divide them.

    Args:
        data: "fashion-mnist" (built in); or a folder with a split to learn from and one to test
            on, by any usual name (`train/` and `val/`, `valid/`, `dev/` or `test/`, see
            `find_splits`; of several the validation split), each of one folder per class; or a
            folder of one folder per class, of which a fifth of each class is held out; or a .csv
            of path,label, or a folder with train.csv, with val.csv or test.csv beside it. A pack,
            or tar files with labels, may stand for any of these folders.
        seed: key of what is held out.
        tuned: the weights' own fine-tuning: of its data, what it held out is.

    Raises:
        DataError: if there are no classes, one alone, an empty one, or others for testing.
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
    """Hold out a part of each class: of a classifier's own data the part that it never saw."""
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
    """Find the pictures to test a classifier on.

    Args:
        data: as of `labelled`; of splits, the one for validation, else the one for testing.
        split: another split; of the data that the classifier was fine-tuned on, "train" is what
            it learnt from.
        tuned: its fine-tuning: of the same data only what that held out is tested on.

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
    """Give what fine-tuning held out of the classifier's own data, or what it did not."""
    source = subset(source, own[0 if trained else 1])
    name, share = ("train", 1 - held.share) if trained else ("test", held.share)
    part = f"{name} part ({share:.0%} of each class, seed {held.seed})"
    meant = "which the classifier was fine-tuned on" if trained else "as fine-tuning held it out"
    line = f"tested on {len(source):,} images, the {part}, {meant}"
    return Scored(source, part, found.notes(line, source))


def _require_split(split: Kind, found: Found) -> None:
    """Refuse a split that there is not.

    Raises:
        ConfigError: with those that there are.
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
    """Give the labels the numbers that another source's classes have."""
    if source.class_names == other.class_names:
        return source
    places = np.array([other.class_names.index(name) for name in source.class_names])
    assert source.labels is not None
    classes = other.class_names, places[source.labels].astype(np.int64)
    return subset(source, np.arange(len(source)), classes=classes)


def _overlap(train: Source, test: Source, *, names: tuple[str, str]) -> str | None:
    """Say how many files two lists both name."""
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
    """Refuse pictures of one class alone, and folders of classes that are empty."""
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
    """Refuse to learn from pictures that leave a class out.

    Raises:
        DataError: for the first class without a picture.
    """
    for number in sorted({*range(len(names))} - {*labels.tolist()}):
        raise DataError(f"data: no picture of class {names[number]} can be read")
