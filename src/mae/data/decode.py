"""Bytes of a picture file to pixels of one kind, and what kind a whole source has."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mae.data import header
from mae.data.header import BadPicture as BadPicture
from mae.data.header import PixelKind as PixelKind
from mae.data.source import FolderSource, Source
from mae.errors import DataError

_DAMAGE = ("corrupt", "premature", "invalid", "inconsistent", "unsupported marker")
_ORIENTATION = 0x0112  # an EXIF tag
_EXIF_BYTES = 2**17  # the head of a JPEG that is searched for it
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in units of 2^-16, as Pillow turns RGB to grey


def decode(data: bytes | NDArray[Any], *, kind: PixelKind) -> NDArray[Any]:
    """Decode a picture to pixels of exactly the kind of the run.

    Grey is replicated to 3 channels, colour is reduced to its luma for 1; integers are scaled by
    their full range. Alpha is dropped, the EXIF orientation applied, of an animation the first
    frame taken.

    Args:
        data: an encoded file, or pixels H W or H W C.
        kind: type and channels to deliver.

    Returns:
        H W C.
    Raises:
        BadPicture: with the reason, for what cannot be read or does not fit the kind.
    """
    pixels = _decode_file(data, grey=kind.channels == 1) if isinstance(data, bytes) else data
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return _with_channels(_with_dtype(pixels, kind), kind)


def _decode_file(data: bytes, *, grey: bool) -> NDArray[Any]:
    file_format = header.format_of(data[:32])
    if file_format == "NPY":
        return _decode_npy(data)
    if file_format == "JPEG":
        pixels = _decode_jpeg(data, "GRAY" if grey else "RGB")
        if pixels is not None:
            exif = data.find(b"Exif\x00\x00", 0, _EXIF_BYTES) >= 0
            return _upright(pixels, _jpeg_orientation(data) if exif else 1)
    return _decode_pillow(data)


def _decode_jpeg(data: bytes, colorspace: str) -> NDArray[Any] | None:
    """Decode strictly; None where the file is of a sort that only Pillow reads, as CMYK.

    Damage is never left to Pillow, which lets most of it pass in silence.
    """
    try:
        height, width, stored, _ = simplejpeg.decode_jpeg_header(data)
        header.check_size(height, width)
        if stored not in ("YCbCr", "RGB", "Gray"):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace)
    except BadPicture:
        raise
    except ValueError as error:
        if any(word in str(error).lower() for word in _DAMAGE):
            raise BadPicture(f"JPEG that cannot be decoded ({error})") from error
        return None
    return pixels


def _jpeg_orientation(data: bytes) -> int:
    with header.pillow_faults("JPEG"), header.open_pillow(io.BytesIO(data), "JPEG") as picture:
        return _orientation(picture)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises nearly anything, and does not spoil the pixels
        return 1


def _decode_pillow(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    file_format, _, _, (dtype, channels) = header.read_header(file)
    with header.pillow_faults(file_format), header.open_pillow(file, file_format) as picture:
        picture.load()
        # Asked after loading: a TIFF is then upright already, and says so.
        orientation = _orientation(picture)
        if dtype == "uint8":
            # PA, RGBa and La have no direct way to RGB and L.
            indirect = picture.mode in ("PA", "RGBa", "La")
            opaque = picture.convert("RGBA") if indirect else picture
            return _upright(
                np.asarray(opaque.convert("L" if channels == 1 else "RGB")), orientation
            )
        pixels = np.asarray(picture)  # convert() would clip 16 bits to 255
    if dtype == "uint16":
        if pixels.min() < 0 or pixels.max() > 65535:
            raise BadPicture("integers beyond 16 bits, expected 0 to 65535")
        pixels = pixels.astype(np.uint16)
    return _upright(pixels, orientation)


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn H W [C] pixels as the EXIF orientation (1 to 8) asks."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_npy(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    shape, columns_first, dtype = header.npy_layout(file)
    header.check_size(*shape[:2])
    header.pixel_dtype(dtype)
    if len(data) - file.tell() < math.prod(shape) * dtype.itemsize:
        raise BadPicture("NPY that is cut off")
    values = np.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=file.tell())
    return values.reshape(shape, order="F" if columns_first else "C")


def _with_dtype(pixels: NDArray[Any], kind: PixelKind) -> NDArray[Any]:
    """Scale stored values to the run's type: integers by their full range, floats as they are."""
    found, wanted = header.pixel_dtype(pixels.dtype), kind.dtype
    if found == "float32":
        if wanted != "float32":
            raise BadPicture(f"floating-point values in a run of {wanted} pictures")
        with np.errstate(over="ignore"):
            values = pixels.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise BadPicture("values that are not finite")
        return values
    if found == wanted:
        return pixels.astype(wanted, copy=False)  # the machine's byte order
    if wanted == "float32":
        return pixels.astype(np.float32) / np.float32(255 if found == "uint8" else 65535)
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
    raise BadPicture(f"{channels} channels in a run of {kind.channels}")


