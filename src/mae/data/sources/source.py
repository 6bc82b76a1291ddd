"""Image sources: folders, arrays and .npy files with random access."""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from mae.data.decoding.arrays import require_channels_last
from mae.data.decoding.header import BadImage, pixel_dtype, printable
from mae.data.sources.splits import split_kind, splits_of
from mae.data.types import Integers, Pixels, Size
from mae.errors import DataError

EXTENSIONS = frozenset(".bmp .gif .jfif .jpe .jpeg .jpg .npy .png .tif .tiff .webp".split())
"""File name extensions of images, in lower case."""
ENDINGS = " ".join(sorted(EXTENSIONS))
"""The same, for messages."""

_MAX_BYTES = 2**32  # each worker would read a larger file whole
_SAMPLED = 1000  # maximum number of images of an array in its fingerprint


class Source(Protocol):
    """Images with random access; an id is a position in the source."""

    @property
    def labels(self) -> Integers | None:
        """Class of each image, or None."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | Pixels:
        """Return an encoded file, or pixels H W or H W C."""

    def name(self, index: int) -> str:
        """Return the name of an image for messages."""

    def fingerprint(self) -> str:
        """Return a digest that identifies the images, equal on any machine."""


def notes_of(source: Source) -> tuple[str, ...]:
    """Return notes on the images of a source, one line each; most sources have none."""
    notes: tuple[str, ...] = getattr(source, "notes", ())
    return notes


class FolderSource:
    """Image files of a folder and its subfolders, sorted bytewise by relative path.

    Hidden files and folders are skipped, links are followed. If every image lies in one of at
    least two first-level folders, those are the classes; if those are splits (`train`, `val`), the
    folders in them are.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        files: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        splits: bool = True,
        notes: Sequence[str] = (),
    ) -> None:
        """Search the folder, or use the given files.

        Args:
            root: the folder.
            files: paths relative to `root` to use in this order, instead of searching.
            classes: class of each of the files.
            splits: whether folders of the first level may be splits rather than classes.
            notes: what a user should know of the files, one line each.
        Raises:
            DataError: if the folder is missing, cannot be listed, or holds no image.
        """
        self._root = os.path.expanduser(root)
        self._files = _find_images(self._root) if files is None else list(files)
        self.class_names: tuple[str, ...] = ()
        self.labels: Integers | None = None
        self._listed = classes is not None
        self.notes = tuple(notes)
        if classes is not None:
            self.class_names, self.labels = numbered(classes)
        elif files is None:
            names = list(map(text_of, self._files))
            self.class_names, self.labels = folder_classes(names, splits=splits)

    @classmethod
    def of_files(cls, paths: Sequence[str | Path]) -> FolderSource:
        """Make a source of the given files, in order, without labels.

        Raises:
            DataError: if there are none, or one does not exist.
        """
        files = [os.path.expanduser(path) for path in paths]
        if not files:
            raise DataError("images: got no files, expected at least one. Name some")
        for path in files:
            if not os.path.lexists(path):
                raise DataError(_missing(path, "file"))
        return cls("", files=files)

    def __len__(self) -> int:
        return len(self._files)

    @contextmanager
    def open(self, index: int) -> Iterator[BinaryIO]:
        """Open the file of an image.

        Raises:
            BadImage: if it is missing, denied or not a file, also for errors while it is read.
        """
        try:
            with open(self._checked(index), "rb") as file:
                yield file
        except OSError as error:
            raise BadImage(reason_of(error)) from error

    def _checked(self, index: int) -> str:
        path = self.path(index)
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
            raise BadImage("not a file")
        if status.st_size > _MAX_BYTES:
            raise BadImage(f"too large ({status.st_size} bytes, at most {_MAX_BYTES})")
        return path

    def path(self, index: int) -> str:
        """Return the path of the file of an image."""
        return os.path.join(self._root, self._files[index])

    def read(self, index: int) -> bytes:
        """Read the file of an image; errors as in `open`."""
        try:
            # Faster by a sixth for small files without a generator context and a buffer.
            with open(self._checked(index), "rb", 0) as file:
                return file.readall()
        except OSError as error:
            raise BadImage(reason_of(error)) from error

    def name(self, index: int) -> str:
        """Return the relative path, with unprintable characters escaped."""
        return printable(text_of(self._files[index]))

    def fingerprint(self) -> str:
        """Hash relative paths and sizes, and labels if they are from a list."""
        digest = hashlib.sha256()
        if self._listed and self.labels is not None:
            digest.update("\0".join(self.class_names).encode() + self.labels.tobytes())
        for name in self._files:
            try:
                size = os.stat(os.path.join(self._root, name)).st_size
            except OSError:
                size = -1
            digest.update(b"%s\0%d\n" % (os.fsencode(name), size))
        return digest.hexdigest()


