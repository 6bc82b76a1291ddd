"""Images with a class for every pixel."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.data.annotated import AnnotatedSource
from mae.data.decoding.header import BadImage, format_of, pillow_faults
from mae.data.sources.source import FolderSource, Source
from mae.data.types import Integers, Pixels

IGNORE = 255
"""Value of the pixels of a mask that are neither trained on nor scored."""
MOST_CLASSES = 255

Mask = NDArray[np.uint8]
"""H W: class of each pixel, or IGNORE."""


class Masks(Protocol):
    """Masks in the order of their images; pickled for reader processes."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Mask:
        """Return the mask of an image.

        Raises:
            BadImage: if it cannot be read.
        """

    def fingerprint(self) -> str:
        """Return a digest that identifies the masks."""


class StoredMask(NamedTuple):
    """The values of a mask file, before they are mapped to classes."""

    values: Mask
    """H W."""
    palette: bytes | None
    """Colours of the values, R G B each; None for a grey mask, whose values are their numbers."""


def read_mask(data: bytes) -> StoredMask:
    """Decode a PNG whose values, or entries of its palette, are classes.

    Raises:
        BadImage: for any other file, colour, or values above 255.
    """
    if (file_format := format_of(data[:16])) != "PNG":
        raise BadImage(f"a {file_format}, expected PNG, whose values are exact")
    with pillow_faults(file_format), Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.load()
        mode, values = image.mode, np.asarray(image)
        palette = bytes(image.palette.palette) if mode == "P" and image.palette else None
    if mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise BadImage(f"{mode} colours, expected one class number per pixel (grey or palette)")
    if values.max(initial=0) > IGNORE:
        raise BadImage(f"values up to {values.max()}, expected at most {IGNORE}")
    return StoredMask(values.astype(np.uint8), palette)


@dataclass(frozen=True)
class FileMasks:
    """PNG masks, in the order of their images."""

    files: FolderSource

    def __len__(self) -> int:
        return len(self.files)

    def stored(self, index: int) -> StoredMask:
        """Read a mask with its palette."""
        return read_mask(self.files.read(index))

    def read(self, index: int) -> Mask:
        """Read a mask; see `Masks`."""
        return self.stored(index).values

    def fingerprint(self) -> str:
        """Hash names and sizes."""
        return self.files.fingerprint()


@dataclass(frozen=True)
class MappedMasks:
    """Masks whose classes have other numbers."""

    masks: Masks
    table: Mask
    """256: class by value."""

    def __len__(self) -> int:
        return len(self.masks)

    def read(self, index: int) -> Mask:
        """Read a mask; see `Masks`."""
        return self.table[self.masks.read(index)]

    def fingerprint(self) -> str:
        """Hash the masks and the table."""
        return hashlib.sha256(self.masks.fingerprint().encode() + self.table.tobytes()).hexdigest()


class Pair(NamedTuple):
    """An image as it is stored, and its mask."""

    image: bytes | Pixels
    mask: Mask


@dataclass(frozen=True)
class MaskSource(AnnotatedSource):
    """Images and their masks as a source."""

    images: Source
    masks: Masks
    mask_classes: tuple[str, ...]
    """Names of the classes of pixels, in the order of their numbers."""
    ids: Integers
    """Positions of its images in `images` and `masks`."""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, images: Source, masks: Masks, classes: Sequence[str]) -> MaskSource:
        """Make a source of all of the images."""
        return cls(images, masks, tuple(classes), np.arange(len(images)))

    def annotated(self, index: int) -> Pair:
        """See `AnnotatedSource`."""
        return Pair(self.read(index), self.mask(index))

    def mask(self, index: int) -> Mask:
        """Return the mask of an image; errors as in `Masks.read`."""
        return self.masks.read(int(self.ids[index]))

    def take(self, ids: Integers) -> MaskSource:
        """Return the images of `ids`, in order."""
        return MaskSource(self.images, self.masks, self.mask_classes, self.ids[ids])

    def fingerprint(self) -> str:
        """Hash the images, the masks and the classes; of some of the images as `subset` does."""
        parts = [self.images.fingerprint(), self.masks.fingerprint(), *self.mask_classes]
        whole = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        if np.array_equal(self.ids, np.arange(len(self.images))):
            return whole
        return hashlib.sha256(whole.encode() + self.ids.tobytes()).hexdigest()
