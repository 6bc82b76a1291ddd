"""Bytes of a picture file to pixels of one kind, and what kind a whole source has."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mae.data import header, tiff
from mae.data.header import BadPicture as BadPicture
from mae.data.header import PixelKind as PixelKind
from mae.data.header import UnfitPicture as UnfitPicture
from mae.data.source import FolderSource, Source
from mae.errors import DataError
from mae.network import PixelDtype

_FULL_RANGE: dict[PixelDtype, float] = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
_ORIENTATION = 0x0112  # an EXIF tag
# Markers of a JPEG: APP1, fill bytes, and those that have no length or no place in a head.
_UNUSUAL = frozenset((0xE1, 0xFF, 0x00, 0x01, *range(0xD0, 0xDA)))
_SCAN = 0xDA  # the marker of what follows the head
_SEGMENT = struct.Struct(">BBH")  # 0xFF, marker, and bytes to the next segment
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in units of 2^-16, as Pillow turns RGB to grey

T = TypeVar("T")


def decode(data: bytes | NDArray[Any], *, kind: PixelKind, shrink: int = 1) -> NDArray[Any]:
    """Decode a picture to pixels of exactly the kind of the run.

    Grey is replicated to 3 channels, colour is reduced to its luma for 1; integers are scaled by
    their full range. Alpha is dropped, the EXIF orientation applied, of an animation the first
    frame taken.

    Args:
        data: an encoded file, or pixels H W or H W C.
        kind: type and channels to deliver.
        shrink: 2, 4 or 8 for so much less of height and width, rounded up. Only a JPEG is
            shrunk, and none of CMYK or of an unknown sampling; anything else comes whole.

    Returns:
        H W C.
    Raises:
        BadPicture: with the reason, for what cannot be read; an `UnfitPicture` for what does not
            fit the kind, or needs a library that is not there.
    """
    if isinstance(data, bytes):
        pixels = _decode_file(data, kind.channels, shrink=shrink)
    else:
        pixels = data
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return _with_channels(_with_dtype(pixels, kind), kind)


def _decode_file(data: bytes, channels: int, *, shrink: int) -> NDArray[Any]:
    file_format = header.format_of(data[:16])
    space = "GRAY" if channels == 1 else "RGB"
    if file_format == "JPEG" and (size := _plain_jpeg_size(data)) is not None:
        try:
            if (plain := _decode_jpeg(data, space, size, shrink=shrink)) is not None:
                return plain
        except ValueError:
            pass  # damage is looked at once more below, and named
    file = io.BytesIO(data)
    with header.pillow_faults(file_format):
        if file_format == "NPY":
            header.npy_kind(file)
            file.seek(0)
            values: NDArray[Any] = np.load(file, allow_pickle=False)
            return values
        with header.opened(file, file_format) as picture:
            layout = header.layout_beyond_pillow(file, picture, channels=channels)
            if picture is None or layout is not None:
                assert layout is not None
                whole = _within_16_bits(tiff.read_pixels(file, channels=channels))
                return _upright(whole, layout.orientation)
            kind, pixels = header.picture_kind(picture), None
            if file_format == "JPEG" and picture.mode != "CMYK":
                size = picture.height, picture.width
                pixels = _decode_jpeg(data, space, size, shrink=shrink)
            if pixels is None:
                pixels = _decode_pillow(picture, kind)
            # Asked after loading: a TIFF is then upright already, and says so.
            return _upright(pixels, _orientation(picture))


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


def _decode_jpeg(
    data: bytes, space: str, size: tuple[int, int], *, shrink: int
) -> NDArray[np.uint8] | None:
    """Decode strictly: Pillow lets most damage pass, and gets only a sampling that is unknown."""
    height, width = (-(-side // shrink) for side in size)
    try:
        # The smallest scale that has as many rows and columns.
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, space, min_height=height, min_width=width
        )
        return pixels
    except ValueError as error:
        if "subsampling level" in str(error):
            return None
        raise


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
    with header.pillow_faults("JPEG"), Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
        header.picture_kind(picture)
        orientation, (width, height) = _orientation(picture), picture.size
        if orientation in (5, 6, 7, 8):
            height, width = width, height
        return JpegHead(height, width, turned=orientation != 1)


def _decode_pillow(picture: Image.Image, kind: PixelKind) -> NDArray[Any]:
    if kind.dtype == "uint8":
        return np.asarray(picture.convert("L" if kind.channels == 1 else "RGB"))
    return _within_16_bits(np.asarray(picture))  # convert() would clip 16 bits to 255


def _within_16_bits(pixels: NDArray[Any]) -> NDArray[Any]:
    """Keep integers of other types as uint16, where they fit; bytes and floats as they are."""
    if pixels.dtype.kind not in "iu" or pixels.dtype == np.uint8:
        return pixels
    if pixels.min() < 0 or pixels.max() > 65535:
        raise BadPicture("integers beyond 16 bits, expected 0 to 65535")
    return pixels.astype(np.uint16)


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


def _with_dtype(pixels: NDArray[Any], kind: PixelKind) -> NDArray[Any]:
    """Scale stored values to the run's type: integers by their full range, floats as they are."""
    found, wanted = header.pixel_dtype(pixels.dtype), kind.dtype
    if found == "float32":
        if wanted != "float32":
            raise UnfitPicture(f"floating-point values in a run of {wanted} pictures")
        with np.errstate(over="ignore"):
            values = pixels.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise BadPicture("values that are not finite")
        return values
    if found == wanted:
        return pixels.astype(wanted, copy=False)  # the machine's byte order
    if wanted == "float32":
        return pixels.astype(np.float32) / np.float32(_FULL_RANGE[found])
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
        luma: NDArray[np.float64] = pixels.astype(np.float64) @ np.array(_LUMA)[:, None] / 65536
        return (luma if kind.dtype == "float32" else np.floor(luma + 0.5)).astype(kind.dtype)
    raise UnfitPicture(f"{channels} channels in a run of {kind.channels}")