class ArraySource:
    """Images of equal size in memory."""

    def __init__(
        self,
        images: Pixels,
        *,
        labels: NDArray[np.integer] | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        """Wrap an array of images and optional labels.

        Args:
            images: B H W or B H W C; uint8, uint16 or floating point.
            labels: B, class numbers from 0.
            class_names: names of the classes.
        Raises:
            DataError: if shape, type or number of labels do not fit.
        """
        if images.ndim not in (3, 4) or not images.size:
            raise DataError(f"images: got shape {images.shape}, expected B H W [C], not empty")
        try:
            pixel_dtype(images.dtype)
        except BadImage as error:
            raise DataError(f"images: got {error}. Convert them first") from error
        require_channels_last(images.shape)
        if labels is not None and labels.shape != images.shape[:1]:
            raise DataError(f"labels: got shape {labels.shape}, expected ({len(images)},)")
        self.images = images[..., None] if images.ndim == 3 else images  # B H W C
        self.labels = None if labels is None else labels.astype(np.int64)
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Pixels:
        """Return the pixels of an image, H W C, as a view."""
        image: Pixels = self.images[index]
        return image

    def name(self, index: int) -> str:
        """Return the number of an image."""
        return f"image {index}"

    def fingerprint(self) -> str:
        """Hash shape, type, labels and at most 1,000 evenly spread images."""
        digest = hashlib.sha256(f"{self.images.shape} {self.images.dtype.str}".encode())
        step = max(1, -(-len(self) // _SAMPLED))
        for image in self.images[::step]:
            digest.update(np.ascontiguousarray(image).data)
        if self.labels is not None:
            digest.update(self.labels.data)
        return digest.hexdigest()


class ArrayFileSource(ArraySource):
    """Images of equal size in a memory-mapped .npy file; pickled as its path."""

    def __init__(self, path: str | Path) -> None:
        """Map a file of N H W or N H W C.

        Raises:
            DataError: if it is no such file.
        """
        self._path = os.path.expanduser(path)
        try:
            super().__init__(load_array(self._path))
        except DataError as error:
            raise DataError(f"data: {path}: {error}") from error

    def __reduce__(self) -> tuple[type[ArrayFileSource], tuple[str]]:
        return ArrayFileSource, (self._path,)


def load_array(path: str | Path) -> Pixels:
    """Map the array of a .npy file.

    Raises:
        DataError: if it cannot be read or holds no plain array.
    """
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"it cannot be read as an array: {reason}; check the file") from error


def text_of(path: str) -> str:
    """Decode a file system path as UTF-8, whatever the locale."""
    if sys.getfilesystemencoding() == "utf-8":
        return path
    return os.fsencode(path).decode(errors="surrogateescape")


def path_of(text: str) -> str:
    """Return the file system path of UTF-8 text, the inverse of `text_of`."""
    return os.fsdecode(text.encode(errors="surrogateescape"))


def folder_classes(
    paths: Sequence[str], *, splits: bool = True
) -> tuple[tuple[str, ...], Integers | None]:
    """Return class names and numbers if every path lies in one of at least two folders.

    Args:
        paths: relative, with "/".
        splits: if first-level folders are splits, use the folders in them as classes.
    """
    tops = [path.partition("/")[0] for path in paths if "/" in path]
    if len(tops) < len(paths):
        return (), None
    if splits and (found := splits_of(paths)) is not None:
        whole = {*found.parts.values(), *filter(split_kind, found.left)}
        folders = [path.rpartition("/")[0] for path in paths]
        parts = {folder: folder.split("/") for folder in set(folders)}
        # Images outside the class folders of a split: no classes.
        if any(len(part) < 2 or part[0] not in whole for part in parts.values()):
            return (), None
        tops = [parts[folder][1] for folder in folders]
    return ((), None) if len(set(tops)) < 2 else numbered(tops)


def numbered(classes: Sequence[str], *, by_value: bool = False) -> tuple[tuple[str, ...], Integers]:
    """Return the class names, sorted, and the number of each item's class.

    Args:
        classes: name of the class of each item.
        by_value: whether names that are all numbers are sorted by value, 2 before 10, instead of
            bytewise.
    """
    names = sorted(set(classes), key=lambda name: name.encode(errors="surrogateescape"))
    if by_value and all(name.lstrip("-").isdecimal() for name in names):
        names.sort(key=int)
    numbers = {name: number for number, name in enumerate(names)}
    return tuple(map(printable, names)), np.array([numbers[name] for name in classes], np.int64)


def _find_images(root: str) -> list[str]:
    """Return the relative paths of images below a folder, sorted bytewise."""
    if not os.path.isdir(root):
        raise DataError(_missing(root, "folder"))
    others: Counter[str] = Counter()
    try:
        names = list(_walk(root, "", frozenset(), others))
    except OSError as error:
        path = os.path.abspath(error.filename)
        raise DataError(f"data: {path}: {reason_of(error)}, expected a folder. Check it") from error
    if not names:
        path = os.path.abspath(root)
        found = ", ".join(f"{count} {end}" for end, count in others.most_common(5)) or "nothing"
        raise DataError(f"data: no images in {path}: found {found}, expected {ENDINGS}")
    return sorted(names, key=os.fsencode)


def _walk(folder: str, prefix: str, above: frozenset[Size], others: Counter[str]) -> Iterator[str]:
    """Yield the images below a folder and count other entries."""
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in above:  # a link back to a folder that contains it
        return
    for entry in list(os.scandir(folder)):
        if entry.name.startswith("."):
            others["hidden"] += 1
            continue
        name, end = prefix + entry.name, os.path.splitext(entry.name)[1].lower()
        # A circular link is no folder, without an error.
        is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
        inside = list(_walk(entry.path, f"{name}/", above | {here}, others)) if is_folder else []
        yield from inside
        if end in EXTENSIONS and not inside:  # an empty folder of such a name, too: a broken image
            yield name
        elif not inside:
            others["folder" if is_folder else end or "unnamed"] += 1


def _missing(path: str, what: str) -> str:
    path = os.path.abspath(path)
    if os.path.exists(path):
        return f"data: {path} is not a {what}. Give the folder it lies in"
    parent, name = os.path.split(path)
    while not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    similar: list[str] = []
    with suppress(OSError):
        similar = difflib.get_close_matches(name, os.listdir(parent), cutoff=0.5)
    hint = f", which has {', '.join(map(printable, similar))}" if similar else ""
    return f"data: no {what} {path}: the nearest folder is {parent}{hint}. Check the path"


def reason_of(error: OSError) -> str:
    """Return why a file cannot be read, in lower case."""
    return (error.strerror or type(error).__name__).lower()
