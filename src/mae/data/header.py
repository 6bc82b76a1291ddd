"""What a picture file says about itself, read from its head before any decoder sees the file.

Magic bytes decide what a file is, whatever its name: text called `x.jpg` never reaches a decoder,
and neither does a file of a few bytes that claims to be gigapixels large.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike
from PIL import Image, UnidentifiedImageError

from mae.config import PixelDtype
from mae.errors import DataError

MAX_PIXELS = 2**27
"""Largest picture that is decoded, in pixels; Pillow refuses by itself a third above it."""
MAX_CHANNELS = 64
"""Most channels an array may have; more is taken for an axis in the wrong place."""


class BadPicture(DataError):
    """A picture that cannot be read; the message is the reason alone, the caller has the name."""


class PixelKind(NamedTuple):
    """Type and channels of decoded pixels."""

    dtype: PixelDtype
    channels: int


class Header(NamedTuple):
    """What a file holds."""

    file_format: str
    """Pillow's name of the format, or NPY."""
    height: int
    """Rows as stored, before the EXIF orientation."""
    width: int
    """Columns as stored."""
    kind: PixelKind
    """What its pixels become: alpha dropped, palette and CMYK turned to RGB."""
    components: int
    """Stored values of a pixel."""
    orientation: int
    """EXIF orientation of a JPEG, 1 to 8; 1 for other files, whose decoder knows."""


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
    if not head:
        raise BadPicture("empty file")
    file_format = _file_format(head)
    if file_format == "JPEG":
        header = _jpeg_header(file)
    elif file_format == "NPY":
        header = _npy_header(file)
    else:
        if file_format == "WEBP":  # Pillow's WebP reader decodes on opening
            check_size(*_webp_size(head))
        with pillow_faults(file_format), open_pillow(file, file_format) as picture:
            header = _pillow_header(picture)
    check_size(header.height, header.width)
    return header


def _file_format(head: bytes) -> str:
    for magic, file_format in _MAGIC:
        if head.startswith(magic):
            return file_format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    raise BadPicture(f"not a picture (begins with {head[:8]!r})")


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
    TypeError, MemoryError ... have all been seen on damaged files.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except BadPicture:
            raise
        except UnidentifiedImageError as error:  # its message holds an address in memory
            raise BadPicture(f"{file_format} that cannot be decoded (its header)") from error
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BadPicture(f"{file_format} that cannot be decoded ({reason})") from error


def _pillow_header(picture: Image.Image) -> Header:
    width, height = picture.size
    kind = _MODES.get(picture.mode)
    if kind is None:
        raise BadPicture(f"pixels of mode {picture.mode}, expected grey, colour or palette")
    bands = len(picture.getbands())
    stored = getattr(picture, "tag_v2", {}).get(277, bands)  # TIFF: samples of a pixel
    if stored > bands:
        raise BadPicture(f"TIFF of {stored} bands, of which Pillow reads {bands}; save it as .npy")
    return Header(str(picture.format), height, width, kind, bands, 1)


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


_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, all kinds of JPEG
_END_OF_HEADER = {0xD9, 0xDA}


def _jpeg_header(file: BinaryIO) -> Header:
    orientation = 1
    file.seek(2)
    while True:
        marker = file.read(2)
        while marker == b"\xff\xff":  # fill bytes
            marker = b"\xff" + file.read(1)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in _END_OF_HEADER:
            raise BadPicture("JPEG without a picture (its header is damaged or cut off)")
        if marker[1] in _STANDALONE:
            continue
        length = max(0, int.from_bytes(file.read(2), "big") - 2)
        if marker[1] in _FRAMES:
            break
        if marker[1] == 0xE1:
            orientation = _exif_orientation(file.read(length)) or orientation
        else:
            file.seek(length, os.SEEK_CUR)
    frame = file.read(6)
    if len(frame) < 6:
        raise BadPicture("JPEG that is cut off in its header")
    bits, height, width, components = struct.unpack(">BHHB", frame)
    if bits != 8:
        raise BadPicture(f"JPEG of {bits} bits, expected 8")
    kind = PixelKind("uint8", 1 if components == 1 else 3)
    return Header("JPEG", height, width, kind, components, orientation)


def _exif_orientation(segment: bytes) -> int | None:
    """Orientation in an EXIF segment; None without one, or where the segment makes no sense."""
    if not segment.startswith(b"Exif\x00\x00"):
        return None
    exif = segment[6:]
    order = "<" if exif[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else None
    except struct.error:  # cut off, or pointing outside
        pass
    return None


def _npy_header(file: BinaryIO) -> Header:
    shape, _, dtype = npy_layout(file)
    channels = shape[2] if len(shape) == 3 else 1
    kind = PixelKind(pixel_dtype(dtype), channels)
    return Header("NPY", shape[0], shape[1], kind, channels, 1)


def npy_layout(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Shape (H W or H W C), whether columns come first, and type of a .npy file; then at its data."""
    file.seek(0)
    with pillow_faults("NPY"):
        version = npy_format.read_magic(file)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else None
        if version == (2, 0):
            read = npy_format.read_array_header_2_0
        if read is None:
            raise BadPicture(f"NPY of version {version}, expected 1.0 or 2.0")
        shape, columns_first, dtype = read(file)
    if len(shape) not in (2, 3) or (len(shape) == 3 and not 1 <= shape[2] <= MAX_CHANNELS):
        raise BadPicture(f"array of shape {shape}, expected H W or H W C")
    return shape, columns_first, dtype


def pixel_dtype(dtype: DTypeLike) -> PixelDtype:
    """Type that pixels stored as `dtype` are kept in.

    Raises:
        BadPicture: for anything but uint8, uint16 and floating point.
    """
    found = np.dtype(dtype)
    if found.kind == "f":
        return "float32"
    if found.kind == "u" and found.itemsize <= 2:
        return "uint8" if found.itemsize == 1 else "uint16"
    raise BadPicture(f"values of type {found}, expected uint8, uint16 or float32")
