"""A pack in the making: shards that grow, and a record of what of them is on the disk.

Shards are plain tar files, so that nothing but `tar` is needed to get the pictures out again. Those
of a finished pack are never written to: what is added goes into new ones. Beside them, while the
work goes on, lies a folder:

    .packing/rows        a `ROW` for each picture, in the order of the shards
    .packing/names       their names, one after the other
    .packing/done.json   `Done`: how much of all files is on the disk; the rest is litter
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mae.atomic import fsync_folder, write_json_atomic
from mae.data.packing.merge import Classes, merged
from mae.data.sources.pack import INDEX, UNFINISHED, Form
from mae.data.sources.pack_index import Facts, Index, write_index

SHARD_BYTES = 2**30
MOST_BYTES = 2**31 - 2**12
"""Of one picture: the kernel reads no more at once."""

_BLOCK = 512  # tar files consist of such
_END = bytes(2 * _BLOCK)
_COMMIT_BYTES, _COMMIT_SECONDS = 2**26, 1.0

ROW = np.dtype(
    [
        ("offset", "<u8"),
        ("label", "<i8"),
        ("shard", "<u4"),
        ("length", "<u4"),
        ("name_length", "<u4"),
        ("sha256", "u1", 32),
        ("origin", "u1", 32),
    ]
)
"""A picture that is packed; the label is that of the source it came from, -1 where it has none."""


class Done(NamedTuple):
    """How much is on the disk."""

    work: str
    """Digest of what is being packed, and into what."""
    rows: int = 0
    name_bytes: int = 0
    shard: int = 0
    """Number of the shard that grows."""
    shard_bytes: int = 0


class Packing:
    """Append pictures; what a kill leaves half-written is cut off by the next start.

    The caller holds the lock of the pack.

    Args:
        root: the folder of the pack.
        work: another work than that of the last start begins anew.
        shards: finished ones, which are left alone.
        shard_bytes: a shard is full with the picture that brings it there.
    """

    def __init__(
        self, root: Path, *, work: str, shards: int, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.root, self._shards, self._shard_bytes = root, shards, shard_bytes
        self._folder = root / UNFINISHED
        self._folder.mkdir(parents=True, exist_ok=True)
        self._record = self._folder / "done.json"
        self.forgot = False
        """Whether there is work of an earlier start that is not this one's."""
        self.done = self._taken_over(work)
        self._cut_off()
        self._rows = (self._folder / "rows").open("ab")
        self._names = (self._folder / "names").open("ab")
        self._shard = self._shard_path(self.done.shard).open("ab")
        self._count, self._committed = self.done.rows, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._rows, self._names, self._shard):
            file.close()

    def names(self) -> list[bytes]:
        """Give the names of what is packed."""
        blob = (self._folder / "names").read_bytes()
        ends = np.cumsum(self._read_rows()["name_length"], dtype=np.int64).tolist()
        return [blob[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def add(self, name: bytes, content: bytes, *, label: int, origin: bytes) -> None:
        """Append a picture, whose name is new; it is on the disk after the next `commit`."""
        if self._shard.tell() >= self._shard_bytes:
            self._end_shard()
        member = tarfile.TarInfo(name.decode(errors="surrogateescape"))
        member.size = len(content)
        self._shard.write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        row = np.zeros((), dtype=ROW)
        row["offset"], row["length"], row["label"] = self._shard.tell(), len(content), label
        row["shard"], row["name_length"] = self.done.shard, len(name)
        row["sha256"] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        row["origin"] = np.frombuffer(origin, np.uint8)
        self._shard.write(content)
        self._shard.write(bytes(-len(content) % _BLOCK))
        self._rows.write(row.tobytes())
        self._names.write(name)
        self._count += 1
        waiting = self._shard.tell() - self.done.shard_bytes
        if waiting >= _COMMIT_BYTES or time.monotonic() - self._committed >= _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Bring everything to the disk, and then record that it is there."""
        for file in (self._shard, self._names, self._rows):
            file.flush()
            os.fsync(file.fileno())
        self.done = self.done._replace(
            rows=self._count, name_bytes=self._names.tell(), shard_bytes=self._shard.tell()
        )
        write_json_atomic(self._record, self.done._asdict())
        self._committed = time.monotonic()

    def publish(self, old: Index | None, classes: Classes, *, form: Form) -> None:
        """Write the index of all pictures, old and new, and end the work."""
        self._end_shard()
        shards = [] if old is None else list(old.facts.shards)
        for number in range(self._shards, self.done.shard):
            path = self._shard_path(number)
            shards.append((path.name, path.stat().st_size))
        # A picture that only a later start could read comes after those of an earlier one.
        names, rows = self.names(), self._read_rows()
        order = sorted(range(len(names)), key=names.__getitem__)
        blob = np.frombuffer(b"".join(names[i] for i in order), np.uint8)
        columns = merged(old, rows[order], blob, classes, origins=form != Form())
        facts = Facts(tuple(shards), classes.names, form._asdict())
        write_index(self.root / INDEX, columns, facts)
        self.discard()

    def discard(self) -> None:
        """End the work; what of it is not in the index is removed."""
        self._record.unlink(missing_ok=True)  # first of all what says that there is something
        shutil.rmtree(self._folder)
        self._shard_path(self.done.shard).unlink(missing_ok=True)  # has no picture yet

    def _end_shard(self) -> None:
        self.commit()
        self._shard.write(_END)
        self._shard.flush()
        os.fsync(self._shard.fileno())
        self._shard.close()
        self.done = self.done._replace(shard=self.done.shard + 1, shard_bytes=0)
        self._shard = self._shard_path(self.done.shard).open("ab")
        fsync_folder(self.root)

    def _shard_path(self, number: int) -> Path:
        return self.root / f"shard-{number:05d}.tar"

    def _read_rows(self) -> NDArray[Any]:
        return np.fromfile(self._folder / "rows", ROW)

    def _taken_over(self, work: str) -> Done:
        anew = Done(work, shard=self._shards)
        if not self._record.exists():
            return anew
        found = Done(**json.loads(self._record.read_bytes()))
        sizes = self._sizes(found).items()
        there = all(path.exists() and path.stat().st_size >= size for path, size in sizes)
        self.forgot = not (found.work == work and there)
        return anew if self.forgot else found

    def _cut_off(self) -> None:
        """Remove whatever was written but not recorded."""
        for path in self.root.glob("shard-*.tar"):
            number = path.stem.removeprefix("shard-")
            if number.isdecimal() and int(number) > self.done.shard:
                path.unlink()
        for path, size in self._sizes(self.done).items():
            if path.exists():
                os.truncate(path, size)

    def _sizes(self, done: Done) -> dict[Path, int]:
        return {
            self._folder / "rows": done.rows * ROW.itemsize,
            self._folder / "names": done.name_bytes,
            self._shard_path(done.shard): done.shard_bytes,
        }
