"""Subset of the images of a source."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from mae.data.sources.source import ArraySource, Source

Classes = tuple[tuple[str, ...], NDArray[np.int64]]
"""Class names, and the class number of each image."""


class _Subset:
    def __init__(self, source: Source, ids: NDArray[np.int64], classes: Classes | None) -> None:
        self._source, self._ids, self._own = source, ids, classes
        self.labels = None if source.labels is None else source.labels[ids]
        self.class_names = source.class_names
        if classes is not None:
            self.class_names, self.labels = classes

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, index: int) -> bytes | NDArray[np.generic]:
        return self._source.read(int(self._ids[index]))

    def name(self, index: int) -> str:
        return self._source.name(int(self._ids[index]))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._source.fingerprint().encode() + self._ids.tobytes())
        if self._own is not None:
            digest.update("\0".join(self._own[0]).encode() + self._own[1].tobytes())
        return digest.hexdigest()


def subset(source: Source, ids: NDArray[np.int64], *, classes: Classes | None = None) -> Source:
    """Return a source of the images of `ids`, in order, with their names, labels and classes.

    Ids of the subset are positions in `ids`. For images in memory the array is copied, so that
    batches are made as fast as before.

    Args:
        source: the images.
        ids: of the images to keep.
        classes: class names and the class number of each of `ids`, to replace those of `source`.
    """
    whole = len(ids) == len(source) and np.array_equal(ids, np.arange(len(source)))
    if whole and classes is None:
        return source
    if isinstance(source, ArraySource):
        labels = None if source.labels is None else source.labels[ids]
        names, labels = (source.class_names, labels) if classes is None else classes
        return ArraySource(source.images[ids], labels=labels, class_names=names)
    return _Subset(source, ids, classes)
