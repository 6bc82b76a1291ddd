"""Divide images with masks or boxes into training and test images, as the weights' run did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

from mae.data.annotated import AnnotatedPart, Layout
from mae.data.detection.source import BoxSource
from mae.data.segmentation.source import MaskSource
from mae.data.sources.splits import Kind
from mae.errors import ConfigError, DataError
from mae.evaluation.discover import MOST_NAMED, some
from mae.evaluation.labelled_data import FinetuningData, HeldOut, finetuning_data
from mae.evaluation.split import Ids
from mae.parallel.processes import Communicator

P = TypeVar("P", bound=AnnotatedPart)
P_in = TypeVar("P_in", contravariant=True)
S = TypeVar("S", MaskSource, BoxSource)
S_out = TypeVar("S_out", covariant=True)


class Checked(Protocol[P_in, S_out]):
    """What the check of annotations found."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines on guesses, and on what cannot be used."""

    def source(self, part: P_in, number: int = 0, /) -> S_out:
        """Return the images of a part that can be used."""


class Divided(NamedTuple, Generic[S]):
    """Training and test images with annotations of the same classes."""

    train: S
    test: S
    held: HeldOut | None
    """How the test images were held out; None where they are a split of their own."""
    whole: S
    """The images that were divided; where they are not, those of training."""
    notes: tuple[str, ...]
    """What was found, guessed and left out."""


class ScoredPart(NamedTuple, Generic[S]):
    """Images on which a model is scored."""

    source: S
    part: str
    """Name of the part of the data."""
    notes: tuple[str, ...]


def divided(
    found: Layout[P],
    check: Callable[[Sequence[P]], Checked[P, S]],
    *,
    seed: int,
    weights: object,
    noun: str,
    advice: str,
    ranks: Communicator,
) -> Divided[S]:
    """Check all annotations, and divide their images into training and test images.

    Args:
        found: the data; without splits, a fifth of the images is held out.
        check: checks parts, on rank 0.
        seed: seed of the held-out images.
        weights: initial weights; on the data of their own run, its held-out images are used.
        noun: what can be used, for messages.
        advice: what to give instead of a training split alone, for messages.
        ranks: the processes of the job.

    Raises:
        DataError: for data without a training split, or with nothing that can be used.
    """
    held, warning = None, None
    if found.whole is not None:
        part = found.whole()
        checked: Checked[P, S] = ranks.on_main(partial(check, [part]))
        whole = checked.source(part)
        (train, test), held, line, warning = _hold_out(
            whole, found.where, seed=seed, weights=weights, noun=noun
        )
    else:
        opened = _open_splits(found, advice=advice)
        checked = ranks.on_main(partial(check, opened))
        train, test = (checked.source(part, number) for number, part in enumerate(opened))
        whole = train
        if not (len(train) and len(test)):
            raise DataError(f"data: {found.where} has no usable {noun} in one of its splits")
        first, second = (part.name for part in opened)
        line = (
            f"{found.where}: {len(train):,} images in {first} for training, "
            f"{len(test):,} in {second} for testing"
        )
    named = f"{line}; {len(checked.classes):,} classes: {some(checked.classes, MOST_NAMED)}"
    notes = tuple(filter(None, (named, *checked.notes, warning)))
    return Divided(train, test, held, whole, notes)


def scored_part(
    found: Layout[P],
    check: Callable[[Sequence[P]], Checked[P, S]],
    *,
    split: Kind | None,
    weights: object,
    ranks: Communicator,
) -> ScoredPart[S]:
    """Check the annotations on which a model is scored.

    Args:
        found: the data; of splits, the validation split, else the test split.
        check: checks parts, on rank 0.
        split: another split.
        weights: the model; on the undivided data of its own run, only its held-out images count.
        ranks: the processes of the job.

    Raises:
        ConfigError: for a split that the data do not have.
    """
    part = _open_part(found, split)
    checked: Checked[P, S] = ranks.on_main(partial(check, [part]))
    source, own = checked.source(part), finetuning_data(weights)
    name, warning, is_whole = part.name or "all images", None, found.whole is not None
    if own is not None and is_whole and (same := _as_before(own, source)) is not None:
        source, name = source.take(same[1]), "held out in training"
    elif own is not None:
        warning = _warning_of(own, found.where, source, whole=is_whole)
    line = f"{found.where}: scored on {len(source):,} images, {name}"
    return ScoredPart(source, name, tuple(filter(None, (line, *checked.notes, warning))))


def _hold_out(
    source: S, where: str, *, seed: int, weights: object, noun: str
) -> tuple[tuple[S, S], HeldOut, str, str | None]:
    """Hold out a part of undivided images, the same as the run of the weights did.

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
        if (same := _as_before(own, source)) is not None:
            held, (train, test) = own.held, same
        else:
            warning = _warning_of(own, where, source, whole=True)
    line = (
        f"{where}: {len(train):,} images for training, {len(test):,} for testing "
        f"({held.share:.0%} held out, seed {held.seed})"
    )
    return (source.take(train), source.take(test)), held, line, warning


def _open_splits(found: Layout[P], *, advice: str) -> list[P]:
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


def _open_part(found: Layout[P], split: Kind | None) -> P:
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


def _as_before(own: FinetuningData, source: MaskSource | BoxSource) -> tuple[Ids, Ids] | None:
    """Return the training and test ids of an earlier run; None if it had other images."""
    with suppress(DataError):
        train, test = own.held.divide(source)
        if source.take(test).fingerprint() == own.test:
            return train, test
    return None


def _warning_of(
    own: FinetuningData, where: str, source: MaskSource | BoxSource, *, whole: bool
) -> str | None:
    """Return a warning if a run was trained on the test images, see `FinetuningData.warning`."""
    found = own.warning(where, source, whole=whole)
    return None if found is None else found.replace("classifier was fine-tuned", "run was trained")
