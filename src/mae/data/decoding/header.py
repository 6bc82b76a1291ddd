"""Read format, size and pixel kind from image headers without decoding.

Magic bytes decide the format, not the file name. Text called `x.jpg`, or a file of a few bytes that
claims to be gigapixels large, never reaches a decoder.
"""

from __future__ import annotations

import logging
import re
import textwrap
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike
from PIL import Image, UnidentifiedImageError

from mae.config.model import ModelConfig, PixelDtype
from mae.data.decoding import jpeg, libtiff, tiff
from mae.data.decoding.arrays import channels_first
from mae.data.types import Log, Size
from mae.errors import DataError

MAX_PIXELS = 2**27
"""Largest image that is decoded, in pixels; Pillow itself refuses above 4/3 of it."""

_MAX_CHANNELS = 64  # more suggest a wrong axis order
_MAX_BYTES = 2**32  # of decoded pixels: a small compressed file can claim any number
_LONGEST_REASON = 200  # characters of a decoder's message
_HEAD_BYTES = 2**18  # searched for the frame header of a JPEG: profiles come before it
_MAGIC = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<TIFF>II[*+]\0|MM\0[*+])"
    rb"|(?P<GIF>GIF8[79]a)|(?P<BMP>BM)|(?P<WEBP>RIFF....WEBP)|(?P<NPY>\x93NUMPY)",
    re.DOTALL,
)
_ELSEWHERE = re.compile(
    rb"....ftyp(?P<AVIF>avi[fs])|....ftyp(?P<HEIC>hei[cmsx]|hev[cmsx]|mi[fs]1|msf1)"
    rb"|(?P<JPEG_XL>\xff\x0a|\0\0\0\x0cJXL )|(?P<JPEG_2000>\0\0\0\x0cjP  |\xff\x4f\xff\x51)"
    rb"|(?P<PSD>8BPS)|(?P<OpenEXR>\x76\x2f\x31\x01)|(?P<DDS>DDS )|(?P<Netpbm>P[1-6]\s)",
    re.DOTALL,
)
"""Valid image formats that are not supported."""

for _decoder in ("PIL", "tifffile"):
    # Keep their logs of damaged files off stderr; handlers of the caller still receive them.
    logging.getLogger(_decoder).addHandler(logging.NullHandler())


class BadImage(DataError):
    """An image that cannot be read; the message is the reason only, the caller adds the name."""


class UnsupportedImage(BadImage):
    """An image that may be valid, but that this run or this installation does not support."""


class PixelKind(NamedTuple):
    """Type and channels of decoded pixels."""

    dtype: PixelDtype
    channels: int


class PagesKind(PixelKind):
    """A kind whose channels are the grey pages of a TIFF, as many as requested."""

    __slots__ = ()


def kind_of(model: ModelConfig) -> PixelKind:
    """Return the pixel kind that a network was trained on.

    Older weights do not record whether TIFF pages were read as channels; with other than 1 or 3
    channels, it is assumed.
    """
    pages = model.pixels.tiff_pages or model.channels not in (1, 3)
    return (PagesKind if pages else PixelKind)(model.pixels.dtype, model.channels)


def asked_channels(kind: PixelKind | None) -> int | None:
    """Return the number of TIFF pages to read as channels, or None, for `read_header`."""
    return kind.channels if isinstance(kind, PagesKind) else None


_MODES: dict[str, PixelKind] = {
    **dict.fromkeys(("1", "L", "LA"), PixelKind("uint8", 1)),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr"), PixelKind("uint8", 3)),
    # Pillow's mode I holds signed 16 and 32 bits; decoding rejects values beyond 16 unsigned bits.
    **dict.fromkeys(("I", "I;16", "I;16B", "I;16L", "I;16N"), PixelKind("uint16", 1)),
    "F": PixelKind("float32", 1),
}


class ImageHeader(NamedTuple):
    """ImageHeader from the header of a file."""

    format: str
    """Pillow's name of the format, or NPY."""
    kind: PixelKind
    size: Size
    """As stored, before any rotation that the file asks for."""
    left_out: str = ""
    """Content of the file that is never read."""


def read_kind(file: BinaryIO, *, channels: int | None = None) -> PixelKind:
    """Read the pixel kind of a file from its header.

    Args:
        file: an encoded image.
        channels: requested by the user, if at all; the pages of a TIFF with this many grey pages
            are then its channels, and the kind is a `PagesKind`.

    Raises:
        BadImage: if the file is no image, or has more than `MAX_PIXELS` pixels.
    """
    return read_header(file, channels=channels).kind


