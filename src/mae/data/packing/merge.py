"""Merge new images into a pack index in chunks, sorted by name."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae.data.sources.pack_index import CHUNK, Column, Index

_FIELDS = {
    "offsets": "offset", "shards": "shard", "lengths": "length",
    "sha256": "sha256", "origins": "origin",
}  # fmt: skip

PartOfOld = Callable[[int, int], NDArray[Any]]


class Classes(NamedTuple):
    """Merged classes of old and new images; no names if there are no classes."""

    names: tuple[str, ...] = ()
    old: NDArray[np.int64] = np.zeros(0, np.int64)
    """Merged class number of each old class."""
    new: NDArray[np.int64] = np.zeros(0, np.int64)
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
    old: Index | None,
    rows: NDArray[Any],
    names: NDArray[np.uint8],
    classes: Classes,
    *,
    origins: bool,
) -> dict[str, Column]:
    """Return the columns of the merged index, computed lazily as they are written.

    Args:
        old: the existing index, not modified; None if there is none.
        rows: n `ROW`, sorted by name; none of the names is in the old index.
        names: their names, concatenated.
        classes: the merged classes.
        origins: whether digests of the original files are kept.
    """
    ends = np.cumsum(rows["name_length"], dtype=np.int64)
    starts = ends - rows["name_length"]
    places = _places(old, (names[a:b].tobytes() for a, b in zip(starts, ends, strict=True)))
    count = len(rows) + (0 if old is None else len(old))

    def column(name: str, new: NDArray[Any]) -> Column:
        stored = (lambda a, b: new[:0]) if old is None else partial(old.part, name)
        parts = _interleaved(stored, new, places, count=count)
        return Column((count, *new.shape[1:]), new.dtype, parts)

    fields = {name: field for name, field in _FIELDS.items() if origins or name != "origins"}
    columns = {name: column(name, rows[field]) for name, field in fields.items()}

    def old_lengths(a: int, b: int) -> NDArray[Any]:
        if old is None:
            return np.zeros(0, np.uint64)
        before = old.part("name_ends", a - 1, a) if a else np.zeros(1, np.uint64)
        lengths: NDArray[Any] = np.diff(old.part("name_ends", a, b), prepend=before)
        return lengths

    lengths = _interleaved(old_lengths, rows["name_length"].astype("<u8"), places, count=count)
    columns["name_ends"] = Column((count,), "<u8", _running_sum(lengths))
    old_ends = np.zeros(0, np.uint64) if old is None else old.arrays["name_ends"]
    old_names = names[:0] if old is None else old.arrays["names"]
    columns["names"] = Column(
        (len(old_names) + len(names),), "u1",
        _interleaved_names(old_ends, old_names, ends, names, places),
    )  # fmt: skip
    if classes.names:
        new_labels = classes.new[rows["label"]]

        def old_labels(a: int, b: int) -> NDArray[Any]:
            stored = new_labels[:0] if old is None else old.part("labels", a, b)
            numbers: NDArray[np.int64] = classes.old[stored]
            return numbers

        parts = _interleaved(old_labels, new_labels, places, count=count)
        columns["labels"] = Column((count,), "<i8", parts)
    return columns


def _places(old: Index | None, names: Iterable[bytes]) -> NDArray[np.int64]:
    """Find the position among the old images at which each new one is inserted."""
    places, start = [], 0
    for name in names:
        start = 0 if old is None else place_of(old, name, start=start)
        places.append(start)
    return np.array(places, np.int64)


def _interleaved(
    part_of_old: PartOfOld, new: NDArray[Any], places: NDArray[np.int64], *, count: int
) -> Iterator[NDArray[Any]]:
    old = count - len(new)
    for start in range(0, max(1, old), CHUNK):
        end = min(start + CHUNK, old)
        first = np.searchsorted(places, start) if start else 0
        stop = len(places) if end == old else np.searchsorted(places, end)
        yield np.insert(part_of_old(start, end), places[first:stop] - start, new[first:stop], 0)


def _running_sum(parts: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    total = np.uint64(0)
    for part in parts:
        ends = np.cumsum(part, dtype=np.uint64) + total
        total = ends[-1] if len(ends) else total
        yield ends


def _interleaved_names(
    old_ends: NDArray[Any],
    old_names: NDArray[np.uint8],
    ends: NDArray[np.int64],
    names: NDArray[np.uint8],
    places: NDArray[np.int64],
) -> Iterator[NDArray[np.uint8]]:
    if not len(old_ends):
        yield names
        return
    copied, start = 0, 0
    for place, end in zip(places.tolist(), ends.tolist(), strict=True):
        before = int(old_ends[place - 1]) if place else 0
        if before > copied:
            yield old_names[copied:before]
            copied = before
        yield names[start:end]
        start = end
    yield old_names[copied:]
