"""Memory-mapped index of the images in a pack.

The index is one safetensors file, readable by any reader of that format. For n images, in the
bytewise order of their names, it holds:

    name_ends  n uint64       where each name ends in `names`
    offsets    n uint64       first byte of the image in its shard
    labels     n int64        class; only if there are classes
    shards     n uint32       number of the shard
    lengths    n uint32       bytes of the image
    names      uint8          all names, UTF-8, concatenated
    sha256     n 32 uint8     of the stored bytes; absent for tar files not made by mae
    origins    n 32 uint8     of the original bytes; only if images were re-encoded

Its metadata hold the `IndexInfo` as JSON. Reading images touches only a few pages of the index, so
the memory of a process does not grow with the number of images.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mae.atomic import open_atomic
from mae.errors import DataError

Values = NDArray[Any]
"""An array of an index, or a part of it."""

VERSION = 1
_DTYPES = {"U64": "<u8", "I64": "<i8", "U32": "<u4", "U8": "u1"}
_DTYPE_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_REQUIRED = {"name_ends", "offsets", "shards", "lengths", "names"}
_IMAGE_ARRAYS = ("name_ends", "names", "labels", "lengths", "sha256")
_UNKNOWN = "0" * 64  # placeholder as long as a digest
_LARGEST_HEADER = 100_000_000  # bytes; limit of the safetensors format
CHUNK = 2**20  # images per chunk when a whole index is read or written


class IndexInfo(NamedTuple):
    """Metadata of an index besides its arrays."""

    shards: tuple[tuple[str, int], ...]
    """Name and size of each file; shards of a pack may be longer, by the end-of-archive blocks."""
    class_names: tuple[str, ...] = ()
    form: Mapping[str, Any] = {}
    """How the images of a pack were changed, see `Form`."""
    stamp: str = ""
    """State of the indexed tar files, for those not made by mae."""
    notes: tuple[str, ...] = ()
    """Notes on the images to show whenever they are used."""


class Index:
    """A memory-mapped index.

    Raises:
        DataError: if it is missing, damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            mapped = _mapped(path)
            start = 8 + int.from_bytes(mapped[:8], "little")
            header = json.loads(mapped[8 : min(start, _LARGEST_HEADER)])
            metadata = header.pop("__metadata__", {})
            if metadata.get("format") != "mae pack":
                raise ValueError("not an index of images")
            if (version := metadata.get("version")) != str(VERSION):
                raise ValueError(f"version {version}, expected {VERSION}")
            self._digests: dict[str, str] = json.loads(metadata["digests"])
            self.info = _info(json.loads(metadata["facts"]))
            self.arrays, self._starts = dict[str, Values](), dict[str, int]()
            for name, entry in header.items():
                begin, end = (start + place for place in entry["data_offsets"])
                values = np.frombuffer(memoryview(mapped)[begin:end], _DTYPES[entry["dtype"]])
                self.arrays[name], self._starts[name] = values.reshape(entry["shape"]), begin
            if not self.arrays.keys() >= _REQUIRED:
                raise ValueError("an array is missing")
            self.fingerprint: str = metadata["fingerprint"]
            """Digest that identifies the images: names, contents and labels, not locations."""
            if _fingerprint(self.info.class_names, self._digests) != self.fingerprint:
                raise ValueError("its metadata are inconsistent")
        except OSError as error:
            raise DataError(f"data: {path} cannot be read: {error.strerror}; check it") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"data: {path} cannot be used ({error}); pack the images again"
            ) from error
        self._ends, self._names = self.arrays["name_ends"], self.arrays["names"]

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> bytes:
        """Return the name of an image, UTF-8."""
        start = int(self._ends[index - 1]) if index else 0
        return self._names[start : int(self._ends[index])].tobytes()

    def part(self, name: str, start: int, stop: int) -> Values:
        """Read the items of an array from `start` to `stop` by file I/O.

        It is faster than page faults for sequential reads.
        """
        array = self.arrays[name]
        width = math.prod(array.shape[1:])
        offset = self._starts[name] + start * width * array.itemsize
        items = np.fromfile(self.path, array.dtype, (stop - start) * width, offset=offset)
        return items.reshape(-1, *array.shape[1:])

    def damage(self) -> str:
        """Verify each array against its digest; return the names of those that differ."""
        wrong = []
        for name, array in self.arrays.items():
            digest = hashlib.sha256()
            for start in range(0, len(array), CHUNK):
                digest.update(self.part(name, start, min(start + CHUNK, len(array))).data)
            if digest.hexdigest() != self._digests.get(name):
                wrong.append(name)
        return ", ".join(wrong)


class Column(NamedTuple):
    """An array to be written in parts."""

    shape: tuple[int, ...]
    dtype: DTypeLike
    parts: Iterable[Values]


def whole(array: Values) -> Column:
    """Wrap an array as a column."""
    parts = (array[start : start + CHUNK] for start in range(0, len(array), CHUNK))
    return Column(array.shape, array.dtype, parts)


def write_index(path: Path, columns: Mapping[str, Column], info: IndexInfo) -> None:
    """Write an index atomically, with one part of a column in memory at a time."""
    # Wide types first, so that each array is aligned to its item size.
    names = sorted(columns, key=lambda name: -np.dtype(columns[name].dtype).itemsize)
    digests = dict.fromkeys(names, _UNKNOWN)
    with open_atomic(path) as file:
        file.write(_header(columns, names, digests, info))
        for name in names:
            digest = hashlib.sha256()
            for part in columns[name].parts:
                content = np.ascontiguousarray(part, dtype=columns[name].dtype).data
                file.write(content)
                digest.update(content)
            digests[name] = digest.hexdigest()
        file.seek(0)
        file.write(_header(columns, names, digests, info))


def _header(
    columns: Mapping[str, Column], names: Iterable[str], digests: Mapping[str, str], info: IndexInfo
) -> bytes:
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "mae pack",
            "version": str(VERSION),
            "facts": json.dumps(info._asdict()),
            "digests": json.dumps(digests),
            "fingerprint": _fingerprint(info.class_names, digests),
        }
    }
    begin = 0
    for name in names:
        shape, dtype = columns[name].shape, np.dtype(columns[name].dtype)
        end = begin + dtype.itemsize * math.prod(shape)
        header[name] = {
            "dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]
        }  # fmt: skip
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _fingerprint(class_names: Iterable[str], digests: Mapping[str, str]) -> str:
    what = {name: digests[name] for name in _IMAGE_ARRAYS if name in digests}
    return hashlib.sha256(json.dumps([list(class_names), what]).encode()).hexdigest()


def _info(values: dict[str, Any]) -> IndexInfo:
    shards = tuple((str(name), int(size)) for name, size in values["shards"])
    class_names, notes = tuple(values["class_names"]), tuple(values.get("notes", ()))
    return IndexInfo(shards, class_names, values["form"], values["stamp"], notes)


def _mapped(path: Path) -> mmap.mmap:
    """Map a file for random access.

    Without MADV_RANDOM, each page fault would also read ahead, 4 MB on some disks.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return mapped