def read_header(file: BinaryIO, *, channels: int | None = None) -> ImageHeader:
    """Read format, kind and left-out content of a file; arguments and errors as in `read_kind`."""
    with opened(file, channels=channels) as found:
        return found.header


class Opened(NamedTuple):
    """An image file that is open but not decoded."""

    header: ImageHeader
    image: Image.Image | None = None
    """The file opened by Pillow; None for NPY and for a TIFF unknown to Pillow."""
    layout: tiff.Layout | None = None
    """Layout of a TIFF that Pillow would not read in full; None for any other file."""


@contextmanager
def opened(file: BinaryIO, *, channels: int | None = None) -> Iterator[Opened]:
    """Open an image file and check its header; arguments and errors as in `read_kind`.

    While it is open, any exception of a decoder becomes a `BadImage`.
    """
    head = file.read(32)
    file_format = format_of(head)
    file.seek(0)
    with pillow_faults(file_format), ExitStack() as stack:
        if file_format == "NPY":
            yield Opened(ImageHeader(file_format, *npy_kind(file)))
            return
        try:
            image = stack.enter_context(Image.open(file, formats=(file_format,)))
        except UnidentifiedImageError:
            if file_format == "JPEG":
                file.seek(0)
                if reason := jpeg.other_process(file.read(_HEAD_BYTES)):
                    raise UnsupportedImage(reason) from None
            if file_format != "TIFF":
                raise
            image = None
        layout = _tiff_layout(file, image, channels) if file_format == "TIFF" else None
        if layout is not None:
            size = layout.height, layout.width
            yield Opened(ImageHeader(file_format, _layout_kind(layout), size), image, layout)
        elif image is not None:
            yield Opened(_pillow_header(image, head), image)


def _pillow_header(image: Image.Image, head: bytes) -> ImageHeader:
    file_format, kind, left_out = format_of(head), image_kind(image), ""
    if is_deep_grey_alpha(head):
        kind = PixelKind("uint16", 1)
    elif getattr(image, "is_animated", False):
        left_out = "frames or pages after the first"
    elif file_format == "PNG" and head[24] == 16 and image.mode in ("RGB", "RGBA"):
        left_out = "the lower 8 of 16 bits of colour PNG"  # which Pillow drops
    return ImageHeader(file_format, kind, (image.height, image.width), left_out)


def _tiff_layout(
    file: BinaryIO, image: Image.Image | None, channels: int | None
) -> tiff.Layout | None:
    """Return the layout of a TIFF that Pillow would not read in full."""
    beyond = True
    if image is not None:
        beyond = tiff.beyond_pillow(image)
        if not beyond and not 1 < getattr(image, "n_frames", 1) == channels:
            return None
    layout = tiff.read_layout(file, channels=channels)
    if not (beyond or layout.pages):
        return None
    bytes_per_pixel = layout.channels * layout.dtype.itemsize
    _check_size(layout.height, layout.width, bytes_per_pixel=bytes_per_pixel)
    if layout.channels > _MAX_CHANNELS:
        raise UnsupportedImage(f"{layout.channels} channels, expected at most {_MAX_CHANNELS}")
    return layout


def is_deep_grey_alpha(head: bytes) -> bool:
    """Whether a file begins as a 16-bit grey PNG with alpha, which Pillow reads as 8-bit colour."""
    return head[:4] == b"\x89PNG" and tuple(head[24:26]) == (16, 4)  # bits and colour type


def grey_alpha_as_bytes(data: bytes) -> bytes:
    """Relabel a 16-bit grey-alpha PNG as 8-bit RGBA: the four bytes of a pixel become R, G, B, A.

    Filters and interlacing work on whole pixels, so nothing else in the file changes.
    """
    head = data[12:24] + bytes((8, 6)) + data[26:29]  # chunk type and data
    return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]


def _layout_kind(layout: tiff.Layout) -> PixelKind:
    # As for Pillow's mode I: decoding rejects values beyond 8 or 16 unsigned bits.
    dtype = layout.dtype
    if dtype.kind in "iu":
        dtype = np.dtype(np.uint8 if dtype.itemsize == 1 else np.uint16)
    kind = PagesKind if layout.pages else PixelKind
    return kind(pixel_dtype(dtype), layout.channels)


def format_of(head: bytes) -> str:
    """Return Pillow's name of the format, from the first bytes of a file."""
    found = _MAGIC.match(head)
    if found is None or found.lastgroup is None:
        if (other := _ELSEWHERE.match(head)) is not None and other.lastgroup is not None:
            name = other.lastgroup.replace("_", " ")
            raise UnsupportedImage(f"{name}, which is not read; save it as JPEG, PNG, TIFF or WebP")
        raise BadImage(f"not an image (begins with {head[:8]!r})" if head else "empty file")
    return found.lastgroup


