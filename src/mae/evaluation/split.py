"""Stratified, seeded subsets and splits of labelled images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mae.data.sampling.draws import Stream, uniform
from mae.errors import DataError


def labels_per_class(
    labels: NDArray[np.int64], count: int, *, seed: int, draw: int = 0, names: Sequence[str] = ()
) -> NDArray[np.int64]:
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
            f"labels: got {fewest} pictures of class {names[poorest] if names else poorest}, "
            f"expected at least {count} a class; ask for fewer"
        )
    return np.flatnonzero(_ranks(labels, seed=seed, draw=draw) < count)


def share_of_labels(
    labels: NDArray[np.int64], share: float, *, seed: int, draw: int = 0
) -> NDArray[np.int64]:
    """Choose a fraction of each class at random, rounded, at least one image of each.

    Arguments and result are those of `labels_per_class`, with a fraction `share` above 0 and at
    most 1.
    """
    counts = np.maximum(1, np.rint(share * np.bincount(labels)))
    return np.flatnonzero(_ranks(labels, seed=seed, draw=draw) < counts[labels])


def held_out(labels: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.bool_]:
    """Hold out a fraction of each class, at least one image of each class that has two.

    Returns:
        n bool, True where held out.

    Raises:
        DataError: if no class has two images.
    """
    sizes = np.bincount(labels)
    counts = np.where(sizes > 1, np.maximum(1, np.rint(share * sizes)), 0)
    if not counts.any():
        raise DataError(
            "labels: got one picture a class, expected at least two of one; label more pictures"
        )
    return np.asarray(_ranks(labels, seed=seed, draw=0) < counts[labels])


def _ranks(labels: NDArray[np.int64], *, seed: int, draw: int) -> NDArray[np.int64]:
    """Return the rank of each image in a random order of its own class, from 0."""
    ids = np.arange(len(labels))
    keys = uniform(seed, draw, ids, stream=Stream.SPLIT, count=1)[:, 0]
    order = np.lexsort((ids, keys, labels))  # by class, then by key; ids break ties
    starts = np.searchsorted(labels[order], labels)
    ranks = np.empty_like(ids)
    ranks[order] = ids
    return ranks - starts
