"""Bytes of an image file to pixels of one kind."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mae.config.model import PixelDtype
from mae.data.decoding import header, jpeg, tiff
from mae.data.decoding.header import BadPicture as BadPicture
from mae.data.decoding.header import PagesKind as PagesKind
from mae.data.decoding.header import PixelKind as PixelKind
from mae.data.decoding.header import UnfitPicture as UnfitPicture
from mae.data.decoding.strips import row_strips

FULL_RANGE: dict[PixelDtype, float] = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
_ORIENTATION = 0x0112  # an EXIF tag
# Markers of a JPEG: APP1, fill bytes, and those that have no length or no place in a head.
_UNUSUAL = frozenset((0xE1, 0xFF, 0x00, 0x01, *range(0xD0, 0xDA)))
_SCAN = 0xDA  # the marker of what follows the head
_SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, and bytes to the next segment
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in units of 2^-16, as Pillow turns RGB to grey


def say_nothing(line: str) -> None:
    """Drop a line for the user."""


def decode(
    data: bytes | NDArray[Any],
    *,
    kind: PixelKind,
    shrink: int = 1,
    warn: Callable[[str], None] = say_nothing,
) -> NDArray[Any]:
    """Decode an image to pixels of exactly the kind of the run.

    Grey is replicated to 3 channels, colour is reduced to its luma for 1; integers are scaled by
    their full range. Alpha is dropped, the EXIF orientation applied, of an animation the first
    frame taken.

    Args:
        data: an encoded file, or pixels H W or H W C.
        kind: type and channels to deliver; of a `PagesKind`, as many grey pages are channels.
        shrink: 2, 4 or 8 for so much less of height and width, rounded up. Only a JPEG is
            shrunk, and none of CMYK or of an unknown sampling; anything else comes whole.
        warn: takes what is wrong with a file whose pixels are sound, in one line.

    Returns:
        H W C.
    Raises:
        BadPicture: with the reason, for what cannot be read; an `UnfitPicture` for what is sound
            but does not fit the kind, or needs a library that is not there.
    """
    if isinstance(data, bytes):
        pixels = _decode_file(data, kind, shrink=shrink, warn=warn)
    else:
        pixels = data
    return _converted(pixels[..., None] if pixels.ndim == 2 else pixels, kind)


def _decode_file(
    data: bytes, kind: PixelKind, *, shrink: int, warn: Callable[[str], None]
) -> NDArray[Any]:
    file_format = header.format_of(data[:16])
    space = "GRAY" if kind.channels == 1 else "RGB"
    if file_format == "JPEG" and (size := _plain_jpeg_size(data)) is not None:
        try:
            if (plain := jpeg.strictly_decoded(data, space, size, shrink=shrink)) is not None:
                return plain
        except ValueError:
            pass  # damage is looked at once more below, and named
    file, channels = io.BytesIO(data), header.asked_channels(kind)
    split = header.is_deep_grey_alpha(data)
    with header.pillow_faults(file_format):
        if file_format == "NPY":
            header.npy_kind(file)
            file.seek(0)
            values: NDArray[Any] = np.load(file, allow_pickle=False)
            return values
        if split:
            file = io.BytesIO(header.grey_alpha_as_bytes(data))
        with header.opened(file, file_format) as picture:
            layout = header.layout_beyond_pillow(file, picture, channels=channels)
            if picture is None or layout is not None:
                assert layout is not None
                whole = _unsigned(tiff.read_pixels(file, channels=channels))
                return _upright(whole, layout.orientation)
            header.picture_kind(picture)
            with header.libtiff_heard(file_format, warn):
                if file_format == "JPEG":
                    pixels = _decode_opened_jpeg(data, picture, space, shrink=shrink, warn=warn)
                else:
                    pixels = _by_pillow(picture, split=split)
            # Asked after loading: a TIFF is then upright already, and says so.
            orientation = _orientation(picture)
        del picture  # Pillow's copy of the pixels goes before one more is made to turn them
        return _upright(pixels, orientation)


def _decode_opened_jpeg(
    data: bytes,
    picture: Image.Image,
    space: str,
    *,
    shrink: int,
    warn: Callable[[str], None],
) -> NDArray[Any]:
    if reason := jpeg.other_process(data):
        raise UnfitPicture(reason)
    size = picture.height, picture.width
    if picture.mode != "CMYK":
        pixels = _decode_jpeg(data, space, size, shrink=shrink, warn=warn)
        return _by_pillow(picture) if pixels is None else pixels
    inks = _decode_jpeg(data, "CMYK", size, shrink=1, warn=warn)
    if inks is None:
        return _by_pillow(picture)
    np.invert(inks, out=inks)  # as Pillow takes every CMYK JPEG to be meant
    return _by_pillow(Image.frombuffer("CMYK", picture.size, inks, "raw", "CMYK", 0, 1))


def _decode_jpeg(
    data: bytes,
    space: str,
    size: tuple[int, int],
    *,
    shrink: int,
    warn: Callable[[str], None],
) -> NDArray[np.uint8] | None:
    """Decode strictly, or without what is damaged in the head and reaches no pixel."""
    try:
        return jpeg.strictly_decoded(data, space, size, shrink=shrink)
    except ValueError as error:
        if (sound := jpeg.without_damaged_head(data)) is None:
            raise
        pixels = jpeg.strictly_decoded(sound, space, size, shrink=shrink)
        warn(f"JPEG of which the head is damaged ({header.printable(str(error))})")
        return pixels


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Give height and width of a JPEG that needs no look by Pillow, which costs as 4 % of a crop.

    That is one whose head holds nothing but tables and frame: an orientation stands in an APP1
    segment (EXIF or XMP), and whatever is unusual has to be judged by Pillow.
    """
    place = 2
    try:
        lead, marker, length = _SEGMENT.unpack_from(data, place)
        while lead == 0xFF and marker != _SCAN:
            if marker in _UNUSUAL:
                return None
            place += 2 + length
            lead, marker, length = _SEGMENT.unpack_from(data, place)
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except (struct.error, ValueError):
        return None
    usual = space in ("YCbCr", "RGB", "Gray") and height * width <= header.MAX_PIXELS
    return (height, width) if usual and lead == 0xFF else None


