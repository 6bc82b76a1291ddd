"""What an index of a billion images costs: opening, ordering, a batch, a resume, memory.

    python -m benchmarks.scale FOLDER [COUNT]

The index is a sparse file: as long as a real one, but only the rows that are looked at are written.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.config.run import AugmentConfig
from mae.data.batching.batch import BatchPlan, training_batch
from mae.data.decoding.decode import PixelKind
from mae.data.packing.reencode import as_file
from mae.data.sampling.order import shuffled
from mae.data.sources.pack import INDEX, Form, PackSource
from mae.data.sources.pack_index import Column, Index, IndexInfo, write_index

EDGE, BATCH, SEED, RESUMES = 32, 256, 5, 20
KIND = PixelKind("uint8", 3)
LARGEST_EPOCH = 100


def sparse_pack(root: Path, *, count: int, images: int = 10) -> PackSource:
    """Make a pack of `count` images whose rows are all empty; its shard has a few images."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    form = Form(raw=EDGE, kind=KIND)
    files = [as_file(rng.integers(0, 256, (EDGE, EDGE, 3), np.uint8)) for _ in range(images)]
    (root / "shard-00000.tar").write_bytes(b"".join(files))
    sizes = {
        "name_ends": "<u8",
        "offsets": "<u8",
        "labels": "<i8",
        "shards": "<u4",
        "lengths": "<u4",
    }
    none: Iterator[NDArray[np.generic]] = iter(())
    columns = {name: Column((count,), dtype, none) for name, dtype in sizes.items()}
    columns["names"] = Column((0,), "u1", none)
    facts = IndexInfo((("shard-00000.tar", 0),), ("only",), form._asdict())
    write_index(root / INDEX, columns, facts)  # the header; the arrays are a hole behind it
    header = (root / INDEX).stat().st_size
    os.truncate(root / INDEX, header + count * sum(np.dtype(d).itemsize for d in sizes.values()))
    return PackSource(root)


def write_rows(source: PackSource, ids: NDArray[np.int64], *, images: int = 10) -> None:
    """Point some rows at images of the shard."""
    index, length = source.index, len(as_file(np.zeros((EDGE, EDGE, 3), np.uint8)))
    with index.path.open("rb+") as file:
        for name, values in (("offsets", ids % images * length), ("lengths", 0 * ids + length)):
            begin, dtype = place(index, name), index.arrays[name].dtype
            for number, value in zip(ids.tolist(), values.astype(dtype), strict=True):
                file.seek(begin + number * dtype.itemsize)
                file.write(value.tobytes())


def place(index: Index, name: str) -> int:
    """Find where an array begins in the file."""
    with index.path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return 8 + size + int(json.loads(file.read(size))[name]["data_offsets"][0])


def plan_of(source: PackSource, *, batch: int = BATCH) -> BatchPlan:
    """Give a plan of batches of a pack."""
    return BatchPlan(
        source=source, kind=KIND, size=(EDGE, EDGE), grid=(4, 4), augment=AugmentConfig(),
        batch=batch, seed=SEED,
    )  # fmt: skip


def main() -> None:
    """Print a table."""
    root, count = Path(sys.argv[1]), int(float(sys.argv[2])) if len(sys.argv) > 2 else 10**9
    source = sparse_pack(root, count=count)
    steps = np.random.default_rng(1).integers(0, LARGEST_EPOCH * count // BATCH, RESUMES)
    for step in steps.tolist():
        write_rows(source, plan_of(source).batch_ids(step)[1])
    disk = source.index.path.stat()
    print(
        f"index: {disk.st_size / 1e9:.1f} GB long, {disk.st_blocks * 512 / 1e6:.1f} MB on the disk"
    )
    before, wall, cpu = peak(), [], []
    for step in steps.tolist():
        began = time.perf_counter(), time.process_time()
        training_batch(plan_of(pickle.loads(pickle.dumps(source))), step)
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    print(
        f"open and first batch of {BATCH}, {RESUMES} random positions: slowest {max(wall):.3f} s "
        f"(CPU {max(cpu):.3f} s)"
    )
    print(f"parcel to a worker: {len(pickle.dumps(plan_of(source)))} bytes")
    print(f"peak memory: {before:.0f} MB before, {peak():.0f} MB after")
    for n in (10**6, count - 1, 2**29 + 1):  # the last: half of the values walk on
        places = np.arange(4096, dtype=np.int64)
        began_at = time.process_time()
        for epoch in range(100):
            shuffled(places + epoch * 4096, n=n, seed=SEED, epoch=epoch)
        print(f"order of a batch of 4096 of {n:,}: {(time.process_time() - began_at) * 10:.2f} ms")


def peak() -> float:
    """Give the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
