"""What a picture file says about itself, read from its head before its pixels are decoded.

Magic bytes decide what a file is, whatever its name: text called `x.jpg` never reaches a decoder,
and neither does a file of a few bytes that claims to be gigapixels large.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike
from PIL import Image, UnidentifiedImageError

from mae.config import PixelDtype
from mae.errors import DataError

MAX_PIXELS = 2**27
"""Largest picture that is decoded, in pixels; Pillow refuses by itself a third above it."""

_MAX_CHANNELS = 64  # more in an array is taken for an axis in the wrong place
_SAMPLES_PER_PIXEL = 277  # a TIFF tag
_MAGIC = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<TIFF>II[*+]\0|MM\0[*+])"
    rb"|(?P<GIF>GIF8[79]a)|(?P<BMP>BM)|(?P<WEBP>RIFF....WEBP)|(?P<NPY>\x93NUMPY)",
    re.DOTALL,
)


class BadPicture(DataError):
    """A picture that cannot be read; the message is the reason alone, the caller has the name."""


class PixelKind(NamedTuple):
    """Type and channels of decoded pixels."""

    dtype: PixelDtype
    channels: int


_MODES: dict[str, PixelKind] = {
    **dict.fromkeys(("1", "L", "LA"), PixelKind("uint8", 1)),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr"), PixelKind("uint8", 3)),
    # Pillow gives 16 signed and 32 bits as I; decoding refuses values that 16 bits cannot hold.
    **dict.fromkeys(("I", "I;16", "I;16B", "I;16L", "I;16N"), PixelKind("uint16", 1)),
    "F": PixelKind("float32", 1),
}


def read_kind(file: BinaryIO) -> PixelKind:
    """Read what pixels a file holds from its head.

    Raises:
        BadPicture: for what is no picture, or one of more than `MAX_PIXELS` pixels.
    """
    file_format = format_of(file.read(16))
    file.seek(0)
    with pillow_faults(file_format):
        if file_format == "NPY":
            return npy_kind(file)
        with Image.open(file, formats=(file_format,)) as picture:
            return picture_kind(picture)


def format_of(head: bytes) -> str:
    """Name the format, as Pillow does, from the first bytes of a file."""
    found = _MAGIC.match(head)
    if found is None or found.lastgroup is None:
        raise BadPicture(f"not a picture (begins with {head[:8]!r})" if head else "empty file")
    return found.lastgroup


@contextmanager
def pillow_faults(file_format: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a BadPicture; its warnings go nowhere.

    Everything is caught: OSError, SyntaxError, ValueError, struct.error, IndexError, KeyError,
    TypeError, MemoryError and more come out of damaged files.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except BadPicture:
            raise
        except Exception as error:
            reason = printable(str(error) or type(error).__name__)[:80]
            if isinstance(error, UnidentifiedImageError):  # its message has an address
                reason = "its header makes no sense, or is of an unknown sort"
            raise BadPicture(f"{file_format} that cannot be decoded ({reason})") from error


def picture_kind(picture: Image.Image) -> PixelKind:
    """Give the kind of a picture that Pillow opened but has not decoded; refuse a too large one."""
    _check_size(picture.height, picture.width)
    if picture.mode not in _MODES:
        raise BadPicture(f"pixels of mode {picture.mode}, expected grey, colour or palette")
    bands = len(picture.getbands())
    stored = getattr(picture, "tag_v2", {}).get(_SAMPLES_PER_PIXEL, bands)
    if stored > bands and picture.mode != "P":
        raise BadPicture(f"TIFF of {stored} bands, of which Pillow reads {bands}; save it as .npy")
    return _MODES[picture.mode]


def npy_kind(file: BinaryIO) -> PixelKind:
    """Read the header of a .npy file; refuse what is not H W or H W C, or too large."""
    version = npy.read_magic(file)
    if version != (1, 0):
        raise BadPicture(f"NPY of version {version}, expected 1.0")
    shape, _, dtype = npy.read_array_header_1_0(file)
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or not 1 <= channels <= _MAX_CHANNELS:
        raise BadPicture(f"array of shape {shape}, expected H W or H W C")
    _check_size(*shape[:2])
    return PixelKind(pixel_dtype(dtype), channels)


def _check_size(height: int, width: int) -> None:
    if min(height, width) < 1:
        raise BadPicture(f"no pixels ({height} x {width})")
    if height * width > MAX_PIXELS:
        raise BadPicture(f"too large ({height} x {width}, at most {MAX_PIXELS} pixels)")


def pixel_dtype(dtype: DTypeLike) -> PixelDtype:
    """Name the type that stored values are kept in.

    Raises:
        BadPicture: for anything but uint8, uint16 and floating point.
    """
    found = np.dtype(dtype)
    if found.kind == "f":
        return "float32"
    if found.kind == "u" and found.itemsize <= 2:
        return "uint8" if found.itemsize == 1 else "uint16"
    raise BadPicture(f"values of type {found}, expected uint8, uint16 or float32")


def printable(text: str) -> str:
    """Escape what cannot be printed on one line: breaks, tabs, bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
