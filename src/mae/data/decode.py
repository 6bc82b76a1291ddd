"""Bytes of a picture file to pixels of one kind, and what kind a whole source has."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from mae.data.header import BadPicture as BadPicture
from mae.data.header import Header, npy_layout, open_pillow, pillow_faults, pixel_dtype, read_header
from mae.data.header import PixelKind as PixelKind
from mae.data.source import FolderSource, Source
from mae.errors import DataError

Pixels = NDArray[np.generic]

_DAMAGE = ("corrupt", "premature", "invalid", "unsupported marker")
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in units of 2^-16, as Pillow turns RGB to grey


def decode(data: bytes | Pixels, *, kind: PixelKind) -> Pixels:
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


def _decode_file(data: bytes, *, grey: bool) -> Pixels:
    header = read_header(io.BytesIO(data))
    if header.file_format == "NPY":
        return _decode_npy(data)
    if header.file_format == "JPEG" and header.components in (1, 3):
        pixels = _decode_jpeg(data, "GRAY" if grey else "RGB")
        if pixels is not None:
            return _upright(pixels, header.orientation)
    return _decode_pillow(data, header)


def _decode_jpeg(data: bytes, colorspace: str) -> Pixels | None:
    """Decode strictly; None where the file is of a sort that only Pillow reads.

    Damage is never left to Pillow, which lets most of it pass in silence.
    """
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colorspace)
    except ValueError as error:
        if any(word in str(error).lower() for word in _DAMAGE):
            raise BadPicture(f"JPEG that cannot be decoded ({error})") from error
        return None
    return pixels


def _decode_pillow(data: bytes, header: Header) -> Pixels:
    file_format, mode = header.file_format, ("L", "RGB")[header.kind.channels == 3]
    with pillow_faults(file_format), open_pillow(io.BytesIO(data), file_format) as picture:
        picture.load()
        # Asked after loading: a TIFF is then upright already, and says so.
        orientation = _orientation(picture)
        if header.kind.dtype == "uint8":
            if picture.mode in ("PA", "RGBa", "La"):  # no direct way to RGB and L
                return _upright(np.asarray(picture.convert("RGBA").convert(mode)), orientation)
            return _upright(np.asarray(picture.convert(mode)), orientation)
        pixels = np.asarray(picture)  # convert() would clip 16 bits to 255
    if header.kind.dtype == "uint16":
        if pixels.min() < 0 or pixels.max() > 65535:
            raise BadPicture("integers beyond 16 bits, expected 0 to 65535")
        pixels = pixels.astype(np.uint16)
    return _upright(pixels, orientation)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF raises nearly anything, and does not spoil the pixels
        return 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn H W [C] pixels as the EXIF orientation (1 to 8) asks."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_npy(data: bytes) -> Pixels:
    file = io.BytesIO(data)
    shape, columns_first, dtype = npy_layout(file)
    start, count = file.tell(), math.prod(shape)
    if len(data) - start < count * dtype.itemsize:
        raise BadPicture("NPY that is cut off")
    values = np.frombuffer(data, dtype=dtype, count=count, offset=start)
    return values.reshape(shape, order="F" if columns_first else "C")


def _with_dtype(pixels: Pixels, kind: PixelKind) -> Pixels:
    """Scale stored values to the run's type: integers by their full range, floats as they are."""
    found, wanted = pixel_dtype(pixels.dtype), kind.dtype
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


def _with_channels(pixels: Pixels, kind: PixelKind) -> Pixels:
    channels = pixels.shape[2]
    if channels == kind.channels:
        return pixels
    if channels == 1 and kind.channels == 3:
        return np.repeat(pixels, 3, axis=2)
    if channels == 3 and kind.channels == 1:
        if kind.dtype == "float32":
            return (pixels @ (np.float32(_LUMA) / 65536))[..., None]
        luma = (pixels.astype(np.int64) @ np.array(_LUMA) + 32768) >> 16
        return luma.astype(kind.dtype)[..., None]
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
    kinds: dict[PixelKind, str] = {}
    faults: list[str] = []
    for index in _spread(len(source), limit):
        try:
            kinds.setdefault(_stored_kind(source, index), source.name(index))
        except BadPicture as error:
            faults.append(f"{source.name(index)}: {error}")
    _require_some(bool(kinds), faults)
    channels = {kind.channels: name for kind, name in kinds.items()}
    if not channels.keys() <= {1, 3} and len(channels) > 1:
        found = ", ".join(f"{name} has {count}" for count, name in sorted(channels.items()))
        raise DataError(
            f"channels: pictures disagree ({found}); expected grey and colour pictures, or the "
            "same number in all. Keep the kinds in folders of their own"
        )
    dtypes = {kind.dtype for kind in kinds}
    dtype = next(d for d in ("float32", "uint16", "uint8") if d in dtypes)
    return PixelKind(dtype, max(channels))


def _spread(n: int, limit: int) -> list[int]:
    """Choose at most `limit` of `range(n)`, evenly spread."""
    count = min(n, limit)
    return [place * n // count for place in range(count)]


def _stored_kind(source: Source, index: int) -> PixelKind:
    if isinstance(source, FolderSource):
        with source.open(index) as file:
            return read_header(file).kind
    data = source.read(index)
    if isinstance(data, bytes):
        return read_header(io.BytesIO(data)).kind
    return PixelKind(pixel_dtype(data.dtype), data.shape[2] if data.ndim == 3 else 1)


def _require_some(found: bool, faults: list[str]) -> None:  # noqa: FBT001
    if not found:
        raise DataError(
            f"no readable picture: {len(faults)} looked at, none can be read "
            f"({'; '.join(faults[:3])}). Check the folder"
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
    moments = list(_moments(source, kind=kind, limit=limit))
    _require_some(bool(moments), [f"{source.name(index)} ..." for index in _spread(len(source), 1)])
    mean, square = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    std[std < 1e-6 * np.maximum(1, np.abs(mean))] = 1
    return tuple(mean.tolist()), tuple(std.tolist())


def _moments(source: Source, *, kind: PixelKind, limit: int) -> Iterator[NDArray[np.float64]]:
    full_range = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}[kind.dtype]
    for index in _spread(len(source), limit):
        try:
            values = decode(source.read(index), kind=kind) / np.float64(full_range)
        except BadPicture:
            continue
        yield np.stack([values.mean(axis=(0, 1)), np.square(values).mean(axis=(0, 1))])
