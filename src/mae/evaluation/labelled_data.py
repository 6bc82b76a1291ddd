"""Divide labelled data into training and test images, as the fine-tuning of the weights did."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mae.data.sources.source import FolderSource, Source, notes_of
from mae.data.sources.splits import Kind
from mae.data.sources.subset import subset
from mae.errors import ConfigError, DataError, WeightsError
from mae.evaluation.discover import DataLayout, find_labelled, some
from mae.evaluation.split import Ids, Labels, held_out
from mae.runs.directory import read_record
from mae.weights.formats.native import CONFIG
from mae.weights.io.hub import local
from mae.weights.read import find_file

FRACTION = 0.2  # of each class


class Part(NamedTuple):
    """A subset of a labelled source."""

    source: Source
    ids: Ids

    def as_source(self) -> Source:
        """Return the subset as a source."""
        return subset(self.source, self.ids)


class HeldOut(NamedTuple):
    """A fraction of each class held out for testing."""

    seed: int
    share: float = FRACTION
    """The fraction; named as in run.json."""

    def divide(self, source: Source) -> tuple[Ids, Ids]:
        """Return the training ids and the held-out ids, ascending.

        Duplicates in a list are dropped: copies of an image could be in both parts.

        Raises:
            DataError: if no class has two images.
        """
        assert source.labels is not None
        ids = np.arange(len(source))
        if notes_of(source):
            names = [os.path.normpath(source.name(i)) for i in ids.tolist()]
            ids = np.sort(np.unique(names, return_index=True)[1])
        held = held_out(source.labels[ids], self.share, seed=self.seed)
        return ids[~held], ids[held]

    def record(self, source: Source) -> dict[str, object]:
        """Return the entry of run.json for the held-out part of a source."""
        return {**self._asdict(), "names": self.names_digest(source)}

    def names_digest(self, source: Source) -> str:
        """Hash the names of the held-out images: equal for a folder and a pack of it."""
        names = [source.name(i) for i in self.divide(source)[1].tolist()]
        return hashlib.sha256("\0".join(names).encode()).hexdigest()


class Labelled(NamedTuple):
    """Training and test images of the same classes."""

    train: Part
    test: Part
    held: HeldOut | None
    """How the test images were held out; None where they are a split of their own."""
    notes: tuple[str, ...]
    """One line on the data found, then warnings for the user."""

    def values(self) -> dict[str, object]:
        """Return the counts and the notes for JSON."""
        counts = {"train": len(self.train.ids), "test": len(self.test.ids)}
        held = None if self.held is None else self.held._asdict()
        return {**counts, "held_out": held, "notes": list(self.notes)}


class EvaluationData(NamedTuple):
    """Test images of a classifier; some of its classes may be missing."""

    source: Source
    part: str
    """Name of the part of the data."""
    notes: tuple[str, ...]
    """See `Labelled`."""


class FinetuningData(NamedTuple):
    """The labelled images of a fine-tuning run, as recorded by the run or its classifier."""

    path: str
    """Path of the data during the run."""
    train: str
    """Fingerprint of the training images."""
    test: str
    """Fingerprint of the test images."""
    held: HeldOut
    """How the test images were held out; older runs do not record this."""
    names: str = ""
    """Hash of the names of the held-out images; empty for older runs."""

    def divide(self, source: Source) -> tuple[Ids, Ids] | None:
        """Return the run's training and test ids; None if the run used other images."""
        with suppress(DataError):
            train, test = self.held.divide(source)
            if subset(source, test).fingerprint() == self.test:
                return train, test
        return None

    def warning(self, data: str | Path, source: Source, *, whole: bool) -> str | None:
        """Return a warning if the run was trained on the test images, or may have been.

        Args:
            data: name of the data.
            source: the test images.
            whole: whether the data are undivided, so that they may contain both parts of the run.
        """
        if source.fingerprint() == self.train:
            return f"{data}: the classifier was fine-tuned on these images"
        if not whole:
            return None
        with suppress(DataError):
            if self.names and self.held.names_digest(source) == self.names:
                return (
                    f"{data}: files named as in the fine-tuning; if they are copies, the "
                    "classifier was trained on most of them; give the folder of the fine-tuning"
                )
        if str(Path(data).expanduser().resolve()) == self.path:
            return f"{data}: changed since the fine-tuning, which may have used some test images"
        return None


