"""Verify a pack: check every digest of its images and of its index."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae.data.sources.pack import PackSource, is_pack
from mae.errors import DataError
from mae.jobs.data_pack import in_threads
from mae.progress import Progress

_NAMED = 5


class Verified(NamedTuple):
    """Result for an undamaged pack."""

    pack: str
    images: int
    bytes: int
    fingerprint: str


def verify(path: str | Path, *, quiet: bool = False) -> Verified:
    """Read a whole pack and compare every digest.

    Args:
        path: folder of the pack.
        quiet: show no progress, and name only the first damaged images.

    Raises:
        DataError: if anything is damaged; each damaged image is noted on the way.
    """
    root = Path(path).expanduser()
    if not is_pack(root):
        raise DataError(f"data: {root} is no pack; expected a folder made by mae data pack")
    source = PackSource(root)
    with Progress(quiet=quiet) as progress:
        wrong, labels = source.index.damage(), source.labels
        if not wrong and labels is not None:
            known = labels.min() >= 0 and labels.max() < len(source.class_names)
            wrong = "" if known else "labels"
        if wrong:
            raise DataError(
                f"data: {root}: index is damaged ({wrong}); restore a copy or pack again"
            )
        damaged = list[str]()
        progress.start(len(source), label="image")
        for index, damage in enumerate(in_threads(range(len(source)), source.damage)):
            if damage:
                damaged.append(f"{source.name(index)} ({damage})")
                progress.note(f"damaged: {damaged[-1]}")
            progress.update(index + 1)
    if damaged:
        more = len(damaged) - _NAMED
        named = "; ".join(damaged[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
        raise DataError(
            f"data: {root}: {len(damaged):,} of {len(source):,} images are damaged: {named}; "
            "restore their shards from a copy, or pack again"
        )
    source.require_shards()  # also shards that hold no image
    size = int(source.index.arrays["lengths"].sum(dtype=np.uint64))
    return Verified(str(root), len(source), size, source.fingerprint())