class JpegHead(NamedTuple):
    """What the head of a JPEG says of its size."""

    height: int
    """Once it is upright, as the width."""
    width: int
    turned: bool
    """Whether it has to be turned or mirrored to be upright."""


def jpeg_head(data: bytes) -> JpegHead | None:
    """Read the head of a JPEG; None of any other file.

    Raises:
        BadPicture: if the head makes no sense.
    """
    if header.format_of(data[:16]) != "JPEG":
        return None
    if (size := _plain_jpeg_size(data)) is not None:
        return JpegHead(*size, turned=False)
    with header.pillow_faults("JPEG"), header.opened(io.BytesIO(data), "JPEG") as picture:
        assert picture is not None
        header.picture_kind(picture)
        orientation, (width, height) = _orientation(picture), picture.size
        if orientation in (5, 6, 7, 8):
            height, width = width, height
        return JpegHead(height, width, turned=orientation != 1)


def _by_pillow(picture: Image.Image, *, split: bool = False) -> NDArray[Any]:
    """Give the pixels of an opened image, H W [C], a few rows at a time.

    Args:
        picture: bytes become grey or RGB; 16 bits and floats stay, which convert() would clip.
        split: by `header.grey_alpha_as_bytes`, whose first two bytes are the grey.
    """
    picture.load()
    kind, bits = header.picture_kind(picture), tiff.bits_of(picture)
    width, height = picture.size
    whole: NDArray[Any] | None = None
    for rows in row_strips((height, width, kind.channels)):
        part = picture
        if rows.stop - rows.start < height:
            part = picture.crop((0, rows.start, width, rows.stop))
        if split:
            high, low = (np.asarray(part.getchannel(c)) for c in (0, 1))
            values: NDArray[Any] = high.astype(np.uint16) << 8 | low
        elif kind.dtype == "uint8":
            mode = "L" if kind.channels == 1 else "RGB"
            values = np.asarray(part if part.mode == mode else part.convert(mode))
        else:
            values = tiff.to_full_range(_unsigned(np.asarray(part)), bits=bits)
        if part is picture:
            return values
        if whole is None:
            whole = np.empty((height, *values.shape[1:]), values.dtype)
        whole[rows] = values
    assert whole is not None  # there are rows
    return whole


