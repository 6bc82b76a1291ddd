"""Subset of the images of a source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from mae.data.sources.source import ArraySource, Source
from mae.data.types import Integers, Pixels

Classes = tuple[tuple[str, ...], Integers]
"""Class names, and the class number of each image."""


@dataclass(frozen=True)
class _Subset:
    source: Source
    ids: Integers
    class_names: tuple[str, ...]
    labels: Integers | None
    relabelled: bool

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> bytes | Pixels:
        return self.source.read(int(self.ids[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.ids[index]))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.fingerprint().encode() + self.ids.tobytes())
        if self.relabelled and self.labels is not None:
            digest.update("\0".join(self.class_names).encode() + self.labels.tobytes())
        return digest.hexdigest()


def subset(source: Source, ids: Integers, *, classes: Classes | None = None) -> Source:
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
    labels = None if source.labels is None else source.labels[ids]
    names, labels = (source.class_names, labels) if classes is None else classes
    if isinstance(source, ArraySource):
        return ArraySource(source.images[ids], labels=labels, class_names=names)
    return _Subset(source, ids, names, labels, relabelled=classes is not None)
