"""A median with its quartiles, as every benchmark gives its figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Of what was measured several times."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Take the quartiles of at least two values."""
        return cls(*statistics.quantiles(values, n=4))

    def written(self, digits: int = 2) -> str:
        """Write the median, and the quartiles in brackets."""
        low, median, high = (f"{value:,.{digits}f}" for value in self)
        return f"{median} ({low} to {high})"


def spread(values: Sequence[float]) -> str:
    """Fill a cell of a table: nothing for fewer than three values."""
    return "" if len(values) < 3 else Spread.of(values).written()
