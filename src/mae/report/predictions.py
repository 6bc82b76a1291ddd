"""Write predictions as .csv or .parquet (with pyarrow), one row per image."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mae.atomic import write_atomic
from mae.errors import ConfigError
from mae.evaluation.metrics import Verdicts
from mae.report.parquet import ENDING, require_pyarrow, write_columns

COLUMNS = ("name", "class", "predicted", "probability", "rank", "loss")


class Predicted(NamedTuple):
    """Predictions with the names of images and classes."""

    found: Verdicts
    name: Callable[[int], str]
    """Returns the name of an image by its id."""
    classes: Sequence[str]

    def rows(self) -> list[tuple[str, str, str, float, int, float]]:
        """Return one row per image; rank 1 is a correct prediction."""
        columns = zip(*(column.tolist() for column in self.found), strict=True)
        return [
            (self.name(i), self.classes[label], self.classes[said], probability, rank + 1, loss)
            for i, label, said, rank, probability, loss in columns
        ]


def require_writable(path: Path | None) -> None:
    """Check before any work that a file of predictions can be written.

    Raises:
        ConfigError: for another suffix, or for .parquet without pyarrow.
    """
    if path is None:
        return
    if path.suffix not in (".csv", ENDING):
        raise ConfigError(f"predictions: {path} ends in {path.suffix!r}, expected .csv or .parquet")
    if path.suffix == ENDING:
        require_pyarrow("predictions", instead=".csv")


def write_predictions(path: Path, parts: Sequence[Predicted]) -> None:
    """Write the rows of all parts atomically."""
    rows = [row for part in parts for row in part.rows()]
    content = _parquet(rows) if path.suffix == ENDING else _csv(rows)
    write_atomic(path, content)


def _csv(rows: Sequence[tuple[object, ...]]) -> bytes:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(rows)
    return file.getvalue().encode("utf-8", errors="replace")


def _parquet(rows: Sequence[tuple[object, ...]]) -> bytes:
    values = [list(column) for column in zip(*rows, strict=True)]
    file = io.BytesIO()
    write_columns(file, dict(zip(COLUMNS, values, strict=True)))
    return file.getvalue()
