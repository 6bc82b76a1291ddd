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
from numpy.typing import NDArray
from PIL import Image

from mae.data.decoding.strips import row_strips

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
_SEQUENCE = re.compile(
    r'^ImageJ=.*^(slices|frames)=(?!1$)|<OME\b.*?\bSize[ZT]="(?!1")|"axes": "\w*[ZT]', re.M | re.S
)


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


def beyond_pillow(image: Image.Image, *, channels: int | None) -> bool:
    """Whether Pillow would drop bands, bits, or pages that are channels, or change values.

    Args:
        image: a TIFF that Pillow has opened.
        channels: requested by the user, if at all; this many grey pages are then channels.

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
    pages = getattr(image, "n_frames", 1)
    return pages > 1 and (
        _declared_channels(tags.get(DESCRIPTION)) > 1
        or (pages == channels and _are_channels(_pages_of(image)))
    )


def _unknown(photometric: int, bits: int) -> NotImplementedError:
    name = _COLOURS.get(photometric, f"photometric interpretation {photometric}")
    return NotImplementedError(
        f"TIFF of {name} of {bits} bits, expected grey, RGB, a palette, or CMYK or YCbCr of 8 bits "
        "without a sign or alpha"
    )


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


class _Page(NamedTuple):
    """Properties that pages must share to be channels."""

    size: tuple[int, ...]
    photometric: int
    bits: int
    sample_format: int
    samples: int
    description: str = ""


def _pages_of(image: Image.Image) -> Iterator[_Page]:
    for place in range(getattr(image, "n_frames", 1)):
        try:
            image.seek(place)
        except SyntaxError:  # of a mode unknown to Pillow
            yield _Page((), -1, 0, 0, 0)
            break
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        yield _Page(
            image.size,
            tags.get(_PHOTOMETRIC, _WHITE_IS_ZERO),
            max(tags.get(BITS, (1,))),
            max(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))),
            tags.get(SAMPLES, 1),
            tags.get(DESCRIPTION, "") if place == 0 else "",
        )
    image.seek(0)


def _are_channels(pages: Iterator[_Page]) -> bool:
    """Whether pages can be channels: equal, grey, and not described as slices or time points."""
    described, *others = pages
    first = described._replace(description="")
    return (
        _SEQUENCE.search(described.description) is None
        and first.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
        and (first.samples, first.bits > 1) == (1, True)
        and all(page == first for page in others)
    )


def bits_of(image: Image.Image) -> int:
    """Return the bits per value of a TIFF that Pillow has opened; 0 for other formats."""
    tags: Any = getattr(image, "tag_v2", {})
    return int(max(tags.get(BITS, (1,)))) if image.format == "TIFF" else 0


def to_full_range(pixels: NDArray[Any], *, bits: int) -> NDArray[Any]:
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
        channels: requested by the user, if at all; see `beyond_pillow`.

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
        tag = page.tags.get(ORIENTATION)
        orientation = 1 if tag is None else int(tag.value)
        asked = bool(planes) and _declared_channels(page.description) <= 1
        return Layout(page.imagelength, page.imagewidth, count, dtype, orientation, asked)


def read_pixels(file: BinaryIO, *, channels: int | None) -> NDArray[Any]:
    """Read the pixels H W C that `read_layout` describes.

    Palettes are looked up, min-is-white is inverted, and 1 to 15 bits are scaled to the full range
    of 8 or 16; other values are returned as stored.
    """
    with _opened(file) as tiff:
        planes = [_values(tiff.pages[place]) for place in _planes(tiff, channels) or [0]]
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)


def _values(frame: Any) -> NDArray[Any]:
    page = frame.keyframe  # holds what all pages of a series have in common
    _require_readable(page)
    try:
        pixels: NDArray[Any] = frame.asarray()
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
        colours: NDArray[np.uint16] = np.ascontiguousarray(page.colormap.T)
        looked_up: NDArray[np.uint16] = colours[pixels[..., 0]]
        return looked_up
    if page.photometric == _WHITE_IS_ZERO:
        pixels = np.subtract((1 << bits) - 1, pixels, dtype=pixels.dtype)
    return to_full_range(pixels, bits=bits)


def _unmultiplied(pixels: NDArray[Any], *, alpha: NDArray[Any]) -> NDArray[Any]:
    """Divide premultiplied pixels by alpha where it is not 0, as Pillow does for 8 bits."""
    whole = np.empty_like(pixels)
    for rows in row_strips(pixels.shape):
        part, by = pixels[rows], alpha[rows]
        if part.dtype.kind == "f":
            whole[rows] = part / np.where(by == 0, 1, by)
            continue
        full = np.iinfo(part.dtype).max
        divided = part.astype(np.uint64) * full // np.where(by == 0, full, by)
        whole[rows] = np.minimum(divided, full)
    return whole


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
        return list(range(len(tiff.pages))) if asked and _are_channels(_tiff_pages(tiff)) else []
    series = tiff.series[0]
    axis = series.axes.index("C") if "C" in series.axes else -1
    if axis < 0 or series.shape[axis] != declared:
        return []
    step = int(np.prod(series.shape[axis + 1 : -2], dtype=np.int64))
    return [place * step for place in range(declared)]


def _tiff_pages(tiff: Any) -> Iterator[_Page]:
    for place, page in enumerate(tiff.pages):
        yield _Page(
            page.shape,
            int(page.photometric),
            page.bitspersample,
            int(page.sampleformat),
            page.samplesperpixel,
            page.description if place == 0 else "",
        )


def _declared_channels(description: str | None) -> int:
    found = _CHANNELS.search(description or "")
    return int(found[1] or found[2]) if found else 1