@contextmanager
def pillow_faults(file_format: str) -> Iterator[None]:
    """Convert every decoder exception to a BadImage and suppress warnings.

    Every exception is caught: damaged files raise OSError, SyntaxError, ValueError, struct.error,
    IndexError, KeyError, TypeError, MemoryError and more.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except BadImage:
            raise
        except ModuleNotFoundError as error:
            raise UnsupportedImage(f"{file_format} needs a further library: {error}") from error
        except NotImplementedError as error:
            raise UnsupportedImage(_in_one_line(error)) from error
        except Image.DecompressionBombError as error:
            count = [*re.findall(r"\d+", str(error)), "more"][0]
            raise UnsupportedImage(f"too large ({count} pixels, at most {MAX_PIXELS})") from error
        except Exception as error:
            reason = _in_one_line(error)
            if isinstance(error, UnidentifiedImageError):  # its message contains a memory address
                reason = "its header is invalid, or of an unknown type"
            # An unsupported feature is not damage.
            fault = UnsupportedImage if reason.lower().startswith("unsupported") else BadImage
            raise fault(f"{file_format} that cannot be decoded ({reason})") from error


def _in_one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return printable(textwrap.shorten(text, _LONGEST_REASON, placeholder=" ..."))


@contextmanager
def libtiff_heard(file_format: str, warn: Log) -> Iterator[None]:
    """Handle libtiff's messages while Pillow decodes: errors for pixel data, else warnings.

    Args:
        file_format: formats other than TIFF are ignored.
        warn: called with one line.

    Raises:
        BadImage: with libtiff's first message about pixel data.
    """
    if file_format != "TIFF":
        yield
        return
    failure = None
    with libtiff.messages_caught() as messages:
        try:
            yield
        except Exception as error:
            if not messages:
                raise
            failure = error
    if damage := [line for line in messages if failure or libtiff.in_the_pixels(line)]:
        more = f", and {len(damage) - 1} more" if len(damage) > 1 else ""
        reason = f"TIFF that cannot be decoded ({printable(damage[0])}{more})"
        raise BadImage(reason) from failure
    if messages:
        warn(f"TIFF with a damaged tag ({printable(messages[0])})")


def image_kind(image: Image.Image) -> PixelKind:
    """Return the kind of an image that Pillow opened but has not decoded; reject too large ones."""
    _check_size(image.height, image.width)
    if image.mode not in _MODES:
        raise UnsupportedImage(f"pixels of mode {image.mode}, expected grey, colour or palette")
    return _MODES[image.mode]


def npy_kind(file: BinaryIO) -> tuple[PixelKind, Size]:
    """Read kind and size of a .npy file; reject arrays that are not H W or H W C, or too large."""
    version = npy.read_magic(file)
    if version != (1, 0):
        raise UnsupportedImage(f"NPY of version {version}, expected 1.0")
    shape, _, dtype = npy.read_array_header_1_0(file)
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) == 3 and channels_first(shape):
        found = f"array of shape {shape}, which may be C H W, expected H W or H W C"
        raise UnsupportedImage(f"{found}: save array.transpose(1, 2, 0)")
    if len(shape) not in (2, 3) or not 1 <= channels <= _MAX_CHANNELS:
        raise UnsupportedImage(f"array of shape {shape}, expected H W or H W C")
    _check_size(*shape[:2], bytes_per_pixel=channels * dtype.itemsize)
    return PixelKind(pixel_dtype(dtype), channels), (shape[0], shape[1])


def _check_size(height: int, width: int, *, bytes_per_pixel: int = 1) -> None:
    if min(height, width) < 1:
        raise BadImage(f"no pixels ({height} x {width})")
    if height * width > MAX_PIXELS:
        raise UnsupportedImage(f"too large ({height} x {width}, at most {MAX_PIXELS} pixels)")
    if height * width * bytes_per_pixel > _MAX_BYTES:
        found = f"{height} x {width} of {bytes_per_pixel} bytes each"
        raise UnsupportedImage(f"too large ({found}, at most {_MAX_BYTES} bytes)")


def pixel_dtype(dtype: DTypeLike) -> PixelDtype:
    """Return the pixel type for a stored dtype.

    Raises:
        BadImage: for any dtype but uint8, uint16 and floating point.
    """
    found = np.dtype(dtype)
    if found.kind == "f":
        return "float32"
    if found.kind == "u" and found.itemsize <= 2:
        return "uint8" if found.itemsize == 1 else "uint16"
    raise UnsupportedImage(f"values of type {found}, expected uint8, uint16 or float32")


def printable(text: str) -> str:
    """Escape unprintable characters: line breaks, tabs, bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
