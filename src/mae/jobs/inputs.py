"""What a user names as data, as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.data.builtin import fashion_mnist
from mae.data.labels import read_list
from mae.data.packed import is_pack, open_pack
from mae.data.source import ArrayFileSource, ArraySource, FolderSource, Source
from mae.data.tars import is_tars, open_tars

BUILT_IN = "fashion-mnist"

Data = str | Path | NDArray[np.generic] | Source
"""A path (a folder of pictures, a pack, a .csv, a .tar or a folder of such, a .npy of N H W (C)),
"fashion-mnist" (the built-in pictures), an array N H W (C), or a `Source`."""


def open_source(data: Data) -> Source:
    """Open data for training.

    Raises:
        DataError: for a path that is missing, damaged or holds no pictures.
    """
    if isinstance(data, np.ndarray):
        return ArraySource(data)
    if not isinstance(data, str | Path):
        return data
    path = Path(data).expanduser()
    if data == BUILT_IN and not path.exists():
        return fashion_mnist("train")
    if is_pack(path):
        return open_pack(path)
    if is_tars(path):
        return open_tars(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return read_list(path)
    if path.is_file() and path.suffix.lower() == ".npy":
        return ArrayFileSource(path)
    return FolderSource(path)


def data_name(data: Data) -> str:
    """Name data as a folder of results would be named."""
    return Path(data).resolve().name if isinstance(data, str | Path) else "array"
