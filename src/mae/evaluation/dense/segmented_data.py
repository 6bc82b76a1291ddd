"""Divide images with masks into training and test images, as the run of the weights did."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from mae.data.annotated import Layout
from mae.data.detection.source import BoxSource
from mae.data.segmentation.check import check
from mae.data.segmentation.layout import find_masked
from mae.data.segmentation.source import MaskSource
from mae.data.sources.splits import Kind
from mae.errors import ConfigError, DataError
from mae.evaluation.discover import MOST_NAMED, some
from mae.evaluation.labelled_data import FinetuningData, HeldOut, finetuning_data
from mae.evaluation.split import Ids
from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.planning.hardware import cores
from mae.progress import Progress

P = TypeVar("P")
S = TypeVar("S", MaskSource, BoxSource)


class SegmentedData(NamedTuple):
    """Training and test images with masks of the same classes."""

    train: MaskSource
    test: MaskSource
    held: HeldOut | None
    """How the test images were held out; None where they are a split of their own."""
    whole: MaskSource
    """The images that were divided; where they are not, those of training."""
    notes: tuple[str, ...]
    """What was found, guessed and left out."""


class SegmentedPart(NamedTuple):
    """Images with masks on which a segmenter is scored."""

    source: MaskSource
    part: str
    """Name of the part of the data."""
    notes: tuple[str, ...]


def segmented(
    data: str | Path,
    *,
    seed: int,
    max_bad: float,
    progress: Progress,
    weights: object = None,
    ranks: Communicator = SINGLE_PROCESS,
) -> SegmentedData:
    """Find images with masks, check all of them, and divide them into training and test images.

    Args:
        data: see `find_masked`; without splits, a fifth of the images is held out.
        seed: seed of the held-out images.
        max_bad: see `check`.
        progress: shows the check.
        weights: initial weights; on the data of their own run, its held-out images are used.
        ranks: the processes of the job; rank 0 checks.

    Raises:
        DataError: for data without masks or without a training split, or too many bad masks.
    """
    found = find_masked(data)
    ask = partial(check, max_bad=max_bad, progress=progress, threads=cores())
    if found.whole is not None:
        part = found.whole()
        checked = ranks.on_main(partial(ask, [part]))
        source = checked.source(part)
        parts, splits, line, warning = divide(
            source, found.where, seed=seed, weights=weights, noun="mask"
        )
    else:
        opened = open_splits(found, advice="images/ and masks/ without splits")
        checked = ranks.on_main(partial(ask, opened))
        source, tested = (checked.source(part, number) for number, part in enumerate(opened))
        if not (len(source) and len(tested)):
            raise DataError(f"data: {found.where} has no usable mask in one of its splits")
        names = opened[0].name, opened[1].name
        line = splits_line(found.where, (len(source), len(tested)), names)
        parts, splits, warning = (source, tested), None, None
    named = f"{line}; {len(checked.classes):,} classes: {some(checked.classes, MOST_NAMED)}"
    empty = [n for n, k in zip(checked.classes, checked.parts[0].pixels, strict=True) if not k]
    missing = f"classes: no pixel of {some(empty, 5)} in the training masks" if empty else None
    notes = tuple(filter(None, (named, *checked.notes, missing, warning)))
    return SegmentedData(*parts, splits, source, notes)


def segmented_for_evaluation(
    data: str | Path,
    *,
    classes: Sequence[str],
    split: Kind | None,
    weights: object,
    max_bad: float,
    progress: Progress,
    ranks: Communicator = SINGLE_PROCESS,
) -> SegmentedPart:
    """Find the images and masks on which a segmenter is scored.

    Args:
        data: see `find_masked`; of splits, the validation split, else the test split.
        classes: classes of the segmenter, which name those of the masks.
        split: another split.
        weights: the segmenter; on the data of its own run, only its held-out images are used.
        max_bad: see `check`.
        progress: shows the check.
        ranks: the processes of the job; rank 0 checks.

    Raises:
        DataError: for data without masks, classes that the segmenter does not have, or too many
            bad masks.
        ConfigError: for a split that the data do not have.
    """
    found = find_masked(data)
    part = open_part(found, split)
    ask = partial(check, max_bad=max_bad, progress=progress, classes=classes, threads=cores())
    checked = ranks.on_main(partial(ask, [part]))
    source, name, line, warning = choose_scored(
        checked.source(part), part.name, found, weights=weights
    )
    return SegmentedPart(source, name, tuple(filter(None, (line, *checked.notes, warning))))


def divide(
    source: S, where: str, *, seed: int, weights: object, noun: str
) -> tuple[tuple[S, S], HeldOut, str, str | None]:
    """Hold out a part of undivided images, the same as the run of the weights did.

    Args:
        source: all images.
        where: name of the data.
        seed: seed of the held-out images.
        weights: initial weights; on the data of their own run, its held-out images are used.
        noun: what the images have, for the message.

    Returns:
        Training and test images, how they were held out, a line on them, and a warning if any.

    Raises:
        DataError: for fewer than two images.
    """
    if len(source) < 2:
        raise DataError(f"data: {where} has one usable {noun}, expected at least two")
    held, warning = HeldOut(seed), None
    train, test = held.divide(source)
    if (own := finetuning_data(weights)) is not None:
        if (same := as_before(own, source)) is not None:
            held, (train, test) = own.held, same
        else:
            warning = warning_of(own, where, source, whole=True)
    line = (
        f"{where}: {len(train):,} images for training, {len(test):,} for testing "
        f"({held.share:.0%} held out, seed {held.seed})"
    )
    return (source.take(train), source.take(test)), held, line, warning


def open_splits(found: Layout[P], *, advice: str) -> list[P]:
    """Open the splits to train and to test on.

    Raises:
        DataError: if one is missing; `advice` says what to give instead.
    """
    if "train" not in found.splits:
        raise DataError(f"data: {found.where} has no split to train on; name one train")
    if found.test_kind not in found.splits:
        raise DataError(
            f"data: {found.where} has train, and neither val nor test; add one, or give "
            f"{advice}, of which a fifth is held out"
        )
    return [found.splits["train"](), found.splits[found.test_kind]()]


def open_part(found: Layout[P], split: Kind | None) -> P:
    """Open the split to score; none: the validation split, else the test split, else all.

    Raises:
        ConfigError: for a split that the data do not have.
    """
    kind = split or (None if found.whole is not None else found.test_kind)
    if kind is not None and kind not in found.splits:
        present = ", ".join(found.splits) or "none"
        raise ConfigError(f"split: {found.where} has no {kind} split, it has {present}")
    opener = found.whole if kind is None else found.splits[kind]
    assert opener is not None
    return opener()


def choose_scored(
    source: S, part: str, found: Layout[P], *, weights: object
) -> tuple[S, str, str, str | None]:
    """Choose the images to score: of undivided data of the run of the weights, those held out.

    Returns:
        The images, the name of the part, a line on them, and a warning if any.
    """
    own, name, warning = finetuning_data(weights), part or "all images", None
    if own is not None and found.whole is not None and (same := as_before(own, source)) is not None:
        source, name = source.take(same[1]), "held out in training"
    elif own is not None:
        warning = warning_of(own, found.where, source, whole=found.whole is not None)
    line = f"{found.where}: scored on {len(source):,} images, {name}"
    return source, name, line, warning


def splits_line(where: str, counts: tuple[int, int], names: tuple[str, str]) -> str:
    """Return a line on the splits to train and to test on."""
    (train, test), (first, second) = counts, names
    return f"{where}: {train:,} images in {first} for training, {test:,} in {second} for testing"


def as_before(own: FinetuningData, source: MaskSource | BoxSource) -> tuple[Ids, Ids] | None:
    """Return the training and test ids of an earlier run; None if it had other images."""
    with suppress(DataError):
        train, test = own.held.divide(source)
        if source.take(test).fingerprint() == own.test:
            return train, test
    return None


def warning_of(
    own: FinetuningData, where: str, source: MaskSource | BoxSource, *, whole: bool
) -> str | None:
    """Return a warning if a run was trained on the test images, see `FinetuningData.warning`."""
    found = own.warning(where, source, whole=whole)
    return None if found is None else found.replace("classifier was fine-tuned", "run was trained")
