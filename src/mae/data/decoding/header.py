"""What a picture file says about itself, read from its head before its pixels are decoded.

Magic bytes decide what a file is, whatever its name: text called `x.jpg` never reaches a decoder,
and neither does a file of a few bytes that claims to be gigapixels large.
"""

from __future__ import annotations

import logging
import re
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike
from PIL import Image, UnidentifiedImageError

from mae.config.model import ModelConfig, PixelDtype
from mae.data.decoding import jpeg, libtiff, tiff
from mae.data.decoding.arrays import channels_first
from mae.errors import DataError

MAX_PIXELS = 2**27
"""Largest picture that is decoded, in pixels; Pillow refuses by itself a third above it."""

_MAX_CHANNELS = 64  # more in an array is taken for an axis in the wrong place
_MAX_BYTES = 2**32  # of decoded pixels: deflated, a small file can claim any number of them
_LONGEST_REASON = 200  # letters of a decoder's own words
_HEAD_BYTES = 2**18  # of a JPEG that is looked at for its process: profiles come before
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
"""Formats of sound images that are not read."""

for _decoder in ("PIL", "tifffile"):
    # What they log of damaged files would land on stderr; a handler of the caller's still sees it.
    logging.getLogger(_decoder).addHandler(logging.NullHandler())


class BadPicture(DataError):
    """A picture that cannot be read; the message is the reason alone, the caller has the name."""


class UnfitPicture(BadPicture):
    """A picture that may be sound, but that this run, or this installation, cannot take."""


class PixelKind(NamedTuple):
    """Type and channels of decoded pixels."""

    dtype: PixelDtype
    channels: int


class PagesKind(PixelKind):
    """A kind whose channels were asked for: as many grey pages of a TIFF are channels."""

    __slots__ = ()


def kind_of(model: ModelConfig) -> PixelKind:
    """Give the kind of images that a network was trained on.

    Older weights do not say whether pages were asked for; where they take other than 1 or 3
    channels, nothing else would fit them.
    """
    pages = model.pixels.tiff_pages or model.channels not in (1, 3)
    return (PagesKind if pages else PixelKind)(model.pixels.dtype, model.channels)


def asked_channels(kind: PixelKind | None) -> int | None:
    """Give how many pages of a TIFF are channels of an image, for `read_facts`."""
    return kind.channels if isinstance(kind, PagesKind) else None


_MODES: dict[str, PixelKind] = {
    **dict.fromkeys(("1", "L", "LA"), PixelKind("uint8", 1)),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr"), PixelKind("uint8", 3)),
    # Pillow gives 16 signed and 32 bits as I; decoding refuses values that 16 bits cannot hold.
    **dict.fromkeys(("I", "I;16", "I;16B", "I;16L", "I;16N"), PixelKind("uint16", 1)),
    "F": PixelKind("float32", 1),
}


class Facts(NamedTuple):
    """What the head of a file says."""

    format: str
    """As Pillow names it, or NPY."""
    kind: PixelKind
    left_out: str = ""
    """What is in the file and never read."""


_SHALLOW = ("RGB", "RGBA")  # modes of PNG that Pillow reads as 8 bits whatever is stored
_GREY_ALPHA = (16, 4)  # bits and colour type of a PNG that Pillow takes for colour of 8 bits


def read_kind(file: BinaryIO, *, channels: int | None = None) -> PixelKind:
    """Read what pixels a file holds from its head.

    Args:
        file: an encoded image.
        channels: what the user asks for, if they do; a TIFF of so many grey pages has them then,
            and the kind is a `PagesKind`.

    Raises:
        BadPicture: for what is no image, or one of more than `MAX_PIXELS` pixels.
    """
    return read_facts(file, channels=channels).kind


