"""Read pickles of numpy arrays, as in the model zoo of detectron2, without executing code.

Every name in such a pickle stands for a class of this file, which keeps values alone.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.weights.io.file_checks import printable

# First bytes of a PyTorch file from before 1.6: the pickle of its magic number.
_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_DTYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "u1": torch.uint8,
    "i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64,
}  # fmt: skip


class UnknownName(Exception):
    """A pickle refers to something other than arrays."""


class _Dtype:
    """Stands for `numpy.dtype`: code and byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Stands for an array and its constructor: shape, type and bytes."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        """Return the values, copied.

        Raises:
            ValueError: for values that are no plain numbers, or as many bytes as they do not need.
        """
        _, shape, dtype, by_columns, data = self.state
        known = _DTYPES.get(str(dtype.code))
        if known is None or dtype.order == ">":
            raise ValueError(f"an array of numpy type {dtype.order}{dtype.code}")
        if math.prod(shape) * known.itemsize != len(data):
            raise ValueError(f"an array of shape {shape} in {len(data):,} bytes")
        if not data:
            return torch.zeros(shape, dtype=known)
        flat = torch.frombuffer(bytearray(data), dtype=known)
        if by_columns:
            return flat.reshape(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous()
        return flat.reshape(shape)


def _latin1(text: str, _encoding: str) -> bytes:
    """Stand for `_codecs.encode`, by which protocol 2 stores bytes."""
    return text.encode("latin1")


_NAMES: Mapping[str, Callable[..., object]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "_codecs.encode": _latin1,
    "collections.OrderedDict": dict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (known := _NAMES.get(f"{module}.{name}")) is None:
            raise UnknownName(printable(f"{module}.{name}"))
        return known


def is_numpy_pickle(path: Path, names: Iterable[str]) -> bool:
    """Return whether a file is a pickle of arrays, and no PyTorch file.

    Args:
        path: a file that starts as a pickle.
        names: the Python names that it refers to.
    """
    with path.open("rb") as file:
        of_torch = file.read(len(_TORCH)) == _TORCH
    return not of_torch and any(name.endswith("multiarray._reconstruct") for name in names)


def read_numpy_pickle(path: Path) -> Mapping[Any, Any]:
    """Read a mapping; its arrays and those of mappings in it become tensors.

    Raises:
        UnknownName: for a name other than those of arrays.
        pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError: for a damaged
            file.
    """
    with path.open("rb") as file:
        content = _Unpickler(file).load()
    if not isinstance(content, Mapping):
        raise ValueError(f"a {type(content).__name__}, no mapping of names to arrays")
    return _as_tensors({
        key: _as_tensors(value) if isinstance(value, Mapping) else value
        for key, value in content.items()
    })  # fmt: skip


def _as_tensors(values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: v.tensor() if isinstance(v, _Array) else v for key, v in values.items()}
