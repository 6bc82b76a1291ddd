"""Large images a few rows at a time, so that no temporary is as large as the image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

VALUES = 2**20
"""Values of a strip."""


def row_strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Give the rows of an array H ..., in slices of about `VALUES` values; of a small one all."""
    height = shape[0]
    rows = max(1, VALUES * height // max(1, int(np.prod(shape, dtype=np.int64))))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))
