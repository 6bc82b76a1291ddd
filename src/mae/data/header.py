"""What a picture file says about itself, read from its head before any decoder sees the file.

Magic bytes decide what a file is, whatever its name: text called `x.jpg` never reaches a decoder,
and neither does a file of a few bytes that claims to be gigapixels large.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike
from PIL import Image

from mae.config import PixelDtype
from mae.errors import DataError

MAX_PIXELS = 2**27
"""Largest picture that is decoded, in pixels; Pillow refuses by itself a third above it."""

_MAX_CHANNELS = 64  # more in an array is taken for an axis in the wrong place
_SAMPLES_PER_PIXEL = 277  # a TIFF tag

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"\x93NUMPY", "NPY"),
)


class BadPicture(DataError):
    """A picture that cannot be read; the message is the reason alone, the caller has the name."""


class PixelKind(NamedTuple):
    """Type and channels of decoded pixels."""

    dtype: PixelDtype
    channels: int


class Header(NamedTuple):
    """What a file holds: its format (Pillow's name, or NPY), size as stored, and kind of pixels."""

    file_format: str
    height: int
    width: int
    kind: PixelKind


_MODES: dict[str, PixelKind] = {
    **dict.fromkeys(("1", "L", "LA", "La"), PixelKind("uint8", 1)),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr"), PixelKind("uint8", 3)),
    # Pillow gives 16 signed and 32 bits as I; decoding refuses values that 16 bits cannot hold.
    **dict.fromkeys(("I", "I;16", "I;16B", "I;16L", "I;16N"), PixelKind("uint16", 1)),
    "F": PixelKind("float32", 1),
}


def read_header(file: BinaryIO) -> Header:
    """Read what a file holds from its head.

    Args:
        file: an open file at its start; left anywhere.
    Raises:
        BadPicture: for what is no picture, or one of more than `MAX_PIXELS` pixels.
    """
    head = file.read(32)
    file_format = format_of(head)
    if file_format == "NPY":
        (height, width, channels), _, dtype = npy_layout(file)
        check_size(height, width)
        return Header(file_format, height, width, PixelKind(pixel_dtype(dtype), channels))
    if file_format == "WEBP":  # Pillow's WebP reader decodes on opening
        check_size(*_webp_size(head))
    with pillow_faults(file_format), open_pillow(file, file_format) as picture:
        width, height = picture.size
        check_size(height, width)
        return Header(file_format, height, width, _pillow_kind(picture))


def format_of(head: bytes) -> str:
    """Name the format from the first bytes of a file."""
    for magic, file_format in _MAGIC:
        if head.startswith(magic):
            return file_format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    raise BadPicture(f"not a picture (begins with {head[:8]!r})" if head else "empty file")


def check_size(height: int, width: int) -> None:
    """Refuse a picture without pixels or with more than `MAX_PIXELS`."""
    if min(height, width) < 1:
        raise BadPicture(f"no pixels ({height} x {width})")
    if height * width > MAX_PIXELS:
        raise BadPicture(f"too large ({height} x {width}, at most {MAX_PIXELS} pixels)")


def open_pillow(file: BinaryIO, file_format: str) -> Image.Image:
    """Open a file lazily as the one format that its magic bytes name."""
    file.seek(0)
    return Image.open(file, formats=(file_format,))


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
            if " object at 0x" in reason:  # an address differs from run to run
                reason = "its header makes no sense, or is of an unknown sort"
            if isinstance(error, Image.DecompressionBombError):
                reason = "too large"
            raise BadPicture(f"{file_format} that cannot be decoded ({reason})") from error


def _pillow_kind(picture: Image.Image) -> PixelKind:
    kind = _MODES.get(picture.mode)
    if kind is None:
        raise BadPicture(f"pixels of mode {picture.mode}, expected grey, colour or palette")
    bands = len(picture.getbands())
    stored = getattr(picture, "tag_v2", {}).get(_SAMPLES_PER_PIXEL, bands)
    if stored > bands and picture.mode != "P":
        raise BadPicture(f"TIFF of {stored} bands, of which Pillow reads {bands}; save it as .npy")
    return kind


def _webp_size(head: bytes) -> tuple[int, int]:
    """Height and width of the canvas (WebP container specification, RFC 9649)."""
    if head[12:16] == b"VP8X":
        width, height = head[24:27], head[27:30]
        return int.from_bytes(height, "little") + 1, int.from_bytes(width, "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    size = int.from_bytes(head[26:30], "little")
    return size >> 16 & 0x3FFF, size & 0x3FFF


class NpyLayout(NamedTuple):
    """How a .npy file stores its values."""

    shape: tuple[int, int, int]
    columns_first: bool
    dtype: np.dtype[Any]


def npy_layout(file: BinaryIO) -> NpyLayout:
    """Read the header of a .npy file and leave it at its values.

    Raises:
        BadPicture: unless it holds H W or H W C.
    """
    file.seek(0)
    with pillow_faults("NPY"):
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise BadPicture(f"NPY of version {version}, expected 1.0 or 2.0")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, columns_first, dtype = read(file)
    H, W, C = shape if len(shape) == 3 else (*shape, 1) if len(shape) == 2 else (0, 0, 0)
    if not 1 <= C <= _MAX_CHANNELS:
        raise BadPicture(f"array of shape {shape}, expected H W or H W C")
    return NpyLayout((H, W, C), columns_first, dtype)


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
