"""Read TIFFs beyond Pillow: any number of bands, deep colour, pages as channels.

Pillow reads all others. This module needs tifffile, from the extra `tiff`, and imagecodecs for
files compressed by LZW, PackBits, JPEG and the like. Unsupported colour spaces are
rejected, since their pixels would be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from mae.data.decoding.strips import by_strips
from mae.data.types import Pixels

DESCRIPTION, SAMPLES, ORIENTATION, BITS = 270, 277, 274, 258  # TIFF tags
_PHOTOMETRIC, _EXTRA, _SAMPLE_FORMAT, _COMPRESSION = 262, 338, 339, 259
_COEFFICIENTS, _SUBSAMPLING, _REFERENCE, _INKS, _PLANES = 529, 530, 532, 332, 284
_ALPHA = (1, 2)  # extra samples that hold alpha
_ASSOCIATED = 1  # premultiplied alpha
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_READ = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE)  # of any depth
_COLOURS = {
    4: "a transparency mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB",
    32803: "a colour filter array", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw",
}  # fmt: skip
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_BY_PILLOW: Mapping[tuple[int, int], tuple[int, ...]] = {
    (_WHITE_IS_ZERO, _UNSIGNED): (1, 2, 4, 8),
    (_BLACK_IS_ZERO, _UNSIGNED): (1, 2, 4, 8, 12, 16, 32),
    (_BLACK_IS_ZERO, _SIGNED): (16, 32),
    (_BLACK_IS_ZERO, _FLOAT): (32,),
    (_RGB, _UNSIGNED): (8,),
    (_PALETTE, _UNSIGNED): (1, 2, 4, 8),
    (_CMYK, _UNSIGNED): (8,),
    (_YCBCR, _UNSIGNED): (8,),
}
"""Bits per value that Pillow reads correctly, by photometric interpretation and sample format."""

_CHANNELS = re.compile(r'^ImageJ=.*^channels=(\d+)|<OME\b.*?\bSizeC="(\d+)"', re.M | re.S)


class Layout(NamedTuple):
    """Size, channels and type of a TIFF, read from its tags."""

    height: int
    width: int
    channels: int
    """Number of bands without alpha, of palette colours, or of pages read as channels."""
    dtype: np.dtype[Any]
    orientation: int
    """EXIF orientation, 1 to 8."""
    pages: bool
    """Whether pages are channels only because the user asked for this number."""


def beyond_pillow(image: Image.Image) -> bool:
    """Whether Pillow would drop bands, bits or declared channels of a TIFF, or change values.

    Raises:
        NotImplementedError: for colour spaces without a conversion.
    """
    tags: Any = getattr(image, "tag_v2", {})
    bands, photometric = tags.get(SAMPLES, 1), tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO)
    bits, formats = max(tags.get(BITS, (1,))), {*tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))}
    if photometric not in _READ and not (photometric in (_CMYK, _YCBCR) and bits == 8):
        raise _unknown(photometric, bits)
    if photometric == _CMYK and tags.get(_INKS, 1) != 1:
        raise NotImplementedError("TIFF of inks that are not CMYK")
    if photometric == _YCBCR:
        _require_usual(tags)
    read = _BY_PILLOW.get((photometric, max(formats)), ())
    dropped = bands > len(image.getbands()) and image.mode != "P"
    if dropped or bits not in read or image.mode == "La":
        return True
    return _declared_channels(tags.get(DESCRIPTION)) > 1 and getattr(image, "n_frames", 1) > 1


def _unknown(photometric: int, bits: int) -> NotImplementedError:
    name = _COLOURS.get(photometric, f"photometric interpretation {photometric}")
    usual = "grey, RGB, a palette, or unsigned 8-bit CMYK or YCbCr without alpha"
    return NotImplementedError(f"TIFF of {name} of {bits} bits, expected {usual}")


def _require_usual(tags: Mapping[int, Any]) -> None:
    """Reject YCbCr that Pillow would convert with other coefficients than those of the file.

    libtiff converts JPEG-compressed YCbCr correctly.
    """
    if tags.get(_COMPRESSION) in (6, 7):
        return
    if (tags.get(_PLANES, 1), tags.get(_COMPRESSION, 1)) == (2, 1):
        raise NotImplementedError("TIFF of YCbCr in planes, uncompressed")
    usual = {
        _COEFFICIENTS: (0.299, 0.587, 0.114),
        _SUBSAMPLING: (1, 1),
        _REFERENCE: (0, 255, 128, 255, 128, 255),
    }
    for tag, values in usual.items():
        if not np.allclose([float(v) for v in tags.get(tag, values)], values):
            raise NotImplementedError("TIFF of YCbCr that is subsampled or not that of JPEG")


def bits_of(image: Image.Image) -> int:
    """Return the bits per value of a TIFF that Pillow has opened; 0 for other formats."""
    tags: Any = getattr(image, "tag_v2", {})
    return int(max(tags.get(BITS, (1,)))) if image.format == "TIFF" else 0


def to_full_range(pixels: Pixels, *, bits: int) -> Pixels:
    """Scale unsigned values of 1 to 7 bits to 8, and of 9 to 15 to 16; keep others."""
    if pixels.dtype.kind != "u" or not (0 < bits < 8 or 8 < bits < 16):
        return pixels
    full = 255 if bits < 8 else 65535
    scaled = (pixels.astype(np.uint32) * full + ((1 << bits) - 1) // 2) // ((1 << bits) - 1)
    return scaled.astype(np.uint8 if bits < 8 else np.uint16)


def read_layout(file: BinaryIO, *, channels: int | None) -> Layout:
    """Read the layout of a TIFF from its tags.

    Args:
        file: a TIFF.
        channels: requested by the user, if at all; this many grey pages are then channels.

    Raises:
        ModuleNotFoundError: if tifffile is missing, with the command that installs it.
        NotImplementedError: for unsupported colour spaces or types.
        Exception: any exception that tifffile raises for a damaged file.
    """
    with _opened(file) as tiff:
        page, planes = tiff.pages[0], _planes(tiff, channels)
        _require_readable(page)
        dtype, count = page.dtype, len(planes) or len(_bands(page))
        if page.photometric == _PALETTE:
            dtype, count = np.dtype(np.uint16), 3
        elif dtype.kind in "ub" and page.bitspersample not in (8, 16, 32, 64):
            dtype = np.dtype(np.uint8 if page.bitspersample < 8 else np.uint16)
        orientation = int(page.tags.valueof(ORIENTATION, 1))
        asked = bool(planes) and _declared_channels(page.description) <= 1
        return Layout(page.imagelength, page.imagewidth, count, dtype, orientation, asked)


def read_pixels(file: BinaryIO, *, channels: int | None) -> Pixels:
    """Read the pixels H W C that `read_layout` describes.

    Palettes are looked up, min-is-white is inverted, and 1 to 15 bits are scaled to the full range
    of 8 or 16; other values are returned as stored.
    """
    with _opened(file) as tiff:
        planes = [_values(tiff.pages[place]) for place in _planes(tiff, channels) or [0]]
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)


def _values(frame: Any) -> Pixels:
    page = frame.keyframe  # holds what all pages of a series have in common
    _require_readable(page)
    try:
        pixels: Pixels = frame.asarray()
    except (KeyError, ValueError, NotImplementedError) as error:  # depends on the version
        if "imagecodecs" in str(error):
            plain = page.compression == 1
            name = f"{page.bitspersample} bits a value" if plain else page.compression.name
            raise ModuleNotFoundError(f"{name}: pip install imagecodecs reads it") from error
        raise
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    bands, bits = _bands(page), page.bitspersample
    pixels = pixels[..., None] if page.axes == "YX" else pixels
    if _ASSOCIATED in page.extrasamples:
        place = page.samplesperpixel - len(page.extrasamples)
        place += page.extrasamples.index(_ASSOCIATED)
        pixels = _unmultiplied(pixels, alpha=pixels[..., place : place + 1])
    if len(bands) < pixels.shape[-1]:
        pixels = pixels[..., bands]
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    if page.photometric == _PALETTE:
        colours: Pixels = np.ascontiguousarray(page.colormap.T)
        looked_up: Pixels = colours[pixels[..., 0]]
        return looked_up
    if page.photometric == _WHITE_IS_ZERO:
        pixels = np.subtract((1 << bits) - 1, pixels, dtype=pixels.dtype)
    return to_full_range(pixels, bits=bits)


def _unmultiplied(pixels: Pixels, *, alpha: Pixels) -> Pixels:
    """Divide premultiplied pixels by alpha where it is not 0, as Pillow does for 8 bits."""

    def divided(rows: slice) -> Pixels:
        part, by = pixels[rows], alpha[rows]
        if part.dtype.kind == "f":
            quotient: Pixels = part / np.where(by == 0, 1, by)
            return quotient
        full = np.iinfo(part.dtype).max
        exact = part.astype(np.uint64) * full // np.where(by == 0, full, by)
        return np.minimum(exact, full).astype(part.dtype)

    return by_strips(pixels.shape, divided)


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Any]:
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pip install 'mae-vision[tiff]' reads it") from error
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        yield tiff


def _require_readable(page: Any) -> None:
    photometric, bits = int(page.photometric), page.bitspersample
    if page.dtype is None or page.axes not in ("YX", "YXS", "SYX"):
        raise NotImplementedError(f"TIFF of {bits} bits a value, axes {page.axes}")
    if photometric not in _READ:
        raise _unknown(photometric, bits)
    unsigned = page.dtype.kind in "ub"
    if unsigned and not (bits <= 16 or bits in (32, 64)):
        raise NotImplementedError(f"TIFF of {bits} bits a value")
    only_one = photometric in (_WHITE_IS_ZERO, _PALETTE)
    if only_one and not (unsigned and len(_bands(page)) == 1):
        name = "min-is-white" if photometric == _WHITE_IS_ZERO else "a palette"
        raise NotImplementedError(f"TIFF of {name} of {len(_bands(page))} x {page.dtype}")


def _bands(page: Any) -> list[int]:
    """Return the bands of a page without alpha."""
    first_extra = page.samplesperpixel - len(page.extrasamples)
    alphas = {first_extra + i for i, extra in enumerate(page.extrasamples) if extra in _ALPHA}
    return [band for band in range(page.samplesperpixel) if band not in alphas]


def _planes(tiff: Any, channels: int | None) -> list[int]:
    """Return the pages that are the channels of one image; empty if the first page is the image.

    ImageJ and OME metadata declare which pages are channels; those of the first slice and time
    point are used. Without metadata, pages are channels only if they are grey and equal, and as
    many as the channels requested by the user.
    """
    page = tiff.pages[0]
    if page.samplesperpixel > 1:
        return []
    declared = _declared_channels(page.description)
    if declared <= 1:
        asked = channels is not None and 1 < channels == len(tiff.pages)
        return list(range(len(tiff.pages))) if asked and _are_channels(tiff) else []
    series = tiff.series[0]
    axis = series.axes.index("C") if "C" in series.axes else -1
    if axis < 0 or series.shape[axis] != declared:
        return []
    step = int(np.prod(series.shape[axis + 1 : -2], dtype=np.int64))
    return [place * step for place in range(declared)]


def _are_channels(tiff: Any) -> bool:
    """Whether pages can be channels: equal, grey, and not declared to be slices or time points."""
    pages = {
        (page.shape, page.photometric, page.bitspersample, page.sampleformat, page.samplesperpixel)
        for page in tiff.pages
    }
    first = tiff.pages[0]
    grey = first.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and first.bitspersample > 1
    return len(pages) == 1 and grey and not {"Z", "T"} & {*tiff.series[0].axes}


def _declared_channels(description: str | None) -> int:
    found = _CHANNELS.search(description or "")
    return int(found[1] or found[2]) if found else 1
