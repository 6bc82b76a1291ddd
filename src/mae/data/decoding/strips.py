"""Split large images into row strips to bound temporary memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from mae.data.types import Pixels

VALUES = 2**20
"""Approximate number of values per strip."""


def row_strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield row slices of an array H ... with about `VALUES` values each; one for a small array."""
    height = shape[0]
    rows = max(1, VALUES * height // max(1, int(np.prod(shape, dtype=np.int64))))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def by_strips(shape: tuple[int, ...], make: Callable[[slice], Pixels]) -> Pixels:
    """Concatenate what `make` returns for each row strip of an array of a shape."""
    first, *others = row_strips(shape)
    part = make(first)
    if not others:
        return part
    whole = np.empty((shape[0], *part.shape[1:]), part.dtype)
    whole[first] = part
    for rows in others:
        whole[rows] = make(rows)
    return whole
