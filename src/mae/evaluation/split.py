"""Stratified, seeded subsets and splits of labelled images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mae.data.sampling.draws import Stream, uniform
from mae.errors import DataError

Ids = NDArray[np.int64]
"""Positions of images in a source."""
Labels = NDArray[np.int64]
"""Class numbers, from 0."""


def labels_per_class(
    labels: Labels, count: int, *, seed: int, draw: int = 0, names: Sequence[str] = ()
) -> Ids:
    """Choose `count` images of each class at random.

    Args:
        labels: n classes.
        count: images per class.
        seed: seed of the choice.
        draw: number of the draw; different draws are independent.
        names: class names for the message; by default class numbers.

    Returns:
        Positions in `labels`, ascending; `count` for each class that occurs.

    Raises:
        DataError: if a class has fewer images.
    """
    sizes = np.bincount(labels)
    fewest = int(sizes[sizes > 0].min())
    if fewest < count:
        poorest = int(np.flatnonzero(sizes == fewest)[0])
        raise DataError(
            f"labels: got {fewest} images of class {names[poorest] if names else poorest}, "
            f"expected at least {count} a class; ask for fewer"
        )
    return np.flatnonzero(_ranks(labels, seed=seed, draw=draw) < count)


def fraction_of_labels(labels: Labels, fraction: float, *, seed: int, draw: int = 0) -> Ids:
    """Choose a fraction of each class at random, rounded, at least one image of each.

    Arguments and result are those of `labels_per_class`, with a fraction above 0 and at most 1.
    """
    counts = np.maximum(1, np.rint(fraction * np.bincount(labels)))
    return np.flatnonzero(_ranks(labels, seed=seed, draw=draw) < counts[labels])


def held_out(labels: Labels, fraction: float, *, seed: int) -> NDArray[np.bool_]:
    """Hold out a fraction of each class, at least one image of each class that has two.

    Returns:
        n bool, True where held out.

    Raises:
        DataError: if no class has two images.
    """
    sizes = np.bincount(labels)
    counts = np.where(sizes > 1, np.maximum(1, np.rint(fraction * sizes)), 0)
    if not counts.any():
        raise DataError("labels: got one image a class, expected at least two; label more images")
    return np.asarray(_ranks(labels, seed=seed, draw=0) < counts[labels])


def _ranks(labels: Labels, *, seed: int, draw: int) -> Ids:
    """Return the rank of each image in a random order of its own class, from 0."""
    ids = np.arange(len(labels))
    keys = uniform(seed, draw, ids, stream=Stream.SPLIT, count=1)[:, 0]
    order = np.lexsort((ids, keys, labels))  # by class, then by key; ids break ties
    ranks = np.empty_like(ids)
    ranks[order] = ids - np.searchsorted(labels[order], labels[order])
    return ranks
