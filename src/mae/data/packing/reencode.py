"""Shrink and re-encode images before packing."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from mae.data.augment.crop import resized_crop
from mae.data.decoding import header
from mae.data.decoding.decode import PixelKind, decode


def as_file(data: bytes | NDArray[Any]) -> bytes:
    """Return an image as file content: pixels as .npy, a file unchanged."""
    if isinstance(data, bytes):
        return data
    file = io.BytesIO()
    np.save(file, data, allow_pickle=False)
    return file.getvalue()


def shrunk(data: bytes, *, short_side: int, quality: int) -> bytes:
    """Shrink the shorter side of an image and encode it as JPEG; keep a small one unchanged.

    Images that JPEG does not support (16 bits, floats, other than 1 or 3 channels) become .npy.

    Raises:
        BadImage: if the image cannot be read.
    """
    kind = header.read_kind(io.BytesIO(data))
    pixels = decode(data, kind=kind)
    H, W, C = pixels.shape
    if min(H, W) <= short_side:
        return data
    size = (round(H * short_side / min(H, W)), round(W * short_side / min(H, W)))
    small = resized_crop(pixels, (0, 0, H, W), size=size)
    if kind.dtype != "uint8" or C not in (1, 3):
        return as_file(small)
    colours = ("GRAY", "Gray") if C == 1 else ("RGB", "420")
    encoded: bytes = simplejpeg.encode_jpeg(small, quality, *colours, fastdct=False)
    return encoded


def central_square(data: bytes, *, edge: int, kind: PixelKind) -> bytes:
    """Return the largest centred square of an image, resized, as .npy.

    Raises:
        BadImage: if the image cannot be read or does not fit the kind.
    """
    pixels = decode(data, kind=kind)
    H, W, _ = pixels.shape
    side = min(H, W)
    box = ((H - side) // 2, (W - side) // 2, side, side)
    return as_file(resized_crop(pixels, box, size=(edge, edge)))
