"""Pictures in shards with an index: random access by `pread`, whatever their number."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae.data.decoding.header import BadPicture, PixelKind
from mae.data.sources.pack_index import Index
from mae.errors import DataError

INDEX = "index.safetensors"
"""File by which a pack is recognised."""
UNFINISHED = ".packing"
"""Folder that a pack has while it is made or added to."""

_MOST_OPEN = 256  # files


class Form(NamedTuple):
    """What the pictures of a pack are: by default the files they were made from, byte for byte."""

    short_side: int | None = None
    """Pixels that the shorter side of a larger picture was reduced to."""
    quality: int | None = None
    """Of the JPEG it was then stored as."""
    raw: int | None = None
    """Edge of the square of pixels that is stored of each picture."""
    kind: PixelKind | None = None
    """Of those pixels."""

    def about(self) -> str:
        """Say it in a few words."""
        if self.raw is not None:
            assert self.kind is not None
            return f"raw {self.kind.dtype}, {self.raw} x {self.raw} x {self.kind.channels}"
        if self.short_side is not None:
            return f"short side {self.short_side}, quality {self.quality}"
        return "originals"


class _Shard:
    """An open file; it closes when nobody holds it any more, whichever thread that was."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class PackSource:
    """The pictures of a pack, or of tar files and an index of them.

    Ids are places in the bytewise order of the names, as those of a folder are, so a run on a
    folder and one on its pack of originals see the same. Travels to another process as two paths.
    """

    def __init__(self, root: str | Path, index: str | Path | None = None) -> None:
        """Open an index; shards are opened when they are read.

        Args:
            root: the folder of the shards.
            index: if it is not `index.safetensors` there.
        Raises:
            DataError: if the index is not there, damaged or of another version.
        """
        self._root = os.path.expanduser(root)
        self._index = Index(Path(self._root, INDEX) if index is None else Path(index))
        arrays, facts = self._index.arrays, self._index.facts
        self._offsets, self._lengths = arrays["offsets"], arrays["lengths"]
        self._shards, self._digests = arrays["shards"], arrays.get("sha256")
        self.labels: NDArray[np.int64] | None = arrays.get("labels")
        self.class_names, self.notes = facts.class_names, facts.notes
        form = dict(facts.form)
        self.form = Form(**form | {"kind": PixelKind(*form["kind"])} if form.get("kind") else form)
        self._open: dict[int, _Shard] = {}

    def __reduce__(self) -> tuple[type[PackSource], tuple[str, str]]:
        return PackSource, (self._root, str(self._index.path))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def index(self) -> Index:
        """The index, for those that add to a pack."""
        return self._index

    def read(self, index: int) -> bytes | NDArray[np.generic]:
        """Return the stored file of a picture, or its pixels H W C where they are stored raw.

        Raises:
            BadPicture: if its shard is gone or too short.
        """
        data = self.stored(index)
        if self.form.kind is None or self.form.raw is None:
            return data
        shape = (self.form.raw, self.form.raw, self.form.kind.channels)
        dtype = np.dtype(self.form.kind.dtype)
        start = len(data) - int(np.prod(shape)) * dtype.itemsize  # behind the header of a .npy
        return np.frombuffer(data, dtype, offset=start).reshape(shape)

    def stored(self, index: int) -> bytes:
        """Return the bytes of a picture as they lie in its shard, with the errors of `read`."""
        shard, length = int(self._shards[index]), int(self._lengths[index])
        try:
            # Held by name: another thread may have put its own in its place by now, and an open
            # file that nobody holds closes under the read.
            file = self._file(shard)
            data = os.pread(file.descriptor, length, int(self._offsets[index]))
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise BadPicture(f"{self._shard_name(shard)}: {reason}") from error
        if len(data) != length:
            raise BadPicture(f"{self._shard_name(shard)}: ends before the picture does")
        return data

    def damage(self, index: int) -> str:
        """Compare a picture with its digest; return what is wrong with it, or nothing."""
        if self._digests is None:
            raise DataError("data: these tar files have no digests to verify; pack them")
        try:
            data = self.stored(index)
        except BadPicture as error:
            return str(error)
        if hashlib.sha256(data).digest() == self._digests[index].tobytes():
            return ""
        place = f"{self._shard_name(int(self._shards[index]))}, byte {self._offsets[index]:,}"
        return f"{place}: other bytes than were packed"

    def name(self, index: int) -> str:
        """Return the name of a picture."""
        return self._index.name(index).decode(errors="backslashreplace")

    def fingerprint(self) -> str:
        """Give the digest of which pictures these are, which the index holds."""
        return self._index.fingerprint

    def require_shards(self) -> None:
        """Look whether every shard is there and long enough.

        Raises:
            DataError: for the first that is not.
        """
        for name, size in self._index.facts.shards:
            path = os.path.join(self._root, name)
            try:
                found = os.stat(path).st_size
            except OSError as error:
                reason = (error.strerror or type(error).__name__).lower()
                raise DataError(f"data: {path}: {reason}; put it back, or pack again") from error
            if found < size:
                raise DataError(
                    f"data: {path} has {found:,} bytes, expected {size:,} at least; put back a "
                    "whole copy, or pack again"
                )

    def _file(self, shard: int) -> _Shard:
        file = self._open.get(shard)
        if file is None:
            file = _Shard(os.path.join(self._root, self._shard_name(shard)))
            if len(self._open) >= _MOST_OPEN:
                self._open.clear()
            self._open[shard] = file
        return file

    def _shard_name(self, shard: int) -> str:
        shards = self._index.facts.shards
        return shards[shard][0] if shard < len(shards) else f"shard {shard}"


def is_pack(root: str | Path) -> bool:
    """Whether a folder is a pack.

    Raises:
        DataError: if it would be one, but was never finished.
    """
    if os.path.exists(os.path.join(root, INDEX)):
        return True
    if os.path.isdir(os.path.join(root, UNFINISHED)):
        raise DataError(
            f"data: {root} is a pack that was not finished; give the same `mae data pack` again"
        )
    return False


def open_pack(root: str | Path) -> PackSource:
    """Open a pack whose shards are all there.

    Raises:
        DataError: if it is none, or incomplete, damaged or of another version.
    """
    source = PackSource(root)
    source.require_shards()
    return source