def survey(source: Source, *, channels: int | None = None, limit: int = 1000) -> PixelKind:
    """Decide the one kind of pixels of a run from the headers of its pictures.

    Any colour makes 3 channels; any 16 bits make uint16, any floats float32. Other numbers of
    channels are kept, where all pictures agree.

    Args:
        source: the pictures.
        channels: what the run asks for, if it does; see `header.read_kind`.
        limit: headers read at most, evenly spread over the source.
    Raises:
        DataError: where no header can be read, or the numbers of channels disagree.
    """
    kinds = _sampled(source, limit, lambda index: _stored_kind(source, index, channels))
    counts = {kind.channels: source.name(index) for index, kind in kinds.items()}
    if len(counts) > 1 and not counts.keys() <= {1, 3}:
        found = ", ".join(f"{name} has {count}" for count, name in sorted(counts.items()))
        raise DataError(
            f"channels: pictures disagree ({found}); expected grey and colour pictures, or the "
            "same number in all. Keep the kinds in folders of their own"
        )
    widest = max((kind.dtype for kind in kinds.values()), key=list(_FULL_RANGE).index)
    return PixelKind(widest, max(counts))


def _stored_kind(source: Source, index: int, channels: int | None) -> PixelKind:
    if isinstance(source, FolderSource):
        with source.open(index) as file:
            return header.read_kind(file, channels=channels)
    data = source.read(index)
    if isinstance(data, bytes):
        return header.read_kind(io.BytesIO(data), channels=channels)
    return PixelKind(header.pixel_dtype(data.dtype), data.shape[2] if data.ndim == 3 else 1)


def measure_pixels(
    source: Source, *, kind: PixelKind, limit: int = 1000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of each channel, on the scale of `PixelConfig`.

    Every picture counts alike whatever its size, as in training; unreadable ones are passed over.

    Args:
        source: the pictures.
        kind: what they are decoded to.
        limit: pictures read at most, evenly spread over the source.

    Returns:
        Mean and deviation; the deviation of a channel that never varies is 1.
    Raises:
        DataError: where none can be read.
    """

    def moments(index: int) -> NDArray[np.float64]:
        pixels = decode(source.read(index), kind=kind)
        planes = np.array(pixels.reshape(-1, kind.channels).T, dtype=np.float64, order="C")
        planes /= _FULL_RANGE[kind.dtype]
        return np.stack([planes.mean(axis=1), np.square(planes).mean(axis=1)])

    mean, square = np.mean(list(_sampled(source, limit, moments).values()), axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    std[std < 1e-6 * np.maximum(1, np.abs(mean))] = 1
    return tuple(mean.tolist()), tuple(std.tolist())


def _sampled(source: Source, limit: int, look: Callable[[int], T]) -> dict[int, T]:
    """Look at some pictures, evenly spread; those that cannot be read are passed over."""
    count = min(len(source), limit)
    found: dict[int, T] = {}
    faults: list[str] = []
    for index in (place * len(source) // count for place in range(count)):
        try:
            found[index] = look(index)
        except BadPicture as error:
            faults.append(f"{source.name(index)}: {error}")
    if not found:
        raise DataError(
            f"no readable picture: looked at {count}, expected one at least "
            f"({'; '.join(faults[:3])}). Check the files"
        )
    return found
