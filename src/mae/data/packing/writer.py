"""Write packs crash-safely: append-only tar shards and a progress record.

Shards are plain tar files, so `tar` alone can extract the images. Shards of a finished pack are
never modified; added images go into new ones. While a pack is written, its folder also has:

    .packing/rows        a `ROW` for each image, in the order of the shards
    .packing/names       their names, concatenated
    .packing/done.json   `Done`: how much of each file is on the disk; the rest is discarded
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
from mae.data.sources.pack_index import Index, IndexInfo, write_index

SHARD_BYTES = 2**30
MOST_BYTES = 2**31 - 2**12
"""Maximum size of an image: one read system call returns no more."""

_BLOCK = 512  # bytes; unit of tar files
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
"""A packed image; the label is that of its source, -1 for none."""


class Done(NamedTuple):
    """Progress that is safely on the disk."""

    work: str
    """Digest of the source and the form of the pack."""
    rows: int = 0
    name_bytes: int = 0
    shard: int = 0
    """Number of the shard being written."""
    shard_bytes: int = 0


class Packing:
    """Append images to a pack; a restart truncates whatever a kill left half-written.

    The caller must hold the lock of the pack.

    Args:
        root: the folder of the pack.
        old: index of the finished pack, whose shards are not modified; None if there is none.
        work: digest of the work; if it differs from the last start, packing starts over.
        shard_bytes: size from which a shard is full.
    """

    def __init__(
        self, root: Path, old: Index | None, *, work: str, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.root, self._old, self._shard_bytes = root, old, shard_bytes
        self._shards = () if old is None else old.info.shards
        self._folder = root / UNFINISHED
        self._folder.mkdir(parents=True, exist_ok=True)
        self._record = self._folder / "done.json"
        self.forgot = False
        """Whether progress of an earlier start was discarded because it does not match."""
        self.done = self._last_progress(work)
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
        """Return the names of the packed images."""
        blob = (self._folder / "names").read_bytes()
        ends = np.cumsum(self._read_rows()["name_length"], dtype=np.int64).tolist()
        return [blob[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def add(self, name: bytes, content: bytes, *, label: int, origin: bytes) -> None:
        """Append an image with a new name; it is on the disk after the next `commit`."""
        if self._shard.tell() >= self._shard_bytes:
            self._end_shard()
        member = tarfile.TarInfo(name.decode(errors="surrogateescape"))
        member.size = len(content)
        self._shard.write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        sizes = self._shard.tell(), label, self.done.shard, len(content), len(name)
        row = np.array((*sizes, [*hashlib.sha256(content).digest()], [*origin]), ROW)
        self._shard.write(content)
        self._shard.write(bytes(-len(content) % _BLOCK))
        self._rows.write(row.tobytes())
        self._names.write(name)
        self._count += 1
        waiting = self._shard.tell() - self.done.shard_bytes
        if waiting >= _COMMIT_BYTES or time.monotonic() - self._committed >= _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Flush everything to the disk, then record the progress."""
        for file in (self._shard, self._names, self._rows):
            file.flush()
            os.fsync(file.fileno())
        self.done = self.done._replace(
            rows=self._count, name_bytes=self._names.tell(), shard_bytes=self._shard.tell()
        )
        write_json_atomic(self._record, self.done._asdict())
        self._committed = time.monotonic()

    def publish(self, classes: Classes, *, form: Form) -> None:
        """Write the index of all images, old and new, and finish packing."""
        self._end_shard()
        paths = map(self._shard_path, range(len(self._shards), self.done.shard))
        shards = (*self._shards, *((path.name, path.stat().st_size) for path in paths))
        # Not yet sorted: a restart appends images that an earlier start could not read.
        names, rows = self.names(), self._read_rows()
        order = sorted(range(len(names)), key=names.__getitem__)
        blob = np.frombuffer(b"".join(names[i] for i in order), np.uint8)
        columns = merged(self._old, rows[order], blob, classes, origins=form != Form())
        facts = IndexInfo(shards, classes.names, form._asdict())
        write_index(self.root / INDEX, columns, facts)
        self.discard()

    def discard(self) -> None:
        """Stop packing and remove everything that is not in the index."""
        self._record.unlink(missing_ok=True)  # first, so that no record outlives its files
        shutil.rmtree(self._folder)
        self._shard_path(self.done.shard).unlink(missing_ok=True)  # has no image yet

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

    def _last_progress(self, work: str) -> Done:
        """Return the progress of an earlier start with the same work, or none."""
        anew = Done(work, shard=len(self._shards))
        if not self._record.exists():
            return anew
        found = Done(**json.loads(self._record.read_bytes()))
        sizes = self._sizes(found).items()
        complete = all(path.exists() and path.stat().st_size >= size for path, size in sizes)
        self.forgot = not (found.work == work and complete)
        return anew if self.forgot else found

    def _cut_off(self) -> None:
        """Remove data that was written but not recorded."""
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