def _unsigned(pixels: NDArray[Any]) -> NDArray[Any]:
    """Keep integers of other types as uint16, of one byte as uint8, where they fit; floats stay."""
    if pixels.dtype.kind not in "iu" or pixels.dtype == np.uint8:
        return pixels
    one_byte = pixels.dtype.itemsize == 1
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UnfitPicture(
            "integers below 0, expected 0 to 127 where they have a sign"
            if one_byte
            else "integers beyond 16 bits, expected 0 to 65535"
        )
    return pixels.astype(np.uint8 if one_byte else np.uint16, copy=False)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises nearly anything, and does not spoil the pixels
        return 1


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn H W [C] pixels as the EXIF orientation (1 to 8) asks."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _converted(pixels: NDArray[Any], kind: PixelKind) -> NDArray[Any]:
    """Give H W C the type and the channels of a kind, a few rows at a time."""

    def convert(part: NDArray[Any]) -> NDArray[Any]:
        return _with_channels(_with_dtype(part, kind), kind)

    strips = list(row_strips((*pixels.shape[:2], max(pixels.shape[2], kind.channels))))
    if len(strips) == 1:
        return convert(pixels)
    if (pixels.dtype, pixels.shape[2]) == (np.dtype(kind.dtype), kind.channels):
        for rows in strips:
            convert(pixels[rows])  # refuses values that are not finite
        return pixels
    whole = np.empty((*pixels.shape[:2], kind.channels), kind.dtype)
    for rows in strips:
        whole[rows] = convert(pixels[rows])
    return whole


def _with_dtype(pixels: NDArray[Any], kind: PixelKind) -> NDArray[Any]:
    """Scale stored values to the run's type: integers by their full range, floats as they are."""
    found, wanted = header.pixel_dtype(pixels.dtype), kind.dtype
    if found == "float32":
        if wanted != "float32":
            raise UnfitPicture(f"floating-point values in a run of {wanted} pictures")
        with np.errstate(over="ignore"):
            values = pixels.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise UnfitPicture("values that are not finite")
        return values
    if found == wanted:
        return pixels.astype(wanted, copy=False)  # the machine's byte order
    if wanted == "float32":
        return pixels.astype(np.float32) / np.float32(FULL_RANGE[found])
    if wanted == "uint16":
        return pixels.astype(np.uint16) * np.uint16(257)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _with_channels(pixels: NDArray[Any], kind: PixelKind) -> NDArray[Any]:
    channels = pixels.shape[2]
    if channels == kind.channels:
        return pixels
    if channels == 1 and kind.channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if channels == 3 and kind.channels == 1:
        if kind.dtype == "float32":
            exact: NDArray[np.float64] = pixels.astype(np.float64) @ np.array(_LUMA)[:, None]
            return (exact / 65536).astype(np.float32)
        luma = np.full((*pixels.shape[:2], 1), 1 << 15, np.uint32)  # a half, to round
        for channel, weight in enumerate(_LUMA):
            luma += np.multiply(pixels[..., channel, None], weight, dtype=np.uint32)
        return (luma >> np.uint32(16)).astype(kind.dtype)
    raise UnfitPicture(f"{channels} channels in a run of {kind.channels}")
