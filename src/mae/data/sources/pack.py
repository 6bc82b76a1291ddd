"""Read packs: images in tar shards with an index and random access by `pread`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae.data.decoding.header import BadImage, PixelKind
from mae.data.sources.pack_index import Index
from mae.data.sources.source import reason_of
from mae.data.types import Integers, Pixels
from mae.errors import DataError

INDEX = "index.safetensors"
"""Index file, which identifies a pack."""
UNFINISHED = ".packing"
"""Folder that exists while a pack is written or extended."""

_MOST_OPEN = 256  # files


class Form(NamedTuple):
    """How the images of a pack are stored: by default as the original files, byte for byte."""

    short_side: int | None = None
    """Pixels that the shorter side of larger images was reduced to."""
    quality: int | None = None
    """JPEG quality of the reduced images."""
    raw: int | None = None
    """Edge of the square of raw pixels stored for each image."""
    kind: PixelKind | None = None
    """Kind of the raw pixels."""

    def about(self) -> str:
        """Describe the form in a few words."""
        if self.raw is not None:
            assert self.kind is not None
            return f"raw {self.kind.dtype}, {self.raw} x {self.raw} x {self.kind.channels}"
        if self.short_side is not None:
            return f"short side {self.short_side}, quality {self.quality}"
        return "originals"


class _Shard:
    """An open file that closes when its last reference is gone, in whichever thread."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class PackSource:
    """The images of a pack, or of indexed tar files.

    Ids are positions in the bytewise order of the names, as in a folder, so runs on a folder and
    on its pack of originals are identical. Pickled as two paths.
    """

    def __init__(self, root: str | Path, index: str | Path | None = None) -> None:
        """Open an index; shards are opened on first read.

        Args:
            root: the folder of the shards.
            index: path of the index; None: `index.safetensors` in `root`.
        Raises:
            DataError: if the index is missing, damaged or of another version.
        """
        self._root = os.path.expanduser(root)
        self.index = Index(Path(self._root, INDEX) if index is None else Path(index))
        arrays, info = self.index.arrays, self.index.info
        self._offsets, self._lengths = arrays["offsets"], arrays["lengths"]
        self._shards, self._digests = arrays["shards"], arrays.get("sha256")
        self.labels: Integers | None = arrays.get("labels")
        self.class_names, self.notes = info.class_names, info.notes
        form = dict(info.form)
        self.form = Form(**form | {"kind": PixelKind(*form["kind"])} if form.get("kind") else form)
        self._open: dict[int, _Shard] = {}

    def __reduce__(self) -> tuple[type[PackSource], tuple[str, str]]:
        return PackSource, (self._root, str(self.index.path))

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> bytes | Pixels:
        """Return the stored file of an image, or its pixels H W C if stored raw.

        Raises:
            BadImage: if its shard is missing or too short.
        """
        data = self.stored(index)
        if self.form.kind is None or self.form.raw is None:
            return data
        shape = (self.form.raw, self.form.raw, self.form.kind.channels)
        dtype = np.dtype(self.form.kind.dtype)
        start = len(data) - int(np.prod(shape)) * dtype.itemsize  # after the .npy header
        return np.frombuffer(data, dtype, offset=start).reshape(shape)

    def stored(self, index: int) -> bytes:
        """Return the bytes of an image as stored in its shard; errors as in `read`."""
        shard, length = int(self._shards[index]), int(self._lengths[index])
        try:
            # Keep a reference: another thread may evict the file meanwhile, which would close it
            # during the read.
            file = self._file(shard)
            data = os.pread(file.descriptor, length, int(self._offsets[index]))
        except OSError as error:
            raise BadImage(f"{self._shard_name(shard)}: {reason_of(error)}") from error
        if len(data) != length:
            raise BadImage(f"{self._shard_name(shard)}: ends before the image does")
        return data

    def damage(self, index: int) -> str:
        """Verify an image against its digest; return the damage, or "" if there is none."""
        if self._digests is None:
            raise DataError("data: these tar files have no digests to verify; pack them")
        try:
            data = self.stored(index)
        except BadImage as error:
            return str(error)
        if hashlib.sha256(data).digest() == self._digests[index].tobytes():
            return ""
        place = f"{self._shard_name(int(self._shards[index]))}, byte {self._offsets[index]:,}"
        return f"{place}: other bytes than were packed"

    def name(self, index: int) -> str:
        """Return the name of an image."""
        return self.index.name(index).decode(errors="backslashreplace")

    def fingerprint(self) -> str:
        """Return the digest that identifies these images, stored in the index."""
        return self.index.fingerprint

    def require_shards(self) -> None:
        """Check that every shard exists and is long enough.

        Raises:
            DataError: for the first that does not.
        """
        for name, size in self.index.info.shards:
            path = os.path.join(self._root, name)
            try:
                found = os.stat(path).st_size
            except OSError as error:
                raise DataError(f"data: {path}: {reason_of(error)}; restore it") from error
            if found < size:
                raise DataError(f"data: {path} has {found:,} bytes, expected {size:,}; restore it")

    def _file(self, shard: int) -> _Shard:
        file = self._open.get(shard)
        if file is None:
            file = _Shard(os.path.join(self._root, self._shard_name(shard)))
            if len(self._open) >= _MOST_OPEN:
                self._open.clear()
            self._open[shard] = file
        return file

    def _shard_name(self, shard: int) -> str:
        shards = self.index.info.shards
        return shards[shard][0] if shard < len(shards) else f"shard {shard}"


def is_pack(root: str | Path) -> bool:
    """Whether a folder is a pack.

    Raises:
        DataError: if it is a pack that was never finished.
    """
    if os.path.exists(os.path.join(root, INDEX)):
        return True
    if os.path.isdir(os.path.join(root, UNFINISHED)):
        raise DataError(f"data: pack {root} was not finished; give the same `mae data pack` again")
    return False


def open_pack(root: str | Path) -> PackSource:
    """Open a pack and check that all its shards exist.

    Raises:
        DataError: if it is no pack, incomplete, damaged or of another version.
    """
    source = PackSource(root)
    source.require_shards()
    return source
