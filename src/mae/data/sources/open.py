"""Open user-specified data as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mae.data.sources.compressed import refuse_compressed
from mae.data.sources.fashion_mnist import fashion_mnist
from mae.data.sources.lists import LISTS, read_list
from mae.data.sources.pack import is_pack, open_pack
from mae.data.sources.source import (
    ENDINGS,
    EXTENSIONS,
    ArrayFileSource,
    ArraySource,
    FolderSource,
    Source,
    notes_of,
)
from mae.data.sources.tars import is_tars, open_tars
from mae.data.types import Log, Pixels
from mae.errors import DataError

BUILT_IN = "fashion-mnist"

Data = str | Path | Pixels | Source
"""A path (a folder of images, a pack, a list, a .tar or a folder of .tar files, a .npy of N H W
(C), one image), "fashion-mnist" (the built-in images), an array N H W (C), or a `Source`."""


def open_source(data: Data, *, log: Log | None = None) -> Source:
    """Open data for training.

    Args:
        data: path, array, source or name of the built-in images.
        log: called with each note on what was guessed or left out; `notes_of` returns them, too.

    Raises:
        DataError: if a path is missing, damaged or holds no images, or `data` has another type.
    """
    if isinstance(data, np.ndarray):
        source: Source = ArraySource(data)
    elif isinstance(data, str | Path):
        source = _open_path(data)
    elif hasattr(data, "read") and hasattr(data, "fingerprint"):
        source = data
    else:
        raise DataError(
            f"data: got {type(data).__module__}.{type(data).__qualname__}, expected a path, an "
            "array N H W (C) or a source; for a tensor N C H W give "
            "tensor.permute(0, 2, 3, 1).numpy()"
        )
    if log is not None:
        for note in notes_of(source):
            log(f"data: {note}")
    return source


def _open_path(data: str | Path) -> Source:
    path = Path(data).expanduser()
    if data == BUILT_IN and not path.exists():
        return fashion_mnist("train")
    if is_pack(path):
        return open_pack(path)
    if is_tars(path):
        return open_tars(path)
    if not path.is_file():
        return FolderSource(path)
    refuse_compressed([path])
    end = path.suffix.lower()
    if end in LISTS:
        return read_list(path)
    if end == ".npy":
        return ArrayFileSource(path)
    if end in EXTENSIONS:
        return FolderSource(path.parent, files=[path.name])
    expected = f"a folder, a list ({' '.join(LISTS)}), a .tar, or an image ({ENDINGS})"
    raise DataError(f"data: {path} ends in {path.suffix!r}; expected {expected}")


def data_name(data: Data) -> str:
    """Return a name for data, for use in result folders."""
    return Path(data).resolve().name if isinstance(data, str | Path) else "array"
