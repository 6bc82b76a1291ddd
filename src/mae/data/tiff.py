"""TIFF files that Pillow cannot read in full: any number of bands, deep colour, pages as channels.

Pillow reads the others. What is opened here needs tifffile, the extra `tiff`; files compressed by
LZW, PackBits, JPEG and the like need imagecodecs beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DESCRIPTION, SAMPLES, ORIENTATION, BITS = 270, 277, 274, 258  # TIFF tags
_ALPHA = (1, 2)  # extra samples that are transparency
_CMYK = 5  # a photometric interpretation
_CHANNELS = re.compile(r'^ImageJ=.*^channels=(\d+)|<OME\b.*?\bSizeC="(\d+)"', re.M | re.S)


class Layout(NamedTuple):
    """What a file holds, before its pixels are read."""

    height: int
    width: int
    channels: int
    """Bands that are not transparency, or pages that are channels."""
    dtype: np.dtype[Any]
    orientation: int
    """As EXIF counts it, 1 to 8."""


def beyond_pillow(picture: Image.Image, *, channels: int | None) -> bool:
    """Tell whether Pillow would drop bands, bits, or pages that are channels.

    Args:
        picture: a TIFF that Pillow has opened.
        channels: what the run asks for, if that is known; see `_planes`.
    """
    tags: Any = getattr(picture, "tag_v2", {})
    bands = tags.get(SAMPLES, 1)
    if bands > 1:
        shallow = max(tags.get(BITS, (8,))) <= 8
        return picture.mode != "P" and (bands > len(picture.getbands()) or not shallow)
    pages = getattr(picture, "n_frames", 1)
    return pages > 1 and (_channels_said(tags.get(DESCRIPTION)) > 1 or pages == channels)


def read_layout(file: BinaryIO, *, channels: int | None) -> Layout:
    """Read what a file holds from its tags.

    Args:
        file: a TIFF.
        channels: what the run asks for, if that is known.

    Raises:
        ModuleNotFoundError: without tifffile, with the command that installs it.
        Exception: whatever damage makes tifffile raise.
    """
    with _opened(file) as tiff:
        page = tiff.pages[0]
        count = len(_planes(tiff, channels)) or len(_bands(page))
        return _layout(page, count)


def read_pixels(file: BinaryIO, *, channels: int) -> NDArray[Any]:
    """Read the pixels as stored, H W C, by the rules of `read_layout`."""
    with _opened(file) as tiff:
        page = tiff.pages[0]
        try:
            if planes := _planes(tiff, channels):
                return np.stack([tiff.pages[place].asarray() for place in planes], axis=-1)
            pixels: NDArray[Any] = page.asarray()
        except (KeyError, ValueError) as error:  # which of them depends on the version
            if "imagecodecs" in str(error):
                name = page.compression.name
                raise ModuleNotFoundError(f"{name}: pip install imagecodecs reads it") from error
            raise
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        return pixels[..., _bands(page)] if page.axes != "YX" else pixels[..., None]


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Any]:
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pip install 'mae-vision[tiff]' reads it") from error
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        yield tiff


def _layout(page: Any, channels: int) -> Layout:
    if page.dtype is None or page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"{page.bitspersample} bits a value, axes {page.axes}")
    if page.photometric == _CMYK and page.dtype.itemsize > 1:
        raise ValueError("CMYK of more than 8 bits")
    tag = page.tags.get(ORIENTATION)
    orientation = 1 if tag is None else int(tag.value)
    return Layout(page.imagelength, page.imagewidth, channels, page.dtype, orientation)


def _bands(page: Any) -> list[int]:
    """Give the bands of a page that are not transparency."""
    first_extra = page.samplesperpixel - len(page.extrasamples)
    alphas = {first_extra + i for i, sort in enumerate(page.extrasamples) if sort in _ALPHA}
    return [band for band in range(page.samplesperpixel) if band not in alphas]


def _planes(tiff: Any, channels: int | None) -> list[int]:
    """Give the pages that are the channels of one picture; none where the first page is all.

    ImageJ and OME say which pages are channels: of the first slice and time they are taken. A file
    that does not say so is one picture only if it has just as many pages as channels are wanted.
    """
    page = tiff.pages[0]
    if page.samplesperpixel > 1:
        return []
    said = _channels_said(page.description)
    if said <= 1:
        count = len(tiff.pages) if channels != 1 else 1
        return list(range(count)) if count == channels else []
    series = tiff.series[0]
    axis = series.axes.index("C") if "C" in series.axes else -1
    if axis < 0 or series.shape[axis] != said:
        return []
    step = int(np.prod(series.shape[axis + 1 : -2], dtype=np.int64))
    return [place * step for place in range(said)]


def _channels_said(description: str | None) -> int:
    found = _CHANNELS.search(description or "")
    return int(found[1] or found[2]) if found else 1
