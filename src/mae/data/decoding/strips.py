"""Split large images into row strips to bound temporary memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

VALUES = 2**20
"""Approximate number of values per strip."""


def row_strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield row slices of an array H ... with about `VALUES` values each; one for a small array."""
    height = shape[0]
    rows = max(1, VALUES * height // max(1, int(np.prod(shape, dtype=np.int64))))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))
