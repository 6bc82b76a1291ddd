"""Score starts on the same draws of few labels, from precomputed features.

A start is whatever gives features: raw pixels, an untrained or a trained encoder. One treatment for
all: features standardised on all drawn images, logistic regression.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from mae.atomic import write_atomic
from mae.data.sources.lists import LISTS
from mae.data.sources.open import open_source
from mae.data.sources.source import FolderSource, Source
from mae.data.sources.subset import subset
from mae.data.types import Log
from mae.errors import DataError
from mae.evaluation.features import Array, encoder_features, pixel_features, standardized
from mae.evaluation.few_labels import CHOICE, COLUMNS, FewLabels
from mae.evaluation.inputs import LabelledBatch, map_images
from mae.evaluation.labelled_data import Labelled, Part, labelled
from mae.evaluation.logistic import linear_probe
from mae.evaluation.paired import Correct
from mae.evaluation.split import Ids, Labels, fraction_of_labels
from mae.model.encoder import Encoder, Pool
from mae.progress import Progress

SEEDS = 2
"""Seeds of each draw, whose results are averaged."""
BATCH = 64
PIXELS = 32
"""Largest edge of the images whose raw pixels are compared."""
LEAST_IMAGES, MOST_SAMPLED = 20, 500
MOST_TEST = 1000
"""Test images; of more, this many are used, the same fraction of each class."""
FRACTIONS = (0.25, 0.5, 1.0)
"""Of the labels of a draw, to learn from."""
MOST_PER_CLASS = 10
"""Labels of a class in a draw, unless the user asks for others."""
LEAST_PER_CLASS = 2  # one to fit, one to choose the regularisation


class Columns(NamedTuple):
    """Arrays with a row for each readable image of a part, ascending by id."""

    ids: Ids
    columns: list[NDArray[Any]]

    def of(self, ids: Ids) -> list[NDArray[Any]]:
        """Select the rows of some images."""
        return [column[np.isin(self.ids, ids)] for column in self.columns]


def read_columns(
    compute: Callable[[LabelledBatch], list[NDArray[Any]]],
    encoder: Encoder,
    parts: Mapping[str, Part],
    *,
    file: Path | None,
    quiet: bool,
) -> list[Columns]:
    """Read each part once; a repeated call takes the columns from the file.

    Args:
        compute: returns the columns of a batch.
        encoder: determines the format of the images.
        parts: images by the name that the progress display gives them.
        file: .npz for the columns; none: not kept.
        quiet: show no progress.
    """
    if file is not None and file.exists():
        with np.load(file) as kept:
            named = {name: kept[name] for name in kept.files}
        return [
            Columns(named[f"{part}"], [named[f"{part}-{i}"] for i in range(int(named["width"]))])
            for part in range(len(parts))
        ]
    found = []
    with Progress(quiet=quiet) as progress:
        for label, (source, ids) in parts.items():
            function = lambda batch: [batch.ids, *compute(batch)]  # noqa: E731
            kept_ids, *columns = map_images(
                function, encoder, source, ids, batch=BATCH, progress=progress, label=label
            )
            found.append(Columns(kept_ids, columns))
    if file is not None:
        named = {"width": np.array(len(found[0].columns))}
        for part, each in enumerate(found):
            named |= {f"{part}": each.ids}
            named |= {f"{part}-{i}": column for i, column in enumerate(each.columns)}
        packed = io.BytesIO()
        np.savez(packed, **named)
        write_atomic(file, packed.getvalue())
    return found


def encode_start(encoder: Encoder, pool: Pool) -> Callable[[LabelledBatch], list[NDArray[Any]]]:
    """Return a function that computes the features of a batch, see `read_columns`."""
    return lambda batch: [encoder_features(encoder, [batch.images], pools=[pool])[pool]]


def encode_baselines(
    random: Sequence[Encoder], pool: Pool
) -> Callable[[LabelledBatch], list[NDArray[Any]]]:
    """Return a function that computes raw pixels, then the features of each random encoder."""

    def compute(batch: LabelledBatch) -> list[NDArray[Any]]:
        H, W = batch.images.shape[2:]
        small = F.adaptive_avg_pool2d(batch.images.float(), (min(H, PIXELS), min(W, PIXELS)))
        encoded = (encode_start(encoder, pool)(batch)[0] for encoder in random)
        # No scaling: the standardisation would undo it.
        return [pixel_features([small]), *encoded]

    return compute


class Draws(NamedTuple):
    """Draws of labels of one size, as positions among the training rows."""

    labels: float
    """Number of labels, the mean over the draws."""
    ids: tuple[Ids, ...]


class Drawn(NamedTuple):
    """Draws of labels, and the images to test on."""

    images: Part
    """The images of any draw."""
    test: Part
    sizes: tuple[Draws, ...]
    """The draws as ids of the source, fewest labels first; none where images have no classes."""
    of: int
    """Number of labelled images to draw from."""


def default_labels(labels: Labels, names: Sequence[str]) -> str:
    """Return how many labels of each class to draw: ten, or half of the smallest class.

    Raises:
        DataError: for a class with a single training image.
    """
    sizes = np.bincount(labels, minlength=len(names))
    _require_two(sizes, names)
    return f"{max(LEAST_PER_CLASS, min(MOST_PER_CLASS, int(sizes.min()) // 2))}/class"


def nested_draws(
    draws: Iterable[Ids], labels: Labels, *, names: Sequence[str], seed: int
) -> tuple[Draws, ...]:
    """Return each draw and, nested in it, a half and a quarter of its labels, fewest first.

    Sizes at which a class would have a single label are left out.

    Args:
        draws: positions in `labels`, of each draw.
        labels: n classes.
        names: names of the classes.
        seed: seed of the halves and quarters.

    Raises:
        DataError: for a class with fewer than two labels in a draw.
    """
    every, found = [np.asarray(ids) for ids in draws], []
    for ids in every:
        _require_two(np.bincount(labels[ids], minlength=len(names)), names)
    for part in FRACTIONS:
        chosen = [
            ids[fraction_of_labels(labels[ids], part, seed=seed, draw=number)]
            for number, ids in enumerate(every)
        ]
        if all(np.bincount(labels[ids]).min() >= LEAST_PER_CLASS for ids in chosen):
            found.append(Draws(float(np.mean([len(ids) for ids in chosen])), tuple(chosen)))
    return tuple(found)


def _require_two(sizes: Ids, names: Sequence[str]) -> None:
    if sizes.min() < LEAST_PER_CLASS:
        poorest = int(sizes.argmin())
        raise DataError(
            f"labels: got {sizes[poorest]} of class {names[poorest]} to learn from, expected at "
            f"least {LEAST_PER_CLASS}; label more of its images, or leave the class out"
        )


def find_images(
    data: str | Path, labels: str | None, *, seed: int, weights: str | Path | None
) -> tuple[Labelled, Source, str | None]:
    """Find the labelled images, and those to train on without labels.

    Args:
        data: labelled images, see `labelled`; or a folder of images for a list of labels.
        labels: see `FewLabels`; or a list of path,label that names some of the images.
        seed: seed of the held-out images.
        weights: see `labelled`.

    Returns:
        The labelled images; all images but those for testing; and `labels` if it is no list.

    Raises:
        DataError: for a list that names none of the images.
    """
    if labels is None or not _is_list(Path(labels).expanduser()):
        parts = labelled(data, seed=seed, weights=weights)
        return parts, parts.train.as_source(), labels
    parts, every = labelled(labels, seed=seed, weights=weights), open_source(data)
    files = _files(every, range(len(every)))
    known, tested = (_files(*part) for part in parts[:2])
    if not {*files} & {*known, *tested}:
        raise DataError(
            f"labels: {labels} names none of the {len(every):,} images of {data}, but {known[0]} "
            "and others; give the folder of these images, or a list of those"
        )
    kept = np.flatnonzero(~np.isin(files, tested))
    return parts, subset(every, kept), None


def sample_of(data: str | Path) -> tuple[Source, Drawn] | None:
    """Return images without classes, and some of them, evenly spread; None if there are classes.

    Raises:
        DataError: for too few images.
    """
    source = open_source(data)
    if source.labels is not None:
        return None
    _require_images(len(source))
    ids = np.arange(len(source))[:: -(-len(source) // MOST_SAMPLED)]
    one = subset(source, ids, classes=(("image",), np.zeros(len(ids), dtype=np.int64)))
    every = np.arange(len(ids))
    return source, Drawn(Part(one, every), Part(one, every[:0]), (), 0)


def _require_images(count: int) -> None:
    if count < LEAST_IMAGES:
        raise DataError(f"data: got {count} images, expected at least {LEAST_IMAGES}; add images")


def _is_list(path: Path) -> bool:
    """Return whether a file lists path,label, and is no choice of labels by `write_choice`."""
    if path.suffix.lower() not in LISTS:
        return False
    if not path.is_file():
        raise DataError(f"labels: no file {path}; check the path, or give 10/class or 1%")
    with path.open(encoding="utf-8", errors="replace") as file:
        return tuple(file.readline().strip().split(",")) != COLUMNS


def _files(source: Source, ids: Iterable[int]) -> list[str]:
    """Return the paths of image files."""
    if not isinstance(source, FolderSource):
        raise DataError("labels: a list of labels goes with a folder of image files; give one")
    return [os.path.realpath(source.path(index)) for index in ids]


def draw_labels(parts: Labelled, labels: str | None, draws: int, *, seed: int, log: Log) -> Drawn:
    """Draw labels of the training images several times, and choose the test images.

    Args:
        parts: labelled images.
        labels: how many, see `FewLabels`; none: `default_labels`.
        draws: number of draws; without effect on a .csv, which holds its own.
        seed: seed of the draws.
        log: called with each note for the user.

    Raises:
        DataError: for too few images, or a class with one label.
    """
    (train, test), source = parts[:2], parts.train.source
    for note in parts.notes:
        log(note)
    _require_images(len(train.ids) + len(test.ids))
    assert source.labels is not None and test.source.labels is not None
    labels = labels or default_labels(source.labels[train.ids], source.class_names)
    few = FewLabels(labels, runs=None if labels.endswith(CHOICE) else draws)
    chosen = few.draws(source, train.ids, seed=seed, log=log)
    sizes = nested_draws(chosen, source.labels, names=source.class_names, seed=seed)
    if len(test.ids) > MOST_TEST:
        part = MOST_TEST / len(test.ids)
        kept = fraction_of_labels(test.source.labels[test.ids], part, seed=seed)
        log(f"tested on {len(kept):,} of the {len(test.ids):,} test images")
        test = Part(test.source, test.ids[kept])
    drawn = Part(source, np.unique(np.concatenate(chosen)))
    return Drawn(drawn, test, sizes, len(train.ids))


class Scorer(NamedTuple):
    """Labels of the readable images, and the draws as rows of their features."""

    drawn: Ids
    """Ids of the images of any draw."""
    drawn_y: Labels
    test: Ids
    test_y: Labels
    sizes: tuple[Draws, ...]
    """Draws as rows of the drawn images."""

    def score(self, features: Sequence[Columns], column: int = 0) -> list[Correct]:
        """Classify the test images by features that do not depend on the seed, twice.

        Args:
            features: of the drawn and of the test images.
            column: which of their columns.
        """
        return self.score_seeds(features, [column] * SEEDS)

    def score_seeds(self, features: Sequence[Columns], columns: Sequence[int]) -> list[Correct]:
        """Classify the test images with each number of labels, by a column for each seed."""
        train, test = features[0].of(self.drawn), features[1].of(self.test)
        seeds = [train[i] for i in columns], [test[i] for i in columns]
        return [
            correct_of(seeds[0], self.drawn_y, seeds[1], self.test_y, draws=size)
            for size in self.sizes
        ]


def scorer(to: Drawn, features: Iterable[Sequence[Columns]]) -> Scorer:
    """Make a scorer of the images that every start can read.

    Args:
        to: draws and test images.
        features: of the drawn and the test images, of each start.
    """
    drawn, asked = (
        reduce(np.intersect1d, ids)
        for ids in zip(*([part.ids for part in each] for each in features), strict=True)
    )
    labels, test_labels = to.images.source.labels, to.test.source.labels
    assert labels is not None and test_labels is not None
    rows = (
        Draws(size.labels, tuple(np.flatnonzero(np.isin(drawn, ids)) for ids in size.ids))
        for size in to.sizes
    )
    return Scorer(drawn, labels[drawn], asked, test_labels[asked], tuple(rows))


def correct_of(
    train: Sequence[Array], train_y: Labels, test: Sequence[Array], test_y: Labels, *, draws: Draws
) -> Correct:
    """Learn from each draw by logistic regression and classify the test images.

    Args:
        train: features n F of the training images, one array a seed; the seed also chooses the
            part on which the regularisation is chosen.
        train_y: n classes.
        test: features m F of the test images, one array a seed.
        test_y: m classes.
        draws: what to learn from.

    Returns:
        draws x m, the fraction of the seeds that classify a test image correctly.
    """
    found = np.zeros((len(draws.ids), len(test_y)))
    for seed, (known, asked) in enumerate(map(standardized, train, test)):
        for number, ids in enumerate(draws.ids):
            found[number] += linear_probe(known[ids], train_y[ids], asked, seed=seed)[0] == test_y
    return found / len(train)