def read_facts(file: BinaryIO, *, channels: int | None = None) -> Facts:
    """Read what a file says of itself, by the rules and with the errors of `read_kind`."""
    head = file.read(32)
    file_format = format_of(head)
    file.seek(0)
    with pillow_faults(file_format):
        if file_format == "NPY":
            return Facts(file_format, npy_kind(file))
        with opened(file, file_format) as picture:
            layout = layout_beyond_pillow(file, picture, channels=channels)
            if picture is None or layout is not None:
                assert layout is not None
                return Facts(file_format, _layout_kind(layout))
            if is_deep_grey_alpha(head):
                _check_size(picture.height, picture.width)
                return Facts(file_format, PixelKind("uint16", 1))
            left_out = ""
            if getattr(picture, "is_animated", False):
                left_out = "frames or pages after the first"
            elif file_format == "PNG" and head[24] == 16 and picture.mode in _SHALLOW:
                left_out = "the lower 8 of 16 bits of colour PNG"
            return Facts(file_format, picture_kind(picture), left_out)


@contextmanager
def opened(file: BinaryIO, file_format: str) -> Iterator[Image.Image | None]:
    """Open a picture by Pillow without decoding it; None for a TIFF that Pillow does not know."""
    try:
        picture = Image.open(file, formats=(file_format,))
    except UnidentifiedImageError:
        if file_format == "JPEG":
            file.seek(0)
            if reason := jpeg.other_process(file.read(_HEAD_BYTES)):
                raise UnfitPicture(reason) from None
        if file_format != "TIFF":
            raise
        yield None
        return
    with picture:
        yield picture


def layout_beyond_pillow(
    file: BinaryIO, picture: Image.Image | None, *, channels: int | None
) -> tiff.Layout | None:
    """Give the layout of a TIFF that Pillow would not read in full; None for any other picture.

    Args:
        file: what was opened.
        picture: by `opened`.
        channels: see `read_kind`.
    """
    if picture is not None:
        if picture.format != "TIFF" or not tiff.beyond_pillow(picture, channels=channels):
            return None
        _check_size(picture.height, picture.width)
    layout = tiff.read_layout(file, channels=channels)
    bytes_per_pixel = layout.channels * layout.dtype.itemsize
    _check_size(layout.height, layout.width, bytes_per_pixel=bytes_per_pixel)
    if layout.channels > _MAX_CHANNELS:
        raise UnfitPicture(f"{layout.channels} channels, expected at most {_MAX_CHANNELS}")
    return layout


def is_deep_grey_alpha(head: bytes) -> bool:
    """Tell a PNG of grey with alpha of 16 bits by its first 26 bytes."""
    return head[:4] == b"\x89PNG" and tuple(head[24:26]) == _GREY_ALPHA


def grey_alpha_as_bytes(data: bytes) -> bytes:
    """Call the two 16-bit values of each pixel of such a PNG four of 8 bits, R, G, B and alpha.

    Filters and interlacing know whole pixels only, so nothing else in the file changes.
    """
    head = data[12:24] + bytes((8, 6)) + data[26:29]  # from the chunk's name to its end
    return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]


def _layout_kind(layout: tiff.Layout) -> PixelKind:
    # As for Pillow's mode I: decoding refuses values that 8 or 16 bits without a sign cannot hold.
    dtype = layout.dtype
    if dtype.kind in "iu":
        dtype = np.dtype(np.uint8 if dtype.itemsize == 1 else np.uint16)
    kind = PagesKind if layout.pages else PixelKind
    return kind(pixel_dtype(dtype), layout.channels)


