"""Some pictures of a source, as a source."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from mae.data.source import ArraySource, Source


class _Subset:
    def __init__(self, source: Source, ids: NDArray[np.int64]) -> None:
        self._source, self._ids = source, ids
        self.labels = None if source.labels is None else source.labels[ids]
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, index: int) -> bytes | NDArray[np.generic]:
        return self._source.read(int(self._ids[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._ids[index]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self._source.fingerprint().encode() + self._ids.tobytes()).hexdigest()


def subset(source: Source, ids: NDArray[np.int64]) -> Source:
    """Give the pictures of some ids, in their order, with their names, labels and classes.

    Every id of it is a position in `ids`. Pictures in memory stay there: the array is copied, so
    that their batches are made as quickly as before.
    """
    if len(ids) == len(source) and np.array_equal(ids, np.arange(len(source))):
        return source
    if isinstance(source, ArraySource):
        labels = None if source.labels is None else source.labels[ids]
        return ArraySource(source.images[ids], labels=labels, class_names=source.class_names)
    return _Subset(source, ids)
