"""Merge new images into a pack index in chunks, sorted by name."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from mae.data.sources.pack_index import CHUNK, Column, Index, Values, whole
from mae.data.types import Integers

_FIELDS = {
    "offsets": "offset", "shards": "shard", "lengths": "length",
    "sha256": "sha256", "origins": "origin",
}  # fmt: skip

PartOfOld = Callable[[int, int], Values]


class Classes(NamedTuple):
    """Merged classes of old and new images; no names if there are no classes."""

    names: tuple[str, ...] = ()
    old: Integers = np.zeros(0, np.int64)
    """Merged class number of each old class."""
    new: Integers = np.zeros(0, np.int64)
    """Merged class number of each new class."""

    @classmethod
    def together(cls, old: Sequence[str], new: Sequence[str]) -> Classes:
        """Number the classes of both in the bytewise order of their names."""
        names = sorted({*old, *new}, key=str.encode)
        numbers = {name: number for number, name in enumerate(names)}
        places = (np.array([numbers[name] for name in part], np.int64) for part in (old, new))
        return cls(tuple(names), *places)


def place_of(index: Index, name: bytes, *, start: int = 0) -> int:
    """Find the first image, from `start` on, whose name is not less than `name`."""
    return bisect_left(range(len(index)), name, lo=start, key=index.name)


def merged(
    old: Index | None, rows: Values, names: Values, classes: Classes, *, origins: bool
) -> dict[str, Column]:
    """Return the columns of the merged index, computed lazily as they are written.

    Args:
        old: the existing index, not modified; None if there is none.
        rows: n `ROW`, sorted by name; none of the names is in the old index.
        names: their names, concatenated.
        classes: the merged classes.
        origins: whether digests of the original files are kept.
    """
    new = {name: rows[field] for name, field in _FIELDS.items() if origins or name != "origins"}
    if classes.names:
        new["labels"] = classes.new[rows["label"]]
    ends = np.cumsum(rows["name_length"], dtype=np.uint64)
    if old is None:
        arrays = new | {"name_ends": ends, "names": names}
        return {name: whole(array) for name, array in arrays.items()}
    places, count = _places(old, ends, names), len(old) + len(rows)

    def stored(name: str, a: int, b: int) -> Values:
        part = old.part(name, a, b)
        return classes.old[part] if name == "labels" else part

    def name_lengths(a: int, b: int) -> Values:
        before = old.part("name_ends", a - 1, a) if a else np.zeros(1, np.uint64)
        return np.diff(old.part("name_ends", a, b), prepend=before)

    columns = {}
    for name, array in new.items():
        parts = _interleaved(partial(stored, name), len(old), array, places)
        columns[name] = Column((count, *array.shape[1:]), array.dtype, parts)
    lengths = _interleaved(name_lengths, len(old), rows["name_length"], places)
    columns["name_ends"] = Column((count,), "<u8", _running_sum(lengths))
    size = len(old.arrays["names"]) + len(names)
    columns["names"] = Column((size,), "u1", _merged_names(old, ends, names, places))
    return columns


def _places(old: Index, ends: Values, names: Values) -> Integers:
    """Find the position among the old images at which each new one is inserted."""
    places, start, place = [], 0, 0
    for end in ends.tolist():
        place = place_of(old, names[start:end].tobytes(), start=place)
        places.append(place)
        start = end
    return np.array(places, np.int64)


def _interleaved(
    part_of_old: PartOfOld, old: int, new: Values, places: Integers
) -> Iterator[Values]:
    """Yield the merged array in chunks of `CHUNK` of its `old` old items."""
    for start in range(0, old, CHUNK):
        end = min(start + CHUNK, old)
        first = np.searchsorted(places, start) if start else 0
        stop = len(places) if end == old else np.searchsorted(places, end)
        yield np.insert(part_of_old(start, end), places[first:stop] - start, new[first:stop], 0)


def _running_sum(parts: Iterable[Values]) -> Iterator[Values]:
    total = np.uint64(0)
    for part in parts:
        ends = np.cumsum(part, dtype=np.uint64) + total
        total = ends[-1]
        yield ends


def _merged_names(old: Index, ends: Values, names: Values, places: Integers) -> Iterator[Values]:
    old_ends, old_names = old.arrays["name_ends"], old.arrays["names"]
    copied = start = 0
    for place, end in zip(places.tolist(), ends.tolist(), strict=True):
        before = int(old_ends[place - 1]) if place else 0
        yield old_names[copied:before]
        yield names[start:end]
        copied, start = before, end
    yield old_names[copied:]
