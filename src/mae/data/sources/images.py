"""Open images for a network: paths, Pillow images, arrays and tensors; or several inputs."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from mae.config.model import ModelConfig
from mae.data.decoding.arrays import as_batch, as_image
from mae.data.decoding.header import BadImage, pillow_faults, printable
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import (
    EXTENSIONS,
    ArraySource,
    FolderSource,
    Source,
    load_array,
    text_of,
)
from mae.data.types import Log, Pixels
from mae.errors import DataError

_Readable = str | Path | Image.Image | Pixels
OneImage = _Readable | Tensor
Images = Data | OneImage | Sequence[OneImage]
"""What `mae.embed` takes."""


def open_images(images: Images, config: ModelConfig, *, log: Log) -> Source:
    """Open images as a source; the network's channels decide the layout of an array.

    Args:
        images: see `Images`.
        config: the network.
        log: called with each note on what was guessed or left out.

    Raises:
        DataError: for images that are missing or of another type; an ambiguous array is an error
            that says what to give instead.
    """
    if isinstance(images, str | Path):
        return _open_path(images, config, log=log)
    if isinstance(images, np.ndarray | Tensor):
        return ArraySource(_convert(images, config, as_batch))
    if isinstance(images, Image.Image):
        images = [images]
    if not isinstance(images, list | tuple):
        return open_source(images, log=log)  # type: ignore[arg-type]
    if all(isinstance(image, str | Path) for image in images):
        return FolderSource.of_files(images)
    return _ImageList([_readable(image, number, config) for number, image in enumerate(images)])


def open_inputs(paths: Sequence[str | Path], config: ModelConfig, *, log: Log) -> Source:
    """Open image files, folders, packs, tar files and arrays as one source, in the order given.

    The name of an image is the path of its file; in a pack, a tar file or an array it is preceded
    by the path of that.

    Args:
        paths: each as for `open_images`.
        config: the network.
        log: called with each note on what was guessed or left out.

    Raises:
        DataError: if there are no paths, or one is missing, damaged or holds no image.
    """
    parts = list[tuple[str, Source]]()
    for is_file, some in groupby(paths, key=_is_image_file):
        if is_file:  # opened together: a shell may name thousands
            parts.append(("", FolderSource.of_files([*some])))
        else:
            parts += [(os.fspath(path), _open_path(path, config, log=log)) for path in some]
    return _Joined(parts or [("", FolderSource.of_files([]))])


def _is_image_file(path: str | Path) -> bool:
    end = os.path.splitext(path)[1].lower()
    return end in EXTENSIONS - {".npy"} and not os.path.isdir(os.path.expanduser(path))


def _open_path(path: str | Path, config: ModelConfig, *, log: Log) -> Source:
    file = Path(path).expanduser()
    if file.suffix.lower() != ".npy" or not file.is_file():
        return open_source(os.fspath(path), log=log)
    try:
        return ArraySource(_convert(load_array(file), config, as_batch))
    except DataError as error:
        raise DataError(f"data: {file}: {error}") from error


class _ImageList:
    """A sequence of images of any sizes as a source."""

    labels, class_names = None, ()

    def __init__(self, images: Sequence[_Readable]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> bytes | Pixels:
        image = self._images[index]
        if isinstance(image, str | Path):
            return FolderSource.of_files([image]).read(0)
        if isinstance(image, Image.Image):
            # Encode to a lossless format that has every mode, so that an image in memory is
            # decoded exactly as the same image from a file.
            with pillow_faults(image.mode), io.BytesIO() as file:
                ImageOps.exif_transpose(image).save(file, "TIFF")
                return file.getvalue()
        return image

    def name(self, index: int) -> str:
        return f"image {index}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            image: bytes | Pixels = b""
            with suppress(BadImage):
                image = self.read(index)
            if isinstance(image, np.ndarray):
                digest.update(f"{image.dtype.str} {image.shape} ".encode())
                image = image.tobytes()
            digest.update(f"{len(image)} ".encode() + image)
        return digest.hexdigest()


class _Joined:
    """Several sources as one without labels, named by their files, or below the path of a pack."""

    labels, class_names = None, ()

    def __init__(self, parts: Sequence[tuple[str, Source]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(source) for _, source in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[str, Source, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        path, source = self._parts[part]
        return path, source, index - int(self._ends[part]) + len(source)

    def read(self, index: int) -> bytes | Pixels:
        _, source, own = self._find(index)
        return source.read(own)

    def name(self, index: int) -> str:
        path, source, own = self._find(index)
        if isinstance(source, FolderSource):
            return printable(text_of(source.path(own)))
        return os.path.join(printable(text_of(path)), source.name(own))

    def fingerprint(self) -> str:
        parts = [f"{text_of(path)}\0{source.fingerprint()}\n" for path, source in self._parts]
        return hashlib.sha256("".join(parts).encode(errors="surrogateescape")).hexdigest()


def _convert(images: Pixels | Tensor, model: ModelConfig, convert: Callable[..., Pixels]) -> Pixels:
    """Convert an array or a tensor to B H W C or H W C of a dtype that the network takes."""
    if is_tensor := isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()
    wanted = model.pixels.dtype
    if images.dtype.kind == "f" and wanted != "float32":
        raise DataError(
            f"images: got {images.dtype}, expected {wanted}, as the network was trained on; for "
            f"values from 0 to 1 give (images * {np.iinfo(wanted).max}).round() as {wanted}"
        )
    return convert(images, channels=model.channels, is_tensor=is_tensor)


def _readable(image: OneImage, number: int, config: ModelConfig) -> _Readable:
    """Return one of several images, an array or a tensor converted to H W C."""
    if isinstance(image, str | Path | Image.Image):
        return image
    if not isinstance(image, np.ndarray | Tensor):
        got = type(image).__name__
        raise DataError(f"image {number}: got {got}, expected a path, image, array or tensor")
    try:
        return _convert(image, config, as_image)
    except DataError as error:
        raise DataError(f"image {number}: {error}") from error
