"""Decode image files to pixels of one kind."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mae.config.model import PixelDtype
from mae.data.decoding import header, jpeg, tiff
from mae.data.decoding.header import BadImage as BadImage
from mae.data.decoding.header import PagesKind as PagesKind
from mae.data.decoding.header import PixelKind as PixelKind
from mae.data.decoding.header import UnsupportedImage as UnsupportedImage
from mae.data.decoding.strips import by_strips, row_strips
from mae.data.types import Log, Pixels, Size

FULL_RANGE: dict[PixelDtype, float] = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
_ORIENTATION = 0x0112  # an EXIF tag
_APP1 = 0xE1  # a JPEG marker
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 luma in units of 2^-16, as in Pillow


def ignore_message(line: str) -> None:
    """Discard a message for the user."""


def decode(
    data: bytes | Pixels, *, kind: PixelKind, shrink: int = 1, warn: Log = ignore_message
) -> Pixels:
    """Decode an image to pixels of exactly the given kind.

    Grey is replicated to 3 channels and colour is reduced to luma for 1; integers are scaled by
    their full range. Alpha is dropped, the EXIF orientation is applied, and an animation gives its
    first frame.

    Args:
        data: an encoded file, or pixels H W or H W C.
        kind: type and channels to deliver; a `PagesKind` reads grey TIFF pages as channels.
        shrink: 2, 4 or 8 to divide height and width by it, rounded up. Only JPEGs are shrunk,
            except CMYK and unsupported subsampling; other images keep their size.
        warn: called with one line on damage that does not affect the pixels.

    Returns:
        H W C.
    Raises:
        BadImage: with the reason, if the image cannot be read; an `UnsupportedImage` if it is valid
            but does not fit the kind or needs a library that is not installed.
    """
    if isinstance(data, bytes):
        pixels = _decode_file(data, kind, shrink=shrink, warn=warn)
    else:
        pixels = data
    return _converted(pixels[..., None] if pixels.ndim == 2 else pixels, kind)


def _decode_file(data: bytes, kind: PixelKind, *, shrink: int, warn: Log) -> Pixels:
    file_format, channels = header.format_of(data[:16]), header.asked_channels(kind)
    space = "GRAY" if kind.channels == 1 else "RGB"
    if file_format == "JPEG" and (size := _plain_jpeg_size(data)) is not None:
        try:
            if (plain := jpeg.strictly_decoded(data, space, size, shrink=shrink)) is not None:
                return plain
        except ValueError:
            pass  # damage is diagnosed and reported below
    split = header.is_deep_grey_alpha(data)
    file = io.BytesIO(header.grey_alpha_as_bytes(data) if split else data)
    with header.opened(file, channels=channels) as found:
        if found.layout is not None:
            pixels = _unsigned(tiff.read_pixels(file, channels=channels))
            orientation = found.layout.orientation
        elif found.image is None:
            file.seek(0)
            return np.load(file, allow_pickle=False)  # type: ignore[no-any-return]
        else:
            with header.libtiff_heard(file_format, warn):
                if file_format == "JPEG":
                    pixels = _decode_opened_jpeg(data, found.image, space, shrink=shrink, warn=warn)
                else:
                    pixels = _by_pillow(found.image, split=split)
            # Read after loading: Pillow has then rotated a TIFF and reset its tag.
            orientation = _orientation(found.image)
        del found  # free Pillow's copy of the pixels before rotation makes another
    return _upright(pixels, orientation)


def _decode_opened_jpeg(
    data: bytes, image: Image.Image, space: str, *, shrink: int, warn: Log
) -> Pixels:
    """Decode strictly, or without damaged header parts that do not affect the pixels."""
    if reason := jpeg.other_process(data):
        raise UnsupportedImage(reason)
    inks, size = image.mode == "CMYK", (image.height, image.width)
    space, shrink = ("CMYK", 1) if inks else (space, shrink)
    try:
        pixels = jpeg.strictly_decoded(data, space, size, shrink=shrink)
    except ValueError as error:
        if (sound := jpeg.without_damaged_head(data)) is None:
            raise
        pixels = jpeg.strictly_decoded(sound, space, size, shrink=shrink)
        warn(f"JPEG with a damaged header ({header.printable(str(error))})")
    if pixels is None:
        return _by_pillow(image)
    if not inks:
        return pixels
    np.invert(pixels, out=pixels)  # as Pillow does for every CMYK JPEG
    return _by_pillow(Image.frombuffer("CMYK", image.size, pixels, "raw", "CMYK", 0, 1))


def _plain_jpeg_size(data: bytes) -> Size | None:
    """Return height and width of a plain JPEG, to skip Pillow, which costs 4 % of a crop.

    The header of a plain JPEG has no APP1 segment (EXIF or XMP), which may hold an orientation;
    Pillow examines all others. None if the JPEG is not plain.
    """
    if any(marker == _APP1 for marker, *_ in jpeg.segments(data)):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    usual = space in ("YCbCr", "RGB", "Gray") and height * width <= header.MAX_PIXELS
    return (height, width) if usual else None


class JpegHead(NamedTuple):
    """Size and orientation from the header of a JPEG."""

    height: int
    """Height after the EXIF orientation, as is `width`."""
    width: int
    turned: bool
    """Whether the EXIF orientation rotates or mirrors the image."""


def jpeg_head(data: bytes) -> JpegHead | None:
    """Read the header of a JPEG; None for any other file.

    Raises:
        BadImage: if the header is invalid.
    """
    if header.format_of(data[:16]) != "JPEG":
        return None
    if (size := _plain_jpeg_size(data)) is not None:
        return JpegHead(*size, turned=False)
    with header.opened(io.BytesIO(data)) as found:
        assert found.image is not None
        orientation, (width, height) = _orientation(found.image), found.image.size
        if orientation in (5, 6, 7, 8):
            height, width = width, height
        return JpegHead(height, width, turned=orientation != 1)


def _by_pillow(image: Image.Image, *, split: bool = False) -> Pixels:
    """Load the pixels of an opened image, H W [C], a few rows at a time.

    Args:
        image: 8-bit modes become grey or RGB; 16 bits and floats, which convert() would clip,
            are kept.
        split: whether it is from `header.grey_alpha_as_bytes`, with grey in R and G.
    """
    image.load()
    kind, bits = header.image_kind(image), tiff.bits_of(image)
    width, height = image.size

    def values(rows: slice) -> Pixels:
        whole = rows == slice(0, height)
        part = image if whole else image.crop((0, rows.start, width, rows.stop))
        if split:
            return np.ascontiguousarray(np.asarray(part)[..., :2]).view(">u2")
        if kind.dtype == "uint8":
            mode = "L" if kind.channels == 1 else "RGB"
            return np.asarray(part if part.mode == mode else part.convert(mode))
        return tiff.to_full_range(_unsigned(np.asarray(part)), bits=bits)

    return by_strips((height, width, kind.channels), values)


def _unsigned(pixels: Pixels) -> Pixels:
    """Cast integers to uint16, or of one byte to uint8, if the values fit; keep floats."""
    if pixels.dtype.kind not in "iu" or pixels.dtype == np.uint8:
        return pixels
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 65535:
        raise UnsupportedImage(f"integers from {low} to {high}, expected 0 to 65535")
    return pixels.astype(np.uint8 if pixels.dtype.itemsize == 1 else np.uint16, copy=False)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises nearly any exception, but the pixels are intact
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (1 to 8) to pixels H W [C]."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _converted(pixels: Pixels, kind: PixelKind) -> Pixels:
    """Convert H W C to the type and channels of a kind, a few rows at a time."""

    def convert(rows: slice) -> Pixels:
        return _with_channels(_with_dtype(pixels[rows], kind), kind)

    H, W, C = pixels.shape
    if (pixels.dtype, C) != (np.dtype(kind.dtype), kind.channels):
        return by_strips((H, W, max(C, kind.channels)), convert)
    for rows in row_strips(pixels.shape):
        convert(rows)  # raises for values that are not finite
    return pixels


def _with_dtype(pixels: Pixels, kind: PixelKind) -> Pixels:
    """Convert values to the type of a kind: scale integers by their full range, keep floats."""
    found, wanted = header.pixel_dtype(pixels.dtype), kind.dtype
    if found == "float32":
        if wanted != "float32":
            raise UnsupportedImage(f"floating-point values in a run of {wanted} images")
        with np.errstate(over="ignore"):
            values = pixels.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise UnsupportedImage("values that are not finite")
        return values
    if found == wanted:
        return pixels.astype(wanted, copy=False)  # to native byte order
    if wanted == "float32":
        return pixels.astype(np.float32) / np.float32(FULL_RANGE[found])
    if wanted == "uint16":
        return pixels.astype(np.uint16) * np.uint16(257)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _with_channels(pixels: Pixels, kind: PixelKind) -> Pixels:
    channels = pixels.shape[2]
    if channels == kind.channels:
        return pixels
    if channels == 1 and kind.channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if channels == 3 and kind.channels == 1:
        if kind.dtype == "float32":
            exact: NDArray[np.float64] = pixels.astype(np.float64) @ np.array(_LUMA)[:, None]
            return (exact / 65536).astype(np.float32)
        luma = np.full((*pixels.shape[:2], 1), 1 << 15, np.uint32)  # 0.5, to round
        for channel, weight in enumerate(_LUMA):
            luma += np.multiply(pixels[..., channel, None], weight, dtype=np.uint32)
        return (luma >> np.uint32(16)).astype(kind.dtype)
    raise UnsupportedImage(f"{channels} channels in a run of {kind.channels}")
