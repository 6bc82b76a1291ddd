"""Divide images with masks into training and test images, as the run of the weights did."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mae.data.segmentation.check import Checked, check
from mae.data.segmentation.layout import MaskedPart, find_masked
from mae.data.segmentation.source import MaskSource
from mae.data.sources.splits import Kind
from mae.errors import ConfigError, DataError
from mae.evaluation.discover import MOST_NAMED, some
from mae.evaluation.labelled_data import FinetuningData, HeldOut, finetuning_data
from mae.evaluation.split import Ids
from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.planning.hardware import cores
from mae.progress import Progress


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
    if found.whole is not None:
        part = found.whole()
        checked = _checked([part], max_bad=max_bad, progress=progress, ranks=ranks)
        source = checked.source(part)
        if len(source) < 2:
            raise DataError(f"data: {found.where} has one usable mask, expected at least two")
        held, warning = HeldOut(seed), None
        train, test = held.divide(source)
        if (own := finetuning_data(weights)) is not None:
            if (same := _as_before(own, source)) is not None:
                held, (train, test) = own.held, same
            else:
                warning = _warning(own, found.where, source, whole=True)
        line = (
            f"{found.where}: {len(train):,} images for training, {len(test):,} for testing "
            f"({held.share:.0%} held out, seed {held.seed})"
        )
        parts, splits = (source.take(train), source.take(test)), held
    else:
        if "train" not in found.splits:
            raise DataError(f"data: {found.where} has no split to train on; name one train")
        if found.test_kind not in found.splits:
            raise DataError(
                f"data: {found.where} has train, and neither val nor test; add one, or give "
                "images/ and masks/ without splits, of which a fifth is held out"
            )
        opened = [found.splits[kind]() for kind in ("train", found.test_kind)]
        checked = _checked(opened, max_bad=max_bad, progress=progress, ranks=ranks)
        source, tested = (checked.source(part, number) for number, part in enumerate(opened))
        if not (len(source) and len(tested)):
            raise DataError(f"data: {found.where} has no usable mask in one of its splits")
        line = (
            f"{found.where}: {len(source):,} images in {opened[0].name} for training, "
            f"{len(tested):,} in {opened[1].name} for testing"
        )
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
    found, own = find_masked(data), finetuning_data(weights)
    kind = split or (None if found.whole is not None else found.test_kind)
    if kind is not None and kind not in found.splits:
        present = ", ".join(found.splits) or "none"
        raise ConfigError(f"split: {found.where} has no {kind} split, it has {present}")
    opener = found.whole if kind is None else found.splits[kind]
    assert opener is not None
    part = opener()
    checked = _checked([part], max_bad=max_bad, progress=progress, ranks=ranks, classes=classes)
    source, name = checked.source(part), part.name or "all images"
    warning = None
    if (
        own is not None
        and found.whole is not None
        and (same := _as_before(own, source)) is not None
    ):
        source, name = source.take(same[1]), "held out in training"
    elif own is not None:
        warning = _warning(own, found.where, source, whole=found.whole is not None)
    line = f"{found.where}: scored on {len(source):,} images, {name}"
    return SegmentedPart(source, name, tuple(filter(None, (line, *checked.notes, warning))))


def _checked(
    parts: Sequence[MaskedPart],
    *,
    max_bad: float,
    progress: Progress,
    ranks: Communicator,
    classes: Sequence[str] | None = None,
) -> Checked:
    def checked() -> Checked:
        return check(parts, max_bad=max_bad, progress=progress, classes=classes, threads=cores())

    return ranks.on_main(checked)


def _as_before(own: FinetuningData, source: MaskSource) -> tuple[Ids, Ids] | None:
    """Return the training and test ids of an earlier run; None if it had other images."""
    with suppress(DataError):
        train, test = own.held.divide(source)
        if source.take(test).fingerprint() == own.test:
            return train, test
    return None


def _warning(own: FinetuningData, where: str, source: MaskSource, *, whole: bool) -> str | None:
    found = own.warning(where, source, whole=whole)
    return None if found is None else found.replace("classifier was fine-tuned", "run was trained")
