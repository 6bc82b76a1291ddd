"""Write .parquet tables with pyarrow, the only module that imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import IO

from mae.errors import ConfigError
from mae.evaluation.features import Array

ENDING = ".parquet"
ROWS = 10_000  # rows of features per write: 41 MB for ViT-L


def require_pyarrow(option: str, *, instead: str) -> None:
    """Check before any work that pyarrow is installed.

    Raises:
        ConfigError: if pyarrow is missing.
    """
    if find_spec("pyarrow") is None:
        raise ConfigError(
            f"{option}: a {ENDING} needs pyarrow; pip install 'mae-vision[parquet]', or name a "
            f"{instead}"
        )


def write_columns(file: IO[bytes], columns: Mapping[str, Sequence[object]]) -> None:
    """Write columns of text or numbers, all of the same length."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), file)


def write_features(file: IO[bytes], columns: Mapping[str, Sequence[str]], features: Array) -> None:
    """Write the columns, then one column with a row of features per cell.

    Args:
        file: open for writing; it is left open.
        columns: n texts each.
        features: n D; may be a memory map larger than the memory.
    """
    import pyarrow
    import pyarrow.parquet

    n, width = features.shape
    kind = pyarrow.list_(pyarrow.float32(), width)
    fields = [*((name, pyarrow.string()) for name in columns), ("features", kind)]
    schema = pyarrow.schema(fields)
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, n, ROWS):
            some = slice(start, start + ROWS)
            values = pyarrow.array(features[some].ravel())
            cells = pyarrow.FixedSizeListArray.from_arrays(values, type=kind)
            texts = [pyarrow.array(column[some], pyarrow.string()) for column in columns.values()]
            writer.write_table(pyarrow.table([*texts, cells], schema=schema))
