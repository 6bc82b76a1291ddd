"""What a user names as data, as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.data.builtin import fashion_mnist
from mae.data.source import ArraySource, FolderSource, Source

BUILT_IN = "fashion-mnist"

Data = str | Path | NDArray[np.generic] | Source
"""A folder, "fashion-mnist" (the built-in pictures), an array N H W (C), or a `Source`."""


def open_source(data: Data) -> Source:
    """Open data for training.

    Raises:
        DataError: for a folder that is missing or holds no pictures.
    """
    if isinstance(data, np.ndarray):
        return ArraySource(data)
    if not isinstance(data, str | Path):
        return data
    if data == BUILT_IN and not Path(data).exists():
        return fashion_mnist("train")
    return FolderSource(Path(data))


def data_name(data: Data) -> str:
    """Name data as a folder of results would be named."""
    return Path(data).resolve().name if isinstance(data, str | Path) else "array"