def survey(source: Source, *, limit: int = 1000) -> PixelKind:
    """Decide the one kind of pixels of a run from the headers of its pictures.

    Any colour makes 3 channels; any 16 bits make uint16, any floats float32. Other numbers of
    channels are kept, where all pictures agree.

    Args:
        source: the pictures.
        limit: headers read at most, evenly spread over the source.
    Raises:
        DataError: where no header can be read, or the numbers of channels disagree.
    """
    channels: dict[int, str] = {}
    dtypes: set[str] = set()
    faults: list[str] = []
    for index in _spread(len(source), limit):
        try:
            kind = _stored_kind(source, index)
        except BadPicture as error:
            faults.append(f"{source.name(index)}: {error}")
            continue
        channels.setdefault(kind.channels, source.name(index))
        dtypes.add(kind.dtype)
    if not channels:
        raise DataError(_none_readable(faults))
    if len(channels) > 1 and not channels.keys() <= {1, 3}:
        found = ", ".join(f"{name} has {count}" for count, name in sorted(channels.items()))
        raise DataError(
            f"channels: pictures disagree ({found}); expected grey and colour pictures, or the "
            "same number in all. Keep the kinds in folders of their own"
        )
    if "float32" in dtypes:
        return PixelKind("float32", max(channels))
    return PixelKind("uint16" if "uint16" in dtypes else "uint8", max(channels))


def _stored_kind(source: Source, index: int) -> PixelKind:
    if isinstance(source, FolderSource):
        with source.open(index) as file:
            return header.read_header(file).kind
    data = source.read(index)
    if isinstance(data, bytes):
        return header.read_header(io.BytesIO(data)).kind
    return PixelKind(header.pixel_dtype(data.dtype), data.shape[2] if data.ndim == 3 else 1)


def _spread(n: int, limit: int) -> list[int]:
    """Choose at most `limit` of `range(n)`, evenly spread."""
    count = min(n, limit)
    return [place * n // count for place in range(count)]


def _none_readable(faults: list[str]) -> str:
    return (
        f"no readable picture: looked at {len(faults)}, expected one at least "
        f"({'; '.join(faults[:3])}). Check the files"
    )


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
    faults: list[str] = []
    moments = list(_moments(source, _spread(len(source), limit), kind, faults))
    if not moments:
        raise DataError(_none_readable(faults))
    mean, square = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    std[std < 1e-6 * np.maximum(1, np.abs(mean))] = 1
    return tuple(mean.tolist()), tuple(std.tolist())


def _moments(
    source: Source, indices: list[int], kind: PixelKind, faults: list[str]
) -> Iterator[NDArray[np.float64]]:
    """Give mean and mean square of each picture, 2 C, and note those that cannot be read."""
    full_range = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}[kind.dtype]
    for index in indices:
        try:
            pixels = decode(source.read(index), kind=kind)
        except BadPicture as error:
            faults.append(f"{source.name(index)}: {error}")
            continue
        planes = np.array(pixels.reshape(-1, kind.channels).T, dtype=np.float64, order="C")
        planes /= full_range
        yield np.stack([planes.mean(axis=1), np.square(planes).mean(axis=1)])
