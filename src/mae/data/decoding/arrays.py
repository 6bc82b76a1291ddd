"""Resolve the axis order of image arrays, or reject ambiguous shapes."""

from __future__ import annotations

import numpy as np

from mae.data.types import Pixels
from mae.errors import DataError

_MOST_USUAL = 4  # channels: grey, with alpha, colour, with alpha


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an array of three axes is C H W rather than H W C, by its shape alone."""
    C, H, W = shape
    return C <= _MOST_USUAL < W or C < H == W


def require_channels_last(shape: tuple[int, ...]) -> None:
    """Reject an array that is unlikely to be B H W or B H W C, without a known channel count.

    Raises:
        DataError: for one image H W C, B C H W and C H W, with the conversion to apply.
    """
    if len(shape) == 4:
        if channels_first(shape[1:]):
            raise _asked(shape, "B C H W", "give images.transpose(0, 2, 3, 1)")
    elif shape[-1] <= _MOST_USUAL:
        raise _asked(shape, "one image H W C", "give images[None]")
    elif shape[0] == 3:
        how = "for one image C H W give images.transpose(1, 2, 0)[None]"
        raise _asked(shape, "C H W", f"{how}, for 3 grey images give images[..., None]")


def as_batch(array: Pixels, *, channels: int, is_tensor: bool = False) -> Pixels:
    """Convert one or several images to B H W C, given the input channels of a network.

    Args:
        array: H W, H W C, B H W or B H W C.
        channels: input channels of the network.
        is_tensor: whether C H W and B C H W are accepted, too.

    Raises:
        DataError: if channels come first in an array that is no tensor, or the order is ambiguous.
    """
    shape = array.shape
    if len(shape) == 2:
        return array[None, ..., None]
    if len(shape) not in (3, 4) or not array.size:
        raise DataError(
            f"images: got shape {shape}, expected H W, H W C, B H W or B H W C, not empty"
        )
    first, last = shape[-3], shape[-1]
    if len(shape) == 4:
        if is_tensor and _fits(first, channels):
            return np.moveaxis(array, 1, -1)
        if _fits(first, channels) and not _fits(last, channels):
            raise _asked(shape, "B C H W", "give images.transpose(0, 2, 3, 1)")
        return array
    if is_tensor and first == channels > 1:
        return np.moveaxis(array, 0, -1)[None]
    if _fits(last, channels):
        return array[None]
    if first == channels > 1 or (is_tensor and first in (3, 4)):
        order = "permute" if is_tensor else "transpose"
        how = f"for one image C H W give images.{order}(1, 2, 0)"
        raise _asked(shape, "C H W", f"{how}, for {first} grey images give images[..., None]")
    return array[..., None]


def as_image(array: Pixels, *, channels: int, is_tensor: bool = False) -> Pixels:
    """Convert a single image to H W C, given the input channels of a network.

    Args:
        array: H W, H W C or 1 H W.
        channels: input channels of the network.
        is_tensor: whether C H W is accepted, too.

    Raises:
        DataError: for any other shape; for C H W with the conversion to apply.
    """
    shape = array.shape
    if len(shape) == 2:
        return array[..., None]
    if len(shape) != 3 or not (_fits(shape[0], channels) or _fits(shape[2], channels)):
        raise DataError(f"images: got shape {shape}, expected one image H W or H W C")
    first = _fits(shape[0], channels) and not _fits(shape[2], channels)
    if first and not is_tensor and shape[0] > 1:
        raise _asked(shape, "C H W", "give image.transpose(1, 2, 0)")
    return np.moveaxis(array, 0, -1) if first else array


def _fits(count: int, channels: int) -> bool:
    return count == channels or count <= _MOST_USUAL


def _asked(shape: tuple[int, ...], what: str, how: str) -> DataError:
    return DataError(f"images: got shape {shape}, which may be {what}; {how}")
