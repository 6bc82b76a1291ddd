"""What a random read of a pack costs beside a sequential one, and beside files.

    python -m benchmarks.pack_reads IMAGES PACK

Warm, one thread, interleaved rounds; the pack is made if it is not there.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mae.data.sources.pack import open_pack
from mae.data.sources.source import FolderSource, Source
from mae.jobs.data_pack import pack

ROUNDS = 9


def microseconds(source: Source, ids: Sequence[int]) -> float:
    """Give the processor time of a read."""
    began = time.process_time()
    for index in ids:
        source.read(index)
    return (time.process_time() - began) / len(ids) * 1e6


def main() -> None:
    """Print a table."""
    images, out = Path(sys.argv[1]), Path(sys.argv[2])
    pack(images, out)
    packed, folder = open_pack(out), FolderSource(images)
    in_order = range(len(packed))
    at_random = np.random.default_rng(0).permutation(len(packed)).tolist()
    ways = {
        "pack, in order": (packed, in_order),
        "pack, at random": (packed, at_random),
        "files, at random": (folder, at_random),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (source, ids) in ways.items():
            took[name].append(microseconds(source, ids))
    for name, values in took.items():
        ratio = statistics.median(
            value / first for value, first in zip(values, took["pack, in order"], strict=True)
        )
        print(f"{name}: {statistics.median(values):.1f} us an image, {ratio:.2f} of in order")


if __name__ == "__main__":
    main()