def format_of(head: bytes) -> str:
    """Name the format, as Pillow does, from the first bytes of a file."""
    found = _MAGIC.match(head)
    if found is None or found.lastgroup is None:
        if (other := _ELSEWHERE.match(head)) is not None and other.lastgroup is not None:
            name = other.lastgroup.replace("_", " ")
            raise UnfitPicture(f"{name}, which is not read; save it as JPEG, PNG, TIFF or WebP")
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
        except ModuleNotFoundError as error:
            raise UnfitPicture(f"{file_format} of a sort that needs more: {error}") from error
        except NotImplementedError as error:
            raise UnfitPicture(_in_one_line(error)) from error
        except Image.DecompressionBombError as error:
            found = re.search(r"\d+", str(error))
            raise UnfitPicture(
                f"too large ({found[0] if found else 'more'} pixels, at most {MAX_PIXELS})"
            ) from error
        except Exception as error:
            reason = _in_one_line(error)
            if isinstance(error, UnidentifiedImageError):  # its message has an address
                reason = "its header makes no sense, or is of an unknown sort"
            # A decoder that says so is not faced with damage.
            fault = UnfitPicture if reason.lower().startswith("unsupported") else BadPicture
            raise fault(f"{file_format} that cannot be decoded ({reason})") from error


def _in_one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return printable(textwrap.shorten(text, _LONGEST_REASON, placeholder=" ..."))


@contextmanager
def libtiff_heard(file_format: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Take what libtiff says while Pillow decodes: of pixels as an error, else as a warning.

    Args:
        file_format: nothing is done for others than TIFF.
        warn: takes one line.

    Raises:
        BadPicture: with libtiff's first message of the pixels.
    """
    if file_format != "TIFF":
        yield
        return
    with libtiff.messages_caught() as messages:
        try:
            yield
        except Exception as error:
            if messages:
                raise BadPicture(_told(messages)) from error
            raise
    if damage := [line for line in messages if libtiff.in_the_pixels(line)]:
        raise BadPicture(_told(damage))
    if messages:
        warn(f"TIFF of which a tag is damaged ({printable(messages[0])})")


def _told(messages: Sequence[str]) -> str:
    more = f", and {len(messages) - 1} more" if len(messages) > 1 else ""
    return f"TIFF that cannot be decoded ({printable(messages[0])}{more})"


def picture_kind(picture: Image.Image) -> PixelKind:
    """Give the kind of a picture that Pillow opened but has not decoded; refuse a too large one."""
    _check_size(picture.height, picture.width)
    if picture.mode not in _MODES:
        raise UnfitPicture(f"pixels of mode {picture.mode}, expected grey, colour or palette")
    return _MODES[picture.mode]


def npy_kind(file: BinaryIO) -> PixelKind:
    """Read the header of a .npy file; refuse what is not H W or H W C, or too large."""
    version = npy.read_magic(file)
    if version != (1, 0):
        raise UnfitPicture(f"NPY of version {version}, expected 1.0")
    shape, _, dtype = npy.read_array_header_1_0(file)
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) == 3 and channels_first(shape):
        found = f"array of shape {shape}, which may be C H W, expected H W or H W C"
        raise UnfitPicture(f"{found}: save array.transpose(1, 2, 0)")
    if len(shape) not in (2, 3) or not 1 <= channels <= _MAX_CHANNELS:
        raise UnfitPicture(f"array of shape {shape}, expected H W or H W C")
    _check_size(*shape[:2], bytes_per_pixel=channels * dtype.itemsize)
    return PixelKind(pixel_dtype(dtype), channels)


def _check_size(height: int, width: int, *, bytes_per_pixel: int = 1) -> None:
    if min(height, width) < 1:
        raise BadPicture(f"no pixels ({height} x {width})")
    if height * width > MAX_PIXELS:
        raise UnfitPicture(f"too large ({height} x {width}, at most {MAX_PIXELS} pixels)")
    if height * width * bytes_per_pixel > _MAX_BYTES:
        found = f"{height} x {width} of {bytes_per_pixel} bytes each"
        raise UnfitPicture(f"too large ({found}, at most {_MAX_BYTES} bytes)")


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
    raise UnfitPicture(f"values of type {found}, expected uint8, uint16 or float32")


def printable(text: str) -> str:
    """Escape what cannot be printed on one line: breaks, tabs, bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
