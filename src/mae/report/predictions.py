"""Write predictions as .csv or .parquet (with pyarrow), one row per image."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mae.atomic import open_atomic
from mae.data.sources.source import Source
from mae.errors import ConfigError
from mae.evaluation.metrics import Predictions
from mae.report.parquet import ENDING, require_pyarrow, write_columns

COLUMNS = ("name", "class", "predicted", "probability", "rank", "loss")
PredictionRow = tuple[str, str, str, float, int, float]
"""Values of `COLUMNS`; rank 1 is a correct prediction."""


def prediction_rows(
    found: Predictions, source: Source, classes: Sequence[str], *, prefix: str = ""
) -> list[PredictionRow]:
    """Return one row per image.

    Args:
        found: predictions for images of the source.
        source: names the images.
        classes: names of the classes that were compared.
        prefix: put before the names of the images.
    """
    columns = zip(*(column.tolist() for column in found), strict=True)
    return [
        (prefix + source.name(i), classes[label], classes[predicted], probability, rank + 1, loss)
        for i, label, predicted, rank, probability, loss in columns
    ]


def require_writable(
    path: Path | None, *, option: str = "predictions", ends: Sequence[str] = (".csv", ENDING)
) -> None:
    """Check before any work that a file of predictions can be written.

    Raises:
        ConfigError: for another suffix, or for .parquet without pyarrow.
    """
    if path is None:
        return
    if path.suffix not in ends:
        raise ConfigError(f"{option}: {path} ends in {path.suffix!r}, expected {' or '.join(ends)}")
    if path.suffix == ENDING:
        require_pyarrow(option, instead=".csv")


def write_predictions(
    path: Path, rows: Sequence[Sequence[object]], *, columns: Sequence[str] = COLUMNS
) -> None:
    """Write the rows atomically."""
    with open_atomic(path) as file:
        if path.suffix == ENDING:
            values = (list(column) for column in zip(*rows, strict=True))
            write_columns(file, dict(zip(columns, values, strict=True)))
            return
        text = io.TextIOWrapper(file, "utf-8", errors="replace", newline="")
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        text.detach()  # flushes; the file stays open


def read_predictions(path: Path) -> list[PredictionRow]:
    """Read the rows of a .csv that `write_predictions` wrote.

    Raises:
        ConfigError: if it is not such a file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        if tuple(head) != COLUMNS:
            raise ValueError
        return [(a, b, c, float(p), int(rank), float(loss)) for a, b, c, p, rank, loss in rows]
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: is not a file of predictions; remove it") from error