def finetuning_data(weights: object) -> FinetuningData | None:
    """Find the labelled images that a classifier was fine-tuned on; None without a record.

    A network in memory has none.

    The record in the folder of the weights has precedence over that of the run, as the folder may
    have been copied. Errors in the weights are reported when they are loaded.
    """
    if not isinstance(weights, str | os.PathLike):
        return None
    try:
        file = find_file(local(weights))
    except (WeightsError, OSError):
        return None
    # RUN/weights/model.safetensors, or RUN/checkpoints/step-1/model.safetensors
    runs = [run for folder in file.absolute().parents[1:3] if (run := _run_record(folder))]
    for record in (_facts(file.with_name(CONFIG)), *runs):
        if (found := _from_record(record.get("data"), runs)) is not None:
            return found
    return None


def _from_record(data: Any, runs: Sequence[Mapping[str, Any]]) -> FinetuningData | None:
    if not isinstance(data, Mapping):
        return None
    train, _, test = str(data.get("fingerprint", "")).partition("-")
    if not test:  # of pre-training
        return None
    split = data.get("split")
    if not isinstance(split, Mapping):
        # Older versions did not record the seed of the split and used that of the run.
        same = [run for run in runs if run["data"].get("fingerprint") == data["fingerprint"]]
        split = {"seed": same[0]["config"].get("seed", 0)} if same else {}
    held = HeldOut(int(split.get("seed", 0)), float(split.get("share", FRACTION)))
    names = str(split.get("names", ""))
    return FinetuningData(str(data.get("path", "")), train, test, held, names)


def _run_record(run: Path) -> Mapping[str, Any]:
    with suppress(ConfigError, OSError):
        return read_record(run) or {}
    return {}


def _facts(config: Path) -> Mapping[str, Any]:
    with suppress(ValueError, OSError, RecursionError):
        values = json.loads(config.read_bytes())
        facts = values.get("facts") if isinstance(values, dict) else None
        return facts if isinstance(facts, dict) else {}
    return {}


def labelled(data: str | Path, *, seed: int, weights: object = None) -> Labelled:
    """Find labelled images and divide them into training and test images.

    Args:
        data: one of "fashion-mnist" (built in); a folder with a training and a test split by any
            usual name (`train/` and `val/`, `valid/`, `dev/` or `test/`, see `find_splits`; the
            validation split if there are several), each with one folder per class; a folder with
            one folder per class, of which a fifth of each class is held out; a .csv of
            path,label, or a folder with train.csv, with val.csv or test.csv beside it. A pack or
            tar files with labels can replace any of these folders.
        seed: seed of the held-out images.
        weights: weights to probe or fine-tune; on the data of their own fine-tuning, its held-out
            images are used.

    Raises:
        DataError: for no classes, a single class, an empty class, or test classes that the
            training images do not have.
    """
    found = find_labelled(data)
    if found.whole is not None:
        source = _check_classes(found.whole(), found.where)
        return _hold_out(found, source, HeldOut(seed), finetuning_data(weights))
    if "train" not in found.splits:
        names = " and ".join(split.name for split in found.splits.values())
        raise DataError(f"data: {found.where} has {names} but no split to train on; name one train")
    kind = found.test_kind
    train, test = (found.splits[each] for each in ("train", kind))
    train_source = _check_classes(train.open(), f"{found.where}/{train.name}")
    test_source = test.open()
    if unknown := sorted({*test_source.class_names} - {*train_source.class_names}):
        raise DataError(
            f"data: {len(unknown):,} of the classes of {found.where}/{test.name} are not in "
            f"{train.name}: {some(unknown, 5)}; add images of them, or remove them from {test.name}"
        )
    absent = [name for name in train_source.class_names if name not in test_source.class_names]
    notes = found.without("train", kind).notes(
        f"{len(train_source):,} images in {train.name} for training, {len(test_source):,} in "
        f"{test.name} for testing",
        train_source,
        *notes_of(test_source),
        f"{test.name}: no image of {some(absent, 5)}, not tested" if absent else None,
        _overlap(train_source, test_source, names=(train.name, test.name)),
    )
    train_part = Part(train_source, np.arange(len(train_source)))
    test_part = Part(_renumber(test_source, train_source), np.arange(len(test_source)))
    return Labelled(train_part, test_part, None, notes)


