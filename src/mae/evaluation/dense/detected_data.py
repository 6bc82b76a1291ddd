"""Divide images with boxes into training and test images, as the run of the weights did."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mae.data.detection.check import check
from mae.data.detection.layout import find_boxed
from mae.data.detection.source import BoxSource
from mae.data.sources.splits import Kind
from mae.errors import DataError
from mae.evaluation.dense.segmented_data import (
    choose_scored,
    divide,
    open_part,
    open_splits,
    splits_line,
)
from mae.evaluation.discover import MOST_NAMED, some
from mae.evaluation.labelled_data import HeldOut
from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.planning.hardware import cores
from mae.progress import Progress


class DetectedData(NamedTuple):
    """Training and test images with boxes of the same classes."""

    train: BoxSource
    test: BoxSource
    held: HeldOut | None
    """How the test images were held out; None where they are a split of their own."""
    whole: BoxSource
    """The images that were divided; where they are not, those of training."""
    short_side: int
    """Median short side of all of them, in pixels."""
    notes: tuple[str, ...]
    """What was found, guessed and left out."""


class DetectedPart(NamedTuple):
    """Images with boxes on which a detector is scored."""

    source: BoxSource
    part: str
    """Name of the part of the data."""
    notes: tuple[str, ...]


def detected(
    data: str | Path,
    *,
    seed: int,
    max_bad: float,
    progress: Progress,
    weights: object = None,
    classes: Sequence[str] | None = None,
    ranks: Communicator = SINGLE_PROCESS,
) -> DetectedData:
    """Find images with boxes, check all of them, and divide them into training and test images.

    Args:
        data: see `find_boxed`; without splits, a fifth of the images is held out.
        seed: seed of the held-out images.
        max_bad: see `check`.
        progress: shows the check.
        weights: initial weights; on the data of their own run, its held-out images are used.
        classes: classes of a detector that is trained on; none: those of the data.
        ranks: the processes of the job; rank 0 checks.

    Raises:
        DataError: for data without boxes or without a training split, or too many bad ones.
    """
    found, held, warning = find_boxed(data), None, None
    ask = partial(check, max_bad=max_bad, progress=progress, classes=classes, threads=cores())
    if found.whole is not None:
        part = found.whole()
        own = ranks.on_main(partial(ask, [part]))
        whole = own.source(part)
        (train, test), held, line, warning = divide(
            whole, found.where, seed=seed, weights=weights, noun="image with boxes"
        )
    else:
        opened = open_splits(found, advice="images with boxes without splits")
        own = ranks.on_main(partial(ask, opened))
        train, test = (own.source(part, number) for number, part in enumerate(opened))
        whole = train
        if not (len(train) and len(test)):
            raise DataError(f"data: {found.where} has no usable image in one of its splits")
        names = opened[0].name, opened[1].name
        line = splits_line(found.where, (len(train), len(test)), names)
    named = f"{line}; {len(own.classes):,} classes: {some(own.classes, MOST_NAMED)}"
    notes = tuple(filter(None, (named, *own.notes, warning)))
    return DetectedData(train, test, held, whole, own.short_side, notes)


def detected_for_evaluation(
    data: str | Path,
    *,
    classes: Sequence[str],
    split: Kind | None,
    weights: object,
    max_bad: float,
    progress: Progress,
    ranks: Communicator = SINGLE_PROCESS,
) -> DetectedPart:
    """Find the images and boxes on which a detector is scored.

    Args:
        data: see `find_boxed`; of splits, the validation split, else the test split.
        classes: classes of the detector.
        split: another split.
        weights: the detector; on the data of its own run, only its held-out images are used.
        max_bad: see `check`.
        progress: shows the check.
        ranks: the processes of the job; rank 0 checks.

    Raises:
        DataError: for data without boxes, classes that the detector does not have, or too many
            bad boxes.
        ConfigError: for a split that the data do not have.
    """
    found = find_boxed(data)
    part = open_part(found, split)
    ask = partial(check, max_bad=max_bad, progress=progress, classes=classes, threads=cores())
    checked = ranks.on_main(partial(ask, [part]))
    source, name, line, warning = choose_scored(
        checked.source(part), part.name, found, weights=weights
    )
    return DetectedPart(source, name, tuple(filter(None, (line, *checked.notes, warning))))
