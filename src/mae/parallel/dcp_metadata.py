"""Read the `.metadata` of torch.distributed.checkpoint without executing code.

It is a pickle, which DCP reads without any restriction. Here, every class that it may name is
replaced by an inert record, made anew for each file; what is found is checked and converted.
"""

from __future__ import annotations

import pickle
import struct
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
)  # fmt: skip
_CLASSES = (
    "Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
    "MetadataIndex", "_MEM_FORMAT_ENCODING",
)  # fmt: skip
_BROKEN = (
    pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, LookupError,
    ArithmeticError, MemoryError, RecursionError, struct.error,
)  # fmt: skip


class BadMetadata(ValueError):
    """A file that is no metadata of tensors."""


def read_metadata(file: Path, *, files: set[str]) -> Metadata:
    """Read the metadata of tensors; nothing in the file is executed.

    Args:
        file: the `.metadata`.
        files: names of the files beside it; it may refer to no others.

    Raises:
        BadMetadata: if it is anything else; one line, without the path.
        OSError: if it cannot be read.
    """
    with file.open("rb") as opened:
        try:
            return _checked(_Unpickler(opened).load().state, files)
        except BadMetadata:
            raise
        except _BROKEN as error:
            raise BadMetadata(f"is no metadata of tensors ({type(error).__name__})") from error


class _Inert:
    """Base of the records: keeps what it is given, and does nothing."""

    state: Any

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.__dict__["state"] = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        # Classes of this load alone: a pickle can change the attributes of those that it names.
        dcp = "torch.distributed.checkpoint"
        self._known: dict[tuple[str, str], Any] = {
            (f"{dcp}.metadata", name): type(name, (_Inert,), {}) for name in _CLASSES
        }
        self._known[f"{dcp}.filesystem", "_StorageInfo"] = type("_StorageInfo", (_Inert,), {})
        self._known["torch", "Size"] = tuple
        self._known["torch.serialization", "_get_layout"] = type("_get_layout", (_Inert,), {})
        self._known |= {("torch", name): getattr(torch, name) for name in _DTYPES}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            shown = f"{module}.{name}"
            shown = shown if shown.isprintable() and len(shown) <= 80 else "a hidden name"
            raise BadMetadata(f"would run {shown} when opened, expected tensors alone")
        return self._known[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise BadMetadata("refers to objects outside, expected tensors alone")


def _checked(found: dict[str, Any], files: set[str]) -> Metadata:
    tensors = {
        _text(name): _tensor(entry.state) for name, entry in _items(found, "state_dict_metadata")
    }
    places = {}
    for index, info in _items(found, "storage_data"):
        place = info.state
        if place["relative_path"] not in files or place.get("transform_descriptors"):
            raise BadMetadata("names a file that is not beside it")
        key = MetadataIndex(_text(index.state["fqn"]), _size(index.state["offset"]))
        start, length = _size((place["offset"], place["length"]))
        places[key] = _StorageInfo(place["relative_path"], start, length)
    for name, tensor in tensors.items():
        volume = 0
        for chunk in tensor.chunks:
            volume += prod(chunk.sizes)
            ends = (o + s for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
            inside = all(end <= size for end, size in zip(ends, tensor.size, strict=True))
            if not inside or MetadataIndex(name, chunk.offsets) not in places:
                raise BadMetadata("holds a part outside of its tensor, or of no file")
        if volume != prod(tensor.size):
            raise BadMetadata("does not hold all parts of a tensor")
    return Metadata({**tensors}, storage_data=places)


def _items(found: dict[str, Any], name: str) -> Any:
    return found[name].items()


def _tensor(fields: dict[str, Any]) -> TensorStorageMetadata:
    dtype = fields["properties"].state[0]
    if not isinstance(dtype, torch.dtype):
        raise BadMetadata("holds a tensor without a type")
    chunks = [
        ChunkStorageMetadata(_size(chunk.state["offsets"]), _size(chunk.state["sizes"]))
        for chunk in fields["chunks"]
    ]
    return TensorStorageMetadata(TensorProperties(dtype), _size(fields["size"]), chunks)


def _size(numbers: Any) -> torch.Size:
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise BadMetadata("holds a size that is not a number of values")
    return torch.Size(numbers)


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise BadMetadata("holds a tensor without a name")
    return name