def _hold_out(
    found: DataLayout, source: Source, held: HeldOut, finetuning: FinetuningData | None
) -> Labelled:
    """Hold out a part of each class; on a classifier's own data, the part it held out."""
    reason, warning = "", None
    if finetuning is not None and (own := finetuning.divide(source)) is not None:
        held, (train, test), reason = finetuning.held, own, ", as in the fine-tuning of the weights"
    else:
        if finetuning is not None:
            warning = finetuning.warning(found.where, source, whole=True)
        train, test = held.divide(source)
    line = (
        f"{len(train):,} images for training, {len(test):,} for testing ({held.share:.0%} of each "
        f"class held out for testing, seed {held.seed}{reason})"
    )
    notes = found.notes(line, source, warning)
    return Labelled(Part(source, train), Part(source, test), held, notes)


def evaluation_data(data: str | Path, *, split: Kind | None, weights: object) -> EvaluationData:
    """Find the test images of a classifier.

    Args:
        data: see `labelled`; of splits, the validation split, else the test split.
        split: another split; on the data of the classifier's fine-tuning, "train" selects its
            training images.
        weights: the classifier; on the data of its fine-tuning, only its held-out images are used.

    Raises:
        DataError: if there are no classes.
        ConfigError: for a split that the data do not have.
    """
    found, finetuning = find_labelled(data), finetuning_data(weights)
    if found.whole is None:
        kind = split or found.test_kind
        _require_split(kind, found)
        source, part = found.splits[kind].open(), found.splits[kind].name
        line = f"tested on {len(source):,} images in {part}"
        warning = finetuning and finetuning.warning(found.where, source, whole=False)
        return EvaluationData(source, part, found.without(kind).notes(line, source, warning))
    source = found.whole()
    if finetuning is not None and (own := finetuning.divide(source)) is not None:
        held, trained = finetuning.held, split == "train"
        source = subset(source, own[0 if trained else 1])
        name, fraction = ("train", 1 - held.share) if trained else ("test", held.share)
        part = f"{name} part ({fraction:.0%} of each class, seed {held.seed})"
        origin = "which the classifier was fine-tuned on" if trained else "held out by fine-tuning"
        line = f"tested on {len(source):,} images, the {part}, {origin}"
        return EvaluationData(source, part, found.notes(line, source))
    if split is not None:
        _require_split(split, found)
    line = f"tested on all {len(source):,} images"
    warning = finetuning and finetuning.warning(found.where, source, whole=True)
    return EvaluationData(source, "all images", found.notes(line, source, warning))


def _require_split(split: Kind, found: DataLayout) -> None:
    """Raise for a missing split.

    Raises:
        ConfigError: if the split is missing, with the available ones.
    """
    if split not in found.splits:
        present = ", ".join(found.splits) or "none, and fine-tuning did not divide these images"
        raise ConfigError(
            f"split: {found.where} has no {split} split, it has {present}; drop --split"
        )


def _renumber(source: Source, other: Source) -> Source:
    """Renumber the labels by the class numbers of another source."""
    if source.class_names == other.class_names:
        return source
    numbers = np.array([other.class_names.index(name) for name in source.class_names])
    assert source.labels is not None
    classes = other.class_names, numbers[source.labels].astype(np.int64)
    return subset(source, np.arange(len(source)), classes=classes)


def _overlap(train: Source, test: Source, *, names: tuple[str, str]) -> str | None:
    """Return a note on the files that both lists name, if any."""
    if not isinstance(train, FolderSource) or not isinstance(test, FolderSource):
        return None
    paths = {os.path.abspath(train.path(i)) for i in range(len(train))}
    both = [i for i in range(len(test)) if os.path.abspath(test.path(i)) in paths]
    if not both:
        return None
    count = f"{len(both):,} of {len(test):,} images are in {names[0]} too"
    return f"{names[1]}: {count}, {test.name(both[0])} first: trained and tested on"


def _check_classes(source: Source, where: str) -> Source:
    """Refuse training data of a single class, and empty class folders."""
    if len(source.class_names) < 2:
        raise DataError(
            f"data: {where} has only one class, {source.class_names[0]}; expected at least two "
            "folders, one for each class"
        )
    if isinstance(source, FolderSource) and os.path.isdir(where):
        folders = {e.name for e in os.scandir(where) if e.is_dir() and e.name[0] != "."}
        for empty in sorted(folders - {*source.class_names}):
            raise DataError(f"data: no images of class {empty} in {where}; fill or remove it")
    return source


def require_classes(names: Sequence[str], labels: Labels) -> None:
    """Raise if a class has no images.

    Raises:
        DataError: for the first class without images.
    """
    for number in sorted({*range(len(names))} - {*labels.tolist()}):
        raise DataError(f"data: no image of class {names[number]} can be read")
